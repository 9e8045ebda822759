"""The source of the steps that go over voxels: input, pooling, resizing, moving, elementwise work, softmax.

A thread keeps its eight slots and goes from voxel to voxel, so that the constants of its epilogue stay in registers.
"""

from __future__ import annotations

import numpy as np

from ..plan.kernel_plan import KernelPlan, Step
from . import definitions, kernel_text
from .epilogue import EpilogueSource

#: Voxels that a thread takes in turn, where that leaves so many blocks; of a resize, along the fastest axis.
PASSES, ENOUGH_BLOCKS, RUN = 4, 512, 12
#: Blocks, about, where each leaves its sums.
MOST_PARTIALS = 2048


def threads_of(width: int) -> int:
    """Threads of a block: whole voxels, about 256."""
    groups = width // 8
    return groups * max(1, 256 // groups)


#: Blocks for one patch, and threads of a block.
Grid = tuple[int, int]


def source_definitions(plan: KernelPlan, step: Step) -> dict[str, object]:
    """What read_source.cuh needs to know of a step's source."""
    assert step.source is not None
    scale = step.source.scale
    # In hexadecimal a float stays what it is.
    return {
        "PITCH": plan.buffers[step.source.buffer].pitch,
        "SOURCE_BYTES": int(bool(scale)),
        "SOURCE_SCALE": f"{float(np.float32(scale)).hex()}f",
    }


def elementwise_source(plan: KernelPlan, step: Step, epilogue: EpilogueSource) -> tuple[str, Grid]:
    """CUDA C of a step, and its grid for one patch and block: (blocks, threads)."""
    alone = step.kind == "softmax"
    threads = 256 if alone else threads_of(step.layout.width)
    rows = threads // (step.layout.width // 8) if not alone else 1
    voxels = step.voxels
    # Where statistics are gathered, few blocks leave few partial sums.
    runs = -(-step.size[2] // RUN)
    items = voxels // step.size[2] * runs if step.kind == "resize" else voxels
    least = PASSES if step.kind != "resize" and items >= rows * PASSES * ENOUGH_BLOCKS else 1
    ahead = least if step.kind in ("elementwise", "move") else 1
    passes = max(least, -(-items // (rows * MOST_PARTIALS * ahead)) * ahead) if epilogue.norm else least
    defined: dict[str, object] = {"THREADS": threads, "ROWS": rows, "PASSES": passes, "AHEAD": ahead}
    # What the step before wrote last is still in the cache, and is read first.
    backwards = step.kind == "elementwise"
    defined["BLOCK_X"], defined["PATCH"] = (
        ("(gridDim.x - 1 - blockIdx.x)", "(gridDim.y - 1 - blockIdx.y)") if backwards else ("blockIdx.x", "blockIdx.y")
    )
    if step.source is not None:
        defined |= source_definitions(plan, step)
    kind = {"maxpool": "pool", "avgpool": "pool", "softmax": "elementwise"}.get(step.kind, step.kind)
    if kind in ("pool", "resize"):
        for axis in range(3):
            defined |= {f"O{axis}": step.size[axis], f"I{axis}": step.source_size[axis]}
    if kind == "pool":
        g = step.geometry
        for axis in range(3):
            defined |= {
                f"K{axis}": g.kernel[axis],
                f"S{axis}": g.stride[axis],
                f"D{axis}": g.dilation[axis],
                f"B{axis}": g.before[axis],
            }
        defined |= {"LARGEST": int(step.kind == "maxpool"), "WHOLE": int(g.whole)}
    if kind in ("resize", "move"):
        defined |= {"TABLES": len(epilogue.pointers), "SOURCE_VOXELS": f"{int(np.prod(step.source_size))}ll"}
    if kind == "resize":
        linear = {f"LINEAR{axis}": int(plan.arrays[step.tables[axis]][2].any()) for axis in range(3)}
        defined |= {"RUN": RUN, "RUNS": runs, "LINES": f"{items}ll", **linear}
    if kind == "input":
        defined["CHANNELS"] = plan.channels
    files = ["read_source.cuh"] if step.source is not None else []
    if kind == "resize":
        files += ["loads_resize.cuh", "resize.cu"]
    else:
        loads = "elementwise" if kind == "elementwise" else kind
        files += [f"loads_{loads}.cuh", "loads_whole.cuh", "softmax.cu" if alone else "elementwise.cu"]
    blocks = -(-voxels // threads) if alone else -(-items // (rows * passes))
    source = kernel_text("prelude.cuh") + definitions(defined) + epilogue.text + kernel_text(*files)
    return source, (blocks, threads)
