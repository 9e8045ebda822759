"""Sliding window inference in bounded memory, with progress and cancel."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import EngineError
from ..models.spec import Window
from ..progress import Task
from ..thread_pool import Threads
from .blending import Array, KeepsScores, OverlapAdd, Sink
from .windows import Column, WindowPlan, importance_map

#: Infer a batch: float32 (N, C, p0, p1, p2) to float (N, classes, p0, p1, p2), read before the next call.
InferBatch = Callable[[NDArray[np.float32]], Array]


class Inference(Protocol):
    """A network that works while the caller goes on: batches are submitted, and their scores collected in the same order.

    Attributes:
        ahead: how many batches may be under way when the next is submitted; collected scores stay valid for as many more.
    """

    @property
    def ahead(self) -> int: ...

    def submit(self, batch: NDArray[np.float32]) -> None: ...

    def collect(self) -> Array: ...

    def drain(self) -> None:
        """Forget the results that were not collected."""


class _Immediate:
    """A function that is called when its result is wanted."""

    ahead = 0

    def __init__(self, infer: InferBatch) -> None:
        self._infer = infer
        self._batch: NDArray[np.float32] | None = None

    def submit(self, batch: NDArray[np.float32]) -> None:
        self._batch = batch

    def collect(self) -> Array:
        assert self._batch is not None
        return self._infer(self._batch)

    def drain(self) -> None:
        self._batch = None


def as_inference(infer: InferBatch | Inference) -> Inference:
    """Return a function as a network that is submitted to; one that is a network already as it is."""
    return _Immediate(infer) if callable(infer) else infer


@dataclass(frozen=True)
class SlidingWindowResult:
    windows: int
    skipped: int
    carried_dtype: str
    columns: int
    network_seconds: float


@dataclass(frozen=True)
class SlidingWindow:
    """How a network is run over a volume, window by window.

    Attributes:
        plan: where the windows lie.
        window: the model's window: its weights, its padding, and what counts as air.
        classes: channels of the network's output.
        batch_size: windows a call of the network, at most.
        carried_dtype: of the scores that are carried over from window to window; float16 halves their memory.
        carried_bytes: what carried scores may take; where they would take more, the volume is run in columns. None sets no limit.
        normalized: blended scores are divided by the sum of the weights. Without, they are weighted sums: right for an argmax.
        skip_air: windows whose values all lie at or below ``window.air_threshold`` are not run; they count as zeros.
    """

    plan: WindowPlan
    window: Window
    classes: int
    batch_size: int = 1
    carried_dtype: DTypeLike = np.float32
    carried_bytes: int | None = None
    normalized: bool = False
    skip_air: bool = False

    def columns(self) -> list[Column]:
        """The columns in which the volume is run, one after the other."""
        budget = math.inf if self.carried_bytes is None else self.carried_bytes
        return self.plan.columns_within(self.classes, np.dtype(self.carried_dtype).itemsize, budget)


def slide(
    data: NDArray[np.float32],
    infer: InferBatch | Inference,
    sink: Sink,
    sliding: SlidingWindow,
    task: Task | None = None,
) -> SlidingWindowResult:
    """Run ``infer`` over all windows of ``data`` and give finished blocks of blended scores to ``sink``.

    Args:
        data: float32 (C, n0, n1, n2), in network space.
        infer: a function, or a network on a device: its batches are then blended while it is at work on the next.
        sink: called with the start voxel (in ``data``, padding taken off) and the block's scores.

    Raises:
        Cancelled: within one batch of windows after ``task.cancel()``.
    """
    task = task or Task()
    columns = sliding.columns()
    count = sum(column.plan.count for column in columns)
    skipped, seconds = 0, 0.0
    inference = as_inference(infer)
    with Threads() as threads, task.stage("segmenting", count):
        try:
            for column in columns:
                run = _Pass(column, inference, sink, sliding, threads)
                for batch in _batches(column.plan.windows(), sliding.batch_size):
                    run.take(column.of(data), batch)
                    task.step(len(batch))
                run.finish()
                skipped, seconds = skipped + run.skipped, seconds + run.network_seconds
        finally:
            inference.drain()
    return SlidingWindowResult(count, skipped, np.dtype(sliding.carried_dtype).name, len(columns), seconds)


class _Pass:
    """One pass over the windows of a column."""

    def __init__(
        self, column: Column, inference: Inference, sink: Sink, sliding: SlidingWindow, threads: Threads
    ) -> None:
        plan, window, classes = column.plan, sliding.window, sliding.classes
        weights = importance_map(plan.patch, window.blend, window.placement, window.sigma)
        self._weight_sum = _WeightSum(plan, weights, threads) if sliding.normalized else None
        self._blender = OverlapAdd(plan, classes, weights, sliding.carried_dtype, _Crop(column, sink), threads)
        self._air = np.broadcast_to(np.float32(0), (classes, *plan.patch))
        self._plan, self._inference, self._window, self._skip_air = plan, inference, window, sliding.skip_air
        #: Batches that are under way: where their windows begin, and which of them the network runs.
        self._pending: deque[tuple[list[tuple[int, int, int]], list[int]]] = deque()
        self.skipped, self.network_seconds = 0, 0.0

    def take(self, data: NDArray[np.float32], starts: list[tuple[int, int, int]]) -> None:
        patches = [take_patch(data, self._plan, start, self._window) for start in starts]
        runs = [n for n, patch in enumerate(patches) if not self._is_air(patch)]
        self.skipped += len(patches) - len(runs)
        if runs:
            began = time.perf_counter()
            self._inference.submit(np.stack([patches[n] for n in runs]))
            self.network_seconds += time.perf_counter() - began
        self._pending.append((starts, runs))
        # What the network is still at work on counts; batches of air alone do not.
        while sum(bool(runs) for _, runs in self._pending) > self._inference.ahead:
            self._blend()
        if not any(runs for _, runs in self._pending):
            self.finish()

    def finish(self) -> None:
        """Blend the windows that are still under way."""
        while self._pending:
            self._blend()

    def _blend(self) -> None:
        starts, runs = self._pending.popleft()
        scores = self._air[None]
        if runs:
            began = time.perf_counter()
            scores = self._inference.collect()
            self.network_seconds += time.perf_counter() - began
            if scores.shape[1:] != self._air.shape or scores.shape[0] < len(runs):
                raise EngineError(
                    f"The network gives scores of {tuple(scores.shape)} for {len(runs)} window(s); {(len(runs), *self._air.shape)} are needed.",
                    "Its output must have the size of its input and a channel for each label: import it again.",
                )
        for n, start in enumerate(starts):
            divisor = None if self._weight_sum is None else self._weight_sum.of(start)
            self._blender.add(start, scores[runs.index(n)] if n in runs else self._air, divisor)

    def _is_air(self, patch: NDArray[np.float32]) -> bool:
        threshold = self._window.air_threshold
        return bool(self._skip_air and threshold is not None and patch.max() <= threshold)


def _batches(windows: Iterator[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    while batch := list(itertools.islice(windows, size)):
        yield batch


def take_patch(
    data: NDArray[np.float32], plan: WindowPlan, start: tuple[int, int, int], window: Window
) -> NDArray[np.float32]:
    """The window (C, p0, p1, p2) that begins at ``start``, padded as the model asks where it leaves the volume ``data`` (C, n0, n1, n2)."""
    begin = [s - before for s, before in zip(start, plan.pad_before, strict=True)]
    end = [b + p for b, p in zip(begin, plan.patch, strict=True)]
    inside = data[(slice(None), *(slice(max(b, 0), e) for b, e in zip(begin, end, strict=True)))]
    if inside.shape[1:] == plan.patch:
        return inside
    if window.padding != "constant":
        for axis, (low, high) in enumerate(zip(begin, end, strict=True), start=1):
            data = data.take(_filled(np.arange(low, high), data.shape[axis], window.padding), axis=axis)
        return data
    patch = np.full((data.shape[0], *plan.patch), window.pad_value, np.float32)
    target = tuple(slice(max(-b, 0), max(-b, 0) + n) for b, n in zip(begin, inside.shape[1:], strict=True))
    patch[(slice(None), *target)] = inside
    return patch


def _filled(places: NDArray[Any], size: int, padding: str) -> NDArray[Any]:
    """Which voxel of an axis of ``size`` stands at places before, in and after it."""
    if padding == "edge":
        return np.clip(places, 0, size - 1)
    if padding == "wrap":
        return places % size
    around = places % max(1, 2 * size - 2)
    return np.where(around < size, around, 2 * size - 2 - around)


class _Crop:
    """Takes the padding, and what belongs to another column, off finished blocks."""

    def __init__(self, column: Column, sink: Sink) -> None:
        plan, self._sink = column.plan, sink
        self._before = plan.pad_before
        self._low, self._high, self._offset = [0, 0, 0], list(plan.volume_shape), [0, 0, 0]
        self._low[column.axis], self._high[column.axis] = column.keep_from, column.keep_to
        self._offset[column.axis] = column.begin

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        part = self._part(start, (block.shape[1], block.shape[2], block.shape[3]))
        if part is not None:
            begin, index = part
            self._sink(begin, block[(slice(None), *index)])

    def room(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Array | None:
        """Where the sink keeps a block; None where it keeps none, or where something is taken off."""
        part = self._part(start, size)
        if not isinstance(self._sink, KeepsScores) or part is None:
            return None
        begin, index = part
        whole = all(i.start == 0 and i.stop == n for i, n in zip(index, size, strict=True))
        return self._sink.room(begin, size) if whole else None

    def filled(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        """Take what was written into the room of a block."""
        part = self._part(start, size)
        assert isinstance(self._sink, KeepsScores) and part is not None
        self._sink.filled(part[0], size)

    def _part(
        self, start: tuple[int, int, int], size: tuple[int, int, int]
    ) -> tuple[tuple[int, int, int], list[slice]] | None:
        """Where in the volume a block begins once it is cropped, and which of it is left; None where nothing is."""
        index, begin = [], []
        for axis, length in enumerate(size):
            first = start[axis] - self._before[axis]
            low, high = max(first, self._low[axis]), min(first + length, self._high[axis])
            if low >= high:
                return None
            index.append(slice(low - first, high - first))
            begin.append(low + self._offset[axis])
        return (begin[0], begin[1], begin[2]), index


class _WeightSum:
    """The sum of the weights of all windows, which is streamed beside the scores."""

    def __init__(self, plan: WindowPlan, weights: NDArray[np.float32], threads: Threads) -> None:
        self._ones = np.broadcast_to(np.float32(1), (1, *plan.patch))
        self._sum: Array | None = None
        # The weights' own stream stays float32: it is one channel, and its rounding would touch every class.
        self._stream = OverlapAdd(plan, 1, weights, np.float32, self._keep, threads)

    def _keep(self, start: tuple[int, int, int], block: Array) -> None:
        self._sum = block[0]

    def of(self, start: tuple[int, int, int]) -> Array:
        """The sum (n0, n1, n2) in the voxels that the window at ``start`` finishes; windows come in the plan's order."""
        self._stream.add(start, self._ones)
        assert self._sum is not None
        return self._sum
