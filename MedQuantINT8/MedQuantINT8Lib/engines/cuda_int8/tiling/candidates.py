"""Which tiles a convolution may be cut into on a GPU, best guess first; the engine's build times the first few."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ...base import UnsupportedNetwork
from ..plan.kernel_plan import Op, Step, View
from .tile import DEPTH, Tile
from .tiling import MOST_HALO, MOST_MMA_STEPS, REGISTERS, Tiling

#: Shared memory of a multiprocessor by compute capability, in KB (CUDA programming guide, table of compute capabilities).
_SHARED = {(8, 0): 164, (8, 6): 100, (8, 7): 164, (8, 9): 100, (9, 0): 228, (10, 0): 228, (12, 0): 100}
_KILOBYTE = 1024
#: Kept back by the system of each block's shared memory.
_RESERVED = _KILOBYTE
#: What is estimated to take up to so much longer than the best may be faster.
_MAYBE = 1.3
#: Of tiles the voxels along the first two axes and the warps, by mma; along the first (of eight by eight others) and the warps, by wgmma, and of first layers.
_MMA_SHAPES = ((8, 8, 8), (8, 8, 4), (4, 8, 4), (4, 8, 8), (4, 4, 8), (4, 4, 4), (2, 4, 4), (2, 4, 2))
_GROUP_SHAPES = ((8, 8), (8, 4), (4, 8), (4, 4), (2, 8), (2, 4), (1, 4))
_FIRST_SHAPES = ((4, 4), (2, 4), (1, 4))
#: How much longer a first layer takes that does not read ahead (1.5 times: 64 channels at 48^3, of an input of 96^3).
_UNREAD = 1.4
#: Besides its sums a thread needs at least so many registers.
_LEAST_REGISTERS = 64


@dataclass(frozen=True)
class Machine:
    """The properties of a GPU that decide about tiles."""

    capability: tuple[int, int]
    processors: int

    @cached_property
    def shared_bytes(self) -> int:
        """The shared memory of one multiprocessor."""
        known = [kb for capability, kb in sorted(_SHARED.items()) if capability <= self.capability]
        return (known[-1] if known else 100) * _KILOBYTE

    @property
    def block_bytes(self) -> int:
        """How much shared memory one block may take."""
        return self.shared_bytes - _RESERVED

    @property
    def has_groups(self) -> bool:
        return self.capability == (9, 0)

    def resident(self, tiling: Tiling) -> int:
        """Blocks that a multiprocessor holds at once."""
        tile = tiling.tile
        by_registers = REGISTERS // (tile.threads * tiling.registers)
        return max(
            1, min(self.shared_bytes // (tiling.shared_bytes + _RESERVED), by_registers, 2048 // tile.threads, 8)
        )

    def blocks(self, tiling: Tiling) -> int:
        """Blocks that share the tiles of one patch: as many as run at once, but each with as many tiles as the others."""
        a, b, c = tiling.tiles
        tiles = a * b * c
        if tiling.tile.split > 1:
            return tiles
        beside = tiling.column_blocks * tiling.phases
        at_once = max(1, self.processors * self.resident(tiling) * tiling.tile.teams // beside)
        return -(-tiles // -(-tiles // at_once) // tiling.tile.teams)


def candidates(step: Step, machine: Machine, batch: int) -> list[Tiling]:
    """Tilings that fit, fastest first by estimate.

    Raises:
        UnsupportedNetwork: there is none.
    """
    return [Tiling.of(step, tile) for _, tile in _fitting(step, machine, batch)]


def first_guess(step: Step, machine: Machine, batch: int) -> Tiling:
    """The first of the candidates."""
    return Tiling.of(step, _fitting(step, machine, batch)[0][1])


def least_cycles(step: Step, machine: Machine, batch: int) -> float:
    """The cycles that a step takes with its best tile, by estimate."""
    return _fitting(step, machine, batch)[0][0]


def proposals(step: Step, machine: Machine, batch: int, count: int) -> list[Tiling]:
    """Tilings to be timed, best guess first: of each kind that may be the fastest one, then others. An estimate that is wrong about a kind is so
    for all of it."""
    ranked = _fitting(step, machine, batch)
    limit = _MAYBE * ranked[0][0]
    best: dict[object, Tile] = {}
    for cycles, tile in ranked:
        if cycles > limit:
            break
        best.setdefault((tile.groups, tile.split > 1, tile.teams > 1, tile.stages), tile)
    others = (tile for _, tile in ranked[: count + len(best)] if tile not in best.values())
    return [Tiling.of(step, tile) for tile in (*best.values(), *others)][:count]


def _fitting(step: Step, machine: Machine, batch: int) -> tuple[tuple[float, Tile], ...]:
    ranked = _ranked(_shape_of(step), machine, batch)
    if not ranked:
        kernel = " x ".join(map(str, (step.neighbors or step.geometry).kernel))
        raise UnsupportedNetwork(
            f"CUDA INT8 keeps what a convolution looks at in a GPU's shared memory; a kernel of {kernel} does not fit (node {step.name}).",
            "Choose another engine with --engine: tensorrt, or openvino.",
        )
    return ranked


def _shape_of(step: Step) -> Step:
    """What of a step decides about its tiles: layers of the same shape are estimated once."""
    assert step.source is not None
    source = View("", 0, step.source.layout, float(bool(step.source.scale)))
    ops = tuple(
        Op(op.kind, norm="any" if op.norm else "")
        for op in step.ops
        if op.kind in ("output", "add", "mul", "affine", "norm", "prelu")
    )
    return Step(
        step.kind,
        "",
        step.size,
        step.source_size,
        step.layout,
        source,
        ops,
        step.geometry,
        int8=step.int8,
        neighbors=step.neighbors,
    )


@lru_cache(maxsize=1024)
def _ranked(step: Step, machine: Machine, batch: int) -> tuple[tuple[float, Tile], ...]:
    """Tiles with their estimates, best first. Remembered, since a build asks several times and a second's work is in it."""
    fitting = (
        tiling
        for tile in _tiles(step, machine)
        for tiling in _variants(Tiling.of(step, tile), machine, batch)
        if _fits(tiling, machine)
    )
    return tuple(
        sorted(((estimate(tiling, machine, batch), tiling.guess) for tiling in fitting), key=lambda pair: pair[0])
    )


