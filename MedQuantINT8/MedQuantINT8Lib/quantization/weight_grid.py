"""Grids that weights are rounded to: 8 bits with one scale an output channel, or 4 bits with a whole factor of it a group.

A weight of 4 bits is q * m * s: an integer q from -8 to 7, a factor m from 1 to 15 for each group of an output channel's
weights, and the channel's scale s. q * m is a number from -120 to 105, so the same weight is stored without loss as INT8
with the scale s, and every engine that runs INT8 runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.four_bit import LARGEST, LARGEST_FACTOR, SMALLEST, group_length

Array = NDArray[Any]
#: Largest INT8 weight: -128 is not used, so that ranges are symmetric.
LARGEST_INT8 = 127
#: The smallest number of 16 bits, and the least largest scale of a layer that they are taken for. Weights are chosen for the scale as it
#: is stored.
_SMALLEST_HALF, _LEAST_HALF = 2.0**-24, 2.0**-20
#: Shares of the full range that scales are tried at: the largest weights of a channel may be worth cutting off.
_SHARES = {8: (1.0, 0.95, 0.9), 4: tuple(np.arange(1.0, 0.45, -0.05))}


@dataclass(frozen=True)
class WeightGrid:
    """What the weights of one layer may be.

    Attributes:
        scale: (output channels,) float32, of the INT8 weights.
        factors: (output channels, inputs) int: the INT8 weights are multiples of them.
        smallest, largest: of the multiples.
    """

    scale: Array
    factors: Array
    smallest: int
    largest: int

    @property
    def steps(self) -> Array:
        """The distance of neighbouring values, (output channels, inputs) float64."""
        return self.scale.astype(np.float64)[:, None] * self.factors

    def nearest(self, matrix: Array) -> Array:
        """The weights rounded to nearest, as multiples of the factors."""
        return np.clip(np.rint(matrix / self.steps), self.smallest, self.largest).astype(np.int32)

    def int8(self, multiples: Array) -> Array:
        """Multiples as INT8 weights."""
        return (multiples * self.factors).astype(np.int8)


def eight_bit_grid(matrix: Array, scale: Array, importance: Array) -> WeightGrid:
    """The grid of 8 bits: of the scales at hand and slightly smaller ones, the one of least error for each channel.

    Args:
        matrix: (output channels, inputs).
        scale: (output channels,), at hand.
        importance: (inputs,): the mean square of each input.
    """
    shape = matrix.shape
    best = _least_error(matrix, scale, importance, _SHARES[8], (-LARGEST_INT8, LARGEST_INT8))
    return WeightGrid(best.astype(np.float32), np.ones(shape, np.int32), -LARGEST_INT8, LARGEST_INT8)


def four_bit_grid(matrix: Array, taps: int, importance: Array, *, fine: bool = False) -> WeightGrid:
    """The grid of 4 bits: for each group the range of least error, rounded to a multiple of the channel's scale.

    Args:
        taps: weights of one output channel that read the same input channel.
        fine: whether groups are short (:func:`..models.four_bit.group_length`).
    """
    channels, inputs = matrix.shape
    length = group_length(inputs, taps, fine=fine)
    groups = matrix.reshape(-1, length)
    weights = np.broadcast_to(importance, matrix.shape).reshape(-1, length)
    largest = np.maximum(groups.max(1) / LARGEST, groups.min(1) / SMALLEST)
    steps = _least_error(groups, largest, weights, _SHARES[4], (SMALLEST, LARGEST)).reshape(channels, -1)
    # Groups of nothing but zeros ask for no range.
    steps = np.where(largest.reshape(channels, -1) > 0, steps, 0)
    scale = steps.max(1) / LARGEST_FACTOR
    # Of a channel of nothing but zeros any scale will do.
    scale = _rounded_scale(np.where(scale > 0, scale, scale.max() or 1))
    factors = np.clip(np.rint(steps / scale[:, None]), 1, LARGEST_FACTOR).astype(np.int32)
    return WeightGrid(scale, np.repeat(factors, length, 1), SMALLEST, LARGEST)


def _rounded_scale(scale: Array) -> Array:
    """Return scales (float32) rounded to 16 bits, which is how they are stored; as they are where 16 bits do not hold the largest well.

    What is next to nothing beside the largest becomes the smallest number of 16 bits: a step of at most 1/16 of that one's.
    """
    if not _LEAST_HALF <= scale.max() <= np.finfo(np.float16).max:
        return scale.astype(np.float32)
    return np.maximum(scale, _SMALLEST_HALF).astype(np.float16).astype(np.float32)


def _least_error(
    rows: Array, scale: Array, importance: Array, shares: tuple[float, ...], limits: tuple[int, int]
) -> Array:
    """For each row, the share of its scale that rounds it with the least error, weighted by importance."""
    best, least = scale.astype(np.float64), np.full(len(rows), np.inf)
    for share in shares:
        tried = np.where(scale > 0, scale * share, 1.0)[:, None]
        rounded = np.clip(np.rint(rows / tried), *limits) * tried
        error = ((rounded - rows) ** 2 * importance).sum(1)
        better = error < least
        best, least = np.where(better, tried[:, 0], best), np.where(better, error, least)
    return best
