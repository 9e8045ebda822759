"""Precision "auto": INT8, unless this machine runs the network's FP32 engine clearly faster, or INT8 cannot be used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ..errors import EngineError
from ..models.package import INT8, ModelPackage
from ..progress import Task
from . import choices
from .base import BuildOptions, Engine, EngineBackend, UnsupportedNetwork, float_precision_of
from .choices import Choice
from .cuda.driver import GpuError
from .fidelity import Patch
from .preparation import PreparedEngine, prepare

#: Runs of each at least, and at most; more than the least only within so many seconds: short runs are disturbed most.
_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 50, 1.0
#: How many times faster FP32 has to be to be taken: times of one machine differ by less than that from run to run.
MARGIN = 1.15
#: Share of a network's work below which INT8 brings nothing, whatever a clock says.
LEAST_SHARE = 0.2


def prepare_faster(
    package: ModelPackage, backend: EngineBackend, options: BuildOptions, patches: Sequence[Patch], task: Task
) -> PreparedEngine:
    """The INT8 engine, unless FP32 is faster here by :data:`MARGIN` or INT8 cannot be used; ``choice`` says why.

    It is decided once, when there are patches to time both on, and kept (:mod:`.choices`).

    Args:
        options: ``precision`` is ignored.

    Raises:
        UnsupportedNetwork: the engine has no kernel for something in the network; another may have.
        GpuError: the GPU's memory is too small, or it failed.
    """
    # An engine without FP32 is held against the most exact that it has.
    float_precision = float_precision_of(backend)
    in_float, in_int8 = replace(options, precision=float_precision), replace(options, precision="int8")
    if not package.has(INT8) or not backend.real_int8:
        prepared = prepare(package, backend, in_float, patches, task)
        prepared.note = (
            f"{float_precision.upper()}: {backend.title} computes no real INT8"
            if package.has(INT8)
            else f"{float_precision.upper()}: the package holds no INT8 network yet"
        )
        return prepared
    share = _int8_share(package)
    if share is not None and share < LEAST_SHARE:
        reason = f"{float_precision.upper()}, because INT8 is not worth it for this network: {100 * share:.1f} % of its work would run in INT8"
        return _in_float(package, backend, in_float, patches, Choice(float_precision, reason), task)
    choice = choices.find(package, backend, options.device)
    if choice is not None and choice.precision != "int8":
        return _in_float(package, backend, in_float, patches, choice, task)
    try:
        prepared = prepare(package, backend, in_int8, patches, task)
    except (UnsupportedNetwork, GpuError):
        raise
    except EngineError as error:
        # What is wrong with INT8 must not keep the user from a result; who insists on INT8 is told.
        prepared_float = _in_float(
            package,
            backend,
            in_float,
            patches,
            Choice(
                float_precision,
                f"{float_precision.upper()}, because INT8 cannot be used here: {error.args[0]}",
                failed=True,
            ),
            task,
        )
        prepared_float.choice = (
            choices.keep(package, backend, options.device, prepared_float.choice)
            if prepared_float.choice is not None
            else None
        )
        return prepared_float
    if choice is None and patches:
        choice = _decided(package, backend, in_float, prepared, patches, task)
        if choice is not None:
            choice = choices.keep(package, backend, options.device, choice)
    prepared.choice = choice
    if choice is None or choice.precision == "int8":
        return prepared
    prepared.close()
    return _in_float(package, backend, in_float, patches, choice, task)


def _int8_share(package: ModelPackage) -> float | None:
    """The share of multiply-accumulates that the package's INT8 network quantizes; None where the package does not tell."""
    quantization = (package.calibration() or {}).get("quantization")
    share = quantization.get("int8_mac_share") if isinstance(quantization, dict) else None
    return float(share) if isinstance(share, (int, float)) and not isinstance(share, bool) else None


def _in_float(
    package: ModelPackage,
    backend: EngineBackend,
    options: BuildOptions,
    patches: Sequence[Patch],
    choice: Choice,
    task: Task,
) -> PreparedEngine:
    prepared = prepare(package, backend, options, patches, task)
    prepared.note, prepared.choice = choice.reason, choice
    return prepared


def _decided(
    package: ModelPackage,
    backend: EngineBackend,
    options: BuildOptions,
    int8: PreparedEngine,
    patches: Sequence[Patch],
    task: Task,
) -> Choice | None:
    """What the times say; None where FP32 cannot be timed: INT8 runs, and that is what was asked for first."""
    try:
        reference = prepare(package, backend, options, patches, task)
    except EngineError:
        return None
    try:
        with task.stage("timing INT8 against FP32"):
            times = _time_in_turn(reference.engine, int8.engine, patches[0])
    finally:
        reference.close()
    name = options.precision.upper()
    comparison = f"{times['int8_ms']:.0f} ms a patch against {times['fp32_ms']:.0f} ms"
    if times["fp32_ms"] * MARGIN < times["int8_ms"]:
        return Choice(options.precision, f"{name}, because INT8 is slower here: {comparison}", times=times)
    faster = times["fp32_ms"] / max(times["int8_ms"], 1e-9)
    return Choice(
        "int8",
        f"INT8, {f'{faster:.1f} times as fast as' if faster >= 1.05 else 'about as fast as'} {name} here: {comparison}",
        times=times,
    )


def _time_in_turn(fp32: Engine, int8: Engine, patch: Patch) -> dict[str, float]:
    """Milliseconds of runs in turn, after one that is not counted: the shortest of each, which other programs disturb least."""
    times: dict[str, list[float]] = {"fp32_ms": [], "int8_ms": []}
    end = time.perf_counter() + _SECONDS
    while len(times["int8_ms"]) <= _ROUNDS or (len(times["int8_ms"]) <= _MOST_ROUNDS and time.perf_counter() < end):
        for name, engine in (("fp32_ms", fp32), ("int8_ms", int8)):
            began = time.perf_counter()
            engine.infer(patch[None])
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: round(min(values[1:]), 2) for name, values in times.items()}
