"""Large arrays between the computer's memory and a GPU's, by way of pinned memory and on several threads.

The driver copies what is not pinned through a buffer of its own, on one thread: a scan of 512 x 512 x 400 voxels takes longer that way than
its resampling on the GPU. To pin the arrays themselves would take longer still.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...system import cpu_count
from .device import DeviceBuffer, Event, Gpu, Stream

#: Bytes of a chunk, and the size from which on an array is cut into chunks.
_CHUNK, LARGE = 4 << 20, 16 << 20
#: Threads of each GPU, and chunks on their way to it while threads fill others.
_THREADS, _AHEAD = max(1, min(6, cpu_count())), 2
#: More copies than these at a time, for all GPUs together, are slower on the whole: they wait for the computer's memory.
_copying = threading.BoundedSemaphore(_THREADS)


_known: WeakKeyDictionary[Gpu, Transfers] = WeakKeyDictionary()
_lock = threading.Lock()


def _at_once() -> None:
    """Memory that is there may be written at once."""


def transfers_of(gpu: Gpu) -> Transfers:
    """Return what copies large arrays for a GPU, until that is closed."""
    with _lock:
        transfers = _known.get(gpu)
        if transfers is None:
            transfers = _known[gpu] = Transfers(gpu)
            gpu.when_closed(lambda: _known.pop(gpu).close())
        return transfers


class _Chunk:
    """Pinned memory of one copy at a time."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._pinned = gpu.pinned((_CHUNK,), np.uint8)
        #: Of the last copy to the GPU from here, which may be under way.
        self._copied: Event | None = None

    def array(self, size: int) -> NDArray[np.uint8]:
        """Return so many bytes of it, for the next copy."""
        return self._pinned.array[:size]

    def copied_in(self, stream: Stream) -> None:
        """Note that a copy to the GPU was put into a stream."""
        self._copied = Event(self._gpu).record(stream)

    def wait(self) -> None:
        """Wait until it may be written over."""
        copied, self._copied = self._copied, None
        if copied is not None:
            try:
                copied.wait()
            finally:
                copied.free()

    def free(self) -> None:
        self.wait()
        self._pinned.free()


class Transfers:
    """Copies for one GPU; holds its pinned memory until it is closed."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        gpu.enter()
        self._chunks: list[_Chunk] = []
        self._free: SimpleQueue[_Chunk] = SimpleQueue()
        try:
            for _ in range(_THREADS + _AHEAD):
                self._chunks.append(_Chunk(gpu))
                self._free.put(self._chunks[-1])
        except BaseException:
            self._release()
            raise
        self._threads = ThreadPoolExecutor(_THREADS, "transfers", initializer=gpu.enter)

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
            with self._chunk() as chunk:
                pinned = chunk.array(len(part))
                with _copying:
                    _copy(pinned, part)
                # Whoever takes the chunk next waits for its way to the GPU, and not this thread.
                buffer.upload_bytes(pinned, stream, to + begin)
                chunk.copied_in(stream)

        jobs = [self._threads.submit(copy, begin) for begin in range(0, len(data), _CHUNK)]
        return lambda: _end(jobs)

    def begin_download(
        self,
        buffer: DeviceBuffer,
        array: NDArray[Any],
        stream: Stream,
        offset: int = 0,
        ready: Callable[[], None] = _at_once,
    ) -> Download:
        """Begin to copy a buffer's bytes from ``offset`` on into a contiguous array, behind what is in the stream now.

        Args:
            ready: waits until the array may be written; called by the threads that do that.
        """
        filled, own = self._behind(stream)
        data = _bytes(array)

        def copy(begin: int) -> None:
            part = data[begin : begin + _CHUNK]
            with self._chunk() as chunk:
                pinned = chunk.array(len(part))
                buffer.download(pinned, own, offset + begin)
                _wait(self._gpu, own)
                ready()
                with _copying:
                    _copy(part, pinned)

        jobs = [self._threads.submit(copy, begin) for begin in range(0, len(data), _CHUNK)]
        return Download(jobs, own, filled)

    def begin_download_of_rows(
        self,
        buffer: DeviceBuffer,
        array: NDArray[Any],
        stream: Stream,
        place: tuple[int, int],
        ready: Callable[[], None] = _at_once,
    ) -> Download:
        """As :meth:`begin_download`, of pieces of a buffer, each of which goes to a contiguous ``array[n]``.

        Args:
            place: of the first piece, and how far it is from one to the next, in bytes.
        """
        filled, own = self._behind(stream)
        offset, pitch = place
        size = array[0].nbytes
        at_once = max(1, _CHUNK // size)

        def copy(begin: int) -> None:
            some = array[begin : begin + at_once]
            if size > _CHUNK:
                ready()
                buffer.download(some[0], own, offset + begin * pitch)
                _wait(self._gpu, own)
                return
            with self._chunk() as chunk:
                pinned = chunk.array(len(some) * size)
                for number in range(len(some)):
                    piece = pinned[number * size : (number + 1) * size]
                    buffer.download(piece, own, offset + (begin + number) * pitch)
                _wait(self._gpu, own)
                ready()
                with _copying:
                    np.copyto(some, pinned.view(array.dtype).reshape(some.shape))

        return Download([self._threads.submit(copy, begin) for begin in range(0, len(array), at_once)], own, filled)

    def begin_download_into_rows(
        self,
        buffer: DeviceBuffer,
        array: NDArray[Any],
        stream: Stream,
        offset: int,
        ready: Callable[[], None] = _at_once,
    ) -> Download:
        """As :meth:`begin_download`, into an array (n, rows, columns) of which the rows of each ``array[n]`` are contiguous."""
        filled, own = self._behind(stream)
        size, row = array[0].nbytes, array[0, 0].nbytes

        def copy(part: NDArray[Any], begin: int) -> None:
            with self._chunk() as chunk:
                pinned = chunk.array(part.nbytes)
                buffer.download(pinned, own, begin)
                _wait(self._gpu, own)
                ready()
                with _copying:
                    np.copyto(part, pinned.view(array.dtype).reshape(part.shape))

        planes, rows = max(1, _CHUNK // size), len(array[0]) if size <= _CHUNK else max(1, _CHUNK // row)
        jobs = [
            self._threads.submit(
                copy, array[first : first + planes, low : low + rows], offset + first * size + low * row
            )
            for first in range(0, len(array), planes)
            for low in range(0, len(array[0]), rows)
        ]
        return Download(jobs, own, filled)

    @contextmanager
    def _chunk(self) -> Iterator[_Chunk]:
        """Give pinned memory that may be written over."""
        chunk = self._free.get()
        try:
            chunk.wait()
            yield chunk
        finally:
            self._free.put(chunk)

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


def _copy(target: NDArray[np.uint8], source: NDArray[np.uint8]) -> None:
    """Copy bytes, which lie one after the other; other threads go on meanwhile."""
    ctypes.memmove(target.ctypes.data, source.ctypes.data, source.nbytes)


def _end(jobs: list[Future[None]]) -> None:
    """Wait for all, also where one failed: they use memory that goes afterwards."""
    errors = [error for job in jobs if (error := job.exception()) is not None]
    if errors:
        raise errors[0]


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)
