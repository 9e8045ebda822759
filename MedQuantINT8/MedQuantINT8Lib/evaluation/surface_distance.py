"""Distances between the surfaces of two masks: HD95 and the normalized surface Dice.

A surface is the voxels of a mask that have one of 6 neighbors outside it; distances are between voxel centers, in millimeters,
to the nearest surface voxel of the other mask. So MONAI defines its ``compute_hausdorff_distance`` (percentile 95) and
``compute_surface_dice`` (without sub-voxels), with which these agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..imaging.masks import bounding_box

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class SurfaceAgreement:
    """``hd95`` in millimeters; ``nsd`` from 0 to 1: the share of both surfaces that lies within the tolerance of the other."""

    hd95: float
    nsd: float


def surface_agreement(
    first: NDArray[np.bool_], second: NDArray[np.bool_], spacing_kji: Spacing, tolerance: float
) -> SurfaceAgreement | None:
    """Compare two masks (K, J, I); None if one of them is empty, since there is then no surface to measure from.

    Args:
        spacing_kji: millimeters along K, J, I.
        tolerance: millimeters.
    """
    if not first.any() or not second.any():
        return None
    box = bounding_box(first | second)
    first, second = (np.pad(mask[box], 1) for mask in (first, second))
    edges = _edges(first), _edges(second)
    there = _distance_to(edges[1], spacing_kji)[edges[0]]
    back = _distance_to(edges[0], spacing_kji)[edges[1]]
    near = int((there <= tolerance).sum()) + int((back <= tolerance).sum())
    hd95 = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return SurfaceAgreement(hd95, near / (there.size + back.size))


def _edges(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of a mask that touch its outside by a face; the mask must not reach the array's border."""
    inside = mask.copy()
    for axis in range(3):
        for step in (1, -1):
            inside &= np.roll(mask, step, axis)
    return mask & ~inside


def _distance_to(edges: NDArray[np.bool_], spacing_kji: Spacing) -> NDArray[np.float32]:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(edges.astype(np.uint8))
    image.SetSpacing([float(s) for s in reversed(spacing_kji)])
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    millimeters = sitk.GetArrayFromImage(distance)
    millimeters[edges] = 0.0
    return np.maximum(millimeters, 0.0)
