"""Sliding window inference whose memory does not grow with classes times volume.

Windows run in raster order. Each axis is a stream of overlapping blocks: the part of a block that no later block
touches is finished and handed on, the rest is carried over and added to the next block. What leaves the outermost axis
is final, is reduced (to labels, say) and freed. So the memory is that of the carried parts,
``classes x (patch - step) x (the two shorter sides of the volume)``, not ``classes x volume``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import InputError
from .model_spec import Window
from .progress import Task

Array = NDArray[np.floating]
#: Infer a batch: float32 (N, C, p0, p1, p2) to float (N, classes, p0, p1, p2).
InferBatch = Callable[[NDArray[np.float32]], Array]
#: Take a finished block of scores (classes, n0, n1, n2) that starts at a voxel of the volume.
Sink = Callable[[tuple[int, int, int], Array], None]


def window_starts(size: int, patch: int, overlap: float, placement: str = "monai") -> list[int]:
    """First voxels of the windows along one axis that is at least ``patch`` long.

    "monai" steps by ``int(patch * (1 - overlap))`` and moves the last window back inside; "nnunet" spreads as few
    windows as that step allows evenly.
    """
    if size <= patch:
        return [0]
    if placement == "nnunet":
        count = math.ceil((size - patch) / (patch * (1 - overlap))) + 1
        return [int(np.round((size - patch) / (count - 1) * n)) for n in range(count)]
    step = max(1, int(patch * (1 - overlap)))
    count = math.ceil((size - patch) / step) + 1
    return [min(n * step, size - patch) for n in range(count)]


def importance_map(patch: tuple[int, int, int], blend: str) -> NDArray[np.float32]:
    """Weight of each voxel of a window: 1, or a Gaussian of sigma patch/8 that is nowhere below 1e-3 (as MONAI's)."""
    if blend == "constant":
        return np.ones(patch, np.float32)
    profiles = []
    for size in patch:
        offset = np.arange(size, dtype=np.float32) - (size - 1) / 2
        profiles.append(np.exp(-(offset**2) / (2 * (0.125 * size) ** 2)).astype(np.float32))
    weights = profiles[0][:, None, None] * profiles[1][None, :, None] * profiles[2][None, None, :]
    return np.maximum(weights, max(float(weights.min()), 1e-3)).astype(np.float32)


@dataclass(frozen=True)
class WindowPlan:
    """Where the windows of one volume lie.

    Attributes:
        shape: the volume, padded to at least the patch, along the tensor's axes.
        pad_before: voxels of padding before the volume (half of the missing ones, as MONAI and nnU-Net pad).
        patch: the window.
        starts: first voxels along each axis.
        order: the axes from slowest to fastest: the longest streams, so that the carried parts are smallest.
    """

    volume_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    pad_before: tuple[int, int, int]
    patch: tuple[int, int, int]
    starts: tuple[list[int], list[int], list[int]]
    order: tuple[int, int, int]

    @property
    def count(self) -> int:
        return math.prod(len(starts) for starts in self.starts)

    def windows(self) -> Iterator[tuple[int, int, int]]:
        """Start voxels of the windows in raster order of ``order``."""
        for picked in itertools.product(*(self.starts[axis] for axis in self.order)):
            by_axis = dict(zip(self.order, picked, strict=True))
            yield by_axis[0], by_axis[1], by_axis[2]

    def carried_bytes(self, classes: int, itemsize: int) -> int:
        """Memory of the parts carried over along all three axes."""
        slow, middle, fast = self.order
        lengths = [
            self.patch[axis] if len(self.starts[axis]) == 1 else _largest_overlap(self.starts[axis], self.patch[axis])
            for axis in self.order
        ]
        if len(self.starts[slow]) == 1:
            lengths[0] = 0
        if len(self.starts[middle]) == 1:
            lengths[1] = 0
        carried = lengths[0] * self.shape[middle] * self.shape[fast] + self.patch[slow] * lengths[1] * self.shape[fast]
        return classes * carried * itemsize


def _largest_overlap(starts: list[int], patch: int) -> int:
    return max((patch - (after - before) for before, after in itertools.pairwise(starts)), default=0)


def plan_windows(shape: tuple[int, int, int], window: Window, patch: tuple[int, int, int]) -> WindowPlan:
    padded = tuple(max(size, p) for size, p in zip(shape, patch, strict=True))
    before = tuple((large - small) // 2 for large, small in zip(padded, shape, strict=True))
    starts = tuple(window_starts(size, p, window.overlap, window.placement) for size, p in zip(padded, patch, strict=True))
    order = tuple(sorted(range(3), key=lambda axis: -padded[axis]))
    return WindowPlan(shape, padded, before, patch, starts, order)  # type: ignore[arg-type]


class OverlapAdd:
    """Adds overlapping blocks that arrive in the plan's raster order and hands on what is finished.

    Args:
        dtype: of the carried parts; float16 halves the memory at the price of rounding where windows overlap.
    """

    def __init__(self, plan: WindowPlan, channels: int, dtype: DTypeLike, sink: Sink) -> None:
        self._plan, self._sink, self._dtype, self._channels = plan, sink, np.dtype(dtype), channels
        self._ends: list[dict[int, int]] = []
        for axis in range(3):
            starts = plan.starts[axis]
            self._ends.append(dict(zip(starts, [*starts[1:], plan.shape[axis]], strict=True)))
        self._carried: list[Array | None] = [None, None, None]

    def add(self, start: tuple[int, int, int], block: Array) -> None:
        """Add the weighted scores (channels, p0, p1, p2) of the window at ``start``; ``block`` is changed in place."""
        self._stream(2, tuple(start[axis] for axis in self._plan.order), self._ordered(block), {})

    def _ordered(self, block: Array) -> Array:
        return block.transpose(0, *(axis + 1 for axis in self._plan.order))

    def _stream(self, level: int, start: tuple[int, ...], block: Array, done: dict[int, int]) -> None:
        """``block`` has axes (channel, slow, middle, fast); the faster axes are finished up to ``done``."""
        axis = self._plan.order[level]
        begin = start[level]
        end = self._ends[axis][begin]
        finished = end - begin
        # Faster axes have been cut to [start, done): the carry of this axis is addressed by them.
        window = (slice(None), slice(None), *(slice(start[n], done[n]) for n in range(level + 1, 3)))
        along = level + 1
        carried = self._carried[level]
        if carried is not None and begin != self._plan.starts[axis][0]:
            previous = self._previous_overlap(axis, begin)
            head = _cut(block, along, 0, previous)
            np.add(head, _cut(self._slot(carried, level, window), along, 0, previous), out=head)
        rest = block.shape[along] - finished
        if rest > 0 and end < self._plan.shape[axis]:
            if carried is None:
                carried = self._carried[level] = self._allocate(level, block)
            _cut(self._slot(carried, level, window), along, 0, rest)[...] = _cut(block, along, finished, block.shape[along])
        ready = _cut(block, along, 0, finished)
        if level:
            self._stream(level - 1, start, ready, {**done, level: end})
        else:
            self._emit(start, ready)

    def _previous_overlap(self, axis: int, begin: int) -> int:
        starts = self._plan.starts[axis]
        return starts[starts.index(begin) - 1] + self._plan.patch[axis] - begin

    def _allocate(self, level: int, block: Array) -> Array:
        plan = self._plan
        shape = [self._channels, *(plan.patch[axis] for axis in plan.order)]
        for n in range(level + 1, 3):
            shape[n + 1] = plan.shape[plan.order[n]]
        axis = plan.order[level]
        shape[level + 1] = _largest_overlap(plan.starts[axis], plan.patch[axis])
        # Axes slower than this one arrive as whole windows.
        return np.zeros(shape, self._dtype)

    def _slot(self, carried: Array, level: int, window: tuple[slice, ...]) -> Array:
        # window: channel, then this level and the faster ones; the slower axes are whole.
        index = (slice(None), *(slice(None) for _ in range(level)), slice(None), *window[2:])
        return carried[index]

    def _emit(self, start: tuple[int, ...], ready: Array) -> None:
        by_axis = dict(zip(self._plan.order, start, strict=True))
        back = [0, 0, 0]
        for position, axis in enumerate(self._plan.order):
            back[axis] = position + 1
        self._sink((by_axis[0], by_axis[1], by_axis[2]), ready.transpose(0, *back))


def _cut(block: Array, axis: int, begin: int, end: int) -> Array:
    index: list[slice] = [slice(None)] * block.ndim
    index[axis] = slice(begin, end)
    return block[tuple(index)]


@dataclass(frozen=True)
class SlidingWindowResult:
    windows: int
    skipped: int
    carried_dtype: str
    network_seconds: float


def slide(
    data: NDArray[np.float32],
    infer: InferBatch,
    classes: int,
    plan: WindowPlan,
    window: Window,
    sink: Sink,
    *,
    batch_size: int = 1,
    carried_dtype: DTypeLike = np.float32,
    normalized: bool = False,
    skip_air: bool = False,
    task: Task | None = None,
) -> SlidingWindowResult:
    """Run ``infer`` over all windows of ``data`` and give finished blocks of blended scores to ``sink``.

    Args:
        data: float32 (C, n0, n1, n2), in network space.
        classes: channels of the network's output.
        sink: called with the start voxel (in ``data``, padding taken off) and the block's scores. Scores are weighted
            sums: right for an argmax. With ``normalized`` they are divided by the sum of the weights.
        skip_air: do not run windows whose values all lie at or below ``window.air_threshold``; they count as zeros.

    Raises:
        Cancelled: within one batch of windows after ``task.cancel()``.
    """
    import time

    task = task or Task()
    weights = importance_map(plan.patch, window.blend)
    crop = _PaddingCrop(plan, sink)
    divider = _Divider(plan, weights, crop, carried_dtype) if normalized else None
    blender = OverlapAdd(plan, classes, carried_dtype, divider.take if divider else crop.take)
    skipped, seconds = 0, 0.0

    def flush(starts: list[tuple[int, int, int]], patches: list[NDArray[np.float32]]) -> None:
        nonlocal seconds
        runs = [n for n, patch in enumerate(patches) if not _is_air(patch, window, skip_air)]
        began = time.perf_counter()
        scores = infer(np.stack([patches[n] for n in runs])) if runs else None
        seconds += time.perf_counter() - began
        for n, start in enumerate(starts):
            if n in runs:
                assert scores is not None
                block = scores[runs.index(n)]
                if block.dtype != np.float32 or not block.flags.writeable:
                    block = block.astype(np.float32)
                np.multiply(block, weights, out=block)
            else:
                block = np.zeros((classes, *plan.patch), np.float32)
            if divider:
                divider.expect(start)
            blender.add(start, block)
        task.step(len(starts))

    with task.stage("segmenting", plan.count):
        starts: list[tuple[int, int, int]] = []
        patches: list[NDArray[np.float32]] = []
        for start in plan.windows():
            patch = _take_patch(data, plan, start, window.pad_value)
            starts.append(start)
            patches.append(patch)
            skipped += _is_air(patch, window, skip_air)
            if len(starts) == batch_size:
                flush(starts, patches)
                starts, patches = [], []
        if starts:
            flush(starts, patches)
    return SlidingWindowResult(plan.count, skipped, np.dtype(carried_dtype).name, seconds)


def _is_air(patch: NDArray[np.float32], window: Window, skip_air: bool) -> bool:
    return bool(skip_air and window.air_threshold is not None and patch.max() <= window.air_threshold)


def _take_patch(data: NDArray[np.float32], plan: WindowPlan, start: tuple[int, int, int], pad: float) -> NDArray[np.float32]:
    begin = [s - before for s, before in zip(start, plan.pad_before, strict=True)]
    end = [b + p for b, p in zip(begin, plan.patch, strict=True)]
    inside = data[(slice(None), *(slice(max(b, 0), e) for b, e in zip(begin, end, strict=True)))]
    if inside.shape[1:] == plan.patch:
        return inside
    patch = np.full((data.shape[0], *plan.patch), pad, np.float32)
    target = tuple(slice(max(-b, 0), max(-b, 0) + n) for b, n in zip(begin, inside.shape[1:], strict=True))
    patch[(slice(None), *target)] = inside
    return patch


class _PaddingCrop:
    """Takes the padding off finished blocks."""

    def __init__(self, plan: WindowPlan, sink: Sink) -> None:
        self._plan, self._sink = plan, sink

    def take(self, start: tuple[int, int, int], block: Array) -> None:
        index, begin = [slice(None)], []
        for s, before, size, n in zip(start, self._plan.pad_before, self._plan.volume_shape, block.shape[1:], strict=True):
            low, high = max(s, before), min(s + n, before + size)
            if low >= high:
                return
            index.append(slice(low - s, high - s))
            begin.append(low - before)
        self._sink((begin[0], begin[1], begin[2]), block[tuple(index)])


class _Divider:
    """Divides finished blocks by the sum of the weights, which is streamed beside the scores."""

    def __init__(self, plan: WindowPlan, weights: NDArray[np.float32], crop: _PaddingCrop, dtype: DTypeLike) -> None:
        self._weights, self._crop = weights, crop
        self._sum: Array | None = None
        # The weights' own stream stays float32: it is one channel, and its rounding would touch every class.
        self._stream = OverlapAdd(plan, 1, np.float32, self._keep)

    def _keep(self, start: tuple[int, int, int], block: Array) -> None:
        self._sum = block

    def expect(self, start: tuple[int, int, int]) -> None:
        self._stream.add(start, self._weights[None].copy())

    def take(self, start: tuple[int, int, int], block: Array) -> None:
        assert self._sum is not None
        np.divide(block, self._sum, out=block)
        self._crop.take(start, block)


class LabelSink:
    """Reduces finished blocks to a label map by argmax, the first class winning ties."""

    def __init__(self, shape: tuple[int, int, int], values: NDArray[np.unsignedinteger]) -> None:
        self.labels = np.zeros(shape, values.dtype)
        self._values = values

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        target = self.labels[tuple(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True))]
        # Class by class over contiguous memory: numpy's argmax over the first axis is several times slower.
        best = block[0].copy(order="K")
        winner = np.full_like(best, self._values[0], dtype=self._values.dtype)
        for channel in range(1, block.shape[0]):
            better = block[channel] > best
            np.copyto(winner, self._values[channel], where=better)
            np.maximum(best, block[channel], out=best)
        target[...] = winner


class RegionSink:
    """Reduces finished, normalised probabilities to labels: each region above the threshold is painted in turn."""

    def __init__(self, shape: tuple[int, int, int], values: NDArray[np.unsignedinteger], threshold: float) -> None:
        self.labels = np.zeros(shape, values.dtype)
        self._values, self._threshold = values, threshold

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        target = self.labels[tuple(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True))]
        for channel, value in enumerate(self._values):
            target[block[channel] > self._threshold] = value


class ScoreSink:
    """Keeps all scores, for resampling before the argmax."""

    def __init__(self, classes: int, shape: tuple[int, int, int], dtype: DTypeLike = np.float32) -> None:
        self.scores = np.zeros((classes, *shape), dtype)

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        index = tuple(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True))
        self.scores[(slice(None), *index)] = block


def check_patch(patch: tuple[int, int, int], window: Window) -> None:
    """Raise :class:`InputError` unless ``patch`` is a size that the network takes."""
    for size, multiple in zip(patch, window.multiples, strict=True):
        if size < 1 or size % multiple:
            raise InputError(
                f"The patch size {patch} does not fit: each side must be a multiple of {window.multiples}.",
                "Choose another patch size.",
            )
