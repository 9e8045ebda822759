"""Cases to look at first: volumes that stand out among the cohort, structures that are empty, scans out of the calibrated range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .journal import DONE, Record

#: Below so many volumes nothing stands out.
FEWEST = 5
#: Tukey's fences: volumes beyond the quartiles by this many times their distance, on a logarithmic scale.
FENCE = 3.0
#: The least distance of the quartiles that counts, as a ratio: equal volumes make no outlier of one that differs by a little.
_LEAST_SPREAD = math.log(1.1)
#: A structure that so large a share of the cases has is missed where it is empty.
_USUAL = 0.5


@dataclass(frozen=True)
class Outlier:
    """A case that stands out.

    Attributes:
        kind: "empty", "too large", "too small" or "out of range".
        structure: its name, or "" where the whole scan is meant.
        ml: its volume, or None.
        detail: in words.
    """

    id: str
    kind: str
    structure: str
    ml: float | None
    detail: str


@dataclass(frozen=True)
class Distribution:
    """Volumes of one structure over the cases that have it, in milliliters; ``present`` of ``cases`` have it."""

    structure: str
    cases: int
    present: int
    least: float
    lower_quartile: float
    median: float
    upper_quartile: float
    most: float


def volumes(records: Sequence[Record]) -> dict[str, list[tuple[str, float]]]:
    """Return the id and volume of every done case by structure, in the order of the model."""
    result: dict[str, list[tuple[str, float]]] = {}
    for record in records:
        if record["state"] == DONE:
            for name, ml in record.get("ml", {}).items():
                result.setdefault(name, []).append((record["id"], float(ml)))
    return result


def distributions(records: Sequence[Record]) -> list[Distribution]:
    """Return the volumes of each structure."""
    rows = []
    for name, pairs in volumes(records).items():
        present = [ml for _, ml in pairs if ml > 0]
        low, lower, middle, upper, high = np.percentile(present, [0, 25, 50, 75, 100]) if present else [0.0] * 5
        rows.append(Distribution(name, len(pairs), len(present), *map(float, (low, lower, middle, upper, high))))
    return rows


def outliers(records: Sequence[Record]) -> list[Outlier]:
    """Return the cases to look at first, the farthest out first within each kind."""
    found: list[tuple[tuple[int, float], Outlier]] = []
    for name, pairs in volumes(records).items():
        present = np.array([ml for _, ml in pairs if ml > 0])
        if len(present) > _USUAL * len(pairs) or len(pairs) == 1:
            for case, ml in pairs:
                if ml <= 0:
                    detail = f"{len(present)} of {len(pairs)} cases have it"
                    found.append(((0, -float(len(present))), Outlier(case, "empty", name, 0.0, detail)))
        if len(present) < FEWEST:
            continue
        lower, middle, upper = np.percentile(np.log(present), [25, 50, 75])
        spread = max(float(upper - lower), _LEAST_SPREAD)
        for case, ml in pairs:
            if ml <= 0:
                continue
            above, below = math.log(ml) - float(upper), float(lower) - math.log(ml)
            if max(above, below) > FENCE * spread:
                kind = "too large" if above > 0 else "too small"
                detail = f"{ml / math.exp(float(middle)):.3g} times the median"
                found.append(((1, -max(above, below) / spread), Outlier(case, kind, name, ml, detail)))
    for record in records:
        if record["state"] == DONE and record.get("out_of_range"):
            warning = next((text for text in record["warnings"] if "calibrated" in text), "")
            found.append(((2, 0.0), Outlier(record["id"], "out of range", "", None, warning)))
    return [item for _, item in sorted(found, key=lambda pair: pair[0])]
