"""What is done with a finished label map: keeping the largest parts of a structure, removing small ones, filling holes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..imaging.masks import bounding_box
from ..models.spec import Cleaning


def cleaned(labels: NDArray[Any], steps: Sequence[Cleaning]) -> NDArray[Any]:
    """The label map (three axes in any order) after all steps, changed in place."""
    for step in steps:
        values = step.labels or tuple(int(v) for v in np.flatnonzero(np.bincount(labels.ravel())) if v)
        if step.kind == "fill_holes":
            for value in values:
                _fill_holes(labels, value, step.connectivity)
        elif step.together and values:
            _remove_parts(labels, np.isin(labels, values), step)
        else:
            for value in values:
                _remove_parts(labels, labels == value, step)
    return labels


def _remove_parts(labels: NDArray[Any], mask: NDArray[np.bool_], step: Cleaning) -> None:
    """Set parts of a mask to 0 that a step does not keep; of several equal ones the first in memory's order stays."""
    if not mask.any():
        return
    # Parts are looked for in the structure's own box: structures are small beside the scan.
    box = bounding_box(mask)
    inside = mask[box]
    parts = _parts(inside, step.connectivity)
    sizes = np.bincount(parts.ravel())[1:]
    kept = (
        np.argsort(-sizes, kind="stable")[: step.count]
        if step.kind == "largest"
        else np.flatnonzero(sizes >= step.size)
    )
    if len(kept) < sizes.size:
        labels[box][inside & ~np.isin(parts, 1 + kept)] = 0


def _fill_holes(labels: NDArray[Any], value: int, connectivity: int) -> None:
    """Give a structure all that cannot be reached from outside without crossing it."""
    mask = labels == value
    if not mask.any():
        return
    box = bounding_box(mask)
    # A voxel of what is around the structure's box, so that all that is outside of it is one part.
    around = _parts(np.pad(~mask[box], 1, constant_values=True), connectivity)
    labels[box][(around != around[0, 0, 0])[1:-1, 1:-1, 1:-1]] = value


def _parts(mask: NDArray[np.bool_], connectivity: int) -> NDArray[Any]:
    """Each part of a mask by a number from 1 on; voxels touch by faces (1) or by faces, edges and corners (3)."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(
        sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), connectivity == 3)
    )
