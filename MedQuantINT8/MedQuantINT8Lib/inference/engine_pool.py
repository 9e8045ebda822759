"""Where loaded engines are between two segmentations: nowhere, or kept by a process that stays."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable
from typing import Protocol

from ..engines.preparation import PreparedEngine
from ..errors import EngineError
from ..system import available_memory

#: Makes the engines of an ensemble, one a member.
Make = Callable[[], list[PreparedEngine]]


class EnginePool(Protocol):
    """Gives a run its loaded engines, and takes them back afterwards."""

    def acquire(self, key: Hashable, make: Make) -> list[PreparedEngine]:
        """The engines kept under ``key``, or newly made ones."""

    def release(self, key: Hashable) -> None:
        """The run is over; the pool may close them."""

    def drop(self, key: Hashable) -> None:
        """A run with them failed, and nothing is known of their state: they are closed, and given to no other run."""

    def clear(self) -> None:
        """Close all engines that are kept."""

    def reserve(self, count: int) -> None:
        """A task uses so many sets of engines, one after the other: they may all be kept."""

    def make_room(self, needed_bytes: int) -> None:
        """Close engines, those that were used longest ago first, until so much memory is free or none is kept."""

    def __len__(self) -> int: ...


class SingleUsePool:
    """Closes engines after each run. Several threads may use it, each with keys of its own."""

    def __init__(self) -> None:
        self._in_use: dict[Hashable, list[PreparedEngine]] = {}

    def acquire(self, key: Hashable, make: Make) -> list[PreparedEngine]:
        engines = self._in_use[key] = make()
        return engines

    def release(self, key: Hashable) -> None:
        _close_all(self._in_use.pop(key, []))

    def drop(self, key: Hashable) -> None:
        self.release(key)

    def clear(self) -> None:
        """Nothing is kept beside what is in use."""

    def reserve(self, count: int) -> None:
        """Nothing is kept, however many there are."""

    def make_room(self, needed_bytes: int) -> None:
        """Nothing is kept that could be closed."""

    def __len__(self) -> int:
        return 0


class KeepingPool:
    """Keeps the engines that were used last, up to two sets of them, or as many as the largest task needs that was run.

    Several threads may use it, each with keys of its own. What one of them uses is not closed for another's sake.
    """

    def __init__(self) -> None:
        self._room = 2
        self._kept: dict[Hashable, list[PreparedEngine]] = {}
        self._in_use: set[Hashable] = set()
        self._used = time.monotonic()
        self._lock = threading.RLock()

    def acquire(self, key: Hashable, make: Make) -> list[PreparedEngine]:
        with self._lock:
            self._in_use.add(key)
            if key in self._kept:
                self._kept[key] = self._kept.pop(key)
                return self._kept[key]
            # Room is made first: two large engines at once may be one too many for the memory.
            self._close_while(lambda: len(self._kept) >= self._room)
        try:
            engines = make()
        except BaseException:
            self._in_use.discard(key)
            raise
        with self._lock:
            self._kept[key] = engines
        return engines

    def release(self, key: Hashable) -> None:
        with self._lock:
            self._in_use.discard(key)
            self._used = time.monotonic()

    def drop(self, key: Hashable) -> None:
        with self._lock:
            self._in_use.discard(key)
            if key in self._kept:
                self._close(key)

    def free_after(self, idle_seconds: float) -> bool:
        """Close all engines if none was used for so long; whether any was closed."""
        if not self._kept or time.monotonic() - self._used < idle_seconds:
            return False
        self.clear()
        return True

    def clear(self) -> None:
        self._close_while(lambda: True)

    def reserve(self, count: int) -> None:
        with self._lock:
            self._room = max(self._room, count)

    def make_room(self, needed_bytes: int) -> None:
        self._close_while(lambda: available_memory() < needed_bytes)

    def __len__(self) -> int:
        return len(self._kept)

    def _close_while(self, more: Callable[[], bool]) -> None:
        """Close engines that nobody uses, those that were used longest ago first, for as long as that is wanted."""
        with self._lock:
            while more() and (key := next((key for key in self._kept if key not in self._in_use), None)) is not None:
                self._close(key)

    def _close(self, key: Hashable) -> None:
        _close_all(self._kept.pop(key))


def _close_all(engines: list[PreparedEngine]) -> None:
    for prepared in engines:
        # One that failed may fail again as it is closed; the others are closed all the same.
        with contextlib.suppress(EngineError):
            prepared.close()
