"""The works by name: what a worker is asked for, in its own process or on another machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import MedQuantError
from .work import Work


def _segment(settings: dict[str, Any]) -> Work:
    from .segment_work import SegmentSettings, SegmentWork

    return SegmentWork(SegmentSettings.from_json(settings))


def _evaluate(settings: dict[str, Any]) -> Work:
    from .evaluate_work import EvaluateSettings, EvaluateWork

    return EvaluateWork(EvaluateSettings.from_json(settings))


def _compare(settings: dict[str, Any]) -> Work:
    from .compare_work import CompareSettings, CompareWork

    return CompareWork(CompareSettings.from_json(settings))


WORKS: dict[str, Callable[[dict[str, Any]], Work]] = {"segment": _segment, "evaluate": _evaluate, "compare": _compare}


#: Where the works' libraries come from.
_MODULES = {name: f"{__package__}.{name}_work" for name in WORKS}


def load_libraries(kind: str, device: str = "") -> None:
    """Load what a work needs before it is opened: its modules, and the driver of a GPU. What fails here fails again, in words, where it is used."""
    with suppress(Exception):
        importlib.import_module(_MODULES.get(kind, kind.partition(":")[0]))
    if device.startswith("gpu"):
        from ..engines.cuda.device import gpus

        with suppress(MedQuantError):
            gpus()


def open_work(kind: str, settings: dict[str, Any]) -> Work:
    """Make a work from its settings.

    Args:
        kind: a name in :data:`WORKS`, or "module:function" of a program that brings a work of its own; every worker must be able to
            import it.

    Raises:
        MedQuantError: the model or the engine cannot be used here.
    """
    if ":" in kind:
        module, _, name = kind.partition(":")
        return getattr(importlib.import_module(module), name)(settings)
    return WORKS[kind](settings)
