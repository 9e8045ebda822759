"""The source of a convolution's kernel: its sizes as definitions, its tables, its chain, and the kernel's text."""

from __future__ import annotations

from .chain_source import PRELUDE, ChainSource
from .conv_kernel import FILL, MMA, RUN, RUN_DEFINITIONS, WGMMA
from .conv_rows import PLACES, ROWS
from .plan import Plan
from .tiling import DEPTH, Tiling


def conv_source(plan: Plan, tiling: Tiling, blocks: int, least_blocks: int, chain: ChainSource) -> str:
    """CUDA C of a convolution.

    Args:
        blocks: that share the tiles of a patch (and phase, and columns).
        least_blocks: that a multiprocessor shall hold at once.
    """
    step, tile = tiling.step, tiling.tile
    assert step.source is not None
    defined: dict[str, object] = {
        "DEPTH": DEPTH,
        "CHUNK": tiling.chunk,
        "HALF": int(tiling.half),
        "WARP_GROUPS": int(tile.groups),
        "WARPS": tile.warps,
        "THREADS": tile.threads,
        "COLUMNS": tile.channels,
        "STAGES": tile.stages,
        "SPLIT": tile.split,
        "BLOCKS": blocks,
        "LANES": tiling.lanes,
        "LEAST_BLOCKS": least_blocks,
        "HALO_BYTES": tiling.halo_bytes,
        "WEIGHT_BYTES": tiling.weight_bytes,
        "KEEPS_WEIGHTS": int(tiling.keeps_weights),
        "TURN_GROUPS": tiling.turn_groups,
        "GROUP_TURNS": tiling.group_turns,
        "ROUNDS": tiling.rounds,
        "SAME_TAPS": int(tiling.same_taps),
        "SPREAD": tiling.spread,
        "STAGES_OUTPUT": int(tiling.stages_output),
        "ROOM_TO_FETCH": int(tiling.fetches_early),
        "SCORES_AT": tiling.pipeline_bytes,
        "STAGED_ROW": tiling.staged_row,
        "PITCH": plan.buffers[step.source.buffer].pitch * tiling.element,
        "SOURCE_WIDTH": step.source.layout.width * tiling.element,
    }
    for axis, lattice in enumerate(tiling.lattices):
        defined |= {f"TILE{axis}": tile.voxels[axis], f"H{axis}": tiling.halo[axis], f"TILES{axis}": tiling.tiles[axis]}
        defined |= {f"I{axis}": step.source_size[axis], f"O{axis}": step.size[axis], f"PHASES{axis}": lattice.phases}
        defined |= {f"STRIDE{axis}": lattice.stride, f"IN_STEP{axis}": lattice.in_step, f"OUT_STEP{axis}": lattice.out_step}
        defined[f"SPREAD{axis}"] = step.geometry.stride[axis] if tiling.spread > 1 else 1
    head = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    tables = "".join(_table(f"STARTS{axis}", list(lattice.starts)) for axis, lattice in enumerate(tiling.lattices))
    room, places, counts = tiling.turn_groups * tiling.group_turns * tiling.together, [], []
    for found in tiling.places:
        places += found + [0] * (room - len(found))
        left = len(found) // tiling.together
        for _ in range(tiling.turn_groups):
            counts.append(max(0, min(left, tiling.group_turns)))
            left -= tiling.group_turns
    tables += _table("PLACES", places) + _table("ROUND_TURNS", counts)
    kind = f"typedef {'float' if tiling.half else 'int'} Sum;\n"
    product = _multiply_group(tile.channels, tiling.half) + WGMMA if tile.groups else MMA
    return PRELUDE + head + tables + kind + chain.text + FILL + ROWS + product + RUN_DEFINITIONS + PLACES + RUN


def _multiply_group(columns: int, half: bool) -> str:
    """multiply_group(sums, a, b, add): 64 rows by ``columns``, 32 bytes deep, by one wgmma (PTX ISA 8.0, section "Asynchronous warpgroup level
    matrix instructions")."""
    count = columns // 2
    kind, shape = ("f32.f16.f16", "k16") if half else ("s32.s8.s8", "k32")
    registers = ", ".join(f"%{n}" for n in range(count))
    operands = ", ".join(f'"+{"f" if half else "r"}"(sums[{n // 4}][{n % 4}])' for n in range(count))
    tail = ", 1, 1, 0, 0" if half else ""
    return (
        f"#define HOLD(sum) \"+{'f' if half else 'r'}\"(sum)\n"
        f"__device__ __forceinline__ void multiply_group(Sum (&sums)[{columns // 8}][4], u64 a, u64 b, int add) {{\n"
        f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{count + 2}, 0; wgmma.mma_async.sync.aligned.m64n{columns}{shape}.{kind} '
        f'{{{registers}}}, %{count}, %{count + 1}, p{tail}; }}" : {operands} : "l"(a), "l"(b), "r"(add));\n}}\n'
    )


def _table(name: str, values: list[int]) -> str:
    return f"__constant__ int {name}[{len(values)}] = {{{', '.join(map(str, values))}}};\n"
