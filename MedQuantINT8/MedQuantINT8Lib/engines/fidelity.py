"""Is the real INT8 engine the network that was quantized?

A real engine is held against the same INT8 network simulated in ONNX Runtime. The simulation's own distance from FP32
is the yardstick. Real kernels add up in another order, and a value near a rounding border then falls to its other side;
through many layers that makes noise of quantization's own size. So the real engine must be as near to FP32 as the
simulation is, and no farther from the simulation than two such noises are from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..models.spec import Output
from ..progress import Task
from .base import BuildOptions, Engine, EngineBackend

Patch = NDArray[np.float32]

#: Drift that is always accepted: relative error of the output, and share of voxels with another label.
RELATIVE_TOLERANCE = 0.02
LABEL_TOLERANCE = 0.005
#: Comparisons that a search for layers at fault may take.
MOST_TRIALS = 24
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
        return self.within(1.0)

    def within(self, share: float) -> bool:
        """Whether the drift stays within a share of what is accepted; 1 is what is asked of an engine."""
        relative, labels = share * RELATIVE_TOLERANCE, share * LABEL_TOLERANCE
        near = self.relative_error <= relative and self.label_disagreement <= labels
        noise = share * _TWO_NOISES
        as_good = (
            self.real_relative_error <= _SLACK * self.simulated_relative_error + relative
            and self.real_label_disagreement <= _SLACK * self.simulated_label_disagreement + labels
            and self.relative_error <= max(relative, noise * self.simulated_relative_error)
            and self.label_disagreement <= max(labels, noise * self.simulated_label_disagreement)
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


def labels_of(output: Output) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """:func:`patch_labels` for what a model's output channels mean."""
    return patch_labels(output.activation, activated=output.activated, threshold=output.threshold)


def patch_labels(activation: str, *, activated: bool, threshold: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """How an output (N, classes, ...) becomes labels, for comparing two outputs."""
    cut = threshold if activated else float(np.log(threshold / (1 - threshold))) if 0 < threshold < 1 else 0.0
    return (lambda y: y.argmax(axis=1)) if activation == "softmax" else (lambda y: y > cut)


class Infers(Protocol):
    """The part of an engine that a comparison needs."""

    def infer(self, batch: NDArray[np.float32]) -> NDArray[Any]: ...


def compare(
    engine: Infers,
    simulated: Infers,
    reference: Infers,
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


@dataclass(frozen=True)
class Networks:
    """Where the two networks of a package lie, and how their output becomes labels."""

    int8: Path
    fp32: Path
    labels: Callable[[NDArray[Any]], NDArray[Any]]


class LayerSearch:
    """Finds the layers that a real engine computes otherwise than the simulation.

    A group of quantized layers is left quantized alone, all others in high precision, and the real engine is compared
    with the simulation of just that network: so a fault is seen by itself, not through its echo in later layers. A group
    that agrees is cleared as a whole; one that does not is halved, down to single layers. Each trial builds two engines, so
    that after :data:`MOST_TRIALS` of them in one search what is not cleared yet counts as found. What was measured is kept
    for the next search, which may ask for less drift.

    Args:
        patch: (C, A0, A1, A2) in network space.
    """

    def __init__(
        self, backend: EngineBackend, networks: Networks, options: BuildOptions, patch: Patch, task: Task
    ) -> None:
        from ..models import onnx_graph as graph
        from ..models.layers import weighted_layers
        from .onnxruntime import OnnxRuntimeBackend

        self._backend, self._networks, self._options, self._patch = backend, networks, options, patch
        self._task = task
        self._simulator: EngineBackend = OnnxRuntimeBackend()
        layers = weighted_layers(graph.load_network(networks.int8))
        # A layer that runs as two INT8 halves goes by its own name, and both of them go back together.
        self.quantized = [layer.name for layer in layers if layer.quantized and layer.half != "low"]
        self._measured: dict[tuple[str, ...], Fidelity] = {}
        exact = replace(options, precision="fp32", high_precision=())
        with _built(self._simulator, networks.fp32, exact) as reference:
            self._expected = _Recorded(np.array(reference.infer(patch[None])))

    def find(self, share: float = 1.0) -> list[str]:
        """The layers whose drift by themselves is more than a share of what an engine may have, in graph order.

        The whole network is known to drift; its halves are where the search starts.
        """
        culprits: list[str] = []
        trials = 0
        waiting = _halves(self.quantized)
        with self._task.stage("looking for the layers at fault", len(self.quantized)):
            while waiting:
                group = waiting.pop(0)
                trials += tuple(group) not in self._measured
                if trials > MOST_TRIALS:
                    culprits += group
                    self._task.step(len(group))
                elif self._alone(group).within(share):
                    self._task.step(len(group))
                elif len(group) == 1:
                    culprits += group
                    self._task.step()
                else:
                    waiting[:0] = _halves(group)
        return culprits

    def _alone(self, group: Sequence[str]) -> Fidelity:
        """How the network drifts in which only the group is quantized."""
        key = tuple(group)
        if key not in self._measured:
            alone = replace(self._options, high_precision=tuple(n for n in self.quantized if n not in group))
            network, simulator = self._networks.int8, self._simulator
            with _built(self._backend, network, alone) as real, _built(simulator, network, alone) as simulated:
                self._measured[key] = compare(real, simulated, self._expected, [self._patch], self._networks.labels)
        return self._measured[key]


def _halves(names: list[str]) -> list[list[str]]:
    middle = (len(names) + 1) // 2
    return [half for half in (names[:middle], names[middle:]) if half]


@contextmanager
def _built(backend: EngineBackend, network: Path, options: BuildOptions) -> Iterator[Engine]:
    with TemporaryDirectory(prefix="medquant-layer-") as scratch:
        backend.build(network, Path(scratch), options)
        engine = backend.load(Path(scratch), options)
        try:
            yield engine
        finally:
            engine.close()


class _Recorded:
    """An engine's answer to the one patch, so that FP32 is not computed again for every group."""

    def __init__(self, output: NDArray[Any]) -> None:
        self._output = output

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        return self._output
