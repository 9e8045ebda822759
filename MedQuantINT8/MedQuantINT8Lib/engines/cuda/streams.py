"""Queues of a GPU's work, points in these, and the kernels that are put into them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from .buffers import DeviceBuffer
from .driver import checked

if TYPE_CHECKING:
    from .device import Gpu

#: The driver's priority of streams: a smaller number goes first, and 0 is the last that there is.
_URGENT = -1


class Event:
    """A point in a stream's work."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.handle = checked(gpu.driver.cuEventCreate(0), "make an event")

    def record(self, stream: Stream) -> Event:
        checked(self._gpu.driver.cuEventRecord(self.handle, stream.handle), "mark its work")
        return self

    def wait(self) -> None:
        """Wait until the work before it is done."""
        checked(self._gpu.driver.cuEventSynchronize(self.handle), "finish its work")

    def milliseconds_since(self, other: Event) -> float:
        return float(checked(self._gpu.driver.cuEventElapsedTime(other.handle, self.handle), "measure time"))

    def free(self) -> None:
        if self.handle is not None:
            checked(self._gpu.driver.cuEventDestroy(self.handle), "free an event")
            self.handle = None


class Stream:
    """A queue of work that neither waits for the default stream nor makes it wait.

    Args:
        urgent: where kernels of several streams could run, blocks of this one's begin before those of streams that are not urgent.
    """

    def __init__(self, gpu: Gpu, *, urgent: bool = False) -> None:
        self._gpu, self.urgent = gpu, urgent
        flag = gpu.driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        priority = _URGENT if urgent else 0
        self.handle = checked(gpu.driver.cuStreamCreateWithPriority(flag, priority), "make a stream")
        self._kept: list[Any] = []

    def keep(self, thing: Any) -> None:
        """Hold on to memory that work in the queue still reads."""
        self._kept.append(thing)

    def wait_for(self, event: Event) -> None:
        """Let later work of this stream begin after the event."""
        checked(self._gpu.driver.cuStreamWaitEvent(self.handle, event.handle, 0), "order its work")

    def synchronize(self) -> None:
        checked(self._gpu.driver.cuStreamSynchronize(self.handle), "finish its work")
        self._kept = []

    def free(self) -> None:
        if self.handle is not None:
            checked(self._gpu.driver.cuStreamDestroy(self.handle), "free a stream")
            self.handle = None


class Kernel:
    """A compiled kernel. Call it with its arguments as ctypes or NumPy scalars; buffers stand for their addresses."""

    def __init__(self, gpu: Gpu, function: Any, name: str) -> None:
        self._gpu, self._function, self.name = gpu, function, name

    def __call__(
        self, grid: tuple[int, int, int], block: tuple[int, int, int], stream: Stream, *arguments: Any
    ) -> None:
        values, types = [], []
        for argument in arguments:
            if isinstance(argument, DeviceBuffer):
                values.append(argument.pointer)
                types.append(ctypes.c_void_p)
            else:
                values.append((argument.value or 0) if isinstance(argument, ctypes._SimpleCData) else argument)
                types.append(type(argument))
        launched = self._gpu.driver.cuLaunchKernel(
            self._function, *grid, *block, 0, stream.handle, (tuple(values), tuple(types)), 0
        )
        checked(launched, f"start the kernel {self.name}")
