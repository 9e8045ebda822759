"""Takes finished blocks of scores straight from the blending to the scan's grid, so that scores of the whole volume never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..imaging.label_resampling import Axes, Decision, LabelResampling
from ..thread_pool import Threads


class ResamplingSink:
    """Keeps the scores of as many planes as are not decided yet, and decides labels on the scan's grid slab by slab.

    Blocks come in raster order: those that begin at one plane of the slowest axis, which together are a slab, then the next slab.

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
        # The slowest axis becomes the first one, the others stay in their order.
        self._turn = (slowest, *(axis for axis in range(3) if axis != slowest))
        self._resampling = LabelResampling((axes[slowest], axes[self._turn[1]], axes[self._turn[2]]), decision)
        self._section = (shape[self._turn[1]], shape[self._turn[2]])
        self._scores = np.empty((classes, 0, *self._section), np.float32)
        self._first, self._filled, self._prepare = 0, 0, prepare

    @classmethod
    def bytes_needed(cls, classes: int, shape: tuple[int, int, int], slowest: int, planes: int) -> int:
        """Return what the scores of a slab of ``planes`` take, with those that are kept from the slab before."""
        section = int(np.prod(shape)) // max(1, shape[slowest])
        return 4 * classes * section * 2 * (planes + 1)

    def __call__(self, start: tuple[int, int, int], block: NDArray[Any]) -> None:
        self._prepare(block)
        part = block.transpose(0, *(1 + axis for axis in self._turn))
        begin, *place = (start[axis] for axis in self._turn)
        end = begin + part.shape[1]
        if end > self._first + self._scores.shape[1]:
            self._make_room(end)
        self._scores[
            :,
            begin - self._first : end - self._first,
            place[0] : place[0] + part.shape[2],
            place[1] : place[1] + part.shape[3],
        ] = part
        self._filled += part.shape[2] * part.shape[3]
        if self._filled == self._section[0] * self._section[1]:
            self._filled = 0
            with Threads() as threads:
                self._resampling.take(self._scores[:, : end - self._first], self._first, threads)

    def _make_room(self, end: int) -> None:
        """Let planes go that are decided, and have room up to the plane ``end``."""
        first = min(self._resampling.first_needed, self._first + self._scores.shape[1])
        kept = self._scores[:, first - self._first :]
        scores = np.empty((len(kept), end - first, *self._section), np.float32)
        scores[:, : kept.shape[1]] = kept
        self._scores, self._first = scores, first

    @property
    def resampled(self) -> NDArray[Any]:
        """What was decided, along the tensor's axes on the finer grid; a view."""
        back = np.argsort(self._turn)
        return self._resampling.result.transpose(*back)
