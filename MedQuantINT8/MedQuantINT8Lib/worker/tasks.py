"""What the resident worker can do: segment, compare, quantize, build. Plain functions from volumes to arrays and a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..evaluation.boundary import VOLUME_CHANGE, examine
from ..imaging.volume import Volume
from ..imaging.volume_files import ReadOptions, read_volume, scan_paths
from ..inference import pipeline
from ..inference.engine_choice import EngineChoice
from ..inference.engine_pool import KeepingPool
from ..inference.segmenter import SegmentationOptions
from ..inference.task_model import LoadedModel
from ..models.package import ModelPackage
from ..outputs import check_output_package
from ..progress import Task

Request = dict[str, Any]


@dataclass(frozen=True)
class TaskContext:
    """What a task runs with.

    Attributes:
        model: loads a model (packages or a task) by its paths, or finds it loaded.
        pool: loaded engines.
        task: takes progress, and says whether the caller has canceled.
    """

    model: Callable[[str], LoadedModel]
    pool: KeepingPool
    task: Task


@dataclass(frozen=True)
class TaskResult:
    """Arrays for the caller, and a report of JSON values."""

    arrays: list[NDArray[Any]]
    report: dict[str, Any]


def _options(request: Request) -> SegmentationOptions:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in request["options"].items()}
    return SegmentationOptions(**values)


def _reading(request: Request) -> ReadOptions:
    return ReadOptions(**request.get("reading", {}))


def segment(request: Request, volumes: list[Volume], context: TaskContext) -> TaskResult:
    """Segment one volume with the model; one label map (K, J, I)."""
    choice = EngineChoice(**request["choice"])
    run = pipeline.segment(
        context.model(request["model"]), volumes[0], choice, _options(request), context.task, pool=context.pool
    )
    return TaskResult([run.result.labels], run.to_json())


def compare(request: Request, volumes: list[Volume], context: TaskContext) -> TaskResult:
    """FP32 beside INT8: both label maps, and the regions where they differ, numbered from the largest (uint16)."""
    choice, change = EngineChoice(**request["choice"]), float(request.get("volume_change", VOLUME_CHANGE))
    examination = examine(
        context.model(request["model"]), volumes[0], choice, _options(request), context.task, context.pool, change
    )
    return TaskResult([examination.fp32, examination.int8, examination.differences.numbers], examination.report)


def quantize(request: Request, volumes: list[Volume], context: TaskContext) -> TaskResult:
    """Calibrate a model on volumes and scan files, and write it with its INT8 network."""
    from ..quantization.accuracy_guard import Budget
    from ..quantization.calibration import CalibrationOptions, PatchSampler
    from ..quantization.effort import check_effort
    from ..quantization.latency import engine_stopwatch
    from ..quantization.quantize import QuantizationPolicy, calibration_patch, quantize_package

    check_output_package(
        request["output"], [path for scan in request["scans"] for path in scan_paths(scan)], itself=request["model"]
    )
    options = CalibrationOptions(request["method"], request["patches"])
    with ModelPackage.load(request["model"]) as package:
        patch = calibration_patch(package)
        sources = [lambda v=v: v for v in volumes] + [
            lambda p=p: read_volume(scan_paths(p), options=_reading(request)) for p in request["scans"]
        ]
        sampler = PatchSampler(sources, package.spec, patch, options, task=context.task)
        budget = Budget(
            request["agreement"], fallback=request["fallback"], worst_structure=request.get("worst_structure", 0.0)
        )
        policy = QuantizationPolicy(
            budget=budget, effort=request.get("effort", "normal"), weight_bits=request.get("weight_bits", 8)
        )
        check_effort(policy.effort, policy.weight_bits)
        stopwatch = engine_stopwatch(package)
        quantized, report = quantize_package(
            package, sampler, request["output"], options, policy, context.task, stopwatch
        )
        quantized.close()
    return TaskResult([], report.to_json())


def build(request: Request, volumes: list[Volume], context: TaskContext) -> TaskResult:
    """Build the engine of a model for this machine; with a volume it is compared with the simulation."""
    choice = EngineChoice(**request["choice"])
    with ModelPackage.load(request["model"]) as package:
        prepared = pipeline.build(package, choice, _options(request), volumes[0] if volumes else None, context.task)
        report = {
            **prepared.describe().to_json(),
            "bytes": prepared.entry.bytes,
            "note": prepared.note,
            "fidelity": prepared.fidelity.to_json() if prepared.fidelity else None,
        }
        prepared.close()
    return TaskResult([], report)


def install_model(request: Request, volumes: list[Volume], context: TaskContext) -> TaskResult:
    """Bring in a model: one of the catalogue by name, or the user's own from a path."""
    from ..importers import catalogue
    from ..models.installed import models_root

    if request["name"]:
        catalogue.install(catalogue.entry(request["name"]), None, context.task, trust_code=request["trust_code"])
        return TaskResult([], {"name": request["name"], "notes": []})
    from ..importers.detect import install_own

    name, notes = install_own(Path(request["source"]), models_root(), context.task, trust_code=request["trust_code"])
    return TaskResult([], {"name": name, "notes": notes})


TASKS: dict[str, Callable[[Request, list[Volume], TaskContext], TaskResult]] = {
    "segment": segment,
    "compare": compare,
    "quantize": quantize,
    "build": build,
    "install_model": install_model,
}
