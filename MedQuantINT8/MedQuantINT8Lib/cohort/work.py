"""What is done with a case, in three stages that run beside each other for different cases: reading, the network, writing.

A worker has one thread for each stage. So the next case is read and preprocessed, and the last one written, while the network runs; how
many cases are on their way is bounded by whoever hands them out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from ..errors import Cancelled, MedQuantError, one_line
from ..progress import ProgressEvent, Task
from .journal import DONE, FAILED, Record, now

#: Cases that a worker has on their way at once: one that is read, one in the network, one that is written.
IN_FLIGHT = 3
#: Called with a case's id, the stage that begins (or "waiting"), and how far it is.
StageListener = Callable[[str, str, int, int], None]


class Work(Protocol):
    """What a worker does with cases; it is made once a worker, and keeps what is loaded.

    All values are JSON. ``read``, ``run`` and ``finish`` are called by three threads, each always by the same. One that has a method
    ``warm_up`` loads there what its first case needs, in the thread of ``run``.
    """

    def read(self, case: dict[str, Any], task: Task) -> Any:
        """Read a case; what it returns goes to :meth:`run`."""

    def run(self, loaded: Any, task: Task) -> Any:
        """Run the network; what it returns goes to :meth:`finish`."""

    def finish(self, result: Any, task: Task) -> Record:
        """Write the result; what the journal says of it."""

    def close(self) -> None:
        """Let go of everything that is loaded; called by the network's thread."""


class StagedWorker:
    """Runs cases through the three stages of a work; :meth:`run` may be called from several threads.

    Args:
        open_work: makes the work; called by the network's thread, which owns the engines.
        listener: hears of each stage.

    Raises:
        MedQuantError: the work cannot be made.
    """

    def __init__(self, open_work: Callable[[], Work], listener: StageListener = lambda *_: None) -> None:
        self._listener = listener
        self._reading, self._network, self._writing = (ThreadPoolExecutor(1, name) for name in ("read", "run", "write"))
        self._work = self._network.submit(open_work).result()
        # The first case waits for it, but is read meanwhile.
        if (warm_up := getattr(self._work, "warm_up", None)) is not None:
            self._network.submit(warm_up)

    def run(self, case: dict[str, Any]) -> Record:
        """Run one case; never raises: a case that fails says so in its record."""
        began, seconds = time.perf_counter(), {}
        record: Record = {"id": case["id"], "scan": case["channels"]}
        stage = "reading"
        try:
            value: Any = case
            for stage, executor, step in (
                ("reading", self._reading, self._work.read),
                ("network", self._network, self._work.run),
                ("writing", self._writing, self._work.finish),
            ):
                value, seconds[stage] = executor.submit(self._timed, case["id"], stage, step, value).result()
            record |= {"state": DONE, "error": "", **value}
        except Cancelled:
            raise
        except BaseException as error:
            record |= {"state": FAILED, "stage": stage, "error": in_words(error)}
        record["seconds"] = {**seconds, **record.get("seconds", {}), "total": time.perf_counter() - began}
        record["ended"] = now()
        return record

    def _timed(self, name: str, stage: str, step: Callable[[Any, Task], Any], value: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        self._listener(name, stage, 0, 0)
        try:
            result = step(value, Task(lambda event: self._progress(name, stage, event)))
        finally:
            self._listener(name, "waiting", 0, 0)
        return result, time.perf_counter() - began

    def _progress(self, name: str, stage: str, event: ProgressEvent) -> None:
        self._listener(name, stage, event.done, event.total)

    def close(self) -> None:
        """End the threads and let go of the engines."""
        self._reading.shutdown()
        self._network.submit(self._work.close).result()
        self._network.shutdown()
        self._writing.shutdown()


def in_words(error: BaseException) -> str:
    """Return an error as one line for the journal and the table."""
    if isinstance(error, MedQuantError):
        return one_line(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory. Close other programs, or give --memory and a smaller --batch or --patch."
    if isinstance(error, OSError):
        from ..files import storage_error

        if (complaint := storage_error(error)) is not None:
            return one_line(complaint)
    return f"{type(error).__name__}: {one_line(error)}"
