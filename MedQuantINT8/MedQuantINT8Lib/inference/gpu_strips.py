"""The planes of a volume in strips, one for each of several GPUs: which windows each runs, and which scores it gets from the others.

A GPU runs the windows that begin in its strip, blends all that reach into it, in the order of one GPU, and makes the labels of its lines. So no
GPU waits for another's blending; only the scores of windows that reach over a border are copied.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from .gpu_blending import FlippedWindow
from .mirroring import Flip
from .window_rows import row_parts
from .windows import WindowPlan

#: The least share of the GPUs' time that is used where windows cannot be dealt out evenly.
_BALANCED = 0.93


def lines_axis(plan: WindowPlan) -> int:
    """Return the axis across which planes are cut: the first of those that do not stream."""
    return 1 if plan.order[0] == 0 else 0


@dataclass(frozen=True)
class Strip:
    """Lines of every plane, of the padded volume along :func:`lines_axis`.

    Attributes:
        first, stop: labels are made of the lines from ``first`` to ``stop`` - 1.
        end: the scores of the lines from ``first`` to ``end`` - 1 are blended; new voxels lie between a line and the next.
    """

    first: int
    stop: int
    end: int


def strips_of(plan: WindowPlan, gpus: int) -> list[Strip] | None:
    """Return a strip for each of some GPUs, or None where windows cannot be dealt out evenly."""
    axis = lines_axis(plan)
    starts, length, size = plan.starts[axis], plan.patch[axis], plan.shape[axis]
    if gpus < 2 or len(starts) < gpus or len(starts) < _BALANCED * gpus * -(-len(starts) // gpus):
        return None
    firsts = _first_windows(len(starts), gpus)
    middles = [0, *((starts[n] + starts[n - 1] + length) // 2 for n in firsts[1:]), size]
    cuts = [0, *(_cut(starts, length, first, middles[n : n + 3]) for n, first in enumerate(firsts[1:])), size]
    return [Strip(low, high, min(high + 1, size)) for low, high in itertools.pairwise(cuts)]


def _cut(starts: Sequence[int], length: int, first: int, middles: Sequence[int]) -> int:
    """Return the line from which on the next GPU's strip is, so that few windows reach over it: scores of these are copied.

    Args:
        first: the number of the next GPU's first window.
        middles: the lines in the middle of what the last window before a cut and the first one after it share, of the cut before, of this one and
            of the next one; no cut is nearer to another one's than to its own.
    """
    before, middle, after = middles
    lowest = max(middle - (middle - before - 1) // 2, min(starts[first], middle))
    highest = min(middle + (after - middle - 1) // 2, max(starts[first - 1] + length, middle))

    def cost(cut: int) -> tuple[int, int, int]:
        # A strip's scores end one line behind it.
        received = sum(start <= cut for start in starts[first:])
        given = sum(start + length > cut for start in starts[:first])
        return max(received, given), received + given, abs(cut - middle)

    return min(range(lowest, highest + 1), key=cost)


def _first_windows(count: int, gpus: int) -> list[int]:
    return [count * number // gpus for number in range(gpus)]


@dataclass(frozen=True)
class StripRow:
    """What one GPU does with a row of windows.

    Attributes:
        blended: the windows that reach into its strip, in the order in which they are blended; the place of each is where its scores lie.
        run: those of them that it runs itself, with their places; the ones that others need as well come first.
        shared: how many of ``run`` others need.
        received: of the others', (place, number of the GPU, place there).
        takers: the numbers of the GPUs that need some of ``run``.
        finished: the planes, (first, last + 1), that no later window touches.
    """

    blended: Sequence[FlippedWindow]
    run: Sequence[tuple[FlippedWindow, int]]
    shared: int
    received: Sequence[tuple[int, int, int]]
    takers: Sequence[int]
    finished: tuple[int, int]


def strip_rows(plan: WindowPlan, flips: Sequence[Flip], strips: Sequence[Strip]) -> list[list[StripRow]]:
    """Return the rows of each GPU."""
    axis = lines_axis(plan)
    starts, length = plan.starts[axis], plan.patch[axis]
    begins = [starts[n] for n in _first_windows(len(starts), len(strips))]
    rows: list[list[StripRow]] = [[] for _ in strips]
    for part in row_parts(plan, flips):
        assert part.finished is not None
        owners = [bisect.bisect_right(begins, start[axis]) - 1 for start, _ in part.windows]
        reached = [
            [
                n
                for n, (start, _) in enumerate(part.windows)
                if start[axis] < strip.end and start[axis] + length > strip.first
            ]
            for strip in strips
        ]
        places = [{n: place for place, n in enumerate(own)} for own in reached]
        for number, own in enumerate(reached):
            needed = [
                [n for n in other if owners[n] == number] if taker != number else []
                for taker, other in enumerate(reached)
            ]
            others = set(itertools.chain.from_iterable(needed))
            run = sorted((n for n in own if owners[n] == number), key=lambda n: n not in others)
            rows[number].append(
                StripRow(
                    [part.windows[n] for n in own],
                    [(part.windows[n], places[number][n]) for n in run],
                    len(others),
                    [(places[number][n], owners[n], places[owners[n]][n]) for n in own if owners[n] != number],
                    [taker for taker, wanted in enumerate(needed) if wanted],
                    part.finished,
                )
            )
    return rows
