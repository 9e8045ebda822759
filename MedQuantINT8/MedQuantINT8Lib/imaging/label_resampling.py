"""Labels on a finer grid from class scores on a coarser one, without resampling every class.

To resample each class and take the largest is the definition; here the same labels come of far less arithmetic. What linear
interpolation gives in a block of voxels lies between the smallest and the largest value there. So in a block a class whose
largest score is below the largest of all classes' smallest scores wins nowhere in it. Most blocks have one class left, which
fills them; in the others the few that are left are interpolated, axis by axis, once those are gone that stay below a mean of
classes everywhere (:func:`undominated`). A region (a score above a cut) is decided in a
block without arithmetic where all of its scores are on one side of the cut.

Nothing of it holds for splines of a higher order, which leave that range: those are resampled class by class
(:meth:`.network_input.NetworkInput.restore_from_scores`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..thread_pool import Threads
from .axis_interpolation import AxisInterpolation, Piece
from .regions import Regions

FloatArray = NDArray[np.float32]
Axes = tuple[AxisInterpolation, AxisInterpolation, AxisInterpolation]
#: Old voxels along each side of a block: small ones leave fewer classes, large ones take fewer steps.
STEP = 10
#: What is rounded off in interpolating: two scores that are nearer than this share of them are not told apart by their bounds.
_ROUNDING = 1e-5
#: Classes whose extremes are looked for together.
_CLASSES = 4
#: In a block of more classes than this, those that are below the mean of a few with large scores are left out first.
_MANY, _FEW = 8, 4
_Block = tuple[Piece, Piece, Piece]


class Decision(Protocol):
    """From class scores to what is kept of a voxel: its label, or the regions that it lies in."""

    dtype: Any

    def bounds(self, scores: FloatArray, blocks: tuple[list[Piece], list[Piece], list[Piece]], threads: Threads) -> Any:
        """Return what is known of each block of ``scores`` (C, n0, n1, n2) without interpolating."""

    def decide(self, scores: FloatArray, bounds: Any, index: tuple[int, int, int], block: _Block) -> Any:
        """Return the values of the new voxels of one block: an array, or one value for all."""


class Largest:
    """The label of the class whose score is largest; the first of equal ones.

    Args:
        values: label value of each channel, (C,).
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self.values, self.dtype = values, values.dtype

    def bounds(
        self, scores: FloatArray, blocks: tuple[list[Piece], list[Piece], list[Piece]], threads: Threads
    ) -> FloatArray:
        """Return the largest score of each class in each block, (C, blocks along the axes); minus infinity of those that win nowhere in it."""
        high, low = block_extremes(scores, blocks, threads)
        high[~possible_winners(high, low)] = -np.inf
        return high

    def decide(self, scores: FloatArray, bounds: Any, index: tuple[int, int, int], block: _Block) -> Any:
        high = bounds[(slice(None), *index)]
        classes = np.flatnonzero(high > -np.inf)
        if len(classes) == 1:
            return self.values[classes[0]]
        if not len(classes):
            raise EngineError(
                "The network gives scores that are no numbers (NaN, or minus infinity for every class).",
                "Look for voxels of the scan that are no numbers, or choose another engine or --precision fp32.",
            )
        old = (block[0].old, block[1].old, block[2].old)
        if len(classes) > _MANY:
            # Before the scores of all are gathered.
            some = classes[np.argpartition(high[classes], -_FEW)[-_FEW:]]
            bar = sum(scores[number][old] for number in some).min() / _FEW
            # Infinite scores of both signs have no mean, which leaves all classes in.
            classes = classes[~(high[classes] + _ROUNDING * np.maximum(np.abs(high[classes]), abs(bar)) < bar)]
        part = np.stack([scores[number][old] for number in classes])
        if len(classes) > 2:
            kept = undominated(part)
            classes, part = classes[kept], part[kept]
            if len(classes) == 1:
                return self.values[classes[0]]
        if len(classes) == 2:
            # One array to interpolate instead of two.
            ahead = interpolated(part[1] - part[0], block) > 0
            return np.where(ahead, self.values[classes[1]], self.values[classes[0]])
        new = interpolated(part, block)
        best, labels = new[0], np.full(new.shape[1:], self.values[classes[0]], self.dtype)
        for score, number in zip(new[1:], classes[1:], strict=True):
            np.copyto(labels, self.values[number], where=score > best)
            np.maximum(best, score, out=best)
        return labels


