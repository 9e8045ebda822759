"""Workers on this machine: a process for each device, which keeps its engine and takes one case after the other.

A process of its own means that a case that ends its worker (a fault in a library, the system's hand for lack of memory) costs that case
and no other. Cases that were on their way when a worker died are run again, one at a time; a case whose worker dies while nothing else
is on its way is the one to blame.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .. import errors
from ..errors import MedQuantError
from ..scratch import owned_prefix
from ..system import cpu_count, default_python, library_environment, module_arguments
from .journal import Record
from .pool import RETRIES, TIME_LIMIT, Order, can_take, failed

_POLL_SECONDS = 0.05
_STDERR_LINES = 20
_DEATHS_BEFORE_READY = 2


@dataclass
class _Flight:
    """A case on its way: the stage that it is in, and when it last made progress."""

    case: dict[str, Any]
    stage: str = "waiting"
    progress: tuple[int, int] = (0, 0)
    since: float = field(default_factory=time.monotonic)


class _Process:
    """A worker's process, from its start on; it loads its libraries, and waits for the first line.

    Raises:
        MedQuantError: there is no such Python.
    """

    def __init__(self, python: str, kind: str, device: str) -> None:
        self.scratch = tempfile.mkdtemp(prefix=owned_prefix("medquant-case"))
        try:
            self.popen = subprocess.Popen(
                [python, *module_arguments("MedQuantINT8Lib.cohort.process"), kind, device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env={**library_environment(), **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self.scratch)},
                # A group of its own, so that it can be ended with the processes that it starts.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            self.clear_up()
            raise MedQuantError(
                f"A worker cannot be started with {python}: {error.strerror}.", "Choose another Python."
            ) from error

    def kill(self) -> None:
        """End the process, and those that read files for it."""
        if self.popen.poll() is not None:
            return
        with suppress(OSError):
            if os.name == "posix":
                os.killpg(self.popen.pid, signal.SIGKILL)
            else:
                self.popen.kill()

    def abandon(self) -> None:
        """End a process that was given nothing to do."""
        self.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self.clear_up()

    def clear_up(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)


class _Worker:
    """One process; its events come with its number into a queue."""

    def __init__(self, number: int, device: str, python: str, events: queue.SimpleQueue[Any]) -> None:
        self.number, self.device = number, device
        self._python, self._events = python, events
        self.flights: dict[str, _Flight] = {}
        self.ready = False
        self.killed_for = ""
        self.ended = True
        self._process: _Process | None = None
        self._errors: deque[str] = deque(maxlen=_STDERR_LINES)

    def start(self, kind: str, settings: dict[str, Any], begun: _Process | None = None, beside: int = 1) -> None:
        """Start it, or go on with a process that was begun before.

        Args:
            beside: how many workers use its device, itself included.
        """
        self.ready, self.killed_for, self.ended = False, "", False
        self._errors.clear()
        self._process = _Process(self._python, kind, self.device) if begun is None else begun
        popen = self._process.popen
        listener = threading.Thread(target=self._listen, args=(popen,), daemon=True)
        complaints = threading.Thread(target=self._collect, args=(popen,), daemon=True)
        complaints.start()
        listener.start()
        self._send({"kind": kind, "settings": settings, "scratch": self._process.scratch, "beside": beside})

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with suppress(ValueError):
                    self._events.put((self.number, json.loads(line)))
        code = process.wait()
        self._events.put((self.number, {"event": "died", "code": code}))

    def _collect(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            self._errors.extend(line.rstrip() for line in process.stderr)

    def give(self, case: dict[str, Any]) -> None:
        self.flights[case["id"]] = _Flight(case)
        self._send(case)

    def _send(self, value: dict[str, Any]) -> None:
        assert self._process is not None and self._process.popen.stdin is not None
        # A worker that just died is heard of by its "died" event.
        with suppress(OSError, ValueError):
            self._process.popen.stdin.write(json.dumps(value) + "\n")
            self._process.popen.stdin.flush()

    def hear(self, event: dict[str, Any]) -> None:
        """Note a stage and its progress."""
        flight = self.flights.get(event["id"])
        progress = (event["done"], event["total"])
        if flight is not None and (flight.stage, flight.progress) != (event["stage"], progress):
            flight.stage, flight.progress, flight.since = event["stage"], progress, time.monotonic()

    def overdue(self, seconds: float) -> _Flight | None:
        """Return a case in a stage without progress for so long; one that waits is to blame only where all of them do."""
        moment = time.monotonic()
        active = [flight for flight in self.flights.values() if flight.stage != "waiting"] or self.flights.values()
        return next((flight for flight in active if moment - flight.since > seconds), None)

    def kill(self) -> None:
        """End the process, and those that read files for it."""
        if self._process is not None:
            self._process.kill()

    @property
    def last_words(self) -> str:
        return next((line for line in reversed(self._errors) if line.strip()), "")

    def died(self) -> None:
        """Clear up behind a process that has ended."""
        self.ended, self.ready = True, False
        if self._process is None:
            return
        if self._process.popen.stdin is not None:
            with suppress(OSError):
                self._process.popen.stdin.close()
        self._process.clear_up()

    def end(self) -> None:
        """Let an idle process end by itself, any other at once."""
        if self._process is None or self.ended:
            return
        if self.flights or not self.ready:
            self.kill()
        else:
            self._send({"quit": True})
        try:
            self._process.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.popen.wait()
        self.died()


class LocalPool:
    """A pool of processes on this machine, of which not more are started than there are cases.

    Args:
        devices: of each worker, such as ["gpu:0", "gpu:1"] or ["cpu", "cpu"].
        time_limit: seconds without progress after which a case is given up.
        python: runs the workers, by default the caller's own.
    """

    def __init__(
        self, devices: Sequence[str], time_limit: float = TIME_LIMIT, python: str | None = None, retries: int = RETRIES
    ) -> None:
        self._devices, self._time_limit, self._retries = list(devices), time_limit, retries
        self._python = python or default_python()
        self.notes: list[str] = []
        #: Processes by their worker's number.
        self._begun: dict[int, _Process] = {}

    def begin(self, kind: str, most: int) -> None:
        """Start one process for each device, of so many at most; see :class:`.pool.CasePool`.

        More of one device wait for :meth:`run`, as a folder of many files may be a single case.
        """
        try:
            for number in [self._devices.index(device) for device in dict.fromkeys(self._devices)][:most]:
                if number not in self._begun:
                    self._begun[number] = _Process(self._python, kind, self._devices[number])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See :class:`.pool.CasePool`."""
        while self._begun:
            self._begun.popitem()[1].abandon()

    def describe(self, cases: int) -> dict[str, Any]:
        """See :class:`.pool.CasePool`."""
        return {"devices": self._devices[:cases]}

    def run(self, order: Order, cases: Sequence[dict[str, Any]], check: Callable[[], None]) -> Iterator[Record]:
        """See :class:`.pool.CasePool`."""
        run = _Run(order, cases, self._retries)
        devices = self._devices[: len(cases)]
        if len(devices) < len(self._devices):
            count, asked = len(devices), len(self._devices)
            self.notes.append(
                f"{count} of {asked} workers ran, as there {'was 1 case' if count == 1 else f'were {count} cases'} to run"
            )
        workers = [_Worker(n, device, self._python, run.events) for n, device in enumerate(devices)]
        try:
            while run.left:
                check()
                for worker in workers:
                    if worker.ended and run.has_work:
                        begun = self._begun.pop(worker.number, None)
                        worker.start(
                            order.kind, _settings(order, worker.device, devices), begun, devices.count(worker.device)
                        )
                    run.feed(worker, workers)
                    if (late := worker.overdue(self._time_limit)) is not None and not worker.killed_for:
                        worker.killed_for = late.case["id"]
                        worker.kill()
                yield from run.events_of(workers, self._time_limit)
        finally:
            for worker in workers:
                worker.end()
            self.close()


