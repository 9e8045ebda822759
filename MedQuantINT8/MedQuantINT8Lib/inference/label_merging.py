"""The label maps of a task's parts merged into one, on the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..thread_pool import Threads

#: Slices that are merged at a time, and threads that do it beside the next part's run.
_SLICES, THREADS = 8, 2


def target_table(targets: dict[int, int], dtype: Any, size: int) -> NDArray[Any]:
    """Return which value of the merged map each value of a part's becomes, of ``size`` values; 0 for those that are left out."""
    table = np.zeros(size, dtype)
    for value, target in targets.items():
        table[value] = target
    return table


def merge_labels(merged: NDArray[Any], labels: NDArray[Any], targets: dict[int, int], threads: int = THREADS) -> None:
    """Paint a part's label map over the merged one, in place: its background leaves what is there.

    Args:
        merged, labels: (K, J, I) of the same box.
        targets: which value of ``merged`` each value of ``labels`` becomes; others are background.
        threads: that share the slices.
    """
    dtype, largest = merged.dtype, max(targets, default=0)
    # A look at all labels takes as long as to merge them.
    size = 256 if labels.dtype == np.uint8 else 1 + max(largest, int(labels.max(initial=0)))
    table = target_table(targets, dtype, size)
    # Parts of a task mostly number their structures on, from where the last one ended: to add is faster than to look up.
    shifts = {target - value for value, target in enumerate(table[1 : largest + 1].tolist(), 1)}
    shift = dtype.type(shifts.pop()) if len(shifts) == 1 and min(shifts) >= 0 else None

    def paint(planes: range) -> None:
        # Few slices at a time: they stay in the processor's cache, and calls are few, since each waits for Python's lock.
        for first in range(planes.start, planes.stop, _SLICES):
            some = slice(first, min(first + _SLICES, planes.stop))
            part, below = labels[some], merged[some]
            most = int(part.max(initial=0))
            if not most:
                continue
            added = shift is not None and most <= largest
            painted = part.astype(dtype, copy=False) + shift if added else table.take(part)
            mask = np.not_equal(part if added else painted, 0)
            painted *= mask.view(np.uint8)
            if added and int(below.max()) <= int(shift):  # type: ignore[arg-type]
                # All that lies below has smaller numbers.
                np.maximum(below, painted, out=below)
                continue
            below *= np.logical_not(mask, out=mask).view(np.uint8)
            below += painted

    with Threads(threads) as shared:
        shared.share(paint, len(labels))


def merge_margins(
    merged: NDArray[np.uint8], margins: NDArray[np.uint8], labels: NDArray[Any], targets: dict[int, int]
) -> None:
    """Note by how much a voxel's label won, in place: what a part paints has that part's margin; elsewhere the least of all counts."""
    painted = np.isin(labels, list(targets))
    np.copyto(merged, np.where(painted, margins, np.minimum(merged, margins)))
