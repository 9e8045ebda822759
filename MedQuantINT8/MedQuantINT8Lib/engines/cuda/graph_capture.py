"""CUDA graphs: work that is recorded once and replayed with one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .device import Gpu, Stream, checked


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
        driver, stream = self._gpu.driver, self._stream
        self.free()
        self._enqueue(stream)
        stream.synchronize()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        checked(driver.cuStreamBeginCapture(stream.handle, mode), "record its work")
        try:
            self._enqueue(stream)
        except BaseException:
            # A capture that is left open would make every later call fail.
            driver.cuStreamEndCapture(stream.handle)
            raise
        graph = checked(driver.cuStreamEndCapture(stream.handle), "record its work")
        try:
            self._executable = checked(driver.cuGraphInstantiate(graph, 0), "prepare what was recorded")
        finally:
            checked(driver.cuGraphDestroy(graph), "free what was recorded")
        self._key = key
        self.captures += 1

    def free(self) -> None:
        if self._executable is not None:
            checked(self._gpu.driver.cuGraphExecDestroy(self._executable), "free what was recorded")
            self._executable = None
