"""Patches drawn from a volume in network space: around foreground, in air, or at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .preprocessing import NetworkInput

#: One patch of a volume in network space, float32 (C, A0, A1, A2).
Patch = NDArray[np.float32]
#: A function that gives the mask of foreground, bool (A0, A1, A2), of a volume in network space.
ForegroundFinder = Callable[[NetworkInput], NDArray[np.bool_]]

#: Where patches may lie, in the order in which a volume's are drawn.
KINDS = ("foreground", "air", "random")


@dataclass(frozen=True)
class Sample:
    """A patch float32 (C, A0, A1, A2), and its label values (A0, A1, A2) where the scan came with labels.

    Attributes:
        kind: one of :data:`KINDS`, or "whole" for a volume that is no larger than the patch.
    """

    patch: Patch
    labels: NDArray[Any] | None = None
    kind: str = "random"


def foreground_by_intensity(network_input: NetworkInput) -> NDArray[np.bool_]:
    """Return voxels brighter than the mean of the first channel: body or head against air."""
    first = network_input.data[0]
    return first > first.mean()


def draw_samples(
    network_input: NetworkInput,
    patch: tuple[int, int, int],
    pad_value: float,
    counts: Mapping[str, int],
    rng: np.random.Generator,
    find_foreground: ForegroundFinder = foreground_by_intensity,
    labels: NDArray[Any] | None = None,
) -> Iterator[Sample]:
    """Yield patches of one volume in network space, drawn around foreground, in air and at random.

    A volume that is no larger than the patch gives one. Where a volume has no foreground, or no air, the patch is drawn at random.

    Args:
        counts: how many of each of :data:`KINDS`.
        labels: label values of the volume (A0, A1, A2), cut in the same places.
    """
    shortfall = [max(0, p - n) for p, n in zip(patch, network_input.data.shape[1:], strict=True)]
    pads = [(m // 2, m - m // 2) for m in shortfall]
    data = network_input.data
    if any(shortfall):
        data = np.pad(data, [(0, 0), *pads], constant_values=pad_value)
        labels = None if labels is None else np.pad(labels, pads)
    if data.shape[1:] == patch:
        yield Sample(data, labels, "whole")
        return
    foreground = find_foreground(network_input)
    pools = {"foreground": np.flatnonzero(foreground), "air": np.flatnonzero(~foreground)}
    for kind in (name for name in KINDS for _ in range(counts.get(name, 0))):
        pool = pools.get(kind)
        center = None
        if pool is not None and pool.size:
            voxel = np.unravel_index(int(rng.choice(pool)), foreground.shape)
            center = [int(v) + m // 2 for v, m in zip(voxel, shortfall, strict=True)]
        starts = []
        for axis, (size, p) in enumerate(zip(data.shape[1:], patch, strict=True)):
            start = int(rng.integers(0, size - p + 1)) if center is None else center[axis] - p // 2
            starts.append(min(max(start, 0), size - p))
        index = tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))
        patch_data = np.ascontiguousarray(data[(slice(None), *index)])
        yield Sample(patch_data, None if labels is None else labels[index], kind if center is not None else "random")
