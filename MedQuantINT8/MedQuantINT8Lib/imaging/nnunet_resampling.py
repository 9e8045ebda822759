"""Resampling as nnU-Net does it, in NumPy: splines along each axis, slice by slice where voxels are anisotropic.

nnU-Net (Isensee et al., Nature Methods 2021) resizes with scikit-image: a spline of order 3 (scans) or 1 (class scores) that
keeps the outer edges of the volume, continues it by its border voxels, and is clipped to the range of what went in. Where a
voxel is more than three times as long along one axis as along the others, slices across that axis are resized one by one, and
the nearest slice is taken between them. SimpleITK's B-spline mirrors at the border and is not clipped, and SciPy is not needed
for segmenting; here each axis is a product with a banded matrix, which is exact and about as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.spec import Geometry, SplineResampling
from ..thread_pool import Threads
from .axis_interpolation import AxisInterpolation
from .volume import Grid

FloatArray = NDArray[np.float32]
#: Resized masks that differ by less are equal: weights are 32-bit numbers.
_EQUAL = 1e-6
#: Taps on each side of the four that a cubic spline has: its prefilter has decayed to 1e-9 there.
REACH = 16
#: Rows of a banded matrix that are multiplied at once.
_BLOCK = 64
#: A block of rows of a banded matrix: rows begin to end, and the columns low to high that count, with their weights.
Band = tuple[int, int, int, int, FloatArray]
AxisBands = list[Band]
#: Spacings that differ by less are the same: matrices of oblique scans carry the noise of a multiplication.
_SAME = 1e-7


@dataclass(frozen=True)
class NnunetResampler:
    """How one scan goes to the network's grid and class scores come back.

    Attributes:
        data, scores, labels: the splines of the plans, for scans, class scores and label maps.
        spacing: the network's spacing, millimeters along the scan's I, J and K, as the plans have it.
    """

    data: SplineResampling
    scores: SplineResampling
    labels: SplineResampling
    spacing: tuple[float, float, float]

    def forward(self, values: FloatArray, source: Grid, size: tuple[int, int, int]) -> FloatArray:
        """Return a channel (K, J, I) on ``source`` with ``size`` voxels (I, J, K) instead."""
        return resize(values, size, self.data, slice_axis(source.spacing, self.spacing, self.data))

    def forward_labels(self, labels: NDArray[Any], source: Grid, size: tuple[int, int, int]) -> NDArray[Any]:
        """Return a label map (K, J, I) on ``source`` with ``size`` voxels (I, J, K) instead."""
        return resize_labels(labels, size, self.labels, slice_axis(source.spacing, self.spacing, self.labels))

    def backward(self, score: FloatArray, target: Grid) -> FloatArray:
        """Return the scores of one class (K, J, I) in network space on the grid that the scan came from."""
        return resize(score, target.size, self.scores, slice_axis(self.spacing, target.spacing, self.scores))

    def backward_axes(self, source: Grid, target: Grid) -> tuple[AxisInterpolation, ...] | None:
        """Return what :meth:`backward` does along K, J and I, from scores on ``source``; None where it is a spline of a higher order."""
        across = slice_axis(self.spacing, target.spacing, self.scores)
        axes = []
        for axis in (2, 1, 0):
            order = self.scores.order_z if axis == across else self.scores.order
            old, new = source.size[axis], target.size[axis]
            if order > 1 and old != new:
                return None
            if order == 0:
                axes.append(AxisInterpolation.nearest(_nearest(old, new), old))
            else:
                axes.append(AxisInterpolation.linear(_positions(old, new), old))
        return tuple(axes)


def nnunet_resampler(geometry: Geometry, target: Grid) -> NnunetResampler | None:
    """Return what resamples to ``target``, for models that are resampled as nnU-Net does it; None for others."""
    by_edges = geometry.anchor == "edges" or geometry.size is not None
    if geometry.interpolation != "nnunet" or not by_edges or geometry.reorient == "last":
        return None
    spacing = target.spacing
    if geometry.spacing is not None:
        model_spacing = geometry.spacing if geometry.axis_order == "IJK" else geometry.spacing[::-1]
        i, j, k = (own if want is None else want for own, want in zip(target.spacing, model_spacing, strict=True))
        spacing = (i, j, k)
    return NnunetResampler(
        geometry.spline or SplineResampling(3),
        geometry.score_spline or SplineResampling(1),
        geometry.label_spline or SplineResampling(1),
        spacing,
    )


def network_size(size: tuple[int, int, int], old: tuple[float, ...], new: tuple[float, ...]) -> tuple[int, int, int]:
    """Return voxels along I, J and K that nnU-Net gives a volume: the extent between outer edges, half voxels rounded to even."""
    i, j, k = (round(_rounded(a) / _rounded(b) * n) for a, b, n in zip(old, new, size, strict=True))
    return max(i, 1), max(j, 1), max(k, 1)


def _rounded(millimeters: float) -> float:
    """Return a length without its last bits, which come from multiplying by directions and would decide how a half voxel is rounded."""
    return float(f"{millimeters:.12g}")


def slice_axis(current: tuple[float, ...], target: tuple[float, ...], how: SplineResampling) -> int | None:
    """Return the I, J or K axis across which slices are resized one by one, or None.

    The first of the two spacings that is anisotropic decides; where two of its axes are equally long, none is chosen.
    """
    if how.separate_z is False:
        return None
    for spacing in (current, target):
        longest, shortest = max(spacing), min(spacing)
        if how.separate_z or longest / shortest > how.threshold:
            axes = [axis for axis, value in enumerate(spacing) if longest - value <= _SAME * longest]
            return axes[0] if len(axes) == 1 else None
    return None


def resize(data: FloatArray, size: tuple[int, int, int], how: SplineResampling, across: int | None) -> FloatArray:
    """Return an array (K, J, I) with ``size`` voxels along I, J and K instead, between the same outer edges.

    Args:
        across: the I, J or K axis across which slices are resized one by one, or None.

    Returns:
        float32; the array itself where its size is right already.
    """
    data = np.ascontiguousarray(data, np.float32)
    shape = (size[2], size[1], size[0])
    if data.shape == shape:
        return data
    z = None if across is None else 2 - across
    axes = sorted((axis for axis in range(3) if axis != z), key=lambda axis: shape[axis] / data.shape[axis])
    resized = data
    for axis in axes:
        resized = _along(resized, axis, shape[axis], how.order)
    if how.order > 1 and resized is not data:
        whole = tuple(axes) if z is not None else (0, 1, 2)
        np.clip(resized, data.min(axis=whole, keepdims=True), data.max(axis=whole, keepdims=True), out=resized)
    return resized if z is None else _along(resized, z, shape[z], how.order_z)


def resize_labels(
    labels: NDArray[Any], size: tuple[int, int, int], how: SplineResampling, across: int | None
) -> NDArray[Any]:
    """Return a label map (K, J, I) with ``size`` voxels along I, J and K instead, as nnU-Net resizes one.

    Each value's mask is resized, and a voxel gets the value whose mask is largest there; of equal ones that of the nearest voxel, if it is
    among them, else the smallest (batchgenerators from 0.25.5 on). Between slices that are resized one by one the nearest slice's label
    is taken (order_z 0), or the largest value whose mask is more than half there.

    Args:
        labels: whole numbers; -1, too, is a value.
    """
    shape = (size[2], size[1], size[0])
    if labels.shape == shape:
        return labels
    z = None if across is None else 2 - across
    axes = [axis for axis in range(3) if axis != z and labels.shape[axis] != shape[axis]]
    nearest = labels
    for axis in axes:
        nearest = np.take(nearest, _nearest(labels.shape[axis], shape[axis]), axis)
    resized = nearest if how.order == 0 or not axes else _largest_mask(labels, nearest, axes, how.order)
    if z is None or labels.shape[z] == shape[z]:
        return resized
    if how.order_z == 0:
        return np.take(resized, _nearest(labels.shape[z], shape[z]), z)
    result = np.zeros(shape, labels.dtype)
    for value in np.unique(resized):
        result[_along((resized == value).astype(np.float32), z, shape[z], how.order_z) > 0.5 + _EQUAL] = value
    return result


def _largest_mask(labels: NDArray[Any], nearest: NDArray[Any], axes: list[int], order: int) -> NDArray[Any]:
    """Return the value whose mask, resized along some axes, is largest in each voxel.

    Args:
        nearest: the label map resized along these axes by the nearest voxel, which decides between equal masks.
    """
    best = np.full(nearest.shape, -np.inf, np.float32)
    winner = np.zeros_like(nearest)
    nearest_is_best = np.zeros(nearest.shape, bool)
    for value in np.unique(labels):
        mask: FloatArray = (labels == value).astype(np.float32)
        for axis in axes:
            mask = _along(mask, axis, nearest.shape[axis], order)
        better, equal = mask > best + _EQUAL, np.abs(mask - best) <= _EQUAL
        is_nearest = nearest == value
        nearest_is_best = np.where(better, is_nearest, nearest_is_best | (equal & is_nearest))
        winner[better] = value
        np.maximum(best, mask, out=best)
    return np.where(nearest_is_best, nearest, winner)


def _along(data: FloatArray, axis: int, size: int, order: int) -> FloatArray:
    """Return ``data`` (K, J, I) resized along one axis."""
    old = data.shape[axis]
    if old == size:
        return data
    if order == 0:
        return np.take(data, _nearest(old, size), axis)
    return along_bands(data, axis, size, _bands(old, size, order))


def along_bands(data: FloatArray, axis: int, size: int, bands: list[Band]) -> FloatArray:
    """Return ``data`` (K, J, I) multiplied along one axis by the matrix (size, old) that ``bands`` hold."""
    result = np.empty((*data.shape[:axis], size, *data.shape[axis + 1 :]), np.float32)
    # Shared out along an axis that stays as it is.
    beside = 1 if axis == 0 else 0

    def run(items: range) -> None:
        part = (slice(None),) * beside + (slice(items.start, items.stop),)
        source, target = data[part], result[part]
        for begin, end, low, high, matrix in bands:
            if axis == 0:
                target[begin:end] = np.tensordot(matrix, source[low:high], 1)
            elif axis == 1:
                np.matmul(matrix, source[:, low:high], out=target[:, begin:end])
            else:
                np.matmul(source[..., low:high], matrix.T, out=target[..., begin:end])

    with Threads() as threads:
        threads.share(run, data.shape[beside])
    return result


def _positions(old: int, size: int) -> NDArray[np.float64]:
    """Return where the centers of new voxels lie among the old ones."""
    return old / size * (np.arange(size, dtype=np.float64) + 0.5) - 0.5


def _nearest(old: int, size: int) -> NDArray[np.intp]:
    return np.floor(np.clip(_positions(old, size), 0, old - 1) + 0.5).astype(np.intp)


def axis_bands(old: int, size: int, order: int) -> AxisBands:
    """Return the matrix (size, old) that an axis is resized by: a spline of order 0 (the nearest voxel), 1 or 3."""
    if order == 0:
        return in_bands(_nearest(old, size)[:, None], np.ones((size, 1)))
    return _bands(old, size, order)


@lru_cache(maxsize=32)
def _bands(old: int, size: int, order: int) -> list[Band]:
    """Return the matrix (size, old) of one axis in blocks of rows."""
    positions = _positions(old, size)
    if order == 1:
        positions = np.clip(positions, 0, old - 1)
    first = np.floor(positions).astype(int)
    weights = _linear(positions - first) if order == 1 else cubic_weights(positions - first)
    start = first if order == 1 else first - 1 - REACH
    return in_bands(np.clip(start[:, None] + np.arange(weights.shape[1]), 0, old - 1), weights)


def in_bands(taps: NDArray[np.intp], weights: NDArray[np.float64]) -> list[Band]:
    """Return a matrix in blocks of rows, from the columns ``taps`` (rows, n) that count in each row and their weights (rows, n)."""
    bands = []
    for begin in range(0, len(taps), _BLOCK):
        end = min(begin + _BLOCK, len(taps))
        low, high = int(taps[begin:end].min()), int(taps[begin:end].max()) + 1
        matrix = np.zeros((end - begin, high - low))
        np.add.at(matrix, (np.arange(end - begin)[:, None], taps[begin:end] - low), weights[begin:end])
        bands.append((begin, end, low, high, matrix.astype(np.float32)))
    return bands


def _linear(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([1 - offset, offset], axis=1)


def cubic_weights(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights (n, taps) of the voxels from ``REACH`` + 1 before to ``REACH`` + 2 behind: the cubic B-spline after its prefilter.

    The prefilter is the inverse of (1, 4, 1) / 6, a sum of powers of its pole (Unser, IEEE Signal Processing Magazine 1999).
    """
    t = offset[:, None]
    spline = (
        np.concatenate([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3], axis=1)
        / 6
    )
    pole = np.sqrt(3.0) - 2
    prefilter = pole ** np.abs(np.arange(-REACH, REACH + 1))
    prefilter /= prefilter.sum()
    weights = np.zeros((len(offset), len(prefilter) + 3))
    for tap in range(4):
        weights[:, tap : tap + len(prefilter)] += spline[:, tap, None] * prefilter
    return weights
