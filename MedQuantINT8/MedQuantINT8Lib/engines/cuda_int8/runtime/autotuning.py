"""Which tiling of each convolution is fastest on the GPU at hand: the best guesses, timed."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....progress import Task
from ...cuda.device import DeviceBuffer, Event, Gpu, Stream
from ...cuda.graph_capture import CapturedGraph
from ..plan.kernel_plan import KernelPlan, Step
from ..tiling.candidates import first_guess, least_cycles, proposals
from ..tiling.tile import Tile
from ..tiling.tiling import Tiling
from .network import CudaInt8Network
from .program import Program, conv_program, fixed_programs, machine_of

#: Of a convolution that takes at least such a share of the time of all, by estimate, so many of the best guesses are timed. In the mean of five networks
#: 0.3 % of their time is left so that two to six of each would have found, for a fifth fewer kernels to compile.
_GUESSES = ((0.1, 6), (0.03, 4), (0.0075, 3), (0.0, 1))
#: Of a first layer at least so many: what reading the network's input costs is not part of the estimate.
_FIRST_GUESSES = 2
#: How often a launch is timed.
_ROUNDS, _RUNS = 3, 8
#: How often a network is timed in each of two ways, and the compute capability from which on a kernel can begin before the one before it ends.
_NETWORK_ROUNDS, _EARLY_CAPABILITY = 11, (9, 0)


def tuned(gpu: Gpu, plan: KernelPlan, batch: int, task: Task | None = None) -> dict[str, Tile]:
    """The fastest tile of each convolution, by the name of its step.

    Raises:
        Cancelled: the task was cancelled.
        GpuMemoryError: the network does not fit.
        UnsupportedNetwork: attention or a convolution does not fit.
    """
    task = task or Task()
    machine = machine_of(gpu)
    # What does not fit is refused before anything is compiled.
    fixed = fixed_programs(plan, machine)
    # Tiles are ranked while kernels that do not depend on them are compiled, and those of the best guesses, which are needed in any case.
    gpu.begin_compiling([program.source for program in fixed])
    # Steps of equal source are the same work, and are timed once.
    alike: dict[str, list[Step]] = {}
    convolutions = [step for step in plan.steps if step.kind in ("conv", "deconv")]
    with task.stage("choosing tiles", len(convolutions)):
        for step in convolutions:
            guess = conv_program(plan, step, first_guess(step, machine, batch), machine)
            alike.setdefault(guess.source, []).append(step)
            gpu.begin_compiling([guess.source])
            task.step()
    costs = [len(steps) * least_cycles(steps[0], machine, batch) for steps in alike.values()]
    tried = []
    for steps, cost in zip(alike.values(), costs, strict=True):
        guesses = next(guesses for share, guesses in _GUESSES if cost >= share * sum(costs))
        guesses = max(guesses, _FIRST_GUESSES) if steps[0].neighbors else guesses
        tried.append(
            (steps, [conv_program(plan, steps[0], t, machine) for t in proposals(steps[0], machine, batch, guesses)])
        )
    # Those that take longest to compile first, so that they are not waited for in the end.
    every = sorted((program for _, programs in tried for program in programs), key=_size, reverse=True)
    gpu.compiled([program.source for program in every], "run", task)
    network = CudaInt8Network(gpu, plan, batch, weights=partial(_any_order, plan))
    stream, begin, end = gpu.stream(), gpu.event(), gpu.event()
    fastest: dict[str, Tile] = {}
    try:
        ends = (
            network.memory.hold((batch, plan.channels, *plan.size), np.float16),
            network.memory.hold((batch, plan.classes, *plan.size), np.float16),
        )
        ends[0].zero(stream)
        network.parts[0].activations.zero(stream)
        with task.stage("timing kernels", len(tried)):
            for steps, programs in tried:
                times = [_milliseconds(network, program, batch, ends, stream, begin, end) for program in programs]
                best = programs[int(np.argmin(times))].tiling
                assert best is not None
                for step in steps:
                    fastest[step.name] = best.guess
                task.step()
    finally:
        network.close()
        for thing in (stream, begin, end):
            thing.free()
    return fastest


def _size(program: Program) -> int:
    """Roughly how large a kernel's text is when it is compiled: its products are written out."""
    assert program.tiling is not None
    return program.tiling.sums * program.tiling.group_mma_steps


def _any_order(plan: KernelPlan, tiling: Tiling) -> NDArray[np.uint8]:
    """As many bytes as a tiling's weights: putting them in order takes longer than timing, and time does not depend on the order."""
    raw = plan.arrays[tiling.step.weights].view(np.uint8).reshape(-1)
    return np.resize(raw, len(tiling.taps) * tiling.column_blocks * tiling.rounds * tiling.weight_bytes)


def _milliseconds(
    network: CudaInt8Network,
    program: Program,
    batch: int,
    ends: tuple[DeviceBuffer, DeviceBuffer],
    stream: Stream,
    begin: Event,
    end: Event,
) -> float:
    """The milliseconds of one launch, the best of a few; launches are recorded, since short kernels are over before the next is started one by one."""
    with network.prepared(program, stream) as launch:

        def runs(stream: Stream) -> None:
            for _ in range(_RUNS):
                launch(batch, *ends, stream)

        graph = CapturedGraph(network.gpu, stream, runs)
        times = []
        try:
            graph.launch(0)
            for _ in range(_ROUNDS):
                begin.record(stream)
                graph.launch(0)
                end.record(stream)
                end.wait()
                times.append(end.milliseconds_since(begin) / _RUNS)
        finally:
            graph.free()
    return min(times)


def early_pays(gpu: Gpu, plan: KernelPlan, batch: int, tilings: dict[str, Tiling], parts: int) -> bool:
    """Whether a network is faster if each kernel may begin before the one before it ends, by its own time with and without.

    Raises:
        GpuMemoryError: the network does not fit.
    """
    if gpu.info.capability < _EARLY_CAPABILITY:
        return False
    network = CudaInt8Network(gpu, plan, batch, tilings, weights=partial(_any_order, plan), parts=parts)
    stream, begin, end = gpu.stream(), gpu.event(), gpu.event()
    times: dict[bool, list[float]] = {False: [], True: []}
    graphs: list[CapturedGraph] = []
    try:
        source = network.memory.hold((batch, plan.channels, *plan.size), np.float16)
        target = network.memory.hold((batch, plan.classes, *plan.size), np.float16)
        source.zero(stream)
        for part in network.parts:
            part.activations.zero(stream)
        for early in times:
            network.early = early
            graphs.append(CapturedGraph(gpu, stream, partial(network.put, batch, source, target)))
            graphs[-1].launch(0)
        for _ in range(_NETWORK_ROUNDS):
            for early, graph in zip(times, graphs, strict=True):
                begin.record(stream)
                graph.launch(0)
                end.record(stream)
                end.wait()
                times[early].append(end.milliseconds_since(begin))
    finally:
        stream.synchronize()
        for graph in graphs:
            graph.free()
        for thing in (stream, begin, end):
            thing.free()
        network.close()
    return float(np.median(times[True])) < float(np.median(times[False]))


def to_json(tiles: dict[str, Tile]) -> dict[str, Any]:
    return {name: asdict(tile) for name, tile in tiles.items()}


def from_json(plan: KernelPlan, value: dict[str, Any]) -> dict[str, Tiling]:
    """Tilings of a plan's convolutions."""
    tiles = {name: Tile(**{**tile, "voxels": tuple(tile["voxels"])}) for name, tile in value.items()}
    return {step.name: Tiling.of(step, tiles[step.name]) for step in plan.steps if step.name in tiles}