def _fits(tiling: Tiling, machine: Machine) -> bool:
    return tiling.shared_bytes <= machine.block_bytes and max(*tiling.halo, *tiling.region) <= MOST_HALO


def _variants(tiling: Tiling, machine: Machine, batch: int) -> Iterator[Tiling]:
    """The tilings of a tile that differ in how it is worked on: as much of a voxel as may be fetched at once, with one copy into shared memory under way or two, if there is a second to be made; where
    tiles are few, their sums shared by some blocks, each of which must have something to add up; and with several teams, if each has a tile."""
    tiles = math.prod(tiling.tiles)
    few = tiles * tiling.column_blocks * tiling.phases * batch < 2 * machine.processors
    can_share = tiling.tile.groups and tiling.same_taps and not any(op.kind == "output" for op in tiling.step.ops)
    # A team makes a first layer's rows itself; there is no copy under way while another has the tensor cores.
    teams = [n for n in (2, 3, 4) if can_share and tiles >= n and not tiling.step.neighbors]
    for depth, split, team in [
        (depth, split, 1) for depth in _depths(tiling) for split in ((1, 2, 4, 8) if few else (1,))
    ] + [(DEPTH, 1, n) for n in teams]:
        for stages in (1, 2):
            # Made anew and not by replace(), which takes three times as long: there are hundreds a layer.
            tile, guess = (
                Tile(t.voxels, t.channels, t.warps, stages, t.groups, split, team, depth)
                for t in (tiling.tile, tiling.guess)
            )
            variant = Tiling(tiling.step, tile, tiling.axis_phases, guess, tiling.spread)
            fits = variant.sums + _LEAST_REGISTERS <= variant.most_registers if team > 1 else split <= variant.rounds
            if not fits or variant.chunks > 32 * tile.warps:
                break
            yield variant
            if variant.rounds <= split and machine.blocks(variant) * team >= tiles:
                break


