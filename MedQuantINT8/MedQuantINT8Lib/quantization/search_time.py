"""How long the search for an INT8 network may go on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass
class SearchTime:
    """The time that a search has; when it is over, only what the budget needs is tried, in the largest steps.

    Attributes:
        seconds: that the search has, from its start.
        shortened: whether anything was left out because the time was over.
    """

    seconds: float = math.inf
    shortened: bool = False
    _start: float = field(default_factory=time.monotonic)

    def is_over(self) -> bool:
        """Return whether the time is over; whoever asks leaves something out then."""
        over = time.monotonic() - self._start >= self.seconds
        self.shortened = self.shortened or over
        return over
