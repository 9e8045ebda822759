"""How a convolution is cut into blocks: phases, taps, tiles of output voxels, and the halo they need.

Outputs of a dilated or a transposed convolution fall into phases, by their remainder modulo the dilation or the stride; those of one
phase are an ordinary convolution over every so many-th input. A block computes tiles of one phase, for some output channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product

from ..plan.kernel_plan import Geometry, Size, Step
from .phases import AxisPhases, phases_of
from .tile import DEPTH, Tile

#: Output voxels of a tile along the fastest axis, fixed by the shape of the tensor cores' fragments.
TILE2 = 8
#: Registers of a thread besides its sums, about, and all that it can have.
OTHER_REGISTERS, MOST_REGISTERS = 80, 255
#: Bytes that lie side by side in shared memory, of one voxel.
CHUNK = 16
#: Weights of so many MMA steps of 32 bytes are fetched at a time, unless all are kept.
MOST_MMA_STEPS = 27
#: Taps along the second axis that the lines in a warp's registers serve.
LINE_TAPS = 3
#: Columns up to which a block multiplies lines from registers.
LINE_COLUMNS = 32
#: Inputs of a tile along an axis, at most: the kernels have ten bits for each, one of them for signs.
MOST_HALO = 512
#: Numbers of the network's input that a thread reads ahead.
MOST_READ = 16
#: Registers of a multiprocessor.
REGISTERS = 65536


@dataclass(frozen=True)
class Tiling:
    """A convolution cut into tiles; everything is known when its kernel is compiled.

    Attributes:
        step: the step; of a pointwise convolution with its voxels in one row (:func:`flattened`).
        guess: the tile that it was made of.
        spread: phases of a transposed convolution that lie beside each other as columns; 1 where each is computed by itself.
    """

    step: Step
    tile: Tile
    axis_phases: tuple[AxisPhases, AxisPhases, AxisPhases]
    guess: Tile
    spread: int = 1

    @staticmethod
    def of(step: Step, tile: Tile) -> Tiling:
        flat, guess = flattened(step), tile
        if flat is not None:
            t0, t1, t2 = tile.voxels
            step, tile = flat, replace(tile, voxels=(1, t0 * t1, t2))
        g = step.geometry
        # Of a transposed convolution whose kernel is its stride, all phases take the same input: they are columns of one product.
        spread = step.kind == "deconv" and g.kernel == g.stride and g.before == (0, 0, 0) and g.dilation == (1, 1, 1)
        axes = zip(g.kernel, g.stride, g.dilation, g.before, strict=True)
        a, b, c = (phases_of(*axis, step.kind == "deconv", spread) for axis in axes)
        return Tiling(step, tile, (a, b, c), guess, math.prod(g.stride) if spread else 1)

    @property
    def half(self) -> bool:
        return not self.step.int8

    @cached_property
    def element(self) -> int:
        return 2 if self.half else 1

    @cached_property
    def phases(self) -> int:
        return math.prod(phases.phases for phases in self.axis_phases)

    @cached_property
    def same_taps(self) -> bool:
        """Whether all phases multiply by the same weights."""
        return self.step.kind == "conv" or self.spread > 1

    @cached_property
    def taps(self) -> list[list[tuple[Size, Size]]]:
        """For each phase that differs: (place in the kernel, offset among the phase's inputs)."""
        return _taps(self.axis_phases, self.same_taps)

    @cached_property
    def pointwise(self) -> bool:
        """Whether one tap is all there is: an ordinary matrix product."""
        return self.same_taps and len(self.taps[0]) == 1

    @cached_property
    def voxel_bytes(self) -> int:
        """The bytes of one voxel of the input."""
        assert self.step.source is not None
        return self.step.source.layout.width * self.element

    @cached_property
    def k_block(self) -> int:
        """Bytes of a voxel that are fetched together: all, or what is multiplied at once, or half of it, when two taps are multiplied at once."""
        if self.tile.teams > 1:
            return self.voxel_bytes
        if self.pointwise:
            return self.tile.depth
        return CHUNK if self.voxel_bytes % DEPTH and max(map(len, self.taps)) > 1 else DEPTH

    @cached_property
    def k_blocks(self) -> int:
        return -(-self.voxel_bytes // self.k_block)

    @cached_property
    def chunks(self) -> int:
        """How many chunks a K block has. Each is multiplied for each tap; two make an MMA step."""
        return self.k_block // CHUNK

    @cached_property
    def by_lines(self) -> bool:
        """Whether voxels are multiplied from registers, where a line of eight serves several taps, instead of from shared memory once a tap.

        With few columns the tensor cores would wait for shared memory: of the INT8 product of 64 rows and 32 columns it has 24 cycles' work,
        they have 16.
        """
        taps = [axis.taps[0] for axis in self.axis_phases]
        dense = all(
            axis.stride == 1 and axis_taps == tuple((k, k) for k in range(len(axis_taps)))
            for axis, axis_taps in zip(self.axis_phases, taps, strict=True)
        )
        fits = (
            self.tile.voxels[1] == TILE2 and len(taps[1]) == LINE_TAPS and math.prod(map(len, taps)) <= MOST_MMA_STEPS
        )
        return (
            self.tile.groups
            and self.tile.channels <= LINE_COLUMNS
            and self.same_taps
            and dense
            and fits
            and self.chunks % 2 == 0
        )

    @cached_property
    def mma_steps(self) -> int:
        """Products of a tile and K block, in the phase with most taps."""
        return max(1, max(-(-len(taps) * self.chunks // 2) for taps in self.taps))

    @cached_property
    def mma_step_groups(self) -> int:
        return 1 if self.tile.teams > 1 or self.by_lines else -(-self.mma_steps // MOST_MMA_STEPS)

    @cached_property
    def group_mma_steps(self) -> int:
        """MMA steps whose weights are in shared memory at a time."""
        return -(-self.mma_steps // self.mma_step_groups)

    @cached_property
    def rounds(self) -> int:
        """The number of times that shared memory is filled for a tile."""
        return self.k_blocks * self.mma_step_groups

    @cached_property
    def columns(self) -> int:
        """How many columns the product has: output slots, of all phases that lie beside each other."""
        return self.step.layout.width * self.spread

    @cached_property
    def column_blocks(self) -> int:
        return -(-self.columns // self.tile.channels)

    @cached_property
    def halo(self) -> Size:
        """Inputs of a phase that a tile takes; along the last axis a multiple of its stride, so that each remainder has a row of its own."""
        a, b, c = (
            (t - 1) * phases.stride + phases.reach + 1
            for t, phases in zip(self.tile.voxels, self.axis_phases, strict=True)
        )
        stride = self.axis_phases[2].stride
        return a, b, -(-c // stride) * stride

    def place(self, offset: Size) -> int:
        """Where an input of the halo lies in it: along the last axis, inputs of one remainder modulo the stride lie side by side."""
        _, height, width = self.halo
        stride = self.axis_phases[2].stride
        return (offset[0] * height + offset[1]) * width + (offset[2] % stride) * (width // stride) + offset[2] // stride

    @cached_property
    def factors(self) -> list[list[tuple[int, int, int]]]:
        """For each phase that differs what is multiplied, in order: (place in the halo in chunks, number of the tap, chunk of its K block).

        wgmma finds chunks of one number side by side, mma those of one voxel. By lines, what the same registers serve comes together.
        """
        voxels = math.prod(self.halo)
        if self.by_lines:
            k0, k1, k2 = (len(axis.taps[0]) for axis in self.axis_phases)
            ordered = (
                (first + half, (a, b, c))
                for first in range(0, self.chunks, 2)
                for c in range(k2)
                for a in range(k0)
                for b in range(k1)
                for half in (0, 1)
            )
            return [
                [(chunk * voxels + self.place((a, b, c)), (a * k1 + b) * k2 + c, chunk) for chunk, (a, b, c) in ordered]
            ]
        apart, beside = (voxels, 1) if self.tile.groups else (1, self.chunks)
        return [
            sorted(
                (chunk * apart + self.place(offset) * beside, number, chunk)
                for number, (_, offset) in enumerate(taps)
                for chunk in range(self.chunks)
            )
            for taps in self.taps
        ]

    @property
    def places(self) -> list[list[int]]:
        """The places of the factors of each phase; the last again where one has no other to make an MMA step with."""
        by_phase = []
        for factors in self.factors:
            places = [place for place, _, _ in factors] or [0, 0]
            by_phase.append(places + places[-1:] * (len(places) % 2))
        return by_phase

    @cached_property
    def tiles(self) -> Size:
        a, b, c = (
            -(-phases.count(n) // t)
            for phases, n, t in zip(self.axis_phases, self.step.size, self.tile.voxels, strict=True)
        )
        return a, b, c

    @cached_property
    def even(self) -> bool:
        """Whether tiles leave nothing over, nor columns."""
        axes = zip(self.axis_phases, self.step.size, self.tile.voxels, strict=True)
        return all(n % (phases.out_step * t) == 0 for phases, n, t in axes) and self.columns % self.tile.channels == 0

    @cached_property
    def halo_bytes(self) -> int:
        return -(-math.prod(self.halo) * self.k_block // 128) * 128 + self.entry_bytes

    @cached_property
    def region(self) -> Size:
        """What a tile of a first convolution takes of the network's input; nothing of others."""
        return self.step.neighbors.region(self.tile.voxels) if self.step.neighbors else (0, 0, 0)

    @cached_property
    def entries(self) -> int:
        """How many numbers that region holds, of all channels."""
        g = self.step.neighbors
        return (
            math.prod(self.region) * (self.step.source.layout.channels // math.prod(g.kernel))
            if g and self.step.source
            else 0
        )

    @property
    def reads_ahead(self) -> bool:
        """Whether threads have room for what the next tile takes of it."""
        return self.entries <= MOST_READ * 32 * self.tile.warps

    @property
    def entry_bytes(self) -> int:
        return -(-self.entries * self.element // 128) * 128

    @cached_property
    def weight_bytes(self) -> int:
        """The bytes of the weights in one filling of shared memory."""
        return self.group_mma_steps * self.tile.channels * DEPTH

    @property
    def keeps_weights(self) -> bool:
        """Whether a block loads its weights once and keeps them from tile to tile."""
        return self.rounds == 1 and self.same_taps

    @property
    def pipeline_bytes(self) -> int:
        stages = self.tile.stages
        return self.tile.teams * stages * self.halo_bytes + self.weight_bytes * (1 if self.keeps_weights else stages)

    @property
    def stages_output(self) -> bool:
        """Whether scores are put in rows in shared memory before they go out."""
        return (
            any(op.kind == "output" for op in self.step.ops) and self.step.size[2] == TILE2 and self.step.size[0] == 1
        )

    @property
    def staged_row(self) -> int:
        """Scores from one channel's row to the next: 16 bytes more than there are. Twice as many more lie between every ``thread_channels`` rows."""
        return self.tile.count + CHUNK // 2

    @property
    def score_bytes(self) -> int:
        """The bytes that a tile's scores take in shared memory."""
        return self.tile.channels * (self.staged_row + CHUNK // self.thread_channels) * 2 if self.stages_output else 0

    @cached_property
    def table_at(self) -> int:
        """Where in shared memory the table of the halo begins; sums of statistics lie before it, when nothing else is needed there any more."""
        return max(self.pipeline_bytes + self.score_bytes, self.tile.threads // 32 * self.tile.channels * 8)

    @cached_property
    def constants_at(self) -> int:
        places = self.entries or math.prod(self.halo)
        return self.table_at + -(-places * 8 // CHUNK) * CHUNK

    @cached_property
    def constants(self) -> int:
        """Numbers for each column that its sums meet on their way."""
        return sum(
            {"affine": 2, "norm": 2, "prelu": 1}.get(op.kind, 2 if op.norm and op.kind in ("add", "mul") else 0)
            for op in self.step.ops
        )

    @cached_property
    def shared_bytes(self) -> int:
        # wgmma's rows lie inside the halo, but memory checkers take the 64 rows to lie side by side from the first on.
        beyond = 64 * DEPTH if self.tile.groups else 0
        return max(self.constants_at + self.constants * self.tile.channels * 4, self.pipeline_bytes + beyond)

    @property
    def sums(self) -> int:
        """The number of registers that a thread's sums take."""
        return self.tile.count * self.tile.channels // (32 * self.tile.warps)

    @cached_property
    def row_registers(self) -> int:
        """The registers of a thread for other tensors that a row of its sums meets, as if they were FP16."""
        return self.thread_channels // 2 * sum(op.kind in ("add", "mul") for op in self.step.ops)

    @cached_property
    def held_rows(self) -> int:
        """Rows of sums that such tensors are read ahead for."""
        if not self.row_registers:
            return 0
        room = self.most_registers - self.sums - OTHER_REGISTERS
        return max(2, min(self.sums // self.thread_channels, room // self.row_registers))

    @property
    def most_registers(self) -> int:
        """How many registers a thread can have."""
        return min(MOST_REGISTERS, REGISTERS // self.tile.threads // 8 * 8)

    @property
    def registers(self) -> int:
        """The approximate number of registers that a thread takes."""
        return min(self.most_registers, self.sums + OTHER_REGISTERS + self.held_rows * self.row_registers)

    @property
    def thread_channels(self) -> int:
        """Neighboring channels that a thread holds of a voxel."""
        return 8 if self.tile.channels % 32 == 0 else 4


@lru_cache(maxsize=256)
def _taps(axis_phases: tuple[AxisPhases, AxisPhases, AxisPhases], same: bool) -> list[list[tuple[Size, Size]]]:
    by_phase = []
    for combination in product(*(range(1 if same else phases.phases) for phases in axis_phases)):
        axes = [phases.taps[phase] for phases, phase in zip(axis_phases, combination, strict=True)]
        by_phase.append([(tuple(k for k, _ in tap), tuple(o for _, o in tap)) for tap in product(*axes)])
    return by_phase  # type: ignore[return-value]


def flattened(step: Step) -> Step | None:
    """A pointwise convolution over a row of voxels instead of a volume: its tiles are contiguous and leave nothing over."""
    if step.kind != "conv" or step.geometry != Geometry() or step.neighbors or step.voxels % TILE2:
        return None
    row = (1, step.voxels // TILE2, TILE2)
    return replace(step, size=row, source_size=row)
