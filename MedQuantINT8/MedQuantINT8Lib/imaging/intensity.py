"""Intensity normalization: the steps that model.json names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.spec import Normalization
from ..thread_pool import Threads
from .foreground_mask import zscore_inside

FloatArray = NDArray[np.float32]


def normalize(values: FloatArray, steps: Sequence[Normalization]) -> FloatArray:
    """Return one channel, float32 of any shape, after steps; statistics are those of the array given."""
    channels = [values]
    for step in steps:
        normalize_channels(channels, replace(step, channels=()))
    return channels[0]


def normalize_channels(
    channels: list[NDArray[Any]], step: Normalization, inside: NDArray[np.bool_] | None = None
) -> None:
    """Apply one step to the channels of a volume that it is for, in place of the arrays in the list; they become float32.

    Args:
        channels: (K, J, I) each, of any numeric type.
        inside: for the mask "nonzero_filled", which a step of it needs: see :func:`.foreground_mask.filled_nonzero`.
    """
    numbers = [n for n in range(len(channels)) if not step.channels or n in step.channels]
    if step.kind not in _POINTWISE:
        for n in numbers:
            channels[n] = channels[n].astype(np.float32, copy=False)
    if step.over == "all" and len(numbers) > 1:
        step = _with_statistics([channels[n] for n in numbers], step)
    for n in numbers:
        masked = inside is not None and step.kind == "zscore" and step.mask == "nonzero_filled"
        channels[n] = zscore_inside(channels[n], inside) if masked else _apply(channels[n], step)  # type: ignore[arg-type]


def _with_statistics(channels: list[FloatArray], step: Normalization) -> Normalization:
    """Return the step with the statistics of all channels at once as its own limits."""
    if step.kind == "zscore":
        samples = [_masked_voxels(values, step) for values in channels]
        count = sum(values.size for values in samples)
        if count == 0:
            return step
        mean = sum(float(values.sum(dtype=np.float64)) for values in samples) / count
        square = sum(float(((values.astype(np.float64) - mean) ** 2).sum()) for values in samples) / count
        mean, std = step.mean if step.mean is not None else mean, step.std or float(np.sqrt(square)) or 1.0
        return replace(step, mean=mean, std=std)
    if step.kind == "minmax":
        low = min(float(values.min()) for values in channels) if step.low is None else step.low
        high = max(float(values.max()) for values in channels) if step.high is None else step.high
        return replace(step, low=low, high=high)
    if step.kind in ("percentile", "clip_percentile"):
        limits = percentiles(np.concatenate([values.ravel() for values in channels]), _percents(step))
        kind = "window" if step.kind == "percentile" else "clip"
        return replace(step, kind=kind, low=limits[0], high=limits[1])  # type: ignore[arg-type]
    return step


def _masked_voxels(values: FloatArray, step: Normalization) -> FloatArray:
    """Return the values of the voxels that statistics are over, array (n,) or ``values`` itself."""
    if step.mask == "nonzero":
        return values[values != 0]
    return values[values > values.mean()] if step.mask == "above_mean" else values


def _percents(step: Normalization) -> tuple[float, float]:
    return step.low or 0.0, step.high if step.high is not None else 100.0


#: Steps that look at one voxel at a time, whatever the others are.
_POINTWISE = ("window", "nnunet_ct", "linear", "sigmoid", "tanh", "clip", "threshold", "truncate")
#: Voxels from which on such a step is shared out among threads, plane by plane: a plane's intermediate values stay in the cache.
_SHARED_VOXELS = 1 << 20


def _apply(values: NDArray[Any], step: Normalization) -> FloatArray:
    """Apply one step to an array of any numeric type; the result may be the array itself."""
    if step.kind not in _POINTWISE or values.ndim < 2 or values.size < _SHARED_VOXELS:
        return _applied(values.astype(np.float32, copy=False), step)
    result = np.empty(values.shape, np.float32)

    def run(planes: range) -> None:
        for plane in planes:
            part = values[plane].astype(np.float32, copy=False)
            if step.kind == "nnunet_ct":
                _nnunet_ct(part, step, result[plane])
            else:
                result[plane] = _applied(part, step)

    with Threads() as threads:
        threads.share(run, len(values))
    return result


def _applied(values: FloatArray, step: Normalization) -> FloatArray:
    if step.kind == "zscore":
        return _zscore(values, step)
    if step.kind == "nnunet_ct":
        return _nnunet_ct(values, step, np.empty_like(values))
    if step.kind == "sigmoid":
        return (1 / (1 + np.exp(-np.clip(values, -80, 80)))).astype(np.float32)
    if step.kind == "tanh":
        assert step.high is not None
        return np.float32(step.high) * np.tanh(values / np.float32(step.high))
    if step.kind == "linear":
        assert step.low is not None and step.high is not None
        return values * np.float32(step.high - step.low) + np.float32(step.low)
    if step.kind == "spread":
        spread = float(values.std(dtype=np.float64, ddof=1)) if values.size > 1 else 0.0
        return (values - values.min()) / np.float32(spread or 1.0)
    if step.kind == "truncate":
        return np.trunc(values)
    if step.kind == "threshold":
        inside = values > np.float32(step.low) if step.low is not None else values < np.float32(step.high)
        return np.where(inside, values, np.float32(step.fill))
    if step.kind in ("clip", "clip_percentile"):
        low, high = (step.low, step.high) if step.kind == "clip" else percentiles(values, _percents(step))
        return np.clip(values, None if low is None else np.float32(low), None if high is None else np.float32(high))
    return _scale_to_range(values, step)


def _nnunet_ct(values: FloatArray, step: Normalization, result: FloatArray) -> FloatArray:
    """Clip, and bring to mean 0 and deviation 1, into the array that is returned."""
    assert step.low is not None and step.mean is not None and step.std is not None
    np.clip(values, np.float32(step.low), np.float32(step.high), out=result)
    np.subtract(result, np.float32(step.mean), out=result)
    return np.divide(result, np.float32(step.std), out=result)


def _scale_to_range(values: FloatArray, step: Normalization) -> FloatArray:
    """Apply the kinds of normalization that bring a range to 0..1."""
    if step.kind == "percentile":
        low, high = percentiles(values, _percents(step))
    else:
        low = step.low if step.low is not None else float(values.min())
        high = step.high if step.high is not None else float(values.max())
    if high <= low:
        return np.zeros_like(values)
    scaled = (values - np.float32(low)) / np.float32(high - low)
    if step.clip and step.kind != "minmax":
        np.clip(scaled, 0, 1, out=scaled)
    return scaled


def _zscore(values: FloatArray, step: Normalization) -> FloatArray:
    if step.mask == "nonzero_filled":
        raise ValueError("the mask nonzero_filled belongs to scans that are normalized before they are resampled")
    sample = _masked_voxels(values, step)
    if sample.size == 0:
        return np.zeros_like(values)
    mean = float(sample.mean(dtype=np.float64)) if step.mean is None else step.mean
    std = float(sample.std(dtype=np.float64)) if step.std is None else step.std
    # The mean of equal values may be off by their last bit: that is no spread.
    std = std if std > 1e-8 else 1.0
    scaled = (values - np.float32(mean)) / np.float32(std)
    if step.mask == "nonzero":
        scaled[values == 0] = 0
    return scaled


def percentiles(values: FloatArray, which: tuple[float, float]) -> tuple[float, float]:
    """Return percentiles with linear interpolation, as ``numpy.percentile`` gives them.

    Integer-valued scans of up to 65536 gray levels, which is nearly all of them, are counted instead of sorted: ten
    times faster on a 256 x 256 x 256 volume.
    """
    low, high = float(values.min()), float(values.max())
    if not (high - low < 65536 and np.array_equal(values, np.rint(values))):
        first, second = np.percentile(values, which)
        return float(first), float(second)
    counts = np.cumsum(np.bincount((values.ravel() - np.float32(low)).astype(np.int32)))
    results = []
    for percent in which:
        position = percent / 100 * (values.size - 1)
        below = int(np.searchsorted(counts, np.floor(position), side="right"))
        above = int(np.searchsorted(counts, np.ceil(position), side="right"))
        results.append(low + below + (above - below) * (position - np.floor(position)))
    return results[0], results[1]
