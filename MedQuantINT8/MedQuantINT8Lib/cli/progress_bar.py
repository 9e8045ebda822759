"""A progress bar with the time left, on one line of standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from .terminal import is_terminal, printable

if TYPE_CHECKING:
    from ..progress import ProgressEvent

_WIDTH = 24


class Bar:
    """Draws progress events on one line of standard error; does nothing where that is no terminal."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled and is_terminal(sys.stderr)
        self._drawn = 0.0
        self._stage = ""

    def show(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        if not self._enabled or (event.stage == self._stage and now - self._drawn < 0.1 and event.done < event.total):
            return
        self._drawn, self._stage = now, event.stage
        text = f"{event.stage} …"
        if event.total:
            share = event.done / event.total
            text = f"{event.stage} [{'█' * round(share * _WIDTH):<{_WIDTH}}] {100 * share:3.0f} %  {event.done}/{event.total}"
        if event.seconds_left is not None:
            text += f"  {duration(event.seconds_left)} left"
        sys.stderr.write(f"\r\x1b[2K{printable(text)}")
        sys.stderr.flush()

    @property
    def drawn(self) -> bool:
        """Whether a bar stands on the terminal."""
        return self._enabled and bool(self._stage)

    def clear(self) -> None:
        if self.drawn:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._stage = ""


def duration(seconds: float) -> str:
    """Seconds in words short enough for a bar."""
    whole = round(seconds)
    return (
        f"{whole} s"
        if whole < 90
        else f"{whole // 60} min {whole % 60:02d} s"
        if whole < 5400
        else f"{whole / 3600:.1f} h"
    )
