"""TensorRT 10.12 to 11.x: real INT8 on NVIDIA GPUs.

One code path for all versions: the network is strongly typed, so that its types alone say what is INT8, and no precision flag,
calibrator or dynamic range (all gone in TensorRT 11) is touched. A plan is only loaded with the note that this module wrote
beside it on this machine: plans are programs, and one from elsewhere is never given to TensorRT.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from ...errors import DependencyError, EngineError
from ...files import replacing, write_json
from ...progress import Task
from ..base import BuildOptions, Precision
from ..cache import cache_root
from ..cuda import device as cuda
from ..error_causes import failure
from ..provenance import check_note, write_note
from .engine import TensorRTEngine
from .log import listening
from .lowering import lowered

_PLAN, _LAYERS = "engine.plan", "layers.json"
LEAST, BEYOND = (10, 12), (12, 0)
#: Of the GPU's free memory, what a build may use to try kernels.
_WORKSPACE_SHARE = 0.5
_LEVEL = 3


def tensorrt_module() -> Any:
    """The tensorrt package, of a version that is known here.

    Raises:
        DependencyError: missing, without its library, too old, or newer than what was looked at.
    """
    if importlib.util.find_spec("tensorrt") is None:
        raise DependencyError(
            "The Python package 'tensorrt' is not installed.", "Install it with: pip install tensorrt cuda-python"
        )
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:
        raise DependencyError(
            f"TensorRT is installed, but its library cannot be loaded: {error}.",
            "Install it again: pip install -U tensorrt",
        ) from error
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if version < LEAST:
        raise DependencyError(
            f"TensorRT {trt.__version__} is too old.",
            f"Install {LEAST[0]}.{LEAST[1]} or later: pip install -U tensorrt",
        )
    if version >= BEYOND:
        raise DependencyError(
            f"TensorRT {trt.__version__} is newer than what this program knows.",
            f"Install one below {BEYOND[0]}: pip install 'tensorrt<{BEYOND[0]}'",
        )
    return trt


def progress_monitor(trt: Any, task: Task) -> Any:
    """Passes a build's progress to ``task``, and its cancel to the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._top = ""

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._top = phase_name
                task.begin(num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if task.cancelled:
                return False
            if phase_name == self._top:
                task.begin_step(step + 1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            """Nothing is left to do."""

    return Monitor()


class TensorRTBackend:
    name = "tensorrt"
    title = "TensorRT"
    real_int8 = True
    needs_gpu = True
    precisions: tuple[Precision, ...] = ("int8", "fp16", "fp32")

    def unavailable(self) -> str:
        try:
            tensorrt_module()
            cuda.check_one_fits()
        except (EngineError, DependencyError) as error:
            return str(error)
        return ""

    def version(self) -> str:
        return str(tensorrt_module().__version__)

    def device_name(self, device: str) -> str:
        return cuda.choose_gpu(device).title

    def build(self, network: Path, folder: Path, options: BuildOptions) -> None:
        """Build as :meth:`build_with` does, without progress."""
        self.build_with(network, folder, options, Task())

    def build_with(self, network: Path, folder: Path, options: BuildOptions, task: Task) -> None:
        """Write plan, note and the multiply-accumulates of its layers into ``folder``.

        Raises:
            EngineError: the network cannot be parsed or built; names the node.
            Cancelled: the task was cancelled.
        """
        trt = tensorrt_module()
        info = cuda.choose_gpu(options.device)
        with cuda.Gpu(info.index) as gpu:
            # TensorRT allocates by itself, and would not get what waits here for its next use.
            gpu.blocks.empty()
            workspace = int(gpu.free_bytes * _WORKSPACE_SHARE)
            model, macs = prepared(network, options)
            plan = build_plan(trt, model, options, workspace, _cache_file(trt, info), task)
        write_plan(folder, plan, note_of(trt, info, options), macs)

    def load(self, folder: Path, options: BuildOptions) -> TensorRTEngine:
        trt = tensorrt_module()
        info = cuda.choose_gpu(options.device)
        check_note(folder / _PLAN, note_of(trt, info, options))
        gpu = cuda.Gpu(info.index)
        try:
            gpu.blocks.empty()
            with listening(trt) as log:
                runtime = started(trt.Runtime, log)
                engine = runtime.deserialize_cuda_engine((folder / _PLAN).read_bytes())
            if engine is None:
                raise failure(f"TensorRT cannot load its plan: {log.last_words()}.", log.errors)
            macs = json.loads((folder / _LAYERS).read_text(encoding="utf-8"))
            return TensorRTEngine(trt, runtime, engine, gpu, options, macs, info.name)
        except BaseException:
            gpu.close()
            raise


def prepared(network: Path, options: BuildOptions) -> tuple[Any, dict[str, int]]:
    """The lowered network with an open batch, and the multiply-accumulates of its nodes for one patch."""
    from ...models import onnx_graph as graph
    from ...models import qdq
    from ...models.layers import weighted_layers

    model = qdq.network_for(network, options.precision, options.high_precision)
    model = lowered(graph.fixed_shape(model, options.patch), options.precision)
    graph.name_nodes(model)
    macs = {layer.name: layer.macs for layer in weighted_layers(graph.fixed_shape(model, options.patch))}
    return graph.fixed_shape(model, options.patch, None), macs


def build_plan(
    trt: Any, model: Any, options: BuildOptions, workspace: int, cache_file: Path | None, task: Task, log: Any = None
) -> bytes:
    """Parse and build a strongly typed network; needs no GPU where the builder needs none.

    Args:
        log: holds another ``logger`` than this process's, and gives its ``last_words``; for tests.

    Raises:
        EngineError: the parser or the builder refuses; names the node.
        Cancelled: the task was cancelled.
    """
    if log is not None:
        return _built(trt, model, options, workspace, cache_file, task, log)
    with listening(trt) as heard:
        return _built(trt, model, options, workspace, cache_file, task, heard)


def _built(
    trt: Any, model: Any, options: BuildOptions, workspace: int, cache_file: Path | None, task: Task, log: Any
) -> bytes:
    builder = started(trt.Builder, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(model.SerializeToString()):
        raise EngineError(
            f"TensorRT cannot read this network: {parse_errors(parser)}.", "Choose another engine with --engine."
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = _LEVEL
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = progress_monitor(trt, task)
    profile = builder.create_optimization_profile()
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)[1:]
    profile.set_shape(tensor.name, (1, *shape), (options.batch, *shape), (options.batch, *shape))
    config.add_optimization_profile(profile)
    timing = _timing_cache(config, cache_file)
    with task.stage("building the engine"):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        task.check()
        raise failure(f"TensorRT cannot build this network: {log.last_words()}.", _said(log))
    if cache_file is not None and timing is not None:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache_file) as scratch:
            Path(scratch).write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def started(make: Any, log: Any) -> Any:
    """Start a TensorRT Builder or Runtime.

    Raises:
        EngineError: TensorRT does not start: no driver, or one for another CUDA than this TensorRT's.
    """
    try:
        return make(log.logger)
    except TypeError as error:
        # What the bindings make of a library that gives nothing back.
        raise failure(f"TensorRT does not start: {log.last_words()}.", _said(log)) from error


def _said(log: Any) -> list[str]:
    return log.errors or [log.last_words()]


def parse_errors(parser: Any) -> str:
    """The parser's errors with the names of their nodes."""
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_name()} ({error.node_operator()})" if error.node_name() else "the graph"
        errors.append(f"{where}: {error.desc()}".strip())
    return "; ".join(errors)[:600] or "no reason was given"


def _timing_cache(config: Any, cache_file: Path | None) -> Any:
    """Times of kernels from earlier builds; one of another version or GPU is refused by TensorRT, and then an empty one is begun."""
    if cache_file is None:
        return None
    content = cache_file.read_bytes() if cache_file.is_file() else b""
    timing = config.create_timing_cache(content)
    if not config.set_timing_cache(timing, False):
        timing = config.create_timing_cache(b"")
        config.set_timing_cache(timing, False)
    return timing


def _cache_file(trt: Any, info: cuda.GpuInfo) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in info.name)
    return cache_root() / "tensorrt" / f"{name}-{trt.__version__}.timing"


def note_of(trt: Any, info: cuda.GpuInfo, options: BuildOptions) -> dict[str, Any]:
    """Return the note of a plan: what it is tied to."""
    driver, _ = cuda.bindings()
    return {
        "tensorrt": trt.__version__,
        "gpu": info.name,
        "compute_capability": list(info.capability),
        "driver": int(cuda.checked(driver.cuDriverGetVersion(), "ask the driver for its version")),
        "options": json.loads(json.dumps(options.to_json())),
    }


def write_plan(folder: Path, plan: bytes, note: dict[str, Any], macs: dict[str, int]) -> None:
    """Write the plan first, its note last."""
    (folder / _PLAN).write_bytes(plan)
    write_json(folder / _LAYERS, macs)
    write_note(folder / _PLAN, note)
