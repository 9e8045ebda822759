"""What is done with a finished label map: keeping the largest parts of a structure, removing small ones, filling holes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..imaging.masks import bounding_box
from ..models.spec import Cleaning


def cleaned(labels: NDArray[Any], steps: Sequence[Cleaning], voxel_mm3: float = 1.0) -> NDArray[Any]:
    """Return the label map (three axes in any order) after all steps, one after the other; it is changed in place.

    Args:
        voxel_mm3: the volume of a voxel in cubic millimeters.
    """
    for step in steps:
        values = step.labels or tuple(int(v) for v in np.flatnonzero(np.bincount(labels.ravel())) if v)
        least = least_voxels(step, voxel_mm3)
        if step.kind == "fill_holes":
            for value in values:
                _fill_holes(labels, value, step.connectivity)
        elif step.whole and labels.max() > 1:
            _remove_small_structures(labels, values, least)
        elif step.together and values:
            _remove_parts(labels, np.isin(labels, values), step, least)
        else:
            for value in values:
                _remove_parts(labels, labels == value, step, least)
    return labels


def least_voxels(step: Cleaning, voxel_mm3: float) -> int:
    """Return how many voxels a part has at least that "remove_small" leaves."""
    # A whole number of voxels stays one, whatever rounding has done to their volume.
    return step.size if step.volume is None else int(np.ceil(step.volume / voxel_mm3 * (1 - 1e-9)))


def _remove_small_structures(labels: NDArray[Any], values: Sequence[int], least: int) -> None:
    """Set structures of fewer than ``least`` voxels to 0."""
    sizes = np.bincount(labels.ravel(), minlength=max(values) + 1)
    labels[np.isin(labels, [value for value in values if sizes[value] < least])] = 0


def _remove_parts(labels: NDArray[Any], mask: NDArray[np.bool_], step: Cleaning, least: int) -> None:
    """Set parts of a mask to 0 that a step does not keep: all but the largest, or those of fewer than ``least`` voxels.

    Of several equal ones the first in memory's order stay, or all.
    """
    if not mask.any():
        return
    # Parts are looked for in the structure's own box: structures are small beside the scan.
    box = bounding_box(mask)
    inside = mask[box]
    parts = _parts(inside, step.connectivity)
    sizes = np.bincount(parts.ravel())[1:]
    if step.kind == "largest":
        order = np.argsort(-sizes, kind="stable")[: step.count]
        kept = order if step.equal == "first" else np.flatnonzero(sizes >= sizes[order[-1]])
    else:
        kept = np.flatnonzero(sizes >= least)
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
    """Return each part of a mask by a number from 1 on, in memory's order; voxels touch by faces (1), by edges too (2), or by corners too (3)."""
    import SimpleITK as sitk

    parts = sitk.GetArrayFromImage(
        sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), connectivity == 3)
    )
    return _joined_by_edges(parts) if connectivity == 2 else parts


def _joined_by_edges(parts: NDArray[Any]) -> NDArray[Any]:
    """Return parts whose voxels touch by faces, those that touch by edges joined."""
    first_of = np.arange(int(parts.max()) + 1)

    def find(number: int) -> int:
        while first_of[number] != number:
            number = first_of[number]
        return number

    for one, other in _pairs_at_edges(parts):
        low, high = sorted((find(one), find(other)))
        first_of[high] = low
    joined = np.array([find(number) for number in range(len(first_of))])
    return np.unique(joined, return_inverse=True)[1][parts].astype(parts.dtype)


def _pairs_at_edges(parts: NDArray[Any]) -> list[tuple[int, int]]:
    """Return the numbers of parts that touch by an edge."""
    pairs: set[tuple[int, int]] = set()
    ahead, behind = slice(1, None), slice(None, -1)
    for a, b in itertools.combinations(range(3), 2):
        for places in ((ahead, ahead), (ahead, behind)):
            one, other = [slice(None)] * 3, [slice(None)] * 3
            one[a], one[b] = places
            other[a], other[b] = (behind if place == ahead else ahead for place in places)
            first, second = parts[tuple(one)], parts[tuple(other)]
            touching = (first != second) & (first > 0) & (second > 0)
            found = np.unique(np.stack([first[touching], second[touching]]), axis=1)
            pairs.update((int(x), int(y)) for x, y in found.T)
    return sorted(pairs)
