"""How long an INT8 network takes on the real engine of this machine: what the guard weighs layers by."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..engines.base import BuildOptions, UnsupportedNetwork
from ..engines.registry import choose_backend, choose_instead
from ..models import onnx_graph as graph

#: Calls of an engine that are timed; the first is not counted.
_TIMED_CALLS = 6


def engine_stopwatch(patch: tuple[int, int, int]) -> Callable[[Any], float] | None:
    """Times INT8 networks on the real engine of this machine, in milliseconds for one patch; None if there is none."""
    made = choose_backend("auto", "int8")
    if not made.real_int8:
        return None

    def milliseconds(model: Any) -> float:
        options = BuildOptions("int8", patch)
        with TemporaryDirectory(prefix="medquant-timing-") as scratch:
            network = Path(scratch) / "network.onnx"
            network.write_bytes(model.SerializeToString())
            try:
                used = made
                made.build(network, Path(scratch), options)
            except UnsupportedNetwork as error:
                used = choose_instead("int8", error)
                used.build(network, Path(scratch), options)
            engine = used.load(Path(scratch), options)
            batch = np.zeros((1, graph.network_shape(model).channels, *patch), np.float32)
            seconds = []
            for _ in range(_TIMED_CALLS):
                began = time.perf_counter()
                engine.infer(batch)
                seconds.append(time.perf_counter() - began)
            engine.close()
        return round(1e3 * float(np.median(seconds[1:])), 2)

    return milliseconds