def _settings(order: Order, device: str, devices: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a worker: its device, and its share of the processor where several of ``devices`` are that."""
    choice = dict(order.settings["choice"], device=device)
    beside = sum(other == device for other in devices)
    if not choice.get("threads") and beside > 1 and not device.startswith("gpu"):
        choice["threads"] = max(1, cpu_count() // beside)
    return {**order.settings, "choice": choice}


class _Run:
    """The cases of one run: those that wait, those on their way, and those that are run alone because a worker died with them."""

    def __init__(self, order: Order, cases: Sequence[dict[str, Any]], retries: int) -> None:
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._order, self._retries = order, retries
        self._waiting = deque(cases)
        self._suspects: deque[dict[str, Any]] = deque()
        self._attempts: dict[str, int] = {}
        self._open = len(cases)
        self._deaths = 0

    @property
    def left(self) -> int:
        return self._open

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._suspects)

    def feed(self, worker: _Worker, workers: Sequence[_Worker]) -> None:
        """Give a worker what it can take beside the others: cases up to its bound, or one suspect and nothing beside it."""
        if worker.ended or not worker.ready or worker.killed_for:
            return
        if any(self._attempts.get(name) for name in worker.flights):
            return
        if self._suspects:
            if not worker.flights:
                worker.give(self._suspects.popleft())
            return
        idle = sum(not (other is worker or other.ended or other.flights) for other in workers)
        while can_take(len(self._waiting), len(worker.flights), idle):
            worker.give(self._waiting.popleft())

    def events_of(self, workers: Sequence[_Worker], time_limit: float) -> Iterator[Record]:
        """Handle what the workers said, and yield the records that came with it."""
        try:
            number, event = self.events.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return
        while True:
            worker = workers[number]
            if event["event"] == "ready":
                worker.ready, self._deaths = True, 0
            elif event["event"] == "stage":
                worker.hear(event)
            elif event["event"] == "unusable":
                raise _error_from(event)
            elif event["event"] == "end":
                record = event["record"]
                if worker.flights.pop(record["id"], None) is not None:
                    self._open -= 1
                    attempts = self._attempts.pop(record["id"], 0) + 1
                    yield {**record, "attempts": attempts, "device": worker.device}
            elif event["event"] == "died":
                yield from self._died(worker, event["code"], time_limit)
            try:
                number, event = self.events.get_nowait()
            except queue.Empty:
                return

    def _died(self, worker: _Worker, code: int, time_limit: float) -> Iterator[Record]:
        """Give back the cases of a worker that is gone; yield those that are to blame for it."""
        flights, blamed, ready = worker.flights, worker.killed_for, worker.ready
        worker.flights = {}
        worker.died()
        if not ready:
            self._deaths += 1
            if self._deaths >= _DEATHS_BEFORE_READY:
                raise MedQuantError(
                    f"A worker ended before it was ready ({_how(code)}). {worker.last_words}".strip(),
                    "Try the model on one scan: medquant segment MODEL SCAN.",
                )
        for name, flight in flights.items():
            if name == blamed:
                reason = f"There was no progress in {flight.stage} for {time_limit:g} s, so it was given up. Look at the disk, or give a longer --time-limit."
            elif blamed:
                # Ended for another case's sake.
                self._waiting.appendleft(flight.case)
                continue
            elif len(flights) == 1:
                reason = f"The case ended its worker in {flight.stage} ({_how(code)}). {worker.last_words}".strip()
            else:
                reason = ""
            attempts = self._attempts.get(name, 0) + 1
            if reason and (blamed or attempts > self._retries or self._attempts.get(name)):
                self._open -= 1
                self._attempts.pop(name, None)
                yield {**failed(flight.case, flight.stage, reason, attempts), "device": worker.device}
            else:
                self._attempts[name] = attempts
                self._suspects.append(flight.case)


def _how(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, which may be for lack of memory" if name == "SIGKILL" else name


def _error_from(event: dict[str, Any]) -> MedQuantError:
    kind = getattr(errors, event["kind"], MedQuantError)
    if not (isinstance(kind, type) and issubclass(kind, MedQuantError)):
        kind = MedQuantError
    return kind(event["message"], event["hint"])
