"""What many cases say together: means with intervals, paired differences, and a test."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import DependencyError

_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean over cases with its 95 % bootstrap interval (percentiles of means of cases drawn with replacement)."""

    mean: float
    low: float
    high: float
    cases: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def mean_of(values: Sequence[float]) -> Interval | None:
    """Return the mean of values with its interval; None for no values, and with one case the interval is that case."""
    data = np.asarray(values, np.float64)
    if not data.size:
        return None
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, mean, mean, 1)
    from scipy.stats import bootstrap

    # The argument's name since SciPy 1.15, "rng", is unknown to 1.10.
    limits = bootstrap(
        (data,), np.mean, n_resamples=_RESAMPLES, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    return Interval(mean, float(limits.low), float(limits.high), int(data.size))


def require_scipy() -> None:
    """Raises :class:`DependencyError` where SciPy is missing (Slicer brings it)."""
    if importlib.util.find_spec("scipy") is None:
        raise DependencyError(
            "The Python package 'scipy' is not installed.", "Install it with: pip install 'medquantint8[evaluate]'"
        )


def wilcoxon(first: Sequence[float], second: Sequence[float]) -> float | None:
    """p of Wilcoxon's signed-rank test for pairs, two-sided; None where it is not defined (fewer than 6 pairs that differ)."""
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if np.count_nonzero(differences) < 6:
        return None
    from scipy.stats import wilcoxon as test

    return float(test(differences, zero_method="wilcox").pvalue)
