"""CUDA graphs: work that is recorded once and replayed with one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

from .device import Gpu, GpuMemoryError, Stream, checked
from .driver import recording

_NEVER_SEEN: Any = object()


class CapturedGraph:
    """Work that is recorded once and then replayed with one call, as long as shapes and addresses stay the same.

    Args:
        enqueue: puts the work into the stream. It is run once eagerly, since libraries set themselves up in their first run,
            then recorded.
    """

    def __init__(self, gpu: Gpu, stream: Stream, enqueue: Callable[[Stream], None]) -> None:
        self._gpu, self._stream, self._enqueue = gpu, stream, enqueue
        self._key: Any = None
        self._executable: Any = None
        self.captures = 0

    def launch(self, key: Any) -> None:
        """Replay; records anew if ``key`` (shapes and addresses) is another than the last time."""
        if self._executable is None or key != self._key:
            self._record(key)
            return
        checked(self._gpu.driver.cuGraphLaunch(self._executable, self._stream.handle), "replay its work")

    def _record(self, key: Any) -> None:
        self.free()
        self._enqueue(self._stream)
        self._stream.synchronize()
        self._executable = recorded(self._gpu, self._stream, self._enqueue)
        self._key = key
        self.captures += 1

    def free(self) -> None:
        if self._executable is not None:
            checked(self._gpu.driver.cuGraphExecDestroy(self._executable), "free what was recorded")
            self._executable = None


def recorded(gpu: Gpu, stream: Stream, enqueue: Callable[[Stream], None]) -> Any:
    """Record what ``enqueue`` puts into a stream, in place of doing it; the driver's handle of what ``cuGraphLaunch`` replays."""
    driver = gpu.driver
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    with recording:
        checked(driver.cuStreamBeginCapture(stream.handle, mode), "record its work")
        try:
            enqueue(stream)
        except BaseException:
            # A capture that is left open would make every later call fail.
            driver.cuStreamEndCapture(stream.handle)
            raise
        graph = checked(driver.cuStreamEndCapture(stream.handle), "record its work")
    try:
        return checked(driver.cuGraphInstantiate(graph, 0), "prepare what was recorded")
    finally:
        checked(driver.cuGraphDestroy(graph), "free what was recorded")


class RecordedGraphs:
    """Work of several shapes and addresses that comes again and again: it is recorded when it comes for the second time, and replayed then.

    To start the kernels of a network one by one takes Python a millisecond, and longer beside other threads.

    Args:
        most: how many are kept; those that were used longest ago go.
    """

    def __init__(self, gpu: Gpu, most: int) -> None:
        self._gpu, self._most = gpu, most
        self._known: dict[Hashable, Any] = {}

    def put(self, key: Hashable, stream: Stream, enqueue: Callable[[Stream], None]) -> None:
        """Put work into a stream; ``key`` says which shapes, addresses and kind of stream it is of."""
        driver = self._gpu.driver
        if int(checked(driver.cuStreamIsCapturing(stream.handle), "look whether work is recorded")):
            # Somebody records all that comes.
            enqueue(stream)
            return
        executable = self._known.pop(key, _NEVER_SEEN)
        if executable is _NEVER_SEEN:
            executable = None
            enqueue(stream)
        else:
            if executable is None:
                # Where there is no memory for a recording, the work itself needs none more.
                with suppress(GpuMemoryError):
                    executable = recorded(self._gpu, stream, enqueue)
            if executable is None:
                enqueue(stream)
            else:
                checked(driver.cuGraphLaunch(executable, stream.handle), "replay its work")
        self._known[key] = executable
        while len(self._known) > self._most:
            self._free(self._known.pop(next(iter(self._known))))

    def _free(self, executable: Any) -> None:
        # One that is under way ends before it goes.
        if executable is not None:
            checked(self._gpu.driver.cuGraphExecDestroy(executable), "free what was recorded")

    def free(self) -> None:
        while self._known:
            self._free(self._known.popitem()[1])
