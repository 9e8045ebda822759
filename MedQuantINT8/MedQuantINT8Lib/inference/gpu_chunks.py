"""The windows of a volume cut into chunks that follow each other, for GPUs that blend theirs one after the other (:mod:`.gpu_spread`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .mirroring import Flip
from .window_rows import RowPart, row_parts
from .windows import WindowPlan

#: By which share of a chunk the first is smaller, and the last larger.
_LATER = 0.06


@dataclass(frozen=True)
class Chunk:
    """Windows that follow each other, which one GPU runs.

    Attributes:
        number: its place in the order in which they are blended; it is run by the GPU of that number, from the first on again after the last.
        parts: the windows by rows.
        finished: the planes before this one are finished when the chunk begins.
        reached: no window before the chunk touches this plane, or a later one.
    """

    number: int
    parts: list[RowPart]
    finished: int
    reached: int

    @property
    def windows(self) -> int:
        return sum(len(part.windows) for part in self.parts)


def chunks_of(plan: WindowPlan, flips: Sequence[Flip], gpus: int, most: int) -> list[Chunk]:
    """Return the windows of a plan, cut into as many chunks as there are GPUs, or a multiple of that where a chunk has room for ``most``."""
    total, slow = plan.count * len(flips), plan.order[0]
    count = gpus * max(1, -(-total // (gpus * max(1, most))))
    chunks: list[Chunk] = []
    finished = reached = 0
    for number, (first, stop) in enumerate(itertools.pairwise(_borders(total, count, later=count == gpus))):
        parts = row_parts(plan, flips, first, stop)
        chunks.append(Chunk(number, parts, finished, reached))
        for part in parts:
            reached = part.windows[0][0][slow] + plan.patch[slow]
            finished = finished if part.finished is None else part.finished[1]
    return chunks


def _borders(total: int, count: int, *, later: bool) -> list[int]:
    """Return where each of some chunks begins, and the end of the last.

    Args:
        later: those that wait for another's planes meanwhile get a little more.
    """
    weights = np.linspace(1 - _LATER, 1 + _LATER, count) if later and count > 1 else np.ones(count)
    return [0, *(round(total * share) for share in np.cumsum(weights) / weights.sum())]
