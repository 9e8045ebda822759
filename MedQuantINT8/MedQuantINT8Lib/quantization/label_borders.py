"""Where FP32's labels meet on a patch: half of the voxels that rounding is learned on lie there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def largest_score(scores: Array) -> Array:
    """Return the class of the largest score, (1, A0, A1, A2), of scores (1, classes, A0, A1, A2)."""
    return np.asarray(scores.argmax(1))


def label_borders(scores: Array, labels: Callable[[Array], Array]) -> Array:
    """Return the places where the labels of FP32's scores meet, (places, 3), each from 0 to 1 along its axis.

    Args:
        scores: (1, classes, A0, A1, A2), of one patch.
        labels: gives the label map (1, A0, A1, A2) of scores, or one mask of each class, (1, classes, A0, A1, A2), where these may overlap.
    """
    label_maps = labels(scores)
    label_maps = label_maps.reshape(-1, *label_maps.shape[-3:]).astype(np.int16)
    border = np.zeros(label_maps.shape[1:], bool)
    for axis in range(3):
        differs = (np.diff(label_maps, axis=axis + 1) != 0).any(0)
        for begin in (0, 1):
            index = [slice(None)] * 3
            index[axis] = slice(begin, label_maps.shape[axis + 1] - 1 + begin)
            border[tuple(index)] |= differs
    return (np.argwhere(border) + 0.5) / np.array(border.shape)
