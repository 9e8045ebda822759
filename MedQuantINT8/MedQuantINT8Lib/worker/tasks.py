"""What the resident worker can do: segment, measure, compare, quantize, build. Plain functions from volumes to arrays and a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..evaluation.boundary import VOLUME_CHANGE, examine
from ..files import split_paths
from ..imaging.measurements import measure as measure_structures
from ..imaging.volume import Volume
from ..imaging.volume_files import ReadOptions, read_volume, scan_paths
from ..inference import pipeline
from ..inference.engine_choice import EngineChoice
from ..inference.engine_pool import KeepingPool
from ..inference.region_run import chosen_labels
from ..inference.result_files import OutputOptions, prepare, result_of, write_results
from ..inference.segmenter import SegmentationOptions
from ..inference.task_model import LoadedModel, description_of, load_model, named_packages
from ..models.package import ModelPackage
from ..models.spec import Label
from ..models.task_package import is_task
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
    """Segment one volume with the model; one label map (K, J, I), and the files that ``outputs`` asks for."""
    (volume,), choice = volumes, EngineChoice(**request["choice"])
    model, options = context.model(request["model"]), _options(request)
    outputs = OutputOptions.from_json(request.get("outputs", {}))
    description = description_of(model)
    labels = chosen_labels(description.labels, options.structures, description.name)
    outputs.check(labels, [*split_paths(request["model"]), *volume.dicom_files])
    source = prepare(outputs, volume, labels)
    run = pipeline.segment(model, volume, choice, outputs.with_margins(options), context.task, pool=context.pool)
    written: list[dict[str, Any]] = []
    if outputs:
        with context.task.stage("writing"):
            written, notes = write_results(outputs, result_of(run, model, labels, source), context.task)
        run.result.notes += notes
    return TaskResult([run.result.labels], {**run.to_json(), "outputs": written})


def measure(request: Request, volumes: list[Volume], context: TaskContext) -> TaskResult:
    """Measure the structures of label maps on a scan: the first volume is the scan, ``labels`` has values and names for each of the others."""
    scan, *label_maps = volumes
    measurements = []
    with context.task.stage("measuring", len(label_maps)):
        for label_map, labels in zip(label_maps, request["labels"], strict=True):
            values = [Label(item["value"], item["name"], item["value"]) for item in labels]
            measurements += [item.to_json() for item in measure_structures(scan, label_map.data[0], values)]
            context.task.step()
    return TaskResult([], {"structures": measurements})


def compare(request: Request, volumes: list[Volume], context: TaskContext) -> TaskResult:
    """FP32 beside INT8: both label maps, and the regions where they differ, numbered from the largest (uint16)."""
    choice, change = EngineChoice(**request["choice"]), float(request.get("volume_change", VOLUME_CHANGE))
    examination = examine(
        context.model(request["model"]), volumes[0], choice, _options(request), context.task, context.pool, change
    )
    return TaskResult([examination.fp32, examination.int8, examination.differences.numbers], examination.report)


def quantize(request: Request, volumes: list[Volume], context: TaskContext) -> TaskResult:
    """Calibrate a model on volumes and scan files, and write it with its INT8 network; of several networks, with that of each."""
    from ..quantization.accuracy_guard import Budget
    from ..quantization.calibration import CalibrationOptions, PatchSampler
    from ..quantization.effort import check_effort
    from ..quantization.latency import engine_stopwatch
    from ..quantization.quantize import QuantizationPolicy, calibration_patch, quantize_package
    from ..quantization.task_networks import ScanSource, has_several, quantize_networks

    options = CalibrationOptions(request["method"], request["patches"])
    budget = Budget(
        request["agreement"], fallback=request["fallback"], worst_structure=request.get("worst_structure", 0.0)
    )
    policy = QuantizationPolicy(
        transposed=request.get("transposed", False),
        budget=budget,
        effort=request.get("effort", "normal"),
        weight_bits=request.get("weight_bits", 8),
    )
    check_effort(policy.effort, policy.weight_bits)
    sources: list[ScanSource] = [lambda v=v: v for v in volumes]  # type: ignore[misc]
    for scan in request["scans"]:
        sources.append(lambda p=scan: read_volume(scan_paths(p), options=_reading(request)))  # type: ignore[misc]

    def quantize_one(model: str, target: str, scans: Sequence[ScanSource]) -> dict[str, Any]:
        with ModelPackage.load(model) as package:
            sampler = PatchSampler(scans, package.spec, calibration_patch(package), options, task=context.task)
            stopwatch = engine_stopwatch(package)
            quantized, report = quantize_package(package, sampler, target, options, policy, context.task, stopwatch)
            quantized.close()
        return report.to_json()

    model, target = request["model"], request["output"]
    if has_several(model):
        return TaskResult([], {"networks": quantize_networks(model, target, sources, quantize_one, context.task)})
    check_output_package(target, [path for scan in request["scans"] for path in scan_paths(scan)], itself=model)
    report = quantize_one(model, target, sources)
    return TaskResult([], report)


def build(request: Request, volumes: list[Volume], context: TaskContext) -> TaskResult:
    """Build the engine of a model for this machine, or of each network of a task; with a volume it is compared with the simulation."""
    choice = EngineChoice(**request["choice"])
    reports = []
    with load_model(request["model"]) as model:
        for name, package in named_packages(model):
            prepared = pipeline.build(package, choice, _options(request), volumes[0] if volumes else None, context.task)
            report = {
                **prepared.describe().to_json(),
                "bytes": prepared.entry.bytes,
                "note": prepared.note,
                "fidelity": prepared.fidelity.to_json() if prepared.fidelity else None,
            }
            prepared.close()
            reports.append((name, report))
    if is_task(request["model"]) or len(reports) > 1:
        return TaskResult([], {"networks": [{"network": name, **report} for name, report in reports]})
    return TaskResult([], reports[0][1])


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
    "measure": measure,
    "compare": compare,
    "quantize": quantize,
    "build": build,
    "install_model": install_model,
}
