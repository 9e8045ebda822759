"""A stand-in driver whose streams do their work in any order that events allow, so that a wait that is missing shows.

Nothing is done when it is put into a stream. Whoever waits lets streams go on by turns that a seed decides, until what is waited for is done.
"""

from __future__ import annotations

import random
import threading
from collections import deque

import gpu_computing
import kernels_on_processor
from MedQuantINT8Lib.engines.cuda import device as cuda


class OrderingDriver(gpu_computing.ComputingDriver):
    """Attributes:
    urgent: streams that go first, by their handles; None for those of the driver's own priority.
    """

    def __init__(self, seed, urgent_first=None):
        super().__init__()
        self._random, self._urgent_first = random.Random(seed), urgent_first
        self._queues, self._urgent, self._marks, self._done = {}, set(), {}, set()
        self._count, self._lock = 0, threading.RLock()

    def needing(self, name):
        own = {"cuStreamCreateWithPriority": self._new_stream, "cuEventCreate": self._new_event}
        return own.get(name) or super().needing(name)

    def _number(self):
        with self._lock:
            self._count += 1
            return self._count

    def _new_stream(self, flags, priority):
        handle = self._number()
        self._queues[handle] = deque()
        if priority < 0:
            self._urgent.add(handle)
        return 0, handle

    def _new_event(self, flags):
        return 0, self._number()

    def put(self, stream, work):
        with self._lock:
            self._queues[int(stream)].append(work)

    def cuEventRecord(self, event, stream):
        with self._lock:
            mark = self._marks[int(event)] = self._number()
            self.put(stream, lambda: self._done.add(mark) or True)
        return (0,)

    def cuStreamWaitEvent(self, stream, event, flags):
        with self._lock:
            mark = self._marks.get(int(event))
            # An event that was never recorded holds nobody up.
            if mark is not None:
                self.put(stream, lambda: mark in self._done)
        return (0,)

    def _go_on(self, over):
        """Let streams work by turns until ``over()``."""
        with self._lock:
            while not over():
                waiting = [handle for handle, queue in self._queues.items() if queue]
                self._random.shuffle(waiting)
                if self._urgent_first is not None:
                    waiting.sort(key=lambda handle: (handle in self._urgent) != self._urgent_first)
                assert any(self._step(handle) for handle in waiting), "all streams wait for each other"

    def _step(self, handle):
        """Do the first piece of work of a stream; whether it could be done. A wait that is not over stays the first."""
        if self._queues[handle][0]() is False:
            return False
        self._queues[handle].popleft()
        return True

    def cuEventSynchronize(self, event):
        mark = self._marks.get(int(event))
        self._go_on(lambda: mark is None or mark in self._done)
        return (0,)

    def cuStreamSynchronize(self, stream):
        self._go_on(lambda: not self._queues[int(stream)])
        return (0,)

    def cuCtxSynchronize(self):
        self._go_on(lambda: not any(self._queues.values()))
        return (0,)

    def cuMemFree(self, pointer):
        # As the real one, it waits for the whole GPU.
        self.cuCtxSynchronize()
        return super().cuMemFree(pointer)

    cuMemFreeHost = cuMemFree

    def cuMemcpyHtoDAsync(self, to, source, size, stream):
        copy = super().cuMemcpyHtoDAsync
        self.put(stream, lambda: copy(to, source, size, stream))
        return (0,)

    cuMemcpyDtoHAsync = cuMemcpyHtoDAsync

    def cuMemsetD8Async(self, to, value, size, stream):
        fill = super().cuMemsetD8Async
        self.put(stream, lambda: fill(to, value, size, stream))
        return (0,)


class _Queued:
    """A kernel that is run when its stream comes to it."""

    def __init__(self, driver, kernel):
        self._driver, self._kernel = driver, kernel

    def __call__(self, grid, block, stream, *arguments):
        values = [kernels_on_processor.ctypes.c_void_p(a.pointer) if hasattr(a, "pointer") else a for a in arguments]
        self._driver.put(stream.handle, lambda: self._kernel(grid, block, stream, *values))


def install(monkeypatch, seed, urgent_first=None):
    """Put it in the real one's place; gives the driver.

    Args:
        urgent_first: streams go first that are urgent (True) or that are not (False), as far as they can; None for any.
    """
    gpu_computing.install_kernels(monkeypatch)
    driver = OrderingDriver(seed, urgent_first)
    _, nvrtc = cuda.bindings()
    monkeypatch.setattr(cuda, "bindings", lambda: (driver, nvrtc))

    def kernels(gpu, source, names):
        found = kernels_on_processor.kernels(source, names)
        return {name: _Queued(driver, kernel) for name, kernel in found.items()}

    monkeypatch.setattr(cuda.Gpu, "kernels", kernels)
    return driver
