"""Large arrays between the computer's memory and a GPU, through pinned memory and by several threads: the driver's own way uses one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...system import cpu_count
from .device import DeviceBuffer, Event, Gpu, PinnedBuffer, Stream
from .driver import checked

#: Bytes of a piece that is copied at a time, and from how many on an array goes this way.
CHUNK, LEAST = 4 << 20, 32 << 20
_MOST_THREADS = 4
#: Pieces of a thread: one is filled while the other is copied.
_SLOTS = 2
_KNOWN: WeakKeyDictionary[Gpu, Staging] = WeakKeyDictionary()


def staging_of(gpu: Gpu) -> Staging:
    """Return what copies large arrays for a GPU, until that is closed."""
    if gpu not in _KNOWN:
        _KNOWN[gpu] = Staging(gpu)
        gpu.when_closed(lambda: _KNOWN.pop(gpu).close())
    return _KNOWN[gpu]


class Staging:
    """Copies for one GPU, one at a time; its pinned memory is kept until it is closed."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._lock = gpu, threading.Lock()
        self._threads = min(_MOST_THREADS, cpu_count())
        self._slots: list[PinnedBuffer] = []
        self._events: list[Event] = []
        self._pool: ThreadPoolExecutor | None = None

    def upload(self, buffer: DeviceBuffer, array: NDArray[Any], stream: Stream) -> None:
        """Copy an array to the start of a buffer, in the stream's order; the array may be changed afterwards."""
        array = np.ascontiguousarray(array, buffer.dtype)
        assert array.nbytes <= buffer.nbytes
        if array.nbytes < LEAST or self._threads < 2:
            buffer.upload(array, stream)
            return
        flat = array.reshape(-1).view(np.uint8)

        def copy(slot: PinnedBuffer, event: Event, low: int, size: int) -> None:
            np.copyto(slot.array[:size], flat[low : low + size])
            driver = self._gpu.driver
            source = slot.array.ctypes.data
            checked(driver.cuMemcpyHtoDAsync(buffer.pointer + low, source, size, stream.handle), "copy to the GPU")
            event.record(stream)

        self._share(copy, array.nbytes)

    def download(self, array: NDArray[Any], buffer: DeviceBuffer, stream: Stream) -> None:
        """Copy the start of a buffer to a contiguous array once what is in the stream is done, and wait for it."""
        assert array.flags.c_contiguous and array.nbytes <= buffer.nbytes
        if array.nbytes < LEAST or self._threads < 2:
            buffer.download(array, stream)
            stream.synchronize()
            return
        flat = array.reshape(-1).view(np.uint8)

        def copy(slot: PinnedBuffer, event: Event, low: int, size: int) -> None:
            driver = self._gpu.driver
            target = slot.array.ctypes.data
            checked(driver.cuMemcpyDtoHAsync(target, buffer.pointer + low, size, stream.handle), "copy from the GPU")
            event.record(stream).wait()
            np.copyto(flat[low : low + size], slot.array[:size])

        self._share(copy, array.nbytes)

    def _share(self, copy: Callable[[PinnedBuffer, Event, int, int], None], total: int) -> None:
        """Copy all pieces, each by one of the threads, and wait until all of them are where they belong."""
        with self._lock:
            self._prepare()
            assert self._pool is not None

            def run(thread: int) -> None:
                self._gpu.enter()
                used: set[int] = set()
                for turn, low in enumerate(range(thread * CHUNK, total, self._threads * CHUNK)):
                    place = thread * _SLOTS + turn % _SLOTS
                    if place in used:
                        self._events[place].wait()
                    used.add(place)
                    copy(self._slots[place], self._events[place], low, min(CHUNK, total - low))
                for place in used:
                    self._events[place].wait()

            for future in [self._pool.submit(run, thread) for thread in range(self._threads)]:
                future.result()

    def _prepare(self) -> None:
        if self._pool is not None:
            return
        count = self._threads * _SLOTS
        self._slots = [self._gpu.pinned((CHUNK,), np.uint8) for _ in range(count)]
        self._events = [self._gpu.event() for _ in range(count)]
        self._pool = ThreadPoolExecutor(self._threads, "staging")

    def close(self) -> None:
        """Let go of everything; nothing may be under way."""
        if self._pool is None:
            return
        self._pool.shutdown()
        self._pool = None
        for event in self._events:
            event.free()
        for slot in self._slots:
            slot.free()
        self._slots, self._events = [], []
