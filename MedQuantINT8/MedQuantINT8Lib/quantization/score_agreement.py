"""How the labels of two networks' scores agree, pooled over patches: what the guard and held-out scans are judged by.

Where each output channel is a region of its own, regions may overlap, and a run paints them one over the other. Both are compared: whole
regions, and the label map that is painted, which shows of a large region around others perhaps a thin shell. The one that agrees less
counts, since either may be what is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.fidelity import labels_of
from ..imaging.regions import Regions
from ..inference.structure_dice import PooledDice, StructureDice, mean_of
from ..models.spec import ModelSpec


def largest_classes(scores: NDArray[Any]) -> NDArray[Any]:
    """Return the class of the largest score (N, ...), the first of equal ones, of scores (N, classes, ...).

    Class by class, in numbers of as few bytes as they need: NumPy's argmax over an inner axis takes several times as long for many classes.
    """
    classes = scores.shape[1]
    best = scores[:, 0].copy()
    labels = np.zeros(best.shape, np.min_scalar_type(classes - 1))
    for channel in range(1, classes):
        larger = scores[:, channel] > best
        np.copyto(best, scores[:, channel], where=larger)
        np.copyto(labels, labels.dtype.type(channel), where=larger)
    return labels


class ScoreAgreement:
    """The Dice of each structure between two networks' scores.

    Args:
        voxel_ml: of the patches; 0 where it is not known.
    """

    def __init__(self, spec: ModelSpec, voxel_ml: float = 0.0) -> None:
        exclusive = spec.output.activation == "softmax"
        self._labels = largest_classes if exclusive else labels_of(spec.output)
        self._pooled = [PooledDice(exclusive, {label.channel: label.name for label in spec.labels}, voxel_ml)]
        self._regions: Regions | None = None
        if not exclusive and len(spec.labels) > 1:
            self._regions = Regions.of(spec, np.int32)
            self._pooled.append(PooledDice(True, {label.value: label.name for label in spec.labels}, voxel_ml))

    def labels(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return what :meth:`add_labels` takes of the scores (N, channels, ...) of one patch: classes (N, ...), or masks of its shape."""
        return self._labels(scores)

    def add(self, output: NDArray[Any], reference: NDArray[Any]) -> None:
        """Count the scores (N, channels, ...) of one patch."""
        self.add_labels(self.labels(output), self.labels(reference))

    def add_labels(self, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        """Count one patch by the labels of both networks (:meth:`labels`); those of FP32 are the same for all networks."""
        self._pooled[0].add(ours, theirs)
        if self._regions is not None:
            self._pooled[1].add(_painted(self._regions, ours), _painted(self._regions, theirs))

    @property
    def structures(self) -> list[StructureDice]:
        """The structures that count, of the label maps or of whole regions, whichever agree less on average."""
        return min((pooled.structures for pooled in self._pooled), key=lambda rows: mean_of(rows) or 0.0)

    @property
    def value(self) -> float | None:
        """The mean over these structures; None if the reference finds none."""
        return mean_of(self.structures)


def _painted(regions: Regions, masks: NDArray[np.bool_]) -> NDArray[Any]:
    """The label map (N, ...) of the regions' masks (N, channels, ...)."""
    return regions.paint(lambda channel: masks[:, channel])
