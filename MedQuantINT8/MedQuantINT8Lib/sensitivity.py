"""The accuracy guard: which layers INT8 cannot afford, found by measuring.

Simulated INT8 is compared with FP32 on calibration patches. Where they agree too little, each quantized layer is tried
alone, all others in float; then the layers go back to float, the one that costs most agreement first, until it suffices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import graph
from .engines.fidelity import Distance, patch_labels
from .engines.onnxruntime import session
from .model_spec import ModelSpec
from .progress import Task

Patch = NDArray[np.float32]
_LEAST_VOXELS = 100


@dataclass
class GuardResult:
    """Agreement of simulated INT8 with FP32 on the compared patches.

    Attributes:
        agreement_before, agreement: mean Dice over structures, before and after layers went back.
        relative_error: of the output, after.
        returned: layers that went back to high precision, in that order, with what was measured.
    """

    wanted: float
    agreement_before: float
    agreement: float
    relative_error: float
    returned: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        return self.agreement >= self.wanted

    def to_json(self) -> dict[str, Any]:
        return {
            "wanted_agreement": self.wanted,
            "agreement_before": self.agreement_before,
            "agreement": self.agreement,
            "relative_error": self.relative_error,
            "returned": self.returned,
            "kept": self.kept,
        }


class _Judge:
    """Measures a candidate network against FP32 on fixed patches."""

    def __init__(self, fp32: Any, patches: Sequence[Patch], spec: ModelSpec) -> None:
        self._patches, self._spec = patches, spec
        self._input = graph.network_shape(fp32).input_name
        output = spec.output
        self._labels = patch_labels(output.activation, activated=output.activated, threshold=output.threshold)
        run = session(graph.fixed_shape(fp32, patches[0].shape[1:]).SerializeToString(), "fp32")
        self._expected = [run.run(None, {self._input: patch[None]})[0] for patch in patches]

    def measure(self, candidate: Any, patches: int | None = None) -> tuple[float, float]:
        """Mean Dice over structures and relative error of the output, on all or the first ``patches`` patches."""
        run = session(graph.fixed_shape(candidate, self._patches[0].shape[1:]).SerializeToString(), "int8")
        distance, dice = Distance(self._labels), _PooledDice(self._spec.output.activation == "softmax")
        for patch, expected in zip(self._patches[:patches], self._expected[:patches], strict=True):
            output = run.run(None, {self._input: patch[None]})[0]
            distance.add(output, expected)
            dice.add(self._labels(output), self._labels(expected))
        return dice.value, distance.relative_error


class _PooledDice:
    """Dice of each structure over all patches together.

    Structures that FP32 finds in fewer than 100 voxels do not count: the patches do not hold them, and the few stray
    voxels of a network at its margins would outweigh the others.
    """

    def __init__(self, exclusive: bool) -> None:
        self._exclusive = exclusive
        self._sums: dict[int, list[int]] = {}

    def add(self, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        if self._exclusive:
            masks = [(c, ours == c, theirs == c) for c in np.union1d(np.unique(ours), np.unique(theirs)) if c > 0]
        else:
            masks = [(c, ours[:, c], theirs[:, c]) for c in range(ours.shape[1])]
        for c, a, b in masks:
            sums = self._sums.setdefault(int(c), [0, 0, 0])
            sums[0] += 2 * int(np.logical_and(a, b).sum())
            sums[1] += int(a.sum()) + int(b.sum())
            sums[2] += int(b.sum())

    @property
    def value(self) -> float:
        values = [shared / total for shared, total, expected in self._sums.values() if expected >= _LEAST_VOXELS]
        return float(np.mean(values)) if values else 1.0


def guard(fp32: Any, int8: Any, patches: Sequence[Patch], spec: ModelSpec, wanted: float, task: Task) -> tuple[Any, GuardResult]:
    """Return the INT8 network with as few layers in high precision as the wanted agreement needs.

    Args:
        patches: (C, A0, A1, A2) each, all of one size.
        wanted: least Dice with FP32; 0 only measures.
    """
    judge = _Judge(fp32, patches, spec)
    with task.stage("checking the agreement with FP32"):
        agreement, error = judge.measure(int8)
    result = GuardResult(wanted, agreement, agreement, error)
    if wanted <= 0 or result.kept:
        return int8, result
    layers = graph.layers_with_int8_weights(int8)
    alone = {}
    with task.stage("finding the layers that INT8 cannot afford", len(layers)):
        for name in layers:
            # Quantized alone: put back alone, a bad layer hides behind the others, whose error has saturated already.
            alone[name] = judge.measure(graph.without_quantization(int8, set(layers) - {name}, fp32), patches=1)
            task.step()
    best, returned = int8, []
    with task.stage("putting layers back to high precision", len(layers)):
        for name in sorted(layers, key=lambda layer: (alone[layer][0], -alone[layer][1])):
            returned.append(name)
            best = graph.without_quantization(int8, set(returned), fp32)
            result.agreement, result.relative_error = judge.measure(best)
            dice, error = alone[name]
            result.returned[name] = f"quantized alone it gives agreement {dice:.4f}, relative error {error:.3g}"
            task.step()
            if result.kept:
                break
    return best, result
