"""Streaming histograms of activations, and the range that each calibration method takes from them.

Memory is one histogram a tensor, however many patches are seen: when a value exceeds the range, the range is doubled
and neighbouring bins are merged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

BINS = 8192
#: Values that are counted at once: they and their bins stay in the cache.
_PIECE = 1 << 16
LEVELS = 127  # symmetric INT8: -127..127 of -128..127 are used, as ModelOpt and TensorRT do


class ActivationHistogram:
    """A histogram of absolute values.

    Attributes:
        counts: of bins of equal width from 0 to ``limit``.
        maximum: the largest value.
        parts: the histogram's parts by name, as :meth:`close_part` ended them.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.limit = 0.0
        self.maximum = 0.0
        self.parts: dict[Any, _Part] = {}
        self._closed = _Part(self.counts.copy(), 0.0, 0.0)
        self._part_maximum = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Count all values of an array of any shape."""
        flat = values.ravel()
        largest = max(float(flat.max()), -float(flat.min())) if flat.size else 0.0
        if not np.isfinite(largest):
            raise InputError(
                "The network gave values that are not finite on the calibration scans.",
                "Check the network and its normalization with --precision fp32.",
            )
        self.maximum = max(self.maximum, largest)
        self._part_maximum = max(self._part_maximum, largest)
        if largest == 0.0:
            self.counts[0] += flat.size
            return
        if self.limit == 0.0:
            self.limit = largest
        while self.limit < largest:
            self.counts = np.concatenate(
                [self.counts.reshape(-1, 2).sum(axis=1), np.zeros(self.counts.size // 2, np.int64)]
            )
            self.limit *= 2
        factor, bins = np.float32(self.counts.size / self.limit), self.counts.size
        scaled, index = np.empty(_PIECE, np.float32), np.empty(_PIECE, np.intp)
        for begin in range(0, flat.size, _PIECE):
            piece = flat[begin : begin + _PIECE]
            count = piece.size
            np.multiply(piece, factor, out=scaled[:count])
            np.abs(scaled[:count], out=scaled[:count])
            np.copyto(index[:count], scaled[:count], casting="unsafe")
            # The limit itself falls into a bin of its own, which is the last one's.
            counts = np.bincount(index[:count], minlength=bins + 1)
            counts[bins - 1] += counts[bins]
            self.counts += counts[:bins]

    def add_maximum(self, largest: float) -> None:
        """Take note of the largest magnitude of an array whose values are not counted; only the method "max" can do with that."""
        self.maximum = max(self.maximum, largest)
        self._part_maximum = max(self._part_maximum, largest)

    def close_part(self, name: Any) -> None:
        """Note what was counted since the last part ended as a part of that name; parts of one name are one."""
        new = _Part(self.counts - self._closed.counts_up_to(self.limit), self.limit, self._part_maximum)
        self.parts[name] = self.parts[name].with_part(new) if name in self.parts else new
        self._closed = _Part(self.counts.copy(), self.limit, self.maximum)
        self._part_maximum = 0.0

    def without(self, name: Any) -> ActivationHistogram:
        """Return the histogram of all parts but one, as if that one's values had never been seen."""
        rest = ActivationHistogram(self.counts.size)
        rest.counts = self.counts - self.parts[name].counts_up_to(self.limit)
        rest.limit = self.limit
        others = (part.maximum for other, part in self.parts.items() if other != name)
        rest.maximum = max([0.0, self._part_maximum, *others])
        return rest

    @property
    def centers(self) -> NDArray[np.float64]:
        return (np.arange(self.counts.size, dtype=np.float64) + 0.5) * (self.limit / self.counts.size)


