"""Blended features become class scores: a network's last layer, applied to finished blocks (:mod:`..models.pointwise_head`)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np

from ..models.pointwise_head import PointwiseHead
from ..thread_pool import Threads
from .blending import Array, KeepsScores, Sink

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
        self._head, self._inner = head, inner
        self._axis = min(axis for axis in range(3) if axis != slowest)
        self._memory = threading.local()

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        size = (block.shape[1], block.shape[2], block.shape[3])
        with Threads() as threads:
            if isinstance(self._inner, KeepsScores):
                self._compute(block, self._inner.room(start, size), threads)
            else:
                self._hand_on(start, block, threads)
        if isinstance(self._inner, KeepsScores):
            self._inner.filled(start, size)

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
