"""Is the real INT8 engine the network that was quantized?

A real engine is held against the same INT8 network simulated in ONNX Runtime. The simulation's own distance from FP32
is the yardstick. Real kernels add up in another order, and a value near a rounding border then falls to its other side;
through many layers that makes noise of quantization's own size. So the real engine must be as near to FP32 as the
simulation is, and no farther from the simulation than two such noises are from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Task
from .base import BuildOptions, Engine, EngineBackend

Patch = NDArray[np.float32]

#: Drift that is always accepted: relative error of the output, and share of voxels with another label.
RELATIVE_TOLERANCE = 0.02
LABEL_TOLERANCE = 0.005
#: How much farther from FP32 than the simulation a real engine may be, and two independent noises from each other.
_SLACK, _TWO_NOISES = 1.25, 1.5


@dataclass(frozen=True)
class Fidelity:
    """Distances, over all patches, of real INT8 from simulated INT8, and of both from FP32.

    relative errors are norms of the difference over norms of the reference; label shares are 0 to 1.
    """

    patches: int
    relative_error: float
    label_disagreement: float
    simulated_relative_error: float
    simulated_label_disagreement: float
    real_relative_error: float
    real_label_disagreement: float

    @property
    def trusted(self) -> bool:
        near = self.relative_error <= RELATIVE_TOLERANCE and self.label_disagreement <= LABEL_TOLERANCE
        as_good = (
            self.real_relative_error <= _SLACK * self.simulated_relative_error + RELATIVE_TOLERANCE
            and self.real_label_disagreement <= _SLACK * self.simulated_label_disagreement + LABEL_TOLERANCE
            and self.relative_error <= max(RELATIVE_TOLERANCE, _TWO_NOISES * self.simulated_relative_error)
            and self.label_disagreement <= max(LABEL_TOLERANCE, _TWO_NOISES * self.simulated_label_disagreement)
        )
        return near or as_good

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "trusted": self.trusted}


class Distance:
    """Accumulates relative error and label disagreement over patches."""

    def __init__(self, labels: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        self._labels = labels
        self._squares = self._reference = 0.0
        self._other = self._voxels = 0

    def add(self, output: NDArray[Any], reference: NDArray[Any]) -> None:
        self._squares += float(np.square(output - reference, dtype=np.float64).sum())
        self._reference += float(np.square(reference, dtype=np.float64).sum())
        ours, theirs = self._labels(output), self._labels(reference)
        self._other += int((ours != theirs).sum())
        self._voxels += ours.size

    @property
    def relative_error(self) -> float:
        return float(np.sqrt(self._squares / max(self._reference, 1e-30)))

    @property
    def label_disagreement(self) -> float:
        return self._other / max(1, self._voxels)


def patch_labels(activation: str, *, activated: bool, threshold: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """How an output (N, classes, ...) becomes labels, for comparing two outputs."""
    cut = threshold if activated else float(np.log(threshold / (1 - threshold))) if 0 < threshold < 1 else 0.0
    return (lambda y: y.argmax(axis=1)) if activation == "softmax" else (lambda y: y > cut)


def compare(
    engine: Engine,
    simulated: Engine,
    reference: Engine,
    patches: Sequence[Patch],
    labels: Callable[[NDArray[Any]], NDArray[Any]],
) -> Fidelity:
    """Run the three on the same patches, (C, A0, A1, A2) each."""
    between, fake, real = Distance(labels), Distance(labels), Distance(labels)
    for patch in patches:
        output = np.asarray(engine.infer(patch[None]), np.float32)
        expected, exact = simulated.infer(patch[None]), reference.infer(patch[None])
        between.add(output, expected)
        fake.add(expected, exact)
        real.add(output, exact)
    distances = [(d.relative_error, d.label_disagreement) for d in (between, fake, real)]
    return Fidelity(len(patches), *(value for pair in distances for value in pair))


def offending_layers(
    backend: EngineBackend,
    network: Path,
    options: BuildOptions,
    patch: Patch,
    labels: Callable[[NDArray[Any]], NDArray[Any]],
    task: Task,
) -> list[str]:
    """Layers that the real engine computes otherwise than the simulation.

    Each quantized layer is left quantized alone, all others in high precision, and the real engine is compared with the
    simulation of just that network: so a fault is seen by itself, not through its echo in later layers.
    """
    from .. import graph
    from ..layers import weighted_layers
    from .onnxruntime import OnnxRuntimeBackend

    model = graph.load_network(network)
    quantized = [layer.name for layer in weighted_layers(model) if layer.quantized]
    found = []
    with task.stage("looking for the layers at fault", len(quantized)):
        for name in quantized:
            alone = replace(options, high_precision=tuple(n for n in quantized if n != name))
            outputs = []
            for maker in (backend, OnnxRuntimeBackend()):
                with TemporaryDirectory(prefix="medquant-layer-") as scratch:
                    maker.build(network, Path(scratch), alone)
                    engine = maker.load(Path(scratch), alone)
                    outputs.append(np.array(engine.infer(patch[None])))
                    engine.close()
            distance = Distance(labels)
            distance.add(outputs[0], outputs[1])
            if distance.relative_error > RELATIVE_TOLERANCE or distance.label_disagreement > LABEL_TOLERANCE:
                found.append(name)
            task.step()
    return found
