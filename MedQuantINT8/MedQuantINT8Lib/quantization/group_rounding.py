"""The rounding of one layer, or of one group of a convolution: what is learned of sampled inputs, kept where it is nearer to FP32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .quadratic_rounding import rounded
from .weight_grid import WeightGrid, eight_bit_grid, four_bit_grid

Array = NDArray[Any]

#: The share of samples that are kept to judge by.
_KEPT_SHARE = 0.2


@dataclass(frozen=True)
class LayerStart:
    """A layer before it is learned: FP32's matrix (output channels, inputs), and its INT8 form rounded to nearest.

    Attributes:
        bias: of the output channels; None for a layer that can have none.
        taps: weights of an output channel that read the same input channel.
    """

    matrix: Array
    integers: Array
    scale: Array
    bias: Array | None
    taps: int

    def parts(self, groups: int, columns: int) -> list[tuple[LayerStart, slice, slice]]:
        """The groups of the layer, each with its output channels and the columns that it reads."""
        rows, width = len(self.matrix) // groups, columns // groups
        parts = []
        for group in range(groups):
            own = slice(group * rows, (group + 1) * rows)
            bias = None if self.bias is None else self.bias[own]
            part = LayerStart(self.matrix[own], self.integers[own], self.scale[own], bias, self.taps)
            parts.append((part, own, slice(group * width, (group + 1) * width)))
        return parts


@dataclass(frozen=True)
class LearnedGroup:
    """A layer, or a group of a convolution, after learning.

    Attributes:
        int8: (output channels, inputs), stored.
        scale, bias: (output channels,) each.
        errors: (3, output channels): mean square error rounded to nearest, as it is now, and FP32's variance.
        changed: output channels whose learned weights were taken.
    """

    int8: Array
    scale: Array
    bias: Array
    errors: Array
    changed: Array


def learn_group(start: LayerStart, columns: Array, targets: Array, bits: int, *, fine: bool = False) -> LearnedGroup:
    """Learn the weights and biases of a layer; an output channel keeps its own where the learned ones are no nearer to FP32.

    Args:
        columns: (samples, inputs): what the quantized network gives the layer; the first fifth is judged by, and not learned from.
        targets: (samples, output channels): what FP32 computes there.
        bits: 8 or 4.
        fine: whether groups of 4 bits that share a factor are short (:func:`..models.four_bit.group_length`).
    """
    kept = max(1, int(_KEPT_SHARE * len(columns)))
    judge_columns, judge_targets = columns[:kept], targets[:kept]
    columns, targets = (columns[kept:], targets[kept:]) if len(columns) > kept else (columns, targets)
    has_bias = start.bias is not None
    means = (columns.mean(0, dtype=np.float64), targets.mean(0, dtype=np.float64))
    if not has_bias:
        means = (np.zeros_like(means[0]), np.zeros_like(means[1]))
    importance = (columns.astype(np.float32) ** 2).mean(0, dtype=np.float64)
    grids = _grids(start, importance, bits, fine=fine)
    baseline = grids[0].nearest(start.matrix) if bits == 4 else start.integers.astype(np.int32)
    centered = (columns - means[0].astype(np.float32), targets - means[1].astype(np.float32))
    learned = rounded(start.matrix, *centered, grids[1])

    def bias_of(values: Array) -> Array:
        return means[1] - values @ means[0] if has_bias else np.zeros(len(values))

    def error(values: Array, bias: Array) -> Array:
        output = judge_columns @ values.T.astype(np.float32) + bias.astype(np.float32)
        return np.asarray(((output - judge_targets) ** 2).mean(0, dtype=np.float64))

    nearest_values, learned_values = baseline * grids[0].steps, learned * grids[1].steps
    own_bias = start.bias if start.bias is not None else np.zeros(len(start.matrix))
    errors = [error(nearest_values, own_bias), error(learned_values, bias_of(learned_values))]
    better = errors[1] < errors[0]
    int8 = np.where(better[:, None], grids[1].int8(learned), grids[0].int8(baseline))
    scale = np.where(better, grids[1].scale, grids[0].scale)
    bias = np.where(better, bias_of(learned_values), own_bias)
    return LearnedGroup(
        int8, scale, bias, np.stack([errors[0], np.minimum(*errors), judge_targets.var(0, dtype=np.float64)]), better
    )


def _grids(start: LayerStart, importance: Array, bits: int, *, fine: bool) -> tuple[WeightGrid, WeightGrid]:
    """The grid of the weights as they are, and that of the learned ones."""
    if bits == 4:
        grid = four_bit_grid(start.matrix, start.taps, importance, fine=fine)
        return grid, grid
    learned = eight_bit_grid(start.matrix, start.scale, importance)
    plain = WeightGrid(start.scale.astype(np.float32), learned.factors, learned.smallest, learned.largest)
    return plain, learned