@dataclass(frozen=True)
class _Part:
    """What was counted of a part of the values; ``limit`` is that of the whole histogram at its end."""

    counts: NDArray[np.int64]
    limit: float
    maximum: float

    def counts_up_to(self, limit: float) -> NDArray[np.int64]:
        """Return the counts in the bins of a histogram whose limit was doubled since."""
        counts, own = self.counts, self.limit
        while 0 < own < limit:
            counts = np.concatenate([counts.reshape(-1, 2).sum(axis=1), np.zeros(counts.size // 2, np.int64)])
            own *= 2
        return counts

    def with_part(self, later: _Part) -> _Part:
        return _Part(self.counts_up_to(later.limit) + later.counts, later.limit, max(self.maximum, later.maximum))


def max_range(histogram: ActivationHistogram) -> float:
    """The largest absolute value that was seen."""
    return histogram.maximum


def percentile_range(histogram: ActivationHistogram, percentile: float = 99.99) -> float:
    """The smallest value that ``percentile`` percent of all absolute values do not exceed."""
    total = int(histogram.counts.sum())
    if total == 0 or histogram.limit == 0:
        return histogram.maximum
    index = int(np.searchsorted(np.cumsum(histogram.counts), total * percentile / 100))
    return min(histogram.maximum, (index + 1) * histogram.limit / histogram.counts.size)


def mse_range(histogram: ActivationHistogram) -> float:
    """The range whose rounding and clipping errors have the smallest sum of squares."""
    centers, counts = histogram.centers, histogram.counts
    used = counts > 0
    centers, weights = centers[used], counts[used].astype(np.float64)
    best, best_error = histogram.maximum, np.inf
    for fraction in np.linspace(0.05, 1.0, 96):
        scale = histogram.maximum * fraction / LEVELS
        error = centers - np.minimum(np.rint(centers / scale), LEVELS) * scale
        total = float((weights * error * error).sum())
        if total < best_error:
            best, best_error = histogram.maximum * fraction, total
    return float(best)


def entropy_range(histogram: ActivationHistogram, bins: int = 2048, stride: int = 16) -> float:
    """The range that loses least information, by Kullback-Leibler divergence.

    Source of the method: S. Migacz, "8-bit Inference with TensorRT", NVIDIA GTC 2017.
    """
    counts = histogram.counts.reshape(bins, -1).sum(axis=1).astype(np.float64)
    # The bin at zero holds padding and rectified values; it says nothing about where to clip.
    counts[0] = counts[1]
    last = int(np.flatnonzero(counts).max(initial=0)) + 1
    levels = LEVELS + 1
    best, best_divergence = bins, np.inf
    for cut in range(levels, last + stride, stride):
        cut = min(cut, bins)
        counts_within = counts[:cut].copy()
        clipped = counts_within.copy()
        clipped[-1] += counts[cut:].sum()
        divergence = _divergence(clipped, _merged(counts_within, levels))
        if divergence < best_divergence:
            best, best_divergence = cut, divergence
    return min(histogram.maximum, best * histogram.limit / bins)


def _merged(counts: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """The histogram after quantization to ``levels``: each level's count spread over its non-empty bins."""
    level = np.minimum(np.arange(counts.size) * levels // counts.size, levels - 1)
    filled = counts > 0
    total = np.bincount(level, counts, minlength=levels)
    number = np.bincount(level, filled, minlength=levels)
    return np.where(filled, total[level] / np.maximum(number[level], 1), 0.0)


def _divergence(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    p, q = reference / max(reference.sum(), 1e-30), candidate / max(candidate.sum(), 1e-30)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())


METHODS: dict[str, Callable[[ActivationHistogram], float]] = {
    "max": max_range,
    "entropy": entropy_range,
    "percentile": percentile_range,
    "mse": mse_range,
}


def activation_range(histogram: ActivationHistogram, method: str, percentile: float = 99.99) -> float:
    """The largest absolute value that INT8 shall represent.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"There is no calibration method {method!r}.", f"Choose one of {', '.join(METHODS)}.")
    if histogram.maximum == 0:
        return 1.0
    if method == "percentile":
        return percentile_range(histogram, percentile) or histogram.maximum
    return METHODS[method](histogram) or histogram.maximum
