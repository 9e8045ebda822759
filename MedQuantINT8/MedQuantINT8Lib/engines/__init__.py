"""Inference engines: one file each, found through the registry in :mod:`.base`."""

from .base import (
    BuildOptions,
    Engine,
    EngineBackend,
    EngineDescription,
    LayerRecord,
    availability,
    backend,
    backend_names,
    choose_backend,
    register,
)

__all__ = [
    "BuildOptions",
    "Engine",
    "EngineBackend",
    "EngineDescription",
    "LayerRecord",
    "availability",
    "backend",
    "backend_names",
    "choose_backend",
    "register",
]
