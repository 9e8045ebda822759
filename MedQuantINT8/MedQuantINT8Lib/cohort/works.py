"""The works by name: what a worker is asked for, in its own process or on another machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .work import Work


def _segment(settings: dict[str, Any]) -> Work:
    from .segment_work import SegmentSettings, SegmentWork

    return SegmentWork(SegmentSettings.from_json(settings))


WORKS: dict[str, Callable[[dict[str, Any]], Work]] = {"segment": _segment}


def open_work(kind: str, settings: dict[str, Any]) -> Work:
    """Make a work from its settings.

    Raises:
        MedQuantError: the model or the engine cannot be used here.
    """
    return WORKS[kind](settings)
