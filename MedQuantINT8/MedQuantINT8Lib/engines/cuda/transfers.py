"""Large arrays between the computer's memory and a GPU's, by way of pinned memory and on several threads.

The driver copies what is not pinned through a buffer of its own, on one thread: a scan of 512 x 512 x 400 voxels takes longer that way than
its resampling on the GPU. To pin the arrays themselves would take longer still.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...system import cpu_count
from .device import DeviceBuffer, Event, Gpu, PinnedBuffer, Stream

#: Bytes of a chunk, how many are under way, and the size from which on an array is cut into chunks.
_CHUNK, _CHUNKS, LARGE = 4 << 20, 8, 16 << 20
_MOST_THREADS = 6
#: More copies than these at a time, for all GPUs together, are slower on the whole: they wait for the computer's memory.
_copying = threading.BoundedSemaphore(_MOST_THREADS)


_known: WeakKeyDictionary[Gpu, Transfers] = WeakKeyDictionary()
_lock = threading.Lock()


def transfers_of(gpu: Gpu) -> Transfers:
    """Return what copies large arrays for a GPU, until that is closed."""
    with _lock:
        transfers = _known.get(gpu)
        if transfers is None:
            transfers = _known[gpu] = Transfers(gpu)
            gpu.when_closed(lambda: _known.pop(gpu).close())
        return transfers


class Transfers:
    """Copies for one GPU; holds its pinned memory until it is closed."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        gpu.enter()
        self._chunks: list[PinnedBuffer] = []
        self._free: SimpleQueue[PinnedBuffer] = SimpleQueue()
        try:
            for _ in range(_CHUNKS):
                self._chunks.append(gpu.pinned((_CHUNK,), np.uint8))
                self._free.put(self._chunks[-1])
        except BaseException:
            self._release()
            raise
        threads = max(1, min(_MOST_THREADS, cpu_count()))
        self._threads = ThreadPoolExecutor(threads, "transfers", initializer=gpu.enter)

    def close(self) -> None:
        self._threads.shutdown()
        self._gpu.enter()
        self._release()

    def _release(self) -> None:
        for chunk in self._chunks:
            chunk.free()
        self._chunks = []

    def upload(self, buffer: DeviceBuffer, array: NDArray[Any], stream: Stream, to: int = 0) -> None:
        """Copy an array to byte ``to`` of a buffer and what follows; returns when the array is no longer needed."""
        self.begin_upload(buffer, array, stream, to)()

    def begin_upload(
        self, buffer: DeviceBuffer, array: NDArray[Any], stream: Stream, to: int = 0
    ) -> Callable[[], None]:
        """As :meth:`upload`, which what is given waits for the end of."""
        data = _bytes(np.ascontiguousarray(array, buffer.dtype))

        def copy(begin: int) -> None:
            part = data[begin : begin + _CHUNK]
            chunk = self._free.get()
            try:
                pinned = chunk.array[: len(part)]
                with _copying:
                    np.copyto(pinned, part)
                buffer.upload_bytes(pinned, stream, to + begin)
                _wait(self._gpu, stream)
            finally:
                self._free.put(chunk)

        jobs = [self._threads.submit(copy, begin) for begin in range(0, len(data), _CHUNK)]
        return lambda: _end(jobs)

    def begin_download(self, buffer: DeviceBuffer, array: NDArray[Any], stream: Stream, offset: int = 0) -> Download:
        """Begin to copy a buffer's bytes from ``offset`` on into a contiguous array, behind what is in the stream now."""
        filled, own = self._behind(stream)
        data = _bytes(array)

        def copy(begin: int) -> None:
            part = data[begin : begin + _CHUNK]
            chunk = self._free.get()
            try:
                pinned = chunk.array[: len(part)]
                buffer.download(pinned, own, offset + begin)
                _wait(self._gpu, own)
                with _copying:
                    np.copyto(part, pinned)
            finally:
                self._free.put(chunk)

        jobs = [self._threads.submit(copy, begin) for begin in range(0, len(data), _CHUNK)]
        return Download(jobs, own, filled)

    def begin_download_of_rows(
        self, buffer: DeviceBuffer, array: NDArray[Any], stream: Stream, offset: int, pitch: int
    ) -> Download:
        """As :meth:`begin_download`, of pieces of a buffer that lie ``pitch`` bytes from each other; each goes to a contiguous ``array[n]``."""
        filled, own = self._behind(stream)
        size = array[0].nbytes
        at_once = max(1, _CHUNK // size)

        def copy(begin: int) -> None:
            some = array[begin : begin + at_once]
            if size > _CHUNK:
                buffer.download(some[0], own, offset + begin * pitch)
                _wait(self._gpu, own)
                return
            chunk = self._free.get()
            try:
                for number in range(len(some)):
                    piece = chunk.array[number * size : (number + 1) * size]
                    buffer.download(piece, own, offset + (begin + number) * pitch)
                _wait(self._gpu, own)
                with _copying:
                    np.copyto(some, chunk.array[: len(some) * size].view(array.dtype).reshape(some.shape))
            finally:
                self._free.put(chunk)

        return Download([self._threads.submit(copy, begin) for begin in range(0, len(array), at_once)], own, filled)

    def _behind(self, stream: Stream) -> tuple[Event, Stream]:
        """Return a stream whose work begins after what is in another one now, and the event that it waits for."""
        filled = Event(self._gpu).record(stream)
        own = self._gpu.stream()
        own.wait_for(filled)
        return filled, own


def is_large(array: NDArray[Any] | DeviceBuffer) -> bool:
    """Whether an array is worth the detour."""
    return array.nbytes >= LARGE


def upload(buffer: DeviceBuffer, array: NDArray[Any], stream: Stream, to: int = 0) -> None:
    """Copy an array to byte ``to`` of a buffer and what follows; a small one is held until the stream is next waited for."""
    if not is_large(array):
        buffer.upload(array, stream, to=to)
    else:
        transfers_of(buffer.gpu).upload(buffer, array, stream, to)


def begin_upload(buffer: DeviceBuffer, array: NDArray[Any], stream: Stream, to: int = 0) -> Callable[[], None]:
    """As :func:`upload`; what is given waits until the array is no longer needed."""
    if is_large(array):
        return transfers_of(buffer.gpu).begin_upload(buffer, array, stream, to)
    buffer.upload(array, stream, to=to)
    return lambda: None


def download(buffer: DeviceBuffer, array: NDArray[Any], stream: Stream, offset: int = 0) -> None:
    """Copy a buffer's bytes from ``offset`` on into a contiguous array, behind what is in the stream, and wait until all are there."""
    if not is_large(array):
        buffer.download(array, stream, offset)
        stream.synchronize()
    else:
        transfers_of(buffer.gpu).begin_download(buffer, array, stream, offset).wait()


class Download:
    """Bytes on their way to the computer."""

    def __init__(self, jobs: list[Future[None]], stream: Stream, filled: Event) -> None:
        self._jobs, self._stream, self._filled = jobs, stream, filled

    def wait(self) -> None:
        """Wait until all have arrived.

        Raises:
            GpuError: the driver's words where a copy failed.
        """
        try:
            _end(self._jobs)
        finally:
            self._stream.free()
            self._filled.free()


def _wait(gpu: Gpu, stream: Stream) -> None:
    """Wait for what is in a stream now, not for what others put there afterwards."""
    mark = Event(gpu).record(stream)
    try:
        mark.wait()
    finally:
        mark.free()


def _end(jobs: list[Future[None]]) -> None:
    """Wait for all, also where one failed: they use memory that goes afterwards."""
    errors = [error for job in jobs if (error := job.exception()) is not None]
    if errors:
        raise errors[0]


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)
