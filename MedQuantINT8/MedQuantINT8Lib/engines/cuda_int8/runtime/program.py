"""A plan's kernels, compiled for the GPU at hand, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...base import UnsupportedNetwork
from ...cuda.device import Gpu
from ..kernels import kernel_text
from ..kernels.convolution import conv_source
from ..kernels.elementwise import elementwise_source
from ..kernels.epilogue import POINTERS, EpilogueSource
from ..kernels.transformer import ATTENTION_THREADS, attention_grid, attention_source, layernorm_source
from ..plan.kernel_plan import KernelPlan, Step
from ..tiling.candidates import Machine, first_guess
from ..tiling.tiling import Tiling

Grid = tuple[int, int, int]


@dataclass
class Program:
    """A program: one kernel of a step.

    Attributes:
        grid: blocks for a batch.
        partials: how many partial sums it leaves of each slot, where it gathers statistics.
        tiling: of a convolution.
        numbers: whole numbers that a kernel of a norm's statistics is given instead of having them written in.
        shared_tiles, workspace: where several blocks share the sums of a tile, how many such tiles there are, and bytes for the sums.
    """

    step: Step
    epilogue: EpilogueSource
    source: str
    grid: Callable[[int], Grid]
    threads: int
    shared: int = 0
    partials: int = 0
    tiling: Tiling | None = None
    shared_tiles: int = 0
    workspace: int = 0
    numbers: tuple[int, ...] = ()
    function: Any = field(default=None, repr=False)


def machine_of(gpu: Gpu) -> Machine:
    return Machine(gpu.info.capability, gpu.processors)


def conv_program(plan: KernelPlan, step: Step, tiling: Tiling, machine: Machine) -> Program:
    epilogue, split = EpilogueSource(plan, step), tiling.tile.split
    blocks = machine.blocks(tiling)
    source = conv_source(plan, tiling, blocks, machine.resident(tiling), epilogue)
    program = Program(
        step,
        epilogue,
        source,
        lambda batch: (blocks * batch, tiling.column_blocks, tiling.phases * split),
        tiling.tile.threads,
    )
    program.shared, program.partials, program.tiling = (
        tiling.shared_bytes,
        blocks * tiling.phases * tiling.spread,
        tiling,
    )
    if split > 1:
        program.shared_tiles = blocks * tiling.column_blocks * tiling.phases
        program.workspace = program.shared_tiles * split * tiling.tile.count * tiling.tile.channels * 4
    return program


def elementwise_program(plan: KernelPlan, step: Step) -> Program:
    epilogue = EpilogueSource(plan, step)
    make = layernorm_source if step.kind == "layernorm" else elementwise_source
    source, (blocks, threads) = make(plan, step, epilogue)
    return Program(step, epilogue, source, lambda batch: (blocks, batch, 1), threads, partials=blocks)


def attention_program(plan: KernelPlan, step: Step, machine: Machine) -> Program:
    """The kernel of an attention step.

    Raises:
        UnsupportedNetwork: keys and values of a window do not fit into the GPU's shared memory.
    """
    epilogue = EpilogueSource(plan, step)
    source, shared = attention_source(plan, step, epilogue)
    if shared > machine.block_bytes:
        assert step.attention is not None
        raise UnsupportedNetwork(
            f"CUDA INT8 keeps the keys and values of attention in a GPU's shared memory; {step.attention.tokens} tokens with heads of {step.attention.width} channels "
            f"take {shared / 1024:.0f} KB, and this GPU has {machine.block_bytes / 1024:.0f} (node {step.name}).",
            "Choose a smaller patch, or another engine with --engine: tensorrt, or openvino.",
        )
    return Program(step, epilogue, source, lambda batch: attention_grid(step, batch), ATTENTION_THREADS, shared)


def normalize_program(plan: KernelPlan, step: Step, partials: int) -> Program:
    norm = plan.norms[step.norm]
    slots = np.concatenate(norm.groups)
    head = f"#define MEMBERS {len(norm.groups[0])}\n#define REGULAR {int((np.diff(slots) == 1).all())}\n"
    # One kernel for all layers: a size that is written in would be compiled anew for each.
    numbers = partials, step.layout.width, step.voxels, int(slots[0])
    return Program(
        step,
        EpilogueSource(plan, step),
        head + kernel_text("normalize.cu"),
        lambda batch: (len(norm.groups), batch, 1),
        256,
        numbers=numbers,
    )


def fixed_programs(plan: KernelPlan, machine: Machine) -> list[Program]:
    """Return the programs that no choice of tiles changes.

    Raises:
        UnsupportedNetwork: attention does not fit.
    """
    return [
        _fixed_program(plan, step, machine) for step in plan.steps if step.kind not in ("conv", "deconv", "normalize")
    ]


def _fixed_program(plan: KernelPlan, step: Step, machine: Machine) -> Program:
    return attention_program(plan, step, machine) if step.kind == "attention" else elementwise_program(plan, step)


def programs(plan: KernelPlan, machine: Machine, batch: int, chosen: dict[str, Tiling] | None = None) -> list[Program]:
    """All kernels of a plan; ``chosen`` tilings by a step's name, else the best guess."""
    sequence: list[Program] = []
    partials: dict[str, int] = {}
    for step in plan.steps:
        if step.kind in ("conv", "deconv"):
            program = conv_program(
                plan, step, (chosen or {}).get(step.name) or first_guess(step, machine, batch), machine
            )
        elif step.kind == "normalize":
            program = normalize_program(plan, step, partials[step.norm])
        else:
            program = _fixed_program(plan, step, machine)
        if program.epilogue.norm:
            partials[program.epilogue.norm] = program.partials
        sequence.append(program)
    return sequence


#: The struct Params of the kernels, in prelude.cuh.
PARAMS = np.dtype(
    [
        ("source", np.uint64),
        ("weights", np.uint64),
        ("output", np.uint64),
        ("partials", np.uint64),
        ("workspace", np.uint64),
        ("counters", np.uint64),
        ("ptr", np.uint64, POINTERS),
        ("f", np.float32, POINTERS),
        ("source_half", np.int32),
        ("unused", np.int32, 3),
    ]
)
