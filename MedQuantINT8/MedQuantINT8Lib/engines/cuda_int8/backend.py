"""The door to the engine: plans are made and tuned when it is built, loaded and run afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ...errors import DependencyError, EngineError
from ...files import write_json
from ...progress import Task
from ..base import BuildOptions, EngineDescription, LayerRecord, Precision, UnsupportedNetwork
from ..cuda import device as cuda
from ..cuda.device import DeviceBuffer, Gpu, GpuError, Stream
from ..cuda.driver import nvrtc_version
from ..cuda.engine import GpuEngine
from .plan.kernel_plan import KernelPlan
from .runtime.autotuning import early_pays, from_json, to_json, tuned
from .runtime.network import BATCH_PARTS, CudaInt8Network
from .runtime.program import Program
from .tiling.weight_order import arranged_weights

VERSION = "1"
_TILES, _LAUNCHES, _WEIGHTS = "tiles.json", "launches.json", "weights.npz"


class CudaInt8Backend:
    name = "cuda_int8"
    title = "CUDA INT8"
    real_int8 = True
    needs_gpu = True
    #: What is not INT8 is FP16, with sums in FP32.
    precisions: tuple[Precision, ...] = ("int8", "fp16")

    def unavailable(self) -> str:
        try:
            _, nvrtc = cuda.bindings()
            cuda.check_one_fits()
            nvrtc_version(nvrtc)
        except (EngineError, DependencyError) as error:
            return str(error)
        return ""

    def version(self) -> str:
        return engine_version()

    def device_name(self, device: str) -> str:
        return cuda.choose_gpu(device).title

    def build(self, network: Path, folder: Path, options: BuildOptions) -> None:
        """As :meth:`build_with`, without progress."""
        self.build_with(network, folder, options, Task())

    def build_with(self, network: Path, folder: Path, options: BuildOptions, task: Task) -> None:
        """Write the plan, and the tiles that are fastest on the GPU at hand.

        Raises:
            EngineError: an operator has no kernel; names it.
            GpuMemoryError: the network does not fit into the GPU's memory.
            Cancelled: the task was cancelled.
        """
        if options.precision not in self.precisions:
            raise EngineError(
                f"{self.title} does not compute in {options.precision.upper()}.", "Choose another precision or engine."
            )
        with Gpu(cuda.choose_gpu(options.device).index) as gpu:
            gpu.warm_compiler()
            with task.stage("planning"):
                plan = planned(network, options)
            _build_plan(gpu, plan, folder, options.batch, task)

    def load(self, folder: Path, options: BuildOptions) -> CudaInt8Engine:
        plan = KernelPlan.load(folder)
        gpu = Gpu(cuda.choose_gpu(options.device).index)
        try:
            tilings = from_json(plan, json.loads((folder / _TILES).read_text(encoding="utf-8")))
            with np.load(folder / _WEIGHTS, allow_pickle=False) as weights:
                network = CudaInt8Network(
                    gpu,
                    plan,
                    options.batch,
                    tilings,
                    lambda tiling: weights[tiling.step.weights],
                    parts=BATCH_PARTS,
                    early=json.loads((folder / _LAUNCHES).read_text(encoding="utf-8"))["early"],
                )
            return CudaInt8Engine(gpu, network, options)
        except BaseException:
            gpu.close()
            raise


def _build_plan(gpu: Gpu, plan: KernelPlan, folder: Path, batch: int, task: Task) -> None:
    """The engine of a plan; see :meth:`CudaInt8Backend.build_with`."""
    tiles = to_json(tuned(gpu, plan, batch, task))
    write_json(folder / _TILES, tiles)
    # Weights in the order of the chosen tiles: putting them in order takes longer than reading them.
    chosen = from_json(plan, tiles)
    write_json(folder / _LAUNCHES, {"early": early_pays(gpu, plan, batch, chosen, BATCH_PARTS)})
    tilings = list(chosen.values())
    with ThreadPoolExecutor() as pool:
        arranged = pool.map(partial(arranged_weights, plan), tilings)
        np.savez(folder / _WEIGHTS, **{t.step.weights: weights for t, weights in zip(tilings, arranged, strict=True)})  # type: ignore[arg-type]
    raw = {step.weights for step in plan.steps}
    replace(plan, arrays={name: array for name, array in plan.arrays.items() if name not in raw}).save(folder)


def planned(network: Path, options: BuildOptions) -> KernelPlan:
    """The plan of an ONNX file; needs no GPU.

    Raises:
        UnsupportedNetwork: an operator has no kernel (named), or the output has another size than the patch.
    """
    from ...models import onnx_graph as graph
    from ...models import qdq
    from .frontend.onnx_reader import read_network
    from .plan.planner import plan_network

    model = graph.fixed_shape(qdq.network_for(network, options.precision, options.high_precision), options.patch)
    graph.name_nodes(model)
    read = read_network(model)
    if tuple(read.shapes[read.output][2:]) != tuple(options.patch):
        size = " x ".join(map(str, read.shapes[read.output][2:]))
        raise UnsupportedNetwork(
            f"CUDA INT8 takes networks that keep a patch's size; this one gives {size}.",
            "Choose another engine with --engine.",
        )
    return plan_network(read)


def engine_files() -> list[Path]:
    """This folder's Python and CUDA C, and how kernels are put together and compiled (of :mod:`..cuda`)."""
    here = Path(__file__).parent
    own = sorted(path for path in here.rglob("*") if path.suffix in (".py", ".cu", ".cuh"))
    return [*own, *(here.parent / "cuda" / name for name in ("compiler.py", "source_files.py"))]


