"""What is done with a finished label map: keeping the largest part of a structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .masks import bounding_box
from .model_spec import Cleaning


def cleaned(labels: NDArray[Any], steps: Sequence[Cleaning]) -> NDArray[Any]:
    """The label map (K, J, I) after all steps, changed in place."""
    for step in steps:
        values = step.labels or tuple(int(v) for v in np.flatnonzero(np.bincount(labels.ravel())) if v)
        for value in values:
            _keep_largest(labels, value)
    return labels


def _keep_largest(labels: NDArray[Any], value: int) -> None:
    """Set all parts of a structure but its largest to 0; of several equal ones the first along K, J, I stays."""
    import SimpleITK as sitk

    mask = labels == value
    if not mask.any():
        return
    # Parts are looked for in the structure's own box: structures are small beside the scan.
    box = bounding_box(mask)
    inside = mask[box]
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(inside.astype(np.uint8)), True))
    sizes = np.bincount(parts.ravel())[1:]
    if sizes.size > 1:
        labels[box][inside & (parts != 1 + int(sizes.argmax()))] = 0
