"""Blending of overlapping windows whose memory does not grow with classes times volume.

Windows run in raster order. Each axis is a stream of overlapping blocks: the part of a block that no later block
touches is finished and handed on, the rest is carried over and added to the next block. What leaves the slowest axis
is final, is reduced (to labels, say) and freed. So the memory is that of the carried parts,
``classes x (patch - step) x (the two shorter sides of the volume)``, not ``classes x volume``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..imaging.regions import Regions, activate
from ..thread_pool import Threads
from .windows import WindowPlan

Array = NDArray[np.floating]
#: Take a finished block of scores (classes, n0, n1, n2) that starts at a voxel of the volume; its memory is the next block's as well.
Sink = Callable[[tuple[int, int, int], Array], None]
_Index = tuple[slice, slice, slice]


@runtime_checkable
class KeepsScores(Protocol):
    """A sink that keeps scores: they may be written where it keeps them, which saves a block's memory and a copy of it."""

    def room(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Array | None:
        """Where the scores (classes, n0, n1, n2) of the next block go; None where it has to be given this block."""

    def filled(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        """Take what was written into the room of a block."""


#: Bytes of a window that are blended at a time: they stay in a core's own cache through all steps.
_SLAB_BYTES = 1 << 19


@runtime_checkable
class TakesSlabs(KeepsScores, Protocol):
    """A sink that lets scores go slab by slab, so that those of a whole volume, or of a large block, never exist.

    Attributes:
        shape: (n0, n1, n2) of all scores.
        slab_planes: how many planes along the slowest axis are best given at a time.
    """

    shape: tuple[int, int, int]
    slab_planes: int


@dataclass(frozen=True)
class _Cut:
    """How a slab of a window is cut along one axis: indices into one channel (n0, n1, n2).

    Attributes:
        axis: the axis along which it is cut.
        head, carried_in: the slab's part that earlier windows reach into, and where what they left is carried.
        tail, carried_out: the part that later windows reach into, and where it is left for them.
        finished: the part that no later window touches.
    """

    axis: int
    head: _Index | None
    carried_in: _Index
    tail: _Index | None
    carried_out: _Index
    finished: _Index


@dataclass(frozen=True)
class _Slab:
    """Planes of a window along the tensor's first axis, which are blended together.

    Attributes:
        planes: of the window.
        cuts: from the fastest axis to the slowest: what an axis finishes is what the next slower one is given.
        ready: the planes of the finished block that come of it; None where there are none.
    """

    planes: slice
    cuts: list[_Cut]
    ready: slice | None


class OverlapAdd:
    """Adds overlapping windows that arrive in the plan's raster order and hands on what is finished.

    A channel's stream is independent of the others'. Channels are therefore taken one by one, in slabs that stay in a
    core's cache through all steps, and are shared out among threads. Slabs come in the order of their planes, since what a
    later one leaves behind may lie where an earlier one finds what is carried.

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
        patch = plan.patch
        self._ready: NDArray[np.float32] | None = None
        self._step = min(patch[0], max(1, _SLAB_BYTES // (4 * patch[1] * patch[2])))

    def add(self, start: tuple[int, int, int], block: Array, divisor: Array | None = None) -> None:
        """Add the scores (channels, p0, p1, p2) of the window at ``start``; ``block`` is left as it is.

        Args:
            divisor: (n0, n1, n2) of the voxels that this window finishes, which they are divided by.
        """
        size = [end - begin for begin, end in (self._finished(axis, start[axis]) for axis in range(3))]
        slabs = [self._slab(start, first) for first in range(0, self._plan.patch[0], self._step)]
        # Written where it is kept, if it can be: what is finished is still in the cache, and would be copied there from memory.
        keeper = self._sink if isinstance(self._sink, KeepsScores) else None
        room = None if keeper is None else keeper.room(start, (size[0], size[1], size[2]))
        ready = self._ready_block(size) if room is None else room

        def run(channels: range) -> None:
            scratch = np.empty((self._step, *self._plan.patch[1:]), np.float32)
            # Channel by channel within a slab: its weights stay in the cache, too.
            for slab in slabs:
                weights = self._weights[slab.planes]
                for channel in channels:
                    part = np.multiply(block[channel, slab.planes], weights, out=scratch[: len(weights)])
                    for cut in slab.cuts:
                        carried = self._carried[cut.axis][channel]
                        if cut.head is not None:
                            part[cut.head] += carried[cut.carried_in]
                        if cut.tail is not None:
                            carried[cut.carried_out] = part[cut.tail]
                        part = part[cut.finished]
                    if slab.ready is None:
                        continue
                    if divisor is None:
                        ready[channel, slab.ready] = part
                    else:
                        np.divide(part, divisor[slab.ready], out=ready[channel, slab.ready])

        self._threads.share(run, self._channels)
        if keeper is not None and room is not None:
            keeper.filled(start, (size[0], size[1], size[2]))
        else:
            self._sink(start, ready)

    def _ready_block(self, size: list[int]) -> Array:
        """Memory for what a window finishes, which is the next one's as well."""
        if self._ready is None:
            largest = [max(end - begin for begin, end in self._ends(axis)) for axis in range(3)]
            self._ready = np.empty(self._channels * int(np.prod(largest)), np.float32)
        return self._ready[: self._channels * int(np.prod(size))].reshape(self._channels, *size)

    def _ends(self, axis: int) -> list[tuple[int, int]]:
        """First and last voxel along an axis of what each window finishes."""
        return [self._finished(axis, begin) for begin in self._plan.starts[axis]]

    def _finished(self, axis: int, begin: int) -> tuple[int, int]:
        starts = self._plan.starts[axis]
        following = starts.index(begin) + 1
        return begin, starts[following] if following < len(starts) else self._plan.shape[axis]

    def _slab(self, start: tuple[int, int, int], first: int) -> _Slab:
        """The planes from ``first`` on of the window at ``start``."""
        last = min(first + self._step, self._plan.patch[0])
        cuts = []
        # Where the slab lies in what is carried along an axis: slower axes are one window long there, faster ones the volume.
        place: list[slice] = [slice(first, last), slice(None), slice(None)]
        # Planes of the slab that are not cut off yet; the window's own numbers along the other axes.
        planes = last - first
        for axis in reversed(self._plan.order):
            begin, end = self._finished(axis, start[axis])
            finished, patch = end - begin, self._plan.patch[axis]
            starts = self._plan.starts[axis]
            number = starts.index(begin)
            before = starts[number - 1] + patch - begin if number else 0
            after = patch - finished if number + 1 < len(starts) else 0
            low, high = (first, first + planes) if axis == 0 else (0, patch)

            def along(begin: int, end: int, others: list[slice], axis: int = axis) -> _Index:
                index = [*others[:axis], slice(begin, end), *others[axis + 1 :]]
                return index[0], index[1], index[2]

            whole = [slice(None)] * 3
            head, tail = min(high, max(low, before)), min(high, max(low, finished))
            cuts.append(
                _Cut(
                    axis,
                    along(0, head - low, whole) if head > low else None,
                    along(low, head, place),
                    along(tail - low, high - low, whole) if after > 0 and high > tail else None,
                    along(tail - finished, high - finished, place),
                    along(0, tail - low, whole),
                )
            )
            if axis == 0:
                planes = tail - first
                if not planes:
                    return _Slab(slice(first, last), cuts, None)
                place[0] = slice(begin + first, begin + tail)
            else:
                place[axis] = slice(begin, end)
        return _Slab(slice(first, last), cuts, slice(first, first + planes))


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
        self.room(start, (block.shape[1], block.shape[2], block.shape[3]))[...] = block

    def room(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Array:
        """Where the scores of a block go."""
        index = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        return self.scores[(slice(None), *index)]

    def filled(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        """Nothing is left to do once they are there."""
