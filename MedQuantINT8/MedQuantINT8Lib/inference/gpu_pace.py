"""How far the computer runs ahead of its GPU."""

from __future__ import annotations

from ..engines.cuda.device import Event, Gpu, Stream

#: How many batches may be under way before the computer waits: enough to keep the GPU busy, few enough for a quick cancel.
_AHEAD = 8


class Pace:
    """Waits for the oldest batch where too many are under way."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._marks: list[Event] = []

    def mark(self, stream: Stream) -> None:
        """Say that a batch was put into a stream."""
        self._marks.append(Event(self._gpu).record(stream))
        if len(self._marks) > _AHEAD:
            first = self._marks.pop(0)
            first.wait()
            first.free()

    def end(self) -> None:
        """Wait for all batches."""
        for mark in self._marks:
            mark.wait()

    def free(self) -> None:
        """Let go of what it holds."""
        for mark in self._marks:
            mark.free()
        self._marks = []
