"""Ctrl-C and SIGTERM: work is asked to stop, and the process ends within two seconds even where it cannot hear.

Python runs signal handlers between its own instructions. A network that is exported, quantized or compiled spends many
seconds in one call of a library, and no handler runs until it returns. The signal's number, however, is written to a pipe at once
(:func:`signal.set_wakeup_fd`), and a thread that waits there asks the task to stop; if the process is still there a
moment later, it ends the processes that this one started, removes what was half written, and ends this one.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..progress import Task
    from .progress_bar import Bar

#: What the shell is told: 128 and the number of SIGINT. SIGTERM is answered with the same.
EXIT_CODE = 130
#: How long work may take to end in good order, in seconds.
PATIENCE = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """From entering on, SIGINT and SIGTERM ask for an end; a second one ends at once.

    Args:
        for_good: this process is the command and nothing else: it may be ended from here. Where the command is called inside
            another program, signals only cancel the task, and the handlers of before come back.
    """

    def __init__(self, *, for_good: bool) -> None:
        self._for_good = for_good
        self._task: Task | None = None
        self._bar: Bar | None = None
        self._abandon: Callable[[], None] = lambda: None
        self._asked = threading.Event()
        self._before: list[tuple[signal.Signals, Any]] = []
        self._pipe: tuple[int, int] | None = None

    @property
    def asked(self) -> bool:
        """Whether an end was asked for."""
        return self._asked.is_set()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._before = [(number, signal.signal(number, self._handle)) for number in _SIGNALS]
        if self._for_good and os.name == "posix":
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._pipe[0],), name="interrupts", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pipe is not None and not self.asked:
            signal.set_wakeup_fd(-1)
        for number, handler in self._before:
            # The work is done: Ctrl-C ends a command that is only putting itself away, without a word.
            signal.signal(number, signal.SIG_DFL if self._for_good else handler)

    def watch_over(self, task: Task, bar: Bar) -> None:
        """What is to be cancelled, and what has to leave the terminal where the process is ended from here."""
        from ..scratch import abandon

        self._task, self._bar, self._abandon = task, bar, abandon
        if self.asked:
            task.cancel()

    def _ask(self) -> None:
        self._asked.set()
        if self._task is not None:
            self._task.cancel()

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked and self._pipe is None and self._for_good:
            self._end()
        self._ask()

    def _watch(self, pipe: int) -> None:
        _await_signal(pipe)
        self._ask()
        if select.select([pipe], [], [], PATIENCE)[0]:
            _await_signal(pipe)
        self._end()

    def _end(self) -> None:
        """End this process at once, with those that it started and without what was half written."""
        # Nothing is imported here, not even a codec: the main thread may be held up in an import, and would hold this one up.
        _end_children()
        self._abandon()
        # Not through sys.stderr, whose lock the main thread may hold; not at all where nobody reads.
        if os.name != "posix" or select.select([], [2], [], 0)[1]:
            with suppress(OSError):
                os.write(2, b"\r\x1b[2K" * (self._bar is not None and self._bar.drawn) + b"medquant: Canceled.\n")
        os._exit(EXIT_CODE)


def _await_signal(pipe: int) -> None:
    while os.read(pipe, 1)[0] not in map(int, _SIGNALS):
        pass


def _end_children() -> None:
    """End the processes that this one started, and theirs, where the system tells which they are."""
    for number in _descendants(os.getpid()):
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)


def _descendants(process: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError, ValueError):
        with os.scandir(f"/proc/{process}/task") as threads:
            for thread in threads:
                with open(f"{thread.path}/children", "rb") as stream:
                    children += map(int, stream.read().split())
    return [*children, *(number for child in children for number in _descendants(child))]
