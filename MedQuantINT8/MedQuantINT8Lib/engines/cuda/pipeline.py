"""Batches through a network on the GPU, with copies beside the work: while one batch is computed, the next goes up and the last comes down."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .device import DeviceBuffer, Gpu, GpuError, GpuMemoryError, Stream
from .graph_capture import CapturedGraph

#: Puts the run of (count, C, *patch) to (count, classes, *patch) into a stream.
Enqueue = Callable[[int, DeviceBuffer, DeviceBuffer, Stream], None]
_SLOTS = 2


class DevicePipeline:
    """Two sets of buffers in turn; one, and no overlap, where memory is short.

    Args:
        source, target: shapes of a full batch, float32.

    Raises:
        GpuMemoryError: not even one set fits.
    """

    def __init__(self, gpu: Gpu, enqueue: Enqueue, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        self._gpu = gpu
        self._up, self._compute, self._down = gpu.stream(), gpu.stream(), gpu.stream()
        self._slots: list[_Slot] = []
        for number in range(_SLOTS):
            try:
                self._slots.append(_Slot(gpu, self._compute, enqueue, source, target))
            except GpuMemoryError:
                if number == 0:
                    self.close()
                    raise
        self._free = deque(self._slots)
        self._busy: deque[_Slot] = deque()

    @property
    def ahead(self) -> int:
        """How many batches may be under way when the next is given."""
        return len(self._slots) - 1

    def submit(self, batch: NDArray[np.float32]) -> None:
        """Begin with (n, C, *patch); it is copied, so that it may change at once. At most ``ahead`` + 1 at a time."""
        assert self._free, "collect() first"
        # Who closed another engine, or comes from another thread, may have left the GPU.
        self._gpu.enter()
        slot = self._free.popleft()
        slot.count = len(batch)
        slot.host_in.array[: slot.count] = batch
        slot.source.upload(slot.host_in.array[: slot.count], self._up, keep=False)
        self._compute.wait_for(slot.uploaded.record(self._up))
        slot.graph.launch(slot.count)
        self._down.wait_for(slot.computed.record(self._compute))
        slot.target.download(slot.scores, self._down)
        slot.done.record(self._down)
        self._busy.append(slot)

    def collect(self) -> NDArray[np.float32]:
        """Wait for the oldest batch; its scores (n, classes, *patch) stay valid until ``ahead`` + 1 more were submitted."""
        slot = self._busy.popleft()
        try:
            slot.done.wait()
        finally:
            self._free.append(slot)
        return slot.scores

    def drain(self) -> None:
        """Let go of what was submitted and not collected; also after a failure."""
        for stream in (self._up, self._compute, self._down):
            # Of a GPU that failed, whoever waited for its result was told.
            with contextlib.suppress(GpuError):
                stream.synchronize()
        self._free.extend(self._busy)
        self._busy.clear()
        # A submit that failed half-way took its slot out of both.
        self._free.extend(slot for slot in self._slots if slot not in self._free)

    def close(self) -> None:
        for slot in self._slots:
            slot.free()
        self._slots = []
        for stream in (self._up, self._compute, self._down):
            stream.free()


class _Slot:
    """Buffers of one batch at both ends, and the network recorded for their addresses."""

    def __init__(
        self, gpu: Gpu, compute: Stream, enqueue: Enqueue, source: tuple[int, ...], target: tuple[int, ...]
    ) -> None:
        self.count = source[0]
        self._resources: list[Any] = []
        try:
            self.source, self.target = (
                self._hold(gpu.allocate(source, np.float32)),
                self._hold(gpu.allocate(target, np.float32)),
            )
            self.host_in, self.host_out = (
                self._hold(gpu.pinned(source, np.float32)),
                self._hold(gpu.pinned(target, np.float32)),
            )
            self.uploaded, self.computed, self.done = (self._hold(gpu.event()) for _ in range(3))
            self.graph = self._hold(CapturedGraph(gpu, compute, partial(self._run, enqueue)))
        except GpuMemoryError:
            self.free()
            raise

    def _hold(self, thing: Any) -> Any:
        self._resources.append(thing)
        return thing

    def _run(self, enqueue: Enqueue, stream: Stream) -> None:
        enqueue(self.count, self.source, self.target, stream)

    @property
    def scores(self) -> NDArray[np.float32]:
        return self.host_out.array[: self.count]

    def free(self) -> None:
        for thing in reversed(self._resources):
            thing.free()
        self._resources = []
