"""Interpolation along one axis that takes at most two neighbors for each new voxel: linear, or the nearest.

What a new voxel gets is then a mean of its neighbors, and never beyond their smallest and largest value.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """Consecutive new voxels of an axis with the old ones that they are made of.

    Attributes:
        new: the new voxels.
        old: the old voxels, one after the other.
        weights: (new, old) share of each old voxel in each new one, float32.
    """

    new: slice
    old: slice
    weights: FloatArray


@dataclass(frozen=True)
class AxisInterpolation:
    """How each new voxel of an axis comes from one old voxel and the next.

    Attributes:
        size: old voxels.
        low: (new,) the first of the two old voxels of each new one, never falling.
        share: (new,) float32, the share of the second; 0 where there is none.
    """

    size: int
    low: NDArray[np.intp]
    share: FloatArray

    @classmethod
    def linear(cls, positions: NDArray[np.float64], size: int) -> AxisInterpolation:
        """Return what interpolates linearly at ``positions`` among ``size`` old voxels; outside of them the outermost goes on."""
        inside = np.clip(positions, 0, size - 1)
        low = np.minimum(np.floor(inside).astype(np.intp), max(0, size - 2))
        return cls(size, low, (inside - low).astype(np.float32))

    @classmethod
    def nearest(cls, indices: NDArray[np.intp], size: int) -> AxisInterpolation:
        """Return what takes one old voxel for each new one."""
        return cls(size, np.asarray(indices, np.intp), np.zeros(len(indices), np.float32))

    @classmethod
    def of_weights(cls, weights: FloatArray) -> AxisInterpolation | None:
        """Return the interpolation of a matrix of weights (new, old); None where a row has more than two neighbors."""
        low = np.argmax(weights != 0, axis=1)
        beyond = np.minimum(low + 1, weights.shape[1] - 1)
        rows = np.arange(len(weights))
        share = np.where(beyond > low, weights[rows, beyond], 0).astype(np.float32)
        if not np.allclose(weights[rows, low] + share, weights.sum(axis=1), atol=1e-6):
            return None
        return cls(weights.shape[1], low, share)

    @property
    def new_size(self) -> int:
        """New voxels."""
        return len(self.low)

    def flipped(self) -> AxisInterpolation:
        """Return the same where old and new voxels are counted from the other end."""
        two = self.share > 0
        low = np.where(two, self.size - 2 - self.low, self.size - 1 - self.low)
        return replace(self, low=low[::-1], share=np.where(two, 1 - self.share, 0)[::-1].astype(np.float32))

    def within(self, before: int, size: int) -> AxisInterpolation:
        """Return the same where ``before`` more old voxels come first, of ``size`` in all."""
        return replace(self, size=size, low=self.low + before)

    def pieces(self, step: int) -> list[Piece]:
        """Return the new voxels in pieces, each of which comes from at most ``step`` + 1 old ones."""
        high = self.low + (self.share > 0)
        bounds = [0, *(np.flatnonzero(np.diff(self.low // step)) + 1).tolist(), self.new_size]
        pieces = []
        for begin, end in itertools.pairwise(bounds):
            first, last = int(self.low[begin]), int(high[begin:end].max())
            weights = np.zeros((end - begin, last - first + 1), np.float32)
            rows = np.arange(end - begin)
            np.add.at(weights, (rows, self.low[begin:end] - first), 1 - self.share[begin:end])
            np.add.at(weights, (rows, high[begin:end] - first), self.share[begin:end])
            pieces.append(Piece(slice(begin, end), slice(first, last + 1), weights))
        return pieces
