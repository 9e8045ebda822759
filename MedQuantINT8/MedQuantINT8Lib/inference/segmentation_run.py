"""A segmentation with everything that a report says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..imaging.preprocessing import NetworkInput
from ..imaging.segmentation_files import label_counts
from ..imaging.volume import Volume
from .segmenter import SegmentationResult


@dataclass
class SegmentationRun:
    """A segmentation with everything that a report says of it.

    Attributes:
        seconds: by stage, from reading the scan to the label map; "total" is wall time.
        engine: the engine's own report; of a task, that of all its engines together.
        network_input: what the network saw; None for a task, whose parts each saw their own.
        ranges: whether the scan left the calibrated ranges (:mod:`..inference.range_check`); None if that was not looked at.
        calls_ms: the milliseconds of each call of an engine, where they could be timed one by one.
        parts: of a task, one for each network that was run: its name, windows, seconds, engine and ranges.
        boxes: boxes that bounded the run: of the region of interest, and of each step of find that found something.
    """

    volume: Volume
    result: SegmentationResult
    seconds: dict[str, float]
    engine: dict[str, Any]
    latency_ms: dict[str, float] = field(default_factory=dict)
    network_input: NetworkInput | None = None
    ranges: dict[str, Any] | None = None
    calls_ms: list[float] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    boxes: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the maps as JSON values."""
        counts = label_counts(self.result.labels)
        return {
            "seconds": self.seconds,
            "engine": self.engine,
            "notes": self.result.notes,
            "windows": self.result.windows,
            "mirror_axes": list(self.result.mirror_axes),
            "latency_ms": self.latency_ms,
            "ranges": self.ranges,
            "parts": self.parts,
            "boxes": self.boxes,
            # Counted here, so that a window need not look through a hundred million voxels.
            "voxels": {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value},
        }


def latency_of(calls_ms: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile of an engine's calls, in milliseconds, and their number."""
    return {
        "median": float(np.median(calls_ms)),
        "p95": float(np.percentile(calls_ms, 95)),
        "calls": float(len(calls_ms)),
    }


def parts_json(runs: Sequence[tuple[str, SegmentationRun]]) -> list[dict[str, Any]]:
    """Return what a report says of each network of a run, by its name."""
    return [
        {
            "name": name,
            "windows": run.result.windows,
            "skipped_share": run.result.skipped_share,
            "mirror_axes": list(run.result.mirror_axes),
            "seconds": run.seconds,
            "latency_ms": run.latency_ms,
            "ranges": run.ranges,
            "engine": run.engine,
        }
        for name, run in runs
    ]


def summed_seconds(runs: Sequence[tuple[str, SegmentationRun]]) -> dict[str, float]:
    """Return the seconds of each stage, those of all runs together; not of reading, and no total."""
    seconds: dict[str, float] = {}
    for _, run in runs:
        for stage, value in run.seconds.items():
            if stage not in ("total", "reading"):
                seconds[stage] = seconds.get(stage, 0.0) + value
    return seconds


def worst_ranges(runs: Sequence[tuple[str, SegmentationRun]]) -> dict[str, Any] | None:
    """Return the look at ranges that is to be reported: one that warns, and of these where most of the input lies beyond them."""
    looked = [run.ranges for _, run in runs if run.ranges is not None]
    return max(looked, key=_suspicion) if looked else None


def _suspicion(ranges: dict[str, Any]) -> tuple[bool, float]:
    look = ranges.get("second_look") or {}
    return bool(look.get("warning") or ranges.get("warning")), ranges["input"] or 0.0
