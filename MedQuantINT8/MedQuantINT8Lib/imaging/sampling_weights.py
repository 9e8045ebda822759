"""Resampling to the network's grid as weighted sums along one axis after the other, for whoever computes them elsewhere (a GPU).

The weights are those that :meth:`.spatial_steps.Sampling.forward` multiplies by, where it does, or what SimpleITK interpolates with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import corner_zoom
from .axis_interpolation import AxisInterpolation
from .nnunet_resampling import AxisBands, NnunetResampler, axis_bands, slice_axis
from .resizing import axis_weights
from .spatial_steps import Sampling

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class AxisWeights:
    """One axis of an array (K, J, I) as weighted sums.

    Attributes:
        axis: of the array, 0 to 2.
        starts: int32 (new,): the first old voxel of each new one.
        weights: float32 (new, taps): the share of that voxel and of those after it; all of them exist.
        clip: afterwards values are kept in the range of what was resampled: of "whole", or of each slice across an axis (0 to 2); None if not.
    """

    axis: int
    starts: NDArray[np.int32]
    weights: FloatArray
    clip: int | str | None = None


def forward_weights(sampling: Sampling) -> list[AxisWeights] | None:
    """Return what brings a channel (K, J, I) to the network's grid, axis after axis; None where it cannot be said so.

    Clipping after the last axis that a spline of a higher order is for refers to the array before the first one.
    """
    geometry = sampling.geometry
    old, new = sampling.source.size[::-1], sampling.target.size[::-1]
    if sampling.nnunet is not None:
        return _of_nnunet(sampling.nnunet, sampling, old, new)
    axes = [axis for axis in sorted(range(3), key=lambda axis: new[axis] / old[axis]) if old[axis] != new[axis]]
    if geometry.resize == "torch":
        if geometry.anti_aliasing and sampling.changes:
            return None
        return [_of_rows(axis, axis_weights(old[axis], new[axis], sampling.way)) for axis in axes]
    if sampling.zooms and geometry.interpolation == "bspline":
        return [_of_bands(axis, corner_zoom.bands(old[axis], new[axis]), old[axis]) for axis in axes]
    if geometry.interpolation != "linear" or geometry.outside != "border":
        return None
    to_source = sampling.along_axes(sampling.source, sampling.target)
    if to_source is None:
        return None
    result = []
    for axis in sorted(range(3), key=lambda axis: new[axis] / old[axis]):
        first, step = to_source[2 - axis]
        linear = AxisInterpolation.linear(first + step * np.arange(new[axis], dtype=np.float64), old[axis])
        if old[axis] != new[axis] or linear.share.any() or (linear.low != np.arange(new[axis])).any():
            result.append(_of_linear(axis, linear))
    return result


def _of_nnunet(
    nnunet: NnunetResampler, sampling: Sampling, old: Sequence[int], new: Sequence[int]
) -> list[AxisWeights]:
    how = nnunet.data
    across = slice_axis(sampling.source.spacing, nnunet.spacing, how)
    z = None if across is None else 2 - across
    inside = [axis for axis in range(3) if axis != z and old[axis] != new[axis]]
    inside.sort(key=lambda axis: new[axis] / old[axis])
    result = [_of_bands(axis, axis_bands(old[axis], new[axis], how.order), old[axis]) for axis in inside]
    if how.order > 1 and result:
        last = result[-1]
        result[-1] = AxisWeights(last.axis, last.starts, last.weights, "whole" if z is None else z)
    if z is not None and old[z] != new[z]:
        result.append(_of_bands(z, axis_bands(old[z], new[z], how.order_z), old[z]))
    return result


def _of_bands(axis: int, bands: AxisBands, old: int) -> AxisWeights:
    """Return the rows of a banded matrix."""
    rows = np.zeros((bands[-1][1], old), np.float32)
    for begin, end, low, high, matrix in bands:
        rows[begin:end, low:high] = matrix
    return _of_rows(axis, rows)


def _of_rows(axis: int, rows: FloatArray) -> AxisWeights:
    """Return a matrix (new, old) without the zeros around each row's weights."""
    filled = rows != 0
    first, last = filled.argmax(axis=1), rows.shape[1] - 1 - filled[:, ::-1].argmax(axis=1)
    taps = int((last - first).max()) + 1
    starts = np.minimum(first, rows.shape[1] - taps)
    weights = np.take_along_axis(rows, starts[:, None] + np.arange(taps), axis=1)
    return AxisWeights(axis, starts.astype(np.int32), np.ascontiguousarray(weights, np.float32))


def _of_linear(axis: int, linear: AxisInterpolation) -> AxisWeights:
    if linear.size == 1 or not linear.share.any():
        return AxisWeights(axis, linear.low.astype(np.int32), np.ones((linear.new_size, 1), np.float32))
    starts = np.minimum(linear.low, linear.size - 2)
    share = np.where(starts < linear.low, np.float32(1), linear.share)
    weights: Any = np.stack([1 - share, share], axis=1)
    return AxisWeights(axis, starts.astype(np.int32), weights.astype(np.float32))
