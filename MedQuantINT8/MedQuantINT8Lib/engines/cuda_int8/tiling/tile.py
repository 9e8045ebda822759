"""A tile: the output voxels and channels that a block of threads computes at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..plan.kernel_plan import Size

#: Bytes that tensor cores multiply at once: 32 slots of INT8, 16 of FP16.
DEPTH = 32


@dataclass(frozen=True)
class Tile:
    """A tile: the output voxels that a block computes at a time.

    Attributes:
        voxels: of the output; the last is 8.
        channels: of the output.
        warps: of a team; each takes its share of the voxels.
        stages: copies into shared memory that are under way.
        groups: whether by wgmma, in warp groups of 128 threads (compute capability 9.0).
        split: blocks that share the sums of one tile.
        teams: of a block; each works on tiles of its own, and all multiply by the same weights. With several, all weights
            are in shared memory, and all channels of a tile's inputs are fetched at once.
        depth: bytes of a voxel that are fetched at once where there is but one tap; elsewhere taps make enough work of 32.
    """

    voxels: Size
    channels: int
    warps: int
    stages: int
    groups: bool = False
    split: int = 1
    teams: int = 1
    depth: int = DEPTH

    @property
    def threads(self) -> int:
        return 32 * self.warps * self.teams

    @property
    def count(self) -> int:
        """How many voxels it has."""
        return math.prod(self.voxels)