class Painted:
    """Regions whose scores lie above their cuts: painted over one another, or as one bit each where their order is found later."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self.dtype = regions.mark_type if regions.nested else regions.values.dtype
        self._channels = list(regions.channels)

    def bounds(self, scores: FloatArray, blocks: tuple[list[Piece], list[Piece], list[Piece]], threads: Threads) -> Any:
        """Of each region and block: 1 where all of the block lies in the region, -1 where nothing does, else 0."""
        high, low = block_extremes(scores, blocks, threads)
        high, low = high[self._channels], low[self._channels]
        cuts = self.regions.cuts[:, None, None, None]
        margin = _ROUNDING * np.maximum(np.abs(high), np.abs(low))
        return np.where(low - margin > cuts, 1, np.where(high + margin <= cuts, -1, 0)).astype(np.int8)

    def decide(self, scores: FloatArray, bounds: Any, index: tuple[int, int, int], block: _Block) -> Any:
        regions, sides = self.regions, bounds[(slice(None), *index)]
        shape = tuple(len(piece.weights) for piece in block)
        if (sides < 0).all():
            return 0

        def score(channel: int) -> NDArray[Any]:
            number = self._channels.index(channel)
            if sides[number]:
                return np.broadcast_to(np.float32(np.inf if sides[number] > 0 else -np.inf), shape)
            return interpolated(scores[channel][block[0].old, block[1].old, block[2].old], block)

        return regions.marked(score) if regions.nested else regions.paint(score)


class LabelResampling:
    """Takes class scores slab by slab along their first axis, and gives the labels on the new grid.

    Args:
        axes: the interpolation along each axis of the scores.
        decision: what is kept of the scores.

    Attributes:
        result: (new0, new1, new2) of the decision's values; whole once the last slab was taken.
    """

    def __init__(self, axes: Axes, decision: Decision) -> None:
        self._decision = decision
        self._pieces = tuple(axis.pieces(STEP) for axis in axes)
        self._next = 0
        self.result = np.zeros([axis.new_size for axis in axes], decision.dtype)

    @property
    def first_needed(self) -> int:
        """The first old voxel along the first axis that has to come with the next slab, or again."""
        pieces = self._pieces[0]
        return pieces[self._next].old.start if self._next < len(pieces) else pieces[-1].old.stop

    def take(self, scores: FloatArray, first: int, threads: Threads) -> None:
        """Decide every new voxel whose old ones have all come.

        Args:
            scores: (C, planes, n1, n2), float32; the planes from ``first`` on, which is at most :attr:`first_needed`.
        """
        ready = list(
            itertools.takewhile(lambda piece: piece.old.stop <= first + scores.shape[1], self._pieces[0][self._next :])
        )
        if not ready:
            return
        self._next += len(ready)
        shifted = [
            Piece(piece.new, slice(piece.old.start - first, piece.old.stop - first), piece.weights) for piece in ready
        ]
        blocks = (shifted, self._pieces[1], self._pieces[2])
        bounds = self._decision.bounds(scores, blocks, threads)
        indices = list(itertools.product(*(range(len(pieces)) for pieces in blocks)))

        def run(numbers: range) -> None:
            for a, b, c in (indices[number] for number in numbers):
                block = (blocks[0][a], blocks[1][b], blocks[2][c])
                values = self._decision.decide(scores, bounds, (a, b, c), block)
                self.result[block[0].new, block[1].new, block[2].new] = values

        threads.share(run, len(indices))


def interpolated(scores: NDArray[Any], block: Sequence[Piece]) -> FloatArray:
    """Return the new voxels of a block from its old ones, whose last three axes are the grid's."""
    *lead, a, _, c = scores.shape
    along2 = (scores.reshape(-1, c) @ block[2].weights.T).reshape(*lead, a, -1, len(block[2].weights))
    along1 = block[1].weights @ along2
    new = block[0].weights @ along1.reshape(*lead, a, -1)
    result: FloatArray = new.reshape(*lead, *(len(piece.weights) for piece in block))
    return result


