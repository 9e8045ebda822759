"""The windows of a plan row by row, in the order in which a GPU blends them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from .gpu_blending import FlippedWindow
from .mirroring import Flip
from .windows import WindowPlan


@dataclass(frozen=True)
class RowPart:
    """Windows of one row, or of a part of it.

    Attributes:
        windows: where each begins, and how it is mirrored.
        finished: the planes, (first, last + 1), that no window after these touches; None where the row goes on.
    """

    windows: Sequence[FlippedWindow]
    finished: tuple[int, int] | None

    def finished_in(self, pieces: int) -> list[tuple[int, int]]:
        """Return the finished planes cut into so many pieces, or fewer where there are fewer planes; none where the row goes on."""
        if self.finished is None:
            return []
        begin, end = self.finished
        pieces = max(1, min(pieces, end - begin))
        borders = [begin + (end - begin) * number // pieces for number in range(pieces + 1)]
        return list(itertools.pairwise(borders))


def row_parts(plan: WindowPlan, flips: Sequence[Flip], first: int = 0, stop: int | None = None) -> list[RowPart]:
    """Return the windows from number ``first`` to ``stop`` - 1, in the order in which they are blended, row by row along the slowest axis."""
    slow = plan.order[0]
    starts = plan.starts[slow]
    first_row = [window for window in plan.windows() if window[slow] == starts[0]]
    size = len(first_row) * len(flips)
    stop = size * len(starts) if stop is None else stop
    parts: list[RowPart] = []
    for number, begin in enumerate(starts):
        low, high = max(first - number * size, 0), min(stop - number * size, size)
        if low >= high:
            continue
        row = [(_moved(window, slow, begin), flip) for window in first_row for flip in flips]
        # A row finishes what the next one does not reach.
        end = starts[number + 1] if number + 1 < len(starts) else plan.shape[slow]
        finished = (starts[number] if number else 0, end) if high == size else None
        parts.append(RowPart(row[low:high], finished))
    return parts


def _moved(window: tuple[int, int, int], axis: int, begin: int) -> tuple[int, int, int]:
    start = list(window)
    start[axis] = begin
    return start[0], start[1], start[2]


def batched(row: Sequence[FlippedWindow], size: int) -> list[Sequence[FlippedWindow]]:
    """Return windows in batches of ``size``, the last of which may be smaller."""
    return [row[n : n + size] for n in range(0, len(row), size)]
