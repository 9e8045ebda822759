"""Progress, time left and cancel, shared by everything that takes longer than a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from .errors import Cancelled


@dataclass(frozen=True)
class ProgressEvent:
    """One report: ``done`` of ``total`` steps of ``stage``; ``seconds_left`` is None while it cannot be told."""

    stage: str
    done: int
    total: int
    seconds_left: float | None


Listener = Callable[[ProgressEvent], None]


class Task:
    """What a long piece of work reports to and asks whether it should stop.

    The worker calls :meth:`stage`, then :meth:`step` after each unit of work; the caller may call :meth:`cancel` from
    any thread, upon which the next :meth:`step` or :meth:`check` raises :class:`Cancelled`.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener
        self._cancelled = threading.Event()
        self._stage = ""
        self._done = self._steps_before = 0
        self._total = 0
        self._started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        #: Stands before the name of each stage in reports: which part of a larger piece of work it belongs to.
        self.part = ""
        self._plan = _Plan()

    def plan(self, work: Mapping[str, float]) -> None:
        """Say which stages are to come and how much work each of them is, in any unit: the time left is then that of all of them.

        A stage that the plan does not name adds what it takes itself, and what it teaches of the speed is left out.
        """
        self._plan = _Plan(dict(work))

    def skip(self, *stages: str) -> None:
        """Say that planned stages will not come; one that has begun is none of them."""
        for stage in stages:
            self._plan.waiting.pop(stage, None)

    def cancel(self) -> None:
        """Ask the work to stop at its next :meth:`step` or :meth:`check`; may be called from any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the work was asked to stop."""
        return self._cancelled.is_set()

    def report(self, event: ProgressEvent) -> None:
        """Pass on what another process reported."""
        if self._listener is not None:
            self._listener(event)

    def check(self) -> None:
        """Raise :class:`Cancelled` if the work was asked to stop."""
        if self._cancelled.is_set():
            raise Cancelled(f"Canceled during '{self._stage}'." if self._stage else "Canceled.")

    @contextmanager
    def stage(self, name: str, total: int = 0) -> Iterator[None]:
        """Time a stage and report its start; its seconds are added to ``self.seconds[name]``."""
        self.check()
        outer = (self._stage, self._done, self._total, self._started, self._steps_before)
        self._stage, self._done, self._total, self._started, self._steps_before = name, 0, total, time.perf_counter(), 0
        # A stage ends in the plan in which it began, also where another was made meanwhile.
        plan = self._plan
        work = plan.begin(name)
        self._report()
        try:
            yield
        finally:
            seconds = time.perf_counter() - self._started
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            plan.end(work, seconds)
            self._stage, self._done, self._total, self._started, self._steps_before = outer
        self.check()

    def begin(self, total: int, done: int = 0) -> None:
        """Say, inside a stage, how many steps it has, where that is only known now."""
        self._done, self._total, self._started = done, total, time.perf_counter()
        self._steps_before = done
        self._report()

    def begin_step(self, done: int) -> None:
        """Say that ``done`` steps are done, without asking whether to stop: for callbacks that may not raise."""
        self._done = done
        self._report()

    def step(self, count: int = 1) -> None:
        """Count ``count`` more steps as done, raise :class:`Cancelled` if the work was asked to stop, and report."""
        self._done += count
        self.check()
        self._report()

    def _report(self) -> None:
        if self._listener is None:
            return
        seconds_left = None
        seconds = time.perf_counter() - self._started
        if self._plan.planned:
            seconds_left = self._plan.seconds_left(seconds, self._done, self._total)
        elif self._done and self._total:
            seconds_left = seconds / max(self._done - self._steps_before, 1) * (self._total - self._done)
        self._listener(ProgressEvent(self.part + self._stage, self._done, self._total, seconds_left))


@dataclass
class _Plan:
    """The stages that are to come, with the work of each.

    Attributes:
        waiting: the work of the stages that have not begun, by name.
        current: the work of the stage that runs; 0 of one that was not planned.
        done, seconds: the work of the planned stages that have ended, and how long it took.
    """

    waiting: dict[str, float] = field(default_factory=dict)
    current: float = 0.0
    done: float = 0.0
    seconds: float = 0.0
    _outer: list[float] = field(default_factory=list)

    @property
    def planned(self) -> bool:
        return bool(self.waiting or self.current or self.done)

    def begin(self, stage: str) -> float:
        """Begin a stage; its work, to be given to :meth:`end`."""
        outer, self.current = self.current, self.waiting.pop(stage, 0.0)
        self._outer.append(outer)
        return self.current

    def end(self, work: float, seconds: float) -> None:
        self.current = self._outer.pop()
        if work:
            self.done += work
            self.seconds += seconds

    def seconds_left(self, seconds: float, steps: int, total: int) -> float | None:
        """The seconds of all that is to come, ``seconds`` and so many steps into the stage that runs; None while the speed is unknown."""
        share = min(1.0, steps / total) if total else 0.0
        if self.current:
            done, spent = self.done + share * self.current, self.seconds + seconds * bool(share)
            return spent / done * ((1 - share) * self.current + sum(self.waiting.values())) if done else None
        if not self.done:
            return None
        own = seconds * (1 / share - 1) if share else 0.0
        return own + self.seconds / self.done * sum(self.waiting.values())
