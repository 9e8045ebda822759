"""Precision "auto": INT8, unless this machine runs the network's FP32 engine faster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..model import INT8, ModelPackage
from ..progress import Task
from .base import BuildOptions, Engine, EngineBackend, float_precision_of
from .fidelity import Patch
from .prepare import PreparedEngine, prepare

_ROUNDS = 3


def prepare_faster(
    package: ModelPackage, backend: EngineBackend, options: BuildOptions, patches: Sequence[Patch], task: Task
) -> PreparedEngine:
    """The INT8 engine if it is at least as fast as the FP32 engine, else that one; ``note`` says why.

    The race is run once, when there are patches to run it on, and its times are kept with the engine.

    Args:
        options: ``precision`` is ignored.
    """
    # An engine without FP32 is held against the most exact that it has.
    float_precision = float_precision_of(backend)
    fp32, int8 = replace(options, precision=float_precision), replace(options, precision="int8")
    if not package.has(INT8) or not backend.real_int8:
        prepared = prepare(package, backend, fp32, patches, task)
        prepared.note = (
            f"{float_precision.upper()}: {backend.title} computes no real INT8" if package.has(INT8) else f"{float_precision.upper()}: the package holds no INT8 network yet"
        )
        return prepared
    prepared = prepare(package, backend, int8, patches, task)
    race = prepared.entry.record.get("race")
    if race is None and patches:
        reference = prepare(package, backend, fp32, patches, task)
        with task.stage("timing INT8 against FP32"):
            race = _race(reference.engine, prepared.engine, patches[0])
        reference.close()
        prepared.entry = prepared.entry.update(race=race)
    if race is None or race["int8_ms"] <= race["fp32_ms"]:
        return prepared
    prepared.close()
    chosen = prepare(package, backend, fp32, patches, task)
    chosen.note = f"{float_precision.upper()}, because INT8 is slower here: {race['int8_ms']:.0f} ms a patch against {race['fp32_ms']:.0f} ms"
    return chosen


def _race(fp32: Engine, int8: Engine, patch: Patch) -> dict[str, float]:
    """Medians in milliseconds of runs in turn, after one that is not counted."""
    times: dict[str, list[float]] = {"fp32_ms": [], "int8_ms": []}
    for _ in range(_ROUNDS + 1):
        for name, engine in (("fp32_ms", fp32), ("int8_ms", int8)):
            began = time.perf_counter()
            engine.infer(patch[None])
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: round(float(np.median(values[1:])), 2) for name, values in times.items()}
