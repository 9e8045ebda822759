"""Which engine is fastest on the GPU at hand: each runs a small INT8 network once, and what was found is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..errors import MedQuantError
from ..files import write_json
from ..resources import resource
from .base import BuildOptions, EngineBackend
from .cache import cache_root

_ROUNDS = 5
_PATCH = (64, 64, 64)
#: A time that no engine reaches: of one that failed.
_FAILED = 1e9


def fastest_first(backends: Sequence[EngineBackend]) -> list[EngineBackend]:
    """The backends, fastest first. One alone needs no trial."""
    if len(backends) < 2:
        return list(backends)
    times = milliseconds(backends)
    return sorted(backends, key=lambda made: times[made.name])


def milliseconds(backends: Sequence[EngineBackend]) -> dict[str, float]:
    """Of one patch of the demo's network in each engine, by its name; measured where it is not known for this GPU and these versions."""
    kept = cache_root() / "trial.json"
    try:
        known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    found = {}
    for made in backends:
        key = f"{made.name} {made.version()} on {made.device_name('gpu')}"
        if not isinstance(known.get(key), (int, float)):
            known[key] = _tried(made)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, known)
        found[made.name] = float(known[key])
    return found


def _tried(made: EngineBackend) -> float:
    from ..model import ModelPackage

    options = BuildOptions("int8", _PATCH, device="gpu")
    try:
        with ModelPackage.load(Path(resource("demo.zip"))) as package, TemporaryDirectory(prefix="medquant-trial-") as scratch:
            made.build(package.onnx_path("int8"), Path(scratch), options)
            engine = made.load(Path(scratch), options)
            batch = np.zeros((1, len(package.spec.channels), *_PATCH), np.float32)
            times = []
            for _ in range(_ROUNDS):
                began = time.perf_counter()
                engine.infer(batch)
                times.append(1e3 * (time.perf_counter() - began))
            engine.close()
    except MedQuantError:
        # An engine that cannot do this comes last; when it is asked for by name, it says why.
        return _FAILED
    return round(float(np.median(times[1:])), 3)
