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
        left_out: what was not tried because the time was over, in words, each once.
    """

    seconds: float = math.inf
    left_out: list[str] = field(default_factory=list)
    _start: float = field(default_factory=time.monotonic)

    @property
    def shortened(self) -> bool:
        """Whether anything was left out because the time was over."""
        return bool(self.left_out)

    @property
    def left(self) -> float:
        """The seconds that are left; 0 when the time is over."""
        return max(0.0, self.seconds - self.spent)

    @property
    def spent(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self._start

    def limit(self, seconds: float) -> None:
        """Let the time be over so many seconds from now, if it would not be before."""
        self.seconds = min(self.seconds, self.spent + max(0.0, seconds))

    def is_over(self, leaves_out: str) -> bool:
        """Return whether the time is over.

        Args:
            leaves_out: what whoever asks does not try then, in words.
        """
        return self.lacks(0.0, leaves_out)

    def lacks(self, seconds: float, leaves_out: str) -> bool:
        """Return whether less than so many seconds are left, or none.

        Args:
            leaves_out: as for :meth:`is_over`.
        """
        over = self.left <= 0 or self.left < seconds
        if over and leaves_out not in self.left_out:
            self.left_out.append(leaves_out)
        return over
