"""Blending of overlapping windows whose memory does not grow with classes times volume.

Windows run in raster order. Each axis is a stream of overlapping blocks: the part of a block that no later block
touches is finished and handed on, the rest is carried over and added to the next block. What leaves the slowest axis
is final, is reduced (to labels, say) and freed. So the memory is that of the carried parts,
``classes x (patch - step) x (the two shorter sides of the volume)``, not ``classes x volume``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..imaging.regions import Regions, activate
from ..thread_pool import Threads
from .windows import WindowPlan

Array = NDArray[np.floating]
#: Take a finished block of scores (classes, n0, n1, n2) that starts at a voxel of the volume.
Sink = Callable[[tuple[int, int, int], Array], None]
_Index = tuple[slice, slice, slice]


@dataclass(frozen=True)
class _Cut:
    """How the window at one start is cut along one axis: indices into one channel (n0, n1, n2).

    Attributes:
        head, carried_in: the window's part that earlier windows reach into, and where what they left is carried.
        tail, carried_out: the part that later windows reach into, and where it is left for them.
        finished: the part that no later window touches.
    """

    head: _Index | None
    carried_in: _Index
    tail: _Index | None
    carried_out: _Index
    finished: _Index


class OverlapAdd:
    """Adds overlapping windows that arrive in the plan's raster order and hands on what is finished.

    A channel's stream is independent of the others'. Channels are therefore taken one by one, so that a channel of a
    window stays in the processor's cache through all steps, and are shared out among threads.

    Args:
        weights: float32 (p0, p1, p2), multiplied into every window.
        dtype: of the carried parts; float16 halves the memory at the price of rounding where windows overlap.
    """

    def __init__(
        self,
        plan: WindowPlan,
        channels: int,
        weights: NDArray[np.float32],
        dtype: DTypeLike,
        sink: Sink,
        threads: Threads,
    ) -> None:
        self._plan, self._sink, self._channels, self._weights, self._threads = plan, sink, channels, weights, threads
        self._carried = [np.zeros((channels, *plan.carried_shape(axis)), dtype) for axis in range(3)]

    def add(self, start: tuple[int, int, int], block: Array) -> None:
        """Add the scores (channels, p0, p1, p2) of the window at ``start``; ``block`` is left as it is."""
        cuts = self._cuts(start)
        size = [end - begin for begin, end in (self._finished(axis, start[axis]) for axis in range(3))]
        ready = np.empty((self._channels, *size), np.float32)

        def run(channels: range) -> None:
            scratch = np.empty(self._plan.patch, np.float32)
            for channel in channels:
                part = np.multiply(block[channel], self._weights, out=scratch)
                for axis, cut in cuts:
                    carried = self._carried[axis][channel]
                    if cut.head is not None:
                        part[cut.head] += carried[cut.carried_in]
                    if cut.tail is not None:
                        carried[cut.carried_out] = part[cut.tail]
                    part = part[cut.finished]
                ready[channel] = part

        self._threads.share(run, self._channels)
        self._sink(start, ready)

    def _finished(self, axis: int, begin: int) -> tuple[int, int]:
        starts = self._plan.starts[axis]
        following = starts.index(begin) + 1
        return begin, starts[following] if following < len(starts) else self._plan.shape[axis]

    def _cuts(self, start: tuple[int, int, int]) -> list[tuple[int, _Cut]]:
        """From the fastest axis to the slowest: what an axis finishes is what the next slower one is given."""
        cuts = []
        place: list[slice] = [slice(None)] * 3
        for axis in reversed(self._plan.order):
            begin, end = self._finished(axis, start[axis])
            finished, patch = end - begin, self._plan.patch[axis]
            starts = self._plan.starts[axis]
            number = starts.index(begin)
            before = starts[number - 1] + patch - begin if number else 0
            after = patch - finished if number + 1 < len(starts) else 0

            def along(low: int, high: int, others: list[slice], axis: int = axis) -> _Index:
                index = [*others[:axis], slice(low, high), *others[axis + 1 :]]
                return index[0], index[1], index[2]

            whole = [slice(None)] * 3
            cuts.append(
                (
                    axis,
                    _Cut(
                        along(0, before, whole) if before > 0 else None,
                        along(0, max(before, 0), place),
                        along(finished, patch, whole) if after > 0 else None,
                        along(0, max(after, 0), place),
                        along(0, finished, whole),
                    ),
                )
            )
            place[axis] = slice(begin, end)
        return cuts


class LabelSink:
    """Reduces finished blocks to a label map by argmax, the first class winning ties."""

    def __init__(self, shape: tuple[int, int, int], values: NDArray[np.unsignedinteger]) -> None:
        self.labels = np.zeros(shape, values.dtype)
        self._values = values

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        target = self.labels[tuple(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True))]
        # Class by class over contiguous memory: numpy's argmax over the first axis is several times slower.
        best = block[0].copy()
        winner = np.full_like(best, self._values[0], dtype=self._values.dtype)
        for channel in range(1, block.shape[0]):
            better = block[channel] > best
            np.copyto(winner, self._values[channel], where=better)
            np.maximum(best, block[channel], out=best)
        target[...] = winner


class RegionSink:
    """Reduces finished, normalized probabilities to regions, and these to labels (:mod:`..imaging.regions`)."""

    def __init__(self, shape: tuple[int, int, int], regions: Regions) -> None:
        self._regions = regions
        self._labels = np.zeros(shape, regions.mark_type if regions.nested else regions.values.dtype)

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        target = tuple(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True))
        regions = self._regions
        self._labels[target] = (regions.marked if regions.nested else regions.paint)(lambda channel: block[channel])

    @property
    def labels(self) -> NDArray[Any]:
        """Label map (n0, n1, n2), once all blocks have come."""
        return self._regions.painted(self._labels) if self._regions.nested else self._labels


class ActivatingSink:
    """Turns finished, normalized blocks of logits into probabilities before it hands them on."""

    def __init__(self, inner: Sink, activation: str) -> None:
        self._inner, self._activation = inner, activation

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        activate(block, self._activation)
        self._inner(start, block)


class ScoreSink:
    """Keeps all scores, for resampling before the argmax."""

    def __init__(self, classes: int, shape: tuple[int, int, int]) -> None:
        self.scores = np.zeros((classes, *shape), np.float32)

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        index = tuple(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True))
        self.scores[(slice(None), *index)] = block
