"""A folder of scans, segmented in the background: a job that a window polls, as those of the worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..cohort.driver import CohortResult
from ..cohort.journal import Record
from ..cohort.pool import CasePool
from ..cohort.segment import CohortRequest, segment_cohort
from ..engines import backend
from ..errors import MedQuantError
from ..progress import ProgressEvent, Task
from ..worker.jobs import Failure


class FolderJob:
    """Segments a folder in a thread of its own; the engines run in processes of the pool.

    Attributes:
        value: the paths that were written, once :meth:`poll` returned True.
        failures: the cases that failed, with their reasons.
        report: engine, seconds and notes of the whole, as the worker reports those of one scan.

    Args:
        on_report: called with the report by :meth:`poll`, when the job has ended.
    """

    def __init__(
        self, request: CohortRequest, pool: CasePool, on_report: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> None:
        self._request, self._pool, self._on_report = request, pool, on_report
        self._task = Task(self._listen)
        self._error: BaseException | None = None
        self._written: list[str] = []
        self.progress: ProgressEvent | None = None
        self.value: list[str] = []
        self.failures: list[Failure] = []
        self.report: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _listen(self, event: ProgressEvent) -> None:
        self.progress = event

    def _run(self) -> None:
        try:
            self._end(segment_cohort(self._request, self._pool, self._task, self._on_case))
        except Exception as error:
            # Raised by poll(), in the window's thread.
            self._error = error

    def _on_case(self, record: Record, already: bool) -> None:
        if not already and record.get("output"):
            self._written.append(str(self._request.folder / record["output"]))

    def _end(self, result: CohortResult) -> None:
        self.failures = [Failure(record["id"], MedQuantError(record["error"])) for record in result.failed]
        engine: dict[str, Any] = next((record["engine"] for record in result.records if record.get("engine")), {})
        total = sum(
            record["seconds"].get("total", 0.0) for record in result.records if record["id"] not in result.already
        )
        self.report = {
            "engine": {"title": backend(engine["name"]).title, "precision": engine["precision"]} if engine else {},
            "seconds": {"total": total},
            "notes": list(result.notes),
        }

    def poll(self) -> bool:
        """Whether the job has ended.

        Raises:
            MedQuantError: nothing could be segmented at all.
        """
        if self._thread.is_alive():
            return False
        self._thread.join()
        if isinstance(self._error, MedQuantError):
            raise self._error
        if self._error is not None:
            raise MedQuantError(f"{type(self._error).__name__}: {self._error}.", "Please report this.") from self._error
        self.value = sorted(self._written)
        self._on_report(self.report)
        return True

    def cancel(self) -> None:
        """End the workers; what is done stays done, and the next run goes on."""
        self._task.cancel()
