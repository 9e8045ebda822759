"""How long an INT8 network takes on the real engine of this machine: what the guard weighs layers by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..engines.base import BuildOptions, ChecksNetwork, EngineBackend, UnsupportedNetwork, form_of
from ..engines.registry import usable_backends
from ..models import onnx_graph as graph
from ..models.engine_form import EngineForm
from ..models.package import ModelPackage

#: Calls of an engine that are timed; the first is not counted.
_TIMED_CALLS = 6


@dataclass(frozen=True)
class EngineStopwatch:
    """Times INT8 networks on the real engine of this machine, in milliseconds for one window, and says in which form it computes them.

    Attributes:
        backends: engines that can build the network in FP32, best first; the first that can in INT8 is timed.
        patch: of the window.
    """

    backends: Sequence[EngineBackend]
    patch: tuple[int, int, int]

    @property
    def form(self) -> EngineForm:
        """The form that the best engine computes."""
        return form_of(self.backends[0])

    def __call__(self, model: Any) -> float:
        return _milliseconds(model, self.backends, self.patch)


def engine_stopwatch(package: ModelPackage, *, required: bool = True) -> EngineStopwatch | None:
    """Times INT8 networks made of a package's on the real engine of this machine, in milliseconds for one window.

    Engines that cannot build the network are found here, in seconds, before anything is calibrated for them.

    Args:
        required: whether an engine that runs the network in INT8 has to be among those of this machine.

    Returns:
        None where this machine has no real INT8 engine, or none for this network.

    Raises:
        UnsupportedNetwork: it has some, but none can build this network.
    """
    patch = package.spec.window.patch_size
    able: list[EngineBackend] = []
    refusals: list[UnsupportedNetwork] = []
    for backend in usable_backends("int8"):
        if not backend.real_int8:
            continue
        try:
            if isinstance(backend, ChecksNetwork):
                backend.check(package.onnx_path("fp32"), BuildOptions("fp32", patch))
            able.append(backend)
        except UnsupportedNetwork as error:
            refusals.append(error)
    if able:
        return EngineStopwatch(able, patch)
    if refusals and required:
        raise UnsupportedNetwork(
            f"No engine of this machine runs {package.spec.name} in INT8: {' '.join(str(e.args[0]) for e in refusals)}",
            "Here it runs in FP32 as it is. To quantize it for another machine: medquant quantize --without-engine.",
        ) from refusals[0]
    return None


def _milliseconds(model: Any, backends: Sequence[EngineBackend], patch: tuple[int, int, int]) -> float:
    """The median of some calls on the first of the engines that can build the network.

    Raises:
        UnsupportedNetwork: none can; the last one's reason.
    """
    with TemporaryDirectory(prefix="medquant-timing-") as scratch:
        network = Path(scratch) / "network.onnx"
        network.write_bytes(model.SerializeToString())
        for number, backend in enumerate(backends):
            options = BuildOptions("int8", patch, **form_of(backend).to_json())
            try:
                backend.build(network, Path(scratch), options)
                break
            except UnsupportedNetwork:
                if number == len(backends) - 1:
                    raise
        engine = backend.load(Path(scratch), options)
        batch = np.zeros((1, graph.network_shape(model).channels, *patch), np.float32)
        seconds = []
        for _ in range(_TIMED_CALLS):
            began = time.perf_counter()
            engine.infer(batch)
            seconds.append(time.perf_counter() - began)
        engine.close()
    return round(1e3 * float(np.median(seconds[1:])), 2)
