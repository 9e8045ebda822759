"""The source of a convolution's kernel: its sizes as definitions, its tables, its epilogue, and the texts of the files beside this one."""

from __future__ import annotations

from ..plan.kernel_plan import KernelPlan
from ..tiling.tile import DEPTH
from ..tiling.tiling import MOST_HALO, Tiling
from . import definitions, kernel_text
from .epilogue import EpilogueSource
from .first_convolution import neighbor_definitions
from .wgmma import multiply_group, multiply_mma_steps


def conv_source(plan: KernelPlan, tiling: Tiling, blocks: int, least_blocks: int, epilogue: EpilogueSource) -> str:
    """Return the CUDA C text of a convolution.

    Args:
        blocks: that share the tiles of a patch (and phase, and columns).
        least_blocks: that a multiprocessor shall hold at once.
    """
    step, tile = tiling.step, tiling.tile
    assert step.source is not None and tiling.constants == epilogue.constants
    defined: dict[str, object] = {
        "DEPTH": DEPTH,
        "MOST_HALO": MOST_HALO,
        "K_BLOCK": tiling.k_block,
        "CHUNKS": tiling.chunks,
        "HALF": int(tiling.half),
        "WARP_GROUPS": int(tile.groups),
        "WARPS": tile.warps,
        "TEAMS": tile.teams,
        "COLUMNS": tile.channels,
        "STAGES": tile.stages,
        "SPLIT": tile.split,
        "BLOCKS": blocks,
        "THREAD_CHANNELS": tiling.thread_channels,
        "LEAST_BLOCKS": least_blocks,
        "HALO_BYTES": tiling.halo_bytes,
        "WEIGHT_BYTES": tiling.weight_bytes,
        "KEEPS_WEIGHTS": int(tiling.keeps_weights),
        "MMA_STEP_GROUPS": tiling.mma_step_groups,
        "GROUP_MMA_STEPS": tiling.group_mma_steps,
        "ROUNDS": tiling.rounds,
        "EVEN": int(tiling.even),
        "SAME_TAPS": int(tiling.same_taps),
        "SPREAD": tiling.spread,
        "STAGES_OUTPUT": int(tiling.stages_output),
        "HELD_ROWS": tiling.held_rows,
        "SCORES_AT": tiling.pipeline_bytes,
        "STAGED_ROW": tiling.staged_row,
        "TABLE_AT": tiling.table_at,
        "CONSTANTS_AT": tiling.constants_at,
        "CONSTANTS": tiling.constants,
        "SOURCE_WIDTH": tiling.voxel_bytes,
    }
    if step.neighbors:
        defined |= neighbor_definitions(plan, tiling)
    else:
        defined["PITCH"] = plan.buffers[step.source.buffer].pitch * tiling.element
    for axis, phases in enumerate(tiling.axis_phases):
        defined |= {f"TILE{axis}": tile.voxels[axis], f"H{axis}": tiling.halo[axis], f"TILES{axis}": tiling.tiles[axis]}
        defined |= {f"I{axis}": step.source_size[axis], f"O{axis}": step.size[axis], f"PHASES{axis}": phases.phases}
        defined |= {
            f"STRIDE{axis}": phases.stride,
            f"IN_STEP{axis}": phases.in_step,
            f"OUT_STEP{axis}": phases.out_step,
        }
        defined[f"TAPS{axis}"] = len(phases.taps[0])
        defined[f"SPREAD{axis}"] = step.geometry.stride[axis] if tiling.spread > 1 else 1
    head = definitions(defined)
    tables = "".join(_table(f"STARTS{axis}", list(phases.starts)) for axis, phases in enumerate(tiling.axis_phases))
    room, places, counts = tiling.mma_step_groups * tiling.group_mma_steps * 2, [], []
    for phase_places in tiling.places:
        places += phase_places + [0] * (room - len(phase_places))
        left = len(phase_places) // 2
        for _ in range(tiling.mma_step_groups):
            counts.append(max(0, min(left, tiling.group_mma_steps)))
            left -= tiling.group_mma_steps
    tables += _table("PLACES", places) + _table("ROUND_MMA_STEPS", counts)
    kind = f"typedef {'float' if tiling.half else 'int'} Sum;\n"
    return "".join(
        (
            kernel_text("prelude.cuh"),
            head,
            tables,
            kind,
            epilogue.text,
            kernel_text("tile_copies.cuh", "fill_neighbors.cuh" if step.neighbors else "fill_halo.cuh"),
            kernel_text("output_rows.cuh", "load_matrix.cuh"),
            _product(tiling),
            kernel_text("convolution_sizes.cuh", "scores.cuh", "output_places.cuh", "convolution.cu"),
        )
    )


def _product(tiling: Tiling) -> str:
    """``multiply_round`` in one of three forms: mma.sync, or wgmma from shared memory or from registers."""
    if not tiling.tile.groups:
        return kernel_text("mma_product.cuh")
    common = multiply_group(tiling) + kernel_text("wgmma_product.cuh")
    if tiling.by_lines:
        return common + kernel_text("wgmma_by_lines.cuh")
    return common + multiply_mma_steps(tiling) + kernel_text("wgmma_by_taps.cuh")


def _table(name: str, values: list[int]) -> str:
    return f"__constant__ int {name}[{len(values)}] = {{{', '.join(map(str, values))}}};\n"
