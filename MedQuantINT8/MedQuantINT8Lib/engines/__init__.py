"""Inference engines: one file each, found through :mod:`.registry`."""

from .base import (
    BuildOptions,
    Engine,
    EngineBackend,
    EngineDescription,
    LayerRecord,
)
from .registry import backend, backend_names, choose_backend, register

__all__ = [
    "BuildOptions",
    "Engine",
    "EngineBackend",
    "EngineDescription",
    "LayerRecord",
    "backend",
    "backend_names",
    "choose_backend",
    "register",
]