@lru_cache(maxsize=1)
def engine_version() -> str:
    """The engine's version, with a digest of all that decides about kernels, plans and weights: what other files laid out is built anew."""
    digest = hashlib.sha256()
    for path in engine_files():
        digest.update(path.read_bytes())
    return f"{VERSION}.{digest.hexdigest()[:8]}"


class CudaInt8Engine(GpuEngine):
    """A loaded plan."""

    def __init__(self, gpu: Gpu, network: CudaInt8Network, options: BuildOptions) -> None:
        plan = network.plan
        super().__init__(gpu, options, plan.channels, plan.classes)
        self.gpu_network: CudaInt8Network | None = network
        self._network = network

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        self._network.enqueue(batch, source, target, stream)

    def describe(self) -> EngineDescription:
        layers = tuple(_record(program) for program in self._network.programs)
        return EngineDescription("cuda_int8", engine_version(), self._gpu.info.title, layers)

    def close(self) -> None:
        if self.gpu_network is None:
            return
        self._close_pipeline()
        self.gpu_network = None
        with contextlib.suppress(GpuError):
            self._network.close()
            self._gpu.close()


def _record(program: Program) -> LayerRecord:
    """A step as it runs: the instruction that multiplies, and the tile."""
    step, tiling = program.step, program.tiling
    if step.attention is not None:
        return LayerRecord(
            step.name,
            "Attention",
            "f16",
            f"attention.f16, {step.attention.tokens} tokens",
            step.macs,
            int8=False,
            sources=step.sources,
        )
    if tiling is None:
        return LayerRecord(step.name, step.kind, "f32", step.kind, 0, int8=False, sources=step.sources)
    tile = tiling.tile
    precision = "s8" if step.int8 else "f16"
    size = " x ".join(map(str, tile.voxels))
    kernel = f"{'wgmma' if tile.groups else 'mma'}.{precision}, {size} voxels by {tile.channels} channels"
    return LayerRecord(
        step.name,
        "Conv" if step.kind == "conv" else "ConvTranspose",
        precision,
        kernel,
        step.macs,
        step.int8,
        step.sources,
    )
