"""A job of the worker as its caller sees it: progress, cancel, and at its end a result or an error."""

from __future__ import annotations

import queue
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .. import errors
from ..errors import EngineError, MedQuantError
from ..progress import ProgressEvent, Task

#: How long is waited for the worker's next word: by who waits for the job, and by who only looks.
POLL_SECONDS = 0.05
_YIELD_SECONDS = 0.002


class WorkerError(MedQuantError):
    """The worker could not be started, or ended by itself."""

    exit_code = 8


@dataclass(frozen=True)
class WorkerResult:
    """What a task gave: arrays (the caller's own copies), and what the worker says of them."""

    arrays: tuple[NDArray[Any], ...]
    report: dict[str, Any]

    @property
    def labels(self) -> NDArray[Any]:
        """The label map of a segmentation, (K, J, I) on the volume's own grid."""
        return self.arrays[0]


class Job:
    """Something that the worker does. :meth:`poll` from a timer, or :meth:`wait`.

    Args:
        number: that the worker's events name it by.
        send: writes a request to the worker, if it still runs.
    """

    def __init__(self, number: int, send: Callable[[dict[str, Any]], None]) -> None:
        self.number, self._send = number, send
        self.process: subprocess.Popen[str] | None = None
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.cancelled = False
        self.progress: ProgressEvent | None = None
        self.result: WorkerResult | None = None
        self.error: MedQuantError | None = None

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self.result is not None or self.error is not None

    def cancel(self) -> None:
        """Ask the worker to stop; it does within one window."""
        self.cancelled = True
        self._send({"do": "cancel", "target": self.number})

    def receive(self, event: dict[str, Any]) -> None:
        """Take note of what the worker said of this job; :meth:`poll` handles it. Any thread may call it."""
        self._events.put(event)

    def poll(self, wait: float = _YIELD_SECONDS) -> bool:
        """Handle what the worker said, and return whether the job is done.

        It always waits a moment for news: an application whose event loop keeps the interpreter's lock would else give the
        threads that listen to the worker no turn.
        """
        while not self.done:
            try:
                event = self._events.get(timeout=wait)
            except queue.Empty:
                break
            wait = 0.0001
            self._handle(event)
        return self.done

    def wait(self, task: Task) -> WorkerResult:
        """Wait, pass progress on to ``task`` and its cancel on to the worker.

        Raises:
            MedQuantError: what went wrong in the worker, as the same error here.
        """
        asked = False
        while not self.poll(POLL_SECONDS):
            if self.progress is not None:
                task.report(self.progress)
                self.progress = None
            if task.cancelled and not asked:
                self.cancel()
                asked = True
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self.progress = ProgressEvent(event["stage"], event["done"], event["total"], event["seconds_left"])
        elif kind == "result":
            self.result = WorkerResult(event["arrays"], event["report"])
        elif kind == "error":
            cls = getattr(errors, event["kind"], None)
            known = isinstance(cls, type) and issubclass(cls, MedQuantError)
            self.error = cls(event["message"], event["hint"]) if known else EngineError(event["message"], event["hint"])  # type: ignore[misc]
        elif kind == "failed":
            self.error = event["error"]
        elif kind == "ended":
            self.error = WorkerError(event["message"], "It is started again with the next segmentation.")
