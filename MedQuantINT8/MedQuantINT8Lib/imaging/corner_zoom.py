"""Resampling that keeps the centers of the outermost voxels, as SciPy's ``ndimage.zoom`` does it for TotalSegmentator.

TotalSegmentator (Wasserthal et al., Radiology: Artificial Intelligence 2023) resizes a scan by a cubic spline before nnU-Net sees it, and
nnU-Net's label map by the nearest voxel afterwards. New voxels lie at n * (old - 1) / (new - 1) among the old ones; a spline is mirrored at
the outermost centers. SciPy is not needed for segmenting: each axis is a product with a banded matrix, or a choice of voxels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .nnunet_resampling import REACH, Band, along_bands, cubic_weights, in_bands

FloatArray = NDArray[np.float32]


def zoomed_size(size: tuple[int, int, int], old: tuple[float, ...], new: tuple[float, ...]) -> tuple[int, int, int]:
    """Return voxels along I, J and K after going from a spacing to another: the number of voxels is scaled, half voxels rounded to even.

    The old spacing is what a NIfTI header holds, which has 32 bits.
    """
    i, j, k = (round(n * (float(np.float32(a)) / b)) for n, a, b in zip(size, old, new, strict=True))
    return max(i, 1), max(j, 1), max(k, 1)


def positions(old: int, new: int) -> NDArray[np.float64]:
    """Return where the centers of new voxels lie among the old ones, (new,)."""
    step = (old - 1) / (new - 1) if new > 1 else 1.0
    return np.minimum(np.arange(new, dtype=np.float64) * step, old - 1)


def nearest(labels: NDArray[Any], size: tuple[int, int, int]) -> NDArray[Any]:
    """Return a label map (K, J, I) with ``size`` voxels along I, J and K by the nearest voxel, the latter of two that are equally near."""
    for axis, new in enumerate(reversed(size)):
        if (old := labels.shape[axis]) != new:
            labels = np.take(labels, nearest_indices(old, new), axis)
    return labels


def nearest_indices(old: int, new: int) -> NDArray[np.intp]:
    """Return the nearest old voxel of each new one, (new,); the latter of two that are equally near."""
    return np.floor(positions(old, new) + 0.5).astype(np.intp)


def cubic(data: FloatArray, size: tuple[int, int, int]) -> FloatArray:
    """Return a float32 array (K, J, I) with ``size`` voxels along I, J and K by a cubic spline; the array itself where it has them."""
    shape = size[::-1]
    # The axis that loses most goes first.
    for axis in sorted(range(3), key=lambda axis: shape[axis] / data.shape[axis]):
        if data.shape[axis] != shape[axis]:
            data = along_bands(data, axis, shape[axis], bands(data.shape[axis], shape[axis]))
    return data


@lru_cache(maxsize=32)
def bands(old: int, new: int) -> list[Band]:
    """Return the matrix (new, old) of one axis in blocks of rows."""
    places = positions(old, new)
    first = np.floor(places).astype(int)
    weights = cubic_weights(places - first)
    taps = (first - 1 - REACH)[:, None] + np.arange(weights.shape[1])
    # Mirrored at the outermost centers, which are not repeated.
    period = max(1, 2 * (old - 1))
    taps = np.abs((taps + old - 1) % period - (old - 1)) if old > 1 else np.zeros_like(taps)
    return in_bands(taps, weights)
