"""One job at a time, polled from a Qt timer, with its progress in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import qt
from slicer.i18n import tr as _

from ...errors import Cancelled, MedQuantError
from ...progress import ProgressEvent
from ...worker.jobs import Pollable
from .stage_titles import stage_title

_INTERVAL_MS = 30


@dataclass(frozen=True)
class Listener:
    """Who hears how a job goes. ``failed`` gets a :class:`Cancelled` if the user stopped it."""

    progress: Callable[[ProgressEvent], None]
    done: Callable[[Any], None]
    failed: Callable[[MedQuantError], None]


class JobRunner:
    """Holds the job that runs. ``changed`` are called when one starts and when it ends."""

    def __init__(self) -> None:
        self._timer = qt.QTimer()
        self._timer.setInterval(_INTERVAL_MS)
        self._timer.timeout.connect(self._tick)
        self._job: Any = None
        self._listener: Listener | None = None
        self._reported: ProgressEvent | None = None
        self.changed: list[Callable[[], None]] = []
        #: Called again and again while a job runs.
        self.ticked: list[Callable[[], None]] = []

    @property
    def busy(self) -> bool:
        return self._job is not None

    def start(self, job: Pollable, listener: Listener) -> None:
        self._job, self._listener, self._reported = job, listener, None
        self._timer.start()
        self._tell()

    def cancel(self) -> None:
        if self._job is not None:
            self._job.cancel()

    def close(self) -> None:
        """Cancel, and listen no more: the window goes."""
        self.cancel()
        self._timer.stop()
        self._job = self._listener = None
        self.changed, self.ticked = [], []

    def _tick(self) -> None:
        if self._job is None or self._listener is None:
            return
        job, listener = self._job, self._listener
        try:
            done = job.poll()
        except MedQuantError as error:
            self._end()
            listener.failed(error)
            return
        except Exception as error:
            # A fault of ours: the window must come back to life, and the fault must be seen.
            self._end()
            listener.failed(
                MedQuantError(f"{type(error).__name__}: {error}", "This is a fault of MedQuantINT8; please report it.")
            )
            raise
        if done:
            self._end()
            listener.done(job)
        elif job.progress is not None and job.progress is not self._reported:
            self._reported = job.progress
            listener.progress(job.progress)
        if self.busy:
            for call in list(self.ticked):
                call()

    def _end(self) -> None:
        self._timer.stop()
        self._job = self._listener = None
        self._tell()

    def _tell(self) -> None:
        for call in list(self.changed):
            call()


def percent(event: ProgressEvent) -> int:
    """The percentage of the stage that is done; 0 while it is not known."""
    return int(100 * event.done / event.total) if event.total else 0


def in_words(event: ProgressEvent) -> str:
    """What is happening, and for how long still."""
    stage = stage_title(event.stage)
    if event.seconds_left is None:
        return f"{stage} …"
    return _("{stage}, {time} left").format(stage=stage, time=duration(event.seconds_left))


def duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    text = _("{seconds} s") if seconds < 60 else _("{minutes} min {rest} s")
    return unbroken(text.format(seconds=seconds, minutes=seconds // 60, rest=seconds % 60))


def unbroken(text: str) -> str:
    """A number with its unit, which no line is broken within."""
    return text.replace(" ", "\u00a0")


def is_cancel(error: MedQuantError) -> bool:
    return isinstance(error, Cancelled)
