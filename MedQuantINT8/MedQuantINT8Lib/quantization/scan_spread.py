"""How a figure moves from scan to scan, and how many scans would be enough, from a few scans' figures.

That a new scan goes beyond the range of n scans has the probability 1 / (n + 1) where scans come in no order. What a new scan
loses more than a calibration scan is therefore taken to fall as 1 / (n + 1) with the number of calibration scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Scans are enough where a new one is expected to lose at most this much Dice more than a calibration scan.
TOLERANCE = 0.001
#: Estimates beyond this are no more than "many".
MOST_ESTIMATED = 200
#: The 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)


@dataclass(frozen=True)
class Spread:
    """How values move from scan to scan.

    Attributes:
        deviation: the standard deviation; None for one value.
        low, high: the 95 % interval of the mean (Student's t); None for fewer than two values.
        next_low, next_high: between which the next scan is expected with 95 %; None for fewer than three values, which say too little.
    """

    mean: float
    lowest: float
    highest: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    next_low: float | None = None
    next_high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Describe at least one value between 0 and 1."""
        count, mean = len(values), float(np.mean(values))
        lowest, highest = float(min(values)), float(max(values))
        if count < 2:
            return cls(mean, lowest, highest)
        deviation = float(np.std(values, ddof=1))
        half = quantile(count - 1) * deviation / math.sqrt(count)
        interval = max(0.0, mean - half), min(1.0, mean + half)
        if count < 3:
            return cls(mean, lowest, highest, deviation, *interval)
        wide = quantile(count - 1) * deviation * math.sqrt(1 + 1 / count)
        return cls(mean, lowest, highest, deviation, *interval, max(0.0, mean - wide), min(1.0, mean + wide))


def quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.6 / freedom


@dataclass(frozen=True)
class EnoughScans:
    """How many scans would be enough: from there on a new scan loses at most :data:`TOLERANCE` more than a calibration scan.

    Attributes:
        excess: what a scan loses more, in Dice, that the ranges do not come from.
        scans: the estimate; None where it is beyond :data:`MOST_ESTIMATED`.
        at_most: the estimate by the upper end of the excess's 95 % interval; None where that is too uncertain to tell.
        expected: the agreement of a new scan with so many scans.
    """

    excess: float
    scans: int | None
    at_most: int | None
    expected: float

    @classmethod
    def of(cls, own: Sequence[float], held_out: Sequence[float], calibrated: int) -> EnoughScans:
        """Estimate from the agreement of scans with and without their own ranges.

        Args:
            calibrated: how many scans the ranges came from while one was held out.
        """
        differences = np.asarray(own) - np.asarray(held_out)
        excess = max(0.0, float(differences.mean()))
        scans = _needed(excess, calibrated)
        upper = None
        if len(differences) > 2:
            half = quantile(len(differences) - 1) * float(differences.std(ddof=1)) / math.sqrt(len(differences))
            upper = _needed(max(0.0, float(differences.mean()) + half), calibrated)
        return cls(excess, scans, upper, min(1.0, float(np.mean(own)) - min(excess, TOLERANCE)))

    def to_json(self) -> dict[str, Any]:
        return {
            "tolerance": TOLERANCE,
            "excess": self.excess,
            "scans": self.scans,
            "at_most": self.at_most,
            "expected_agreement": self.expected,
        }


def _needed(excess: float, calibrated: int) -> int | None:
    """The number of scans from which on the excess, which falls as 1 / (scans + 1), is within the tolerance."""
    needed = max(1, math.ceil(round(excess * (calibrated + 1) / TOLERANCE, 9)) - 1)
    return needed if needed <= MOST_ESTIMATED else None
