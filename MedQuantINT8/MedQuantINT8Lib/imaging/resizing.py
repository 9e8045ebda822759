"""Resizing an array to a number of voxels, axis by axis, as torch's ``interpolate`` and MONAI's Resize do it.

Each axis is a product with a matrix of weights (new, old), so that every mode is exact and the same code goes both ways.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .axis_interpolation import AxisInterpolation

FloatArray = NDArray[np.float32]
#: "area" averages the voxels that a new one covers (adaptive average pooling); "corners" is "linear" with the outermost centers
#: of both arrays in the same places; "exact" is "nearest" with centers of voxels rounded.
Way = Literal["linear", "corners", "nearest", "exact", "area"]


def resize(data: FloatArray, shape: tuple[int, int, int], way: Way) -> FloatArray:
    """Return a float32 array (n0, n1, n2) with another shape; the array itself where it has that shape already."""
    # The axis that loses most goes first.
    for axis in sorted(range(3), key=lambda a: shape[a] / data.shape[a]):
        if data.shape[axis] != shape[axis]:
            weights = axis_weights(data.shape[axis], shape[axis], way)
            data = np.moveaxis(np.tensordot(weights, data, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(data, np.float32)


def interpolation(old: int, new: int, way: Way) -> AxisInterpolation | None:
    """Return what :func:`resize` does along one axis; None where more than two voxels count for a new one."""
    return AxisInterpolation.of_weights(axis_weights(old, new, way))


def smooth(data: FloatArray, sigmas: tuple[float, float, float]) -> FloatArray:
    """Return a float32 array (n0, n1, n2) smoothed by Gaussians of these standard deviations, in voxels; zeros lie outside of it."""
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            kernel = _gaussian(sigma)
            reach = len(kernel) // 2
            padded = np.pad(data, [(reach, reach) if a == axis else (0, 0) for a in range(3)])
            size = data.shape[axis]
            parts = (weight * np.take(padded, range(n, n + size), axis) for n, weight in enumerate(kernel))
            data = sum(parts, np.zeros_like(data))
    return data


@lru_cache(maxsize=64)
def axis_weights(old: int, new: int, way: Way) -> FloatArray:
    """Return the share (new, old) that each old voxel has in each new one."""
    places = np.arange(new)
    weights = np.zeros((new, old))
    if way == "area":
        begins, ends = places * old // new, -(-(places + 1) * old // new)
        for n, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            weights[n, begin:end] = 1 / (end - begin)
        return weights.astype(np.float32)
    if way in ("nearest", "exact"):
        # In 32 bits, as torch computes it: the last bit decides where a new voxel begins exactly at an old one.
        positions = (places + (0.5 if way == "exact" else 0.0)).astype(np.float32) * np.float32(old / new)
        weights[places, np.minimum(np.floor(positions).astype(int), old - 1)] = 1
        return weights.astype(np.float32)
    if way == "corners":
        positions = places * ((old - 1) / (new - 1)) if new > 1 else np.zeros(1)
    else:
        positions = np.maximum((places + 0.5) * (old / new) - 0.5, 0)
    below = np.minimum(positions.astype(int), old - 1)
    above = np.minimum(below + 1, old - 1)
    np.add.at(weights, (places, below), 1 - (positions - below))
    np.add.at(weights, (places, above), positions - below)
    return weights.astype(np.float32)


@lru_cache(maxsize=64)
def _gaussian(sigma: float) -> tuple[float, ...]:
    """Return a Gaussian's share of each voxel, out to four standard deviations (``monai.networks.layers.gaussian_1d``, "erf")."""
    from math import erf

    tail = int(max(sigma * 4.0, 0.5) + 0.5)
    scale = 0.70710678 / sigma
    return tuple(max(0.0, 0.5 * (erf(scale * (x + 0.5)) - erf(scale * (x - 0.5)))) for x in range(-tail, tail + 1))
