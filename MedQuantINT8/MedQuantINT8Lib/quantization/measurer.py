"""The measurer: how much simulated INT8 loses on patches of calibration scans, against FP32 and against labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.fidelity import Distance, labels_of
from ..engines.onnxruntime import session
from ..models import onnx_graph as graph
from ..models.spec import ModelSpec

Patch = NDArray[np.float32]
_LEAST_VOXELS = 100


@dataclass(frozen=True)
class Measurement:
    """The measurement of a simulated INT8 network on the compared patches.

    Attributes:
        agreement: mean Dice with FP32 over structures; None where FP32 finds nothing in the patches.
        relative_error: the relative error of the output.
        dice: mean Dice with the labels; None without labels, or where they show no structure.
        dice_fp32: FP32's mean Dice with the labels on the same patches.
    """

    agreement: float | None
    relative_error: float
    dice: float | None = None
    dice_fp32: float | None = None

    @property
    def dice_lost(self) -> float:
        """The part of FP32's Dice to the labels that INT8 loses; 0 where there is nothing to compare."""
        return 0.0 if self.dice is None or self.dice_fp32 is None else self.dice_fp32 - self.dice


class Measurer:
    """Measures candidate networks against FP32, and labels, on fixed patches.

    Only the middle of each patch counts: near its border a network sees half of what is there, and the sliding window
    gives those voxels to the neighboring windows.
    """

    def __init__(
        self, fp32: Any, patches: Sequence[Patch], spec: ModelSpec, references: Sequence[NDArray[Any]]
    ) -> None:
        margins = [int(side * spec.window.overlap / 4) for side in patches[0].shape[1:]]
        self._middle = tuple(slice(m, side - m) for m, side in zip(margins, patches[0].shape[1:], strict=True))
        self._patches, self._spec = patches, spec
        self._references = [reference[self._middle] for reference in references]
        self._input = graph.network_shape(fp32).input_name
        self._labels = labels_of(spec.output)
        self._expected = self._outputs(fp32, "fp32", len(patches))

    def _outputs(self, model: Any, precision: str, count: int) -> list[NDArray[Any]]:
        run = session(graph.fixed_shape(model, self._patches[0].shape[1:]).SerializeToString(), precision)
        return [run.run(None, {self._input: patch[None]})[0][(..., *self._middle)] for patch in self._patches[:count]]

    def measure(self, candidate: Any, patches: int | None = None) -> Measurement:
        """Measure a network on all patches, or on the first ``patches`` of them."""
        outputs = self._outputs(candidate, "int8", patches or len(self._patches))
        distance, agreement = Distance(self._labels), PooledDice(self._spec.output.activation == "softmax")
        for output, expected in zip(outputs, self._expected, strict=False):
            distance.add(output, expected)
            agreement.add(self._labels(output), self._labels(expected))
        return Measurement(
            agreement.value, distance.relative_error, self._dice(outputs), self._dice(self._expected[: len(outputs)])
        )

    def _dice(self, outputs: Sequence[NDArray[Any]]) -> float | None:
        """Return the mean Dice with the reference labels (A0, A1, A2), whose values are the model's label values."""
        if not self._references:
            return None
        exclusive = self._spec.output.activation == "softmax"
        channels = {label.value: label.channel for label in self._spec.labels}
        pooled = PooledDice(exclusive)
        for output, reference in zip(outputs, self._references, strict=False):
            masks = {channel: reference == value for value, channel in channels.items()}
            if exclusive:
                theirs = np.zeros(reference.shape, np.int64)
                for channel, mask in masks.items():
                    theirs[mask] = channel
                pooled.add(self._labels(output), theirs[None])
            else:
                pooled.add(self._labels(output), np.stack([masks[c] for c in sorted(masks)])[None])
        return pooled.value


class PooledDice:
    """The Dice of each structure over all patches together.

    Structures that the reference finds in fewer than 100 voxels do not count: the patches do not hold them, and the few
    stray voxels of a network at its margins would outweigh the others.
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
    def value(self) -> float | None:
        """The mean over the structures that the reference finds; None if it finds none."""
        present = [sums for sums in self._sums.values() if sums[2]]
        # Where all are small, as in a small network's patches, they are all there is.
        large = [sums for sums in present if sums[2] >= _LEAST_VOXELS] or present
        return float(np.mean([shared / total for shared, total, _ in large])) if large else None