def _depths(tiling: Tiling) -> list[int]:
    """How much of a voxel may be fetched at once, so that it is gone through in equal parts. What mma reads lies voxel by voxel, without conflicts
    only in units of 32 bytes."""
    if not tiling.pointwise or not tiling.tile.groups:
        return [DEPTH]
    parts = {-(-tiling.voxel_bytes // (n * DEPTH)) * DEPTH for n in (1, 2, 3, 4, 6, 8)}
    return [DEPTH, *sorted(depth for depth in parts if DEPTH < depth <= MOST_MMA_STEPS * DEPTH)]


def _tiles(step: Step, machine: Machine) -> list[Tile]:
    columns = Tiling.of(step, Tile((8, 8, 8), 32, 8, 1)).columns
    fitting = [n for n in (16, 32, 48, 64, 96, 112, 128) if -(-columns // n) * n <= max(16, columns) * 1.34] or [16]
    tiles = []
    # Of first layers the fastest were wgmma's, of one warp group and few voxels (13 such layers of four networks, on an H100).
    first = machine.has_groups and step.neighbors is not None
    mma_shapes, group_shapes = ((), _FIRST_SHAPES) if first else (_MMA_SHAPES, _GROUP_SHAPES)
    for n in fitting:
        for t0, t1, warps in mma_shapes:
            fragments = t0 * t1 // 2 // warps
            if fragments >= 1 and fragments * n // 2 <= 128:
                tiles.append(Tile((t0, t1, 8), n, warps, 1))
        for t0, warps in group_shapes if machine.has_groups else ():
            slabs = t0 * 4 // warps
            if slabs >= 1 and slabs * n // 2 <= 128:
                tiles.append(Tile((t0, 8, 8), n, warps, 1, groups=True))
    return tiles


def estimate(tiling: Tiling, machine: Machine, batch: int) -> float:
    """Cycles, roughly: what is multiplied, fetched and stored by the blocks of one multiprocessor, and what nothing hides.

    The tensor cores take 64 rows by N columns in N / 2 cycles (wgmma), and shared memory N / 4 for the columns and 16 for the rows. The other
    numbers are fitted to the times of 140 convolutions and products in about 16 tilings each on an H100: of the best three by estimate the
    fastest takes 3 % more than the fastest of those 16, in the mean; 5.5 % more where it was fitted to the other half. On other GPUs they order
    no worse than a guess; the build times what they propose.
    """
    tile = tiling.tile
    voxels, columns = tile.count, tile.channels
    rounds = -(-tiling.rounds // tile.split)
    step_cycles = max(columns / 2, (13 if tiling.by_lines else 16) + columns / 4) if tile.groups else 1.5 * columns
    multiplied = rounds * tiling.group_mma_steps * step_cycles * voxels / 64
    fetched = rounds * (tiling.halo_bytes + (0 if tiling.keeps_weights else tiling.weight_bytes)) / 36
    stored = voxels * columns * ((0.131 if tile.groups else 0.112) + (0.11 * tile.split if tile.split > 1 else 0)) + 124
    a, b, c = tiling.tiles
    blocks = a * b * c * tiling.column_blocks * tiling.phases * tile.split * batch
    at_once = min(machine.resident(tiling) * tile.teams, -(-blocks // machine.processors))
    waves = -(-blocks // (machine.processors * at_once))
    waits = rounds * (5060 if tile.teams > 1 else 770 if tile.stages == 2 else 2170) + (780 if tile.groups else 685)
    waits += 3600 if tile.split > 1 else 0
    busy = max(multiplied, fetched, stored) + 0.62 * (multiplied + fetched + stored)
    cycles = waves * max(at_once * busy, multiplied + waits + 0.66 * stored)
    # Once in the beginning; and sums for which a thread's registers hardly suffice are kept elsewhere.
    once = tiling.weight_bytes / 36 if tiling.keeps_weights else 0
    unread = _UNREAD if tiling.entries and not tiling.reads_ahead else 1
    return (
        unread
        * (cycles + once)
        * (1.15 if tiling.registers >= tiling.most_registers else 1)
        * (1.04 if tile.teams > 1 else 1)
    )
