"""Functions on masks that several modules need."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Return the smallest box (K, J, I) that holds a mask's true voxels; there must be one."""
    box = []
    for axis in range(3):
        along = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(along[0]), int(along[-1]) + 1))
    return box[0], box[1], box[2]