def block_extremes(
    scores: FloatArray, blocks: tuple[list[Piece], list[Piece], list[Piece]], threads: Threads
) -> tuple[FloatArray, FloatArray]:
    """Return the largest and the smallest score of each class (C, n0, n1, n2) among the old voxels of each block."""
    shape = len(scores), *(len(pieces) for pieces in blocks)
    highest, lowest = np.empty(shape, np.float32), np.empty(shape, np.float32)

    def run(classes: range) -> None:
        # A few classes at a time: what is left of them along one axis stays in a core's cache for the next.
        for begin in range(classes.start, classes.stop, _CLASSES):
            some = slice(begin, min(begin + _CLASSES, classes.stop))
            highest[some], lowest[some] = _extremes(scores[some], blocks)

    threads.share(run, len(scores))
    return highest, lowest


def _extremes(
    scores: FloatArray, blocks: tuple[list[Piece], list[Piece], list[Piece]]
) -> tuple[FloatArray, FloatArray]:
    high = low = scores
    for axis, pieces in enumerate(blocks, 1):
        index: list[Any] = [slice(None)] * 4
        shape = [*high.shape[:axis], len(pieces), *high.shape[axis + 1 :]]
        highest, lowest = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for number, piece in enumerate(pieces):
            index[axis] = piece.old
            here = (slice(None),) * axis + (number,)
            high[tuple(index)].max(axis=axis, out=highest[here])
            low[tuple(index)].min(axis=axis, out=lowest[here])
        high, low = highest, lowest
    return high, low


def possible_winners(high: FloatArray, low: FloatArray) -> NDArray[np.bool_]:
    """Return which classes can have the largest score in a block, from the largest and smallest score of each."""
    bar = low.max(axis=0)
    return high + _ROUNDING * np.maximum(np.abs(high), np.abs(bar)) >= bar


def undominated(scores: FloatArray) -> NDArray[np.bool_]:
    """Return which classes can have the largest score in a block, from all scores (C, ...) of its old voxels; at least one.

    The largest score is never below a mean of several. So a class that is below the mean of some classes at each old voxel wins at no new
    one. The mean is taken of those that are largest somewhere: where two structures meet neither is large everywhere, and smallest
    scores leave all classes in, but the mean of the two is still above the others.
    """
    flat = scores.reshape(len(scores), -1)
    largest = (flat == flat.max(axis=0)).any(axis=1)
    if largest.all():
        return largest
    mean = flat[largest].mean(axis=0)
    kept: NDArray[np.bool_] = (flat + _ROUNDING * np.abs(flat).max() >= mean).any(axis=1)
    return kept | largest


class LargestMask:
    """For label maps: each label's mask is interpolated, and the label whose share is largest wins; the smallest of equal ones.

    What is "scores" elsewhere is the label map itself, with one channel.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def bounds(
        self, scores: NDArray[Any], blocks: tuple[list[Piece], list[Piece], list[Piece]], threads: Threads
    ) -> None:
        return None

    def decide(self, scores: NDArray[Any], bounds: Any, index: tuple[int, int, int], block: _Block) -> Any:
        part = scores[0][block[0].old, block[1].old, block[2].old]
        smallest, largest = part.min(), part.max()
        if smallest == largest:
            return smallest
        values = np.unique(part)
        if len(values) == 2:
            ahead = interpolated((part == values[1]).astype(np.float32), block) > 0.5
            return np.where(ahead, values[1], values[0])
        best = interpolated((part == values[0]).astype(np.float32), block)
        labels = np.full(best.shape, values[0], self.dtype)
        for value in values[1:]:
            share = interpolated((part == value).astype(np.float32), block)
            np.copyto(labels, value, where=share > best)
            np.maximum(best, share, out=best)
        return labels
