"""Which windows the GPU blends at once, so that a voxel's sums are read and written once for all of them; where their scores lie until then."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..engines.cuda.device import DeviceBuffer, Event
from .mirroring import Flip

#: Where a window begins, and the axes along which it is mirrored.
FlippedWindow = tuple[tuple[int, int, int], Flip]
#: How many windows the kernel blends at once (AT_ONCE in sliding_window.cu).
BLENDED_AT_ONCE = 4


@dataclass(frozen=True)
class ScorePlace:
    """Where a batch's scores lie, (batch, classes, *patch).

    Attributes:
        computed: recorded when the network has written them.
        taken: recorded when they were blended, or copied, and may be written over.
    """

    scores: DeviceBuffer
    computed: Event
    taken: Event

    def free(self) -> None:
        """Free all but the scores."""
        self.computed.free()
        self.taken.free()


def near_windows(windows: Sequence[FlippedWindow], patch: tuple[int, int, int]) -> Iterator[list[FlippedWindow]]:
    """Yield the windows in groups that are blended at once: as many as the kernel takes, while the box around them is no larger than all of them."""
    group: list[FlippedWindow] = []
    for window in windows:
        _, size = box_around([start for start, _ in (*group, window)], patch)
        if len(group) == BLENDED_AT_ONCE or math.prod(size) > (len(group) + 1) * math.prod(patch):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def box_around(starts: Sequence[tuple[int, int, int]], patch: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """Return where the box around some windows begins and how long it is, by axis."""
    begin = [min(axis) for axis in zip(*starts, strict=True)]
    return begin, [max(axis) + p - b for axis, p, b in zip(zip(*starts, strict=True), patch, begin, strict=True)]


def flip_bits(flip: Flip) -> int:
    """Return the axes of a flip as the kernels take them: a bit each."""
    return sum(1 << axis for axis in flip)
