"""Blended features become class scores: a network's last layer, applied to finished blocks (:mod:`..models.pointwise_head`)."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..imaging.label_resampling import STEP
from ..models.pointwise_head import PointwiseHead
from ..thread_pool import Threads
from .blending import Array, KeepsScores, Sink, TakesSlabs
from .resampling_sink import ResamplingSink

#: Bytes of scores that a thread computes at a time: they stay in its core's cache until they are where they go.
_TILE_BYTES = 1 << 20
#: Bytes of scores that are handed on at a time, to a sink that keeps none.
_STRIP_BYTES = 8 << 20


class HeadSink:
    """Computes the scores of finished, normalized blocks of features, and hands them on; those of a block never exist beside those that are kept.

    Args:
        inner: takes the scores.
        slowest: the axis along which blocks are not cut, as whoever takes slabs of scores along it counts on.
    """

    def __init__(self, head: PointwiseHead, inner: Sink, slowest: int) -> None:
        self._head, self._inner, self._slowest = head, inner, slowest
        self._axis = min(axis for axis in range(3) if axis != slowest)
        self._memory = threading.local()
        #: Features of a slab whose blocks have not all come, and how many of its voxels have.
        self._slab: NDArray[np.float32] = np.empty((head.features, 0, 0, 0), np.float32)
        self._filled = 0

    @staticmethod
    def bytes_needed(features: int, classes: int, shape: tuple[int, int, int], slowest: int, planes: int) -> int:
        """Return what a slab of features of ``planes`` takes, with the scores of the few planes that are brought to the scan at a time."""
        section = int(np.prod(shape)) // max(1, shape[slowest])
        return 4 * features * section * planes + ResamplingSink.bytes_needed(classes, shape, slowest, STEP)

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        inner, size = self._inner, (block.shape[1], block.shape[2], block.shape[3])
        if isinstance(inner, TakesSlabs):
            room = self.room(start, size)
            assert room is not None
            room[...] = block
            self.filled(start, size)
            return
        with Threads() as threads:
            room = inner.room(start, size) if isinstance(inner, KeepsScores) else None
            if isinstance(inner, KeepsScores) and room is not None:
                self._compute(block, room, threads)
                inner.filled(start, size)
            else:
                self._hand_on(start, block, threads)

    def room(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Array | None:
        """Where the features of the next block go, until all that lie in the same planes have come; None where they are not kept."""
        if not isinstance(self._inner, TakesSlabs):
            return None
        whole = list(self._inner.shape)
        whole[self._slowest] = size[self._slowest]
        if list(self._slab.shape[1:]) != whole:
            self._slab = np.empty((self._head.features, *whole), np.float32)
        place = [slice(s, s + n) for s, n in zip(start, size, strict=True)]
        place[self._slowest] = slice(None)
        return self._slab[(slice(None), *place)]

    def filled(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        """Take what was written into the room of a block."""
        assert isinstance(self._inner, TakesSlabs)
        self._filled += math.prod(size)
        if self._filled == self._slab[0].size:
            self._filled = 0
            with Threads() as threads:
                self._give_slabs(start[self._slowest], self._slab, self._inner, threads)

    def _give_slabs(self, begin: int, slab: Array, inner: TakesSlabs, threads: Threads) -> None:
        """Compute the scores of a slab of features in slabs of a few planes, each of which is let go before the next."""
        for first in range(0, slab.shape[1 + self._slowest], inner.slab_planes):
            index, start = [slice(None)] * 4, [0, 0, 0]
            index[1 + self._slowest] = slice(first, first + inner.slab_planes)
            start[self._slowest] = begin + first
            features = slab[tuple(index)]
            place = (start[0], start[1], start[2])
            size = (features.shape[1], features.shape[2], features.shape[3])
            room = inner.room(place, size)
            assert room is not None
            self._compute(features, room, threads)
            inner.filled(place, size)

    def _hand_on(self, start: tuple[int, int, int], block: Array, threads: Threads) -> None:
        """Give the scores of a block in strips."""
        length = block.shape[1 + self._axis]
        width = max(1, _STRIP_BYTES * length // (4 * self._head.classes * block[0].size))
        memory = np.empty(self._head.classes * block[0].size // length * min(width, length), np.float32)
        for first in range(0, length, width):
            index = [slice(None)] * 4
            index[1 + self._axis] = slice(first, first + width)
            strip = block[tuple(index)]
            scores = memory[: self._head.classes * strip[0].size].reshape(self._head.classes, *strip.shape[1:])
            self._compute(strip, scores, threads)
            begin = list(start)
            begin[self._axis] += first
            self._inner((begin[0], begin[1], begin[2]), scores)

    def _compute(self, features: Array, scores: Array, threads: Threads) -> None:
        """Compute scores (classes, n0, n1, n2) of features, tile by tile."""
        head = self._head
        voxels = max(1, _TILE_BYTES // (4 * head.classes))
        tiles = list(_tiles(features.shape[1:], voxels))

        def run(numbers: range) -> None:
            own = self._memory
            if not hasattr(own, "scores"):
                own.features, own.scores = (np.empty(n * voxels, np.float32) for n in (head.features, head.classes))
            for tile in (tiles[number] for number in numbers):
                source, target = features[(slice(None), *tile)], scores[(slice(None), *tile)]
                count = source[0].size
                columns = own.features[: head.features * count].reshape(head.features, count)
                product = own.scores[: head.classes * count].reshape(head.classes, count)
                np.copyto(columns.reshape(source.shape), source)
                head.scores(columns, product)
                np.copyto(target, product.reshape(target.shape))

        threads.share(run, len(tiles))


def _tiles(shape: tuple[int, ...], voxels: int) -> Iterator[tuple[slice, slice, slice]]:
    """Parts of a volume of at most so many voxels: whole rows of a plane, or parts of a row where that is longer."""
    along2 = min(shape[2], voxels)
    along1 = max(1, min(shape[1], voxels // along2))
    along0 = max(1, min(shape[0], voxels // (along1 * along2))) if along1 == shape[1] and along2 == shape[2] else 1
    steps = (along0, along1, along2)
    for begin in itertools.product(*(range(0, size, step) for size, step in zip(shape, steps, strict=True))):
        yield (
            slice(begin[0], begin[0] + along0),
            slice(begin[1], begin[1] + along1),
            slice(begin[2], begin[2] + along2),
        )
