"""Takes finished blocks of scores straight from the blending to the scan's grid, so that scores of the whole volume never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..imaging.label_resampling import STEP, Axes, Decision, LabelResampling
from ..thread_pool import Threads


class ResamplingSink:
    """Keeps the scores of as many planes as are not decided yet, and decides labels on the scan's grid slab by slab.

    Blocks come in raster order: those that begin at one plane of the slowest axis, which together are a slab, then the next slab.

    Attributes:
        shape: (n0, n1, n2) of the scores along the tensor's axes.
        slab_planes: so many planes, or more, are best given at a time: with them comes what is decided together.

    Args:
        shape: (n0, n1, n2) of the scores along the tensor's axes.
        classes: channels of a block.
        axes: the interpolation along each axis of the tensor.
        slowest: the axis along which slabs follow one another.
        prepare: what is done with a block first, in place.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        axes: Axes,
        decision: Decision,
        slowest: int,
        prepare: Callable[[NDArray[Any]], None] = lambda block: None,
    ) -> None:
        self.shape, self.slab_planes = shape, STEP
        # The slowest axis becomes the first one, the others stay in their order.
        self._turn = (slowest, *(axis for axis in range(3) if axis != slowest))
        self._resampling = LabelResampling((axes[slowest], axes[self._turn[1]], axes[self._turn[2]]), decision)
        self._section = (shape[self._turn[1]], shape[self._turn[2]])
        #: Planes from the first one that is kept on, of which so many have room; there may be memory for more.
        self._scores = np.empty((classes, 0, *self._section), np.float32)
        self._first, self._planes, self._filled, self._prepare = 0, 0, 0, prepare

    @classmethod
    def bytes_needed(cls, classes: int, shape: tuple[int, int, int], slowest: int, planes: int) -> int:
        """Return what the scores of a slab of ``planes`` take, with those that are kept from the slab before."""
        section = int(np.prod(shape)) // max(1, shape[slowest])
        return 4 * classes * section * 2 * (planes + 1)

    def __call__(self, start: tuple[int, int, int], block: NDArray[Any]) -> None:
        self._prepare(block)
        size = (block.shape[1], block.shape[2], block.shape[3])
        self.room(start, size)[...] = block
        self._filled_with(start, size)

    def room(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> NDArray[np.float32]:
        """Where the scores (classes, n0, n1, n2) of the next block go, for whoever writes them there instead of giving the block."""
        begin, *place = (start[axis] for axis in self._turn)
        planes, *section = (size[axis] for axis in self._turn)
        if begin + planes > self._first + self._planes:
            self._make_room(begin + planes)
        part = self._scores[
            :,
            begin - self._first : begin - self._first + planes,
            place[0] : place[0] + section[0],
            place[1] : place[1] + section[1],
        ]
        back = np.argsort(self._turn)
        return part.transpose(0, *(1 + int(axis) for axis in back))

    def filled(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        """Take what was written into the room of a block."""
        self._prepare(self.room(start, size))
        self._filled_with(start, size)

    def _filled_with(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        slowest, *others = self._turn
        end = start[slowest] + size[slowest]
        self._filled += size[others[0]] * size[others[1]]
        if self._filled == self._section[0] * self._section[1]:
            self._filled = 0
            with Threads() as threads:
                self._resampling.take(self._scores[:, : end - self._first], self._first, threads)

    def _make_room(self, end: int) -> None:
        """Let planes go that are decided, and have room up to the plane ``end``."""
        first = min(self._resampling.first_needed, self._first + self._planes)
        begin, kept, planes = first - self._first, self._first + self._planes - first, end - first
        scores = self._scores
        if planes > scores.shape[1]:
            scores = np.empty((len(scores), planes, *self._section), np.float32)
        # Class by class: numpy would copy all that is kept a second time, lest planes overlap with where they go.
        for target, source in zip(scores, self._scores, strict=True):
            target[:kept] = source[begin : begin + kept]
        self._scores, self._first, self._planes = scores, first, planes

    @property
    def resampled(self) -> NDArray[Any]:
        """What was decided, along the tensor's axes on the finer grid; a view."""
        back = np.argsort(self._turn)
        return self._resampling.result.transpose(*back)
