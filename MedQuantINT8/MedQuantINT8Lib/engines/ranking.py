"""Which engine is fastest on the GPU at hand: each runs a small INT8 network, and its time is kept.

A time is kept for ever: it belongs to this GPU and these versions. A failure is kept with its cause for some minutes only, so that
not every run tries again: a GPU that was full, or busy, may be free the next time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .. import __version__
from ..errors import Cancelled, MedQuantError
from ..files import read_json, write_json
from ..resources import resource
from .base import BuildOptions, EngineBackend
from .cache import FORMAT, cache_root

_ROUNDS = 5
_PATCH = (64, 64, 64)
#: A time that no engine reaches: of one that failed.
_FAILED = 1e9
#: For how long a failure counts.
_FAILURE_SECONDS = 600.0


def fastest_first(backends: Sequence[EngineBackend]) -> list[EngineBackend]:
    """The backends, fastest first. One alone is not timed."""
    if len(backends) < 2:
        return list(backends)
    times = milliseconds(backends)
    return sorted(backends, key=lambda backend: times[backend.name])


def milliseconds(backends: Sequence[EngineBackend]) -> dict[str, float]:
    """The time of one patch of the demo's network in each engine, by the engine's name; it is measured where it is not known yet for this GPU and these versions."""
    path = cache_root() / "ranking.json"
    try:
        content = read_json(path)
    except (OSError, ValueError):
        content = {}
    known: dict[str, Any] = content if isinstance(content, dict) else {}
    times = {}
    for backend in backends:
        try:
            key = (
                f"{backend.name} {backend.version()} of {__version__}, format {FORMAT}, on {backend.device_name('gpu')}"
            )
        except MedQuantError:
            # A GPU that cannot even be asked is no place to run on; it is asked again the next time.
            times[backend.name] = _FAILED
            continue
        value = _valid(known.get(key))
        if value is None:
            known[key] = value = _outcome(backend)
            write_json(path, known)
        times[backend.name] = value if isinstance(value, float) else _FAILED
    return times


def _valid(kept: Any) -> float | dict[str, Any] | None:
    """What was kept, if it still counts: a time, or a failure of the last minutes."""
    if isinstance(kept, (int, float)) and not isinstance(kept, bool) and 0 <= kept < _FAILED:
        return float(kept)
    if (
        isinstance(kept, dict)
        and isinstance(when := kept.get("time"), (int, float))
        and 0 <= time.time() - when < _FAILURE_SECONDS
    ):
        return kept
    return None


def _outcome(backend: EngineBackend) -> float | dict[str, Any]:
    try:
        return _time_patch(backend)
    except Cancelled:
        raise
    except Exception as error:
        # Drivers and their bindings raise types of their own. The engine comes last for now; asked for by name, it says why.
        return {"failed": f"{type(error).__name__}: {error}"[:300], "time": time.time()}


def _time_patch(backend: EngineBackend) -> float:
    """The median of some runs, in milliseconds."""
    from ..models.package import ModelPackage

    options = BuildOptions("int8", _PATCH, device="gpu")
    with (
        ModelPackage.load(Path(resource("demo.zip"))) as package,
        TemporaryDirectory(prefix="medquant-ranking-") as scratch,
    ):
        backend.build(package.onnx_path("int8"), Path(scratch), options)
        engine = backend.load(Path(scratch), options)
        try:
            batch = np.zeros((1, package.spec.input_channels, *_PATCH), np.float32)
            times = []
            for _ in range(_ROUNDS):
                began = time.perf_counter()
                engine.infer(batch)
                times.append(1e3 * (time.perf_counter() - began))
        finally:
            engine.close()
    return round(float(np.median(times[1:])), 3)
