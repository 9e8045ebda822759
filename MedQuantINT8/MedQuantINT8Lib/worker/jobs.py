"""Work in the background for a window: one task of the worker, or several after each other. No Qt, no MRML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import Cancelled, MedQuantError
from ..progress import ProgressEvent, Task
from .submitted_job import Job, WorkerResult

_POLL_SECONDS = 0.02


class Pollable(Protocol):
    """What a window holds while it waits. Call :meth:`poll` from a timer until it returns True; then ``value`` is there."""

    value: Any

    @property
    def progress(self) -> ProgressEvent | None: ...

    def poll(self) -> bool: ...

    def cancel(self) -> None: ...


class BackgroundJob:
    """A task of the worker, and what is made of its result by the caller's own thread.

    Args:
        finish: called once by :meth:`poll` with the result; what it returns is ``value``.
        check: called by every :meth:`poll`; raises if the work has become pointless, which stops it.
    """

    def __init__(
        self, job: Job, finish: Callable[[WorkerResult], Any], check: Callable[[], None] | None = None
    ) -> None:
        self._job, self._finish, self._check = job, finish, check
        self._done = False
        self.value: Any = None

    def poll(self) -> bool:
        """Handle what the worker said.

        Raises:
            MedQuantError: what went wrong; nothing of the scene was changed.
        """
        if not self._done and self._check is not None and not self._job.cancelled:
            try:
                self._check()
            except MedQuantError:
                self._done = True
                self._job.cancel()
                raise
        if not self._done and self._job.poll():
            self._done = True
            if self._job.error is not None:
                raise self._job.error
            assert self._job.result is not None
            try:
                self.value = self._finish(self._job.result)
            except MedQuantError:
                raise
            except Exception as error:
                # A batch goes on with the next piece, and a window shows it in words, whatever it was.
                raise MedQuantError(
                    f"The result could not be used: {type(error).__name__}: {error}.", "Please report this."
                ) from error
        return self._done

    @property
    def progress(self) -> ProgressEvent | None:
        return self._job.progress

    def cancel(self) -> None:
        self._job.cancel()


@dataclass(frozen=True)
class Failure:
    """One piece of a batch that could not be done."""

    name: str
    error: MedQuantError


class BatchJob:
    """Jobs one after the other. One that fails does not stop the rest; ``failures`` says which and why.

    Args:
        pieces: name of each, and what starts it.
    """

    def __init__(self, pieces: Sequence[tuple[str, Callable[[], Pollable]]]) -> None:
        self._pieces = list(pieces)
        self._number = -1
        self._current: Pollable | None = None
        self._cancelled = False
        self.value: list[Any] = []
        self.failures: list[Failure] = []

    def poll(self) -> bool:
        """As :meth:`BackgroundJob.poll`; raises only :class:`Cancelled`, or the error of the only piece."""
        if self._cancelled and self._current is None:
            raise Cancelled()
        if self._current is None:
            self._number += 1
            if self._number >= len(self._pieces):
                return True
            self._try(self._start)
            return False
        self._try(self._step)
        return False

    def _start(self) -> None:
        self._current = self._pieces[self._number][1]()

    def _step(self) -> None:
        assert self._current is not None
        if self._current.poll():
            self.value.append(self._current.value)
            self._current = None

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Cancelled:
            self._current = None
            raise
        except Exception as error:
            self._current = None
            if len(self._pieces) == 1 and isinstance(error, MedQuantError):
                raise
            failure = (
                error
                if isinstance(error, MedQuantError)
                else MedQuantError(f"{type(error).__name__}: {error}.", "Please report this.")
            )
            if len(self._pieces) == 1:
                raise failure from error
            self.failures.append(Failure(self._pieces[self._number][0], failure))

    @property
    def progress(self) -> ProgressEvent | None:
        inner = self._current.progress if self._current is not None else None
        if inner is None:
            return None
        name = self._pieces[self._number][0]
        return replace(inner, stage=f"{name} ({self._number + 1} of {len(self._pieces)}): {inner.stage}")

    def cancel(self) -> None:
        self._cancelled = True
        if self._current is not None:
            self._current.cancel()


def wait_for(job: Pollable, task: Task) -> Any:
    """Wait for a job in the caller's thread, passing on its progress and the task's cancel; its value.

    Raises:
        MedQuantError: what went wrong.
    """
    import time

    reported: ProgressEvent | None = None
    while not job.poll():
        if job.progress is not None and job.progress is not reported:
            reported = job.progress
            task.report(reported)
        if task.cancelled:
            job.cancel()
        time.sleep(_POLL_SECONDS)
    return job.value
