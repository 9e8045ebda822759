"""What a pool of workers is: it runs cases somewhere, and hands back a record for each, whatever happens to the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .journal import FAILED, Record, now
from .work import IN_FLIGHT

#: How often a case is tried anew whose worker died for reasons that need not be the case's.
RETRIES = 2
#: Seconds without a sign of progress after which a case is given up.
TIME_LIMIT = 3600.0


@dataclass(frozen=True)
class Order:
    """What a pool is asked for.

    Attributes:
        kind: of the work, by its name in :mod:`.works`.
        settings: of the work, as JSON values; "choice" holds the engine's choice, whose device and threads the pool fills in.
    """

    kind: str
    settings: dict[str, Any]


class CasePool(Protocol):
    """Runs cases on workers that keep their engine.

    Attributes:
        notes: what a user should know of the workers after a run, such as which machine took no part.
    """

    notes: list[str]

    def begin(self, kind: str, most: int) -> None:
        """Start what takes long and needs no case yet, for works of this kind; :meth:`run` goes on with it, :meth:`close` ends it.

        Args:
            most: the cases that there can be; not more workers are started.
        """

    def close(self) -> None:
        """End what was begun, where it was not run."""

    def run(self, order: Order, cases: Sequence[dict[str, Any]], check: Callable[[], None]) -> Iterator[Record]:
        """Yield the record of each case as it ends, each case once.

        Args:
            check: called at least ten times a second; what it raises ends the workers.

        Raises:
            MedQuantError: no worker can be had, for a reason that concerns every case.
        """

    def describe(self, cases: int) -> dict[str, Any]:
        """Return where so many cases run, as JSON values."""


def can_take(waiting: int, own: int, idle: int) -> bool:
    """Whether a worker takes one more case: as many as it can have on their way, but none that another is free for.

    Args:
        waiting: cases that no worker has yet.
        own: cases that this worker has on their way.
        idle: other workers that have none.
    """
    return waiting > 0 and own < IN_FLIGHT and (own == 0 or waiting > idle)


def failed(case: dict[str, Any], stage: str, reason: str, attempts: int) -> Record:
    """Return the record of a case that no worker could end."""
    return {
        "id": case["id"],
        "scan": case["channels"],
        "state": FAILED,
        "stage": stage,
        "error": reason,
        "attempts": attempts,
        "seconds": {},
        "ended": now(),
    }
