"""The whole road on a synthetic abdomen or a user's scan: calibrate, quantize, build, segment, report; in a Slicer scene where there is one."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.agreement import agreement, mean_dice
from ..evaluation.reports.pages import require_templates
from ..evaluation.reports.pictures import comparison_slices, comparison_title
from ..evaluation.reports.report import REPORT_FILES, agreement_json, picture_json, report_json, run_json, write_report
from ..evaluation.reports.viewer import ViewerScan, viewer_module
from ..evaluation.viewing import viewer_pair
from ..files import storage_errors
from ..imaging.phantom import demo_scan, make_phantom, phantom_spec
from ..imaging.pictures import segmentation_picture
from ..imaging.volume import Volume
from ..imaging.volume_files import read_volume
from ..importers.onnx import import_onnx
from ..inference import pipeline
from ..inference.engine_choice import EngineChoice
from ..inference.segmenter import SegmentationOptions
from ..inference.structure_dice import WorstStructures
from ..models.package import ModelPackage
from ..progress import Task
from ..quantization.calibration import CalibrationOptions, PatchSampler
from ..resources import resource

#: What the demo writes.
FILES = (*REPORT_FILES, "segmentation.seg.nrrd", "picture.png", "model.zip")
#: Seeds that the network was not trained on.
_CALIBRATION_SEEDS = (1001, 1002, 1003)
_TRAINED_ON = "The demo's network has seen synthetic abdomens alone: on another scan look at how INT8 agrees with FP32, not at the organs."


@dataclass(frozen=True)
class _Case:
    """The scan that the demo segments, and the scans that it calibrates on.

    Attributes:
        truth: the true labels (K, J, I), which only a synthetic abdomen has.
    """

    name: str
    volume: Volume
    calibration: list[Callable[[], Volume]]
    truth: NDArray[np.uint8] | None = None


def run_demo(folder: Path, task: Task, scan: str | None = None) -> dict[str, Any]:
    """Write segmentation.seg.nrrd, model.zip, report.json and report.html into ``folder``; with Slicer or slicer-core picture.png, too.

    Args:
        scan: a file or DICOM folder to calibrate on and segment instead of synthetic abdomens.

    Raises:
        DependencyError: ModelOpt, Jinja2 or an engine is not installed.
        InputError: the scan cannot be read.
    """
    require_templates()
    began = time.perf_counter()
    with task.stage("making a scan" if scan is None else "reading"):
        case = _synthetic() if scan is None else _given_case(scan)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="medquant-demo-") as scratch:
        package = import_onnx(resource("phantom_unet.onnx"), phantom_spec(), Path(scratch) / "model")
        options = CalibrationOptions(patches=12)
        from ..quantization.quantize import calibration_patch, quantize_package

        sampler = PatchSampler(case.calibration, package.spec, calibration_patch(package), options, task=task)
        package, quantized = quantize_package(package, sampler, folder / "model.zip", options, task=task)
        runs = _segmented(package, case.volume, task)
        report, rows = _report(package, runs, case)
        viewed: list[ViewerScan] = []
        if viewer_module():
            fp32, int8 = runs["fp32"].result.labels, runs["int8"].result.labels
            named = replace(case.volume, name=case.name)
            viewed.append(viewer_pair(named, fp32, int8, package.spec.labels))
        missing = _results(folder, package, case, runs["int8"], (report, viewed), task)
        package.close()
    first, second = runs["fp32"], runs["int8"]
    engine = second.engine["description"]
    dice = f"agreement         mean Dice {_dice(rows['fp32'])} with FP32"
    if case.truth is not None:
        dice += f", {_dice(rows['truth'])} with the truth (FP32: {_dice(rows['fp32-truth'])})"
    files = ["report.html", "segmentation.seg.nrrd", *([] if missing else ["picture.png"]), "model.zip"]
    lines = [
        f"INT8 network      {quantized.int8_bytes / 1e3:.0f} kB instead of {quantized.fp32_bytes / 1e3:.0f} kB",
        f"engine            {second.engine['title']}: {engine['verdict']}, {100 * engine['int8_mac_share']:.1f} % of multiply-accumulates in INT8",
        f"one call          {first.latency_ms['median']:.1f} ms in FP32, {second.latency_ms['median']:.1f} ms in INT8",
        dice,
        f"least agreement   {_least(rows['fp32'])}",
        *([f"note              {_TRAINED_ON}"] if scan is not None else []),
        *([f"no picture.png    {missing}"] if missing else []),
        f"wrote             {', '.join(str(folder / name) for name in files)} in {time.perf_counter() - began:.0f} s",
    ]
    return {"folder": str(folder), "report": report, "lines": lines}


def _segmented(package: ModelPackage, volume: Volume, task: Task) -> dict[str, pipeline.SegmentationRun]:
    """The faster of two runs of each precision, taken in turn: other work on the machine then slows both alike.

    Engines are built before, and compared with the simulation: what is timed is what a user waits for from the second scan on.
    """
    options = SegmentationOptions()
    runs: dict[str, pipeline.SegmentationRun] = {}
    choices = {precision: EngineChoice(precision=precision) for precision in ("fp32", "int8")}  # type: ignore[arg-type]
    for choice in choices.values():
        pipeline.build(package, choice, options, volume, task).close()
    for precision in ("fp32", "int8", "fp32", "int8"):
        run = pipeline.segment(package, volume, choices[precision], options, task)
        if precision not in runs or run.seconds["total"] < runs[precision].seconds["total"]:
            runs[precision] = run
    return runs


def _synthetic() -> _Case:
    volume, truth = demo_scan()
    return _Case("Synthetic abdomen", volume, [partial(_scan, seed) for seed in _CALIBRATION_SEEDS], truth)


def _scan(seed: int) -> Volume:
    return make_phantom(seed)[0]


def _given_case(scan: str) -> _Case:
    volume = read_volume(scan)
    volume.check(channels=len(phantom_spec().channels))
    return _Case(Path(scan).name, volume, [lambda: volume])


def _least(rows: Any) -> str:
    """The structures in which INT8 agrees least with FP32, in words."""
    worst = WorstStructures.of((row.name, row.dice, max(row.ml, row.other_ml)) for row in rows)
    return worst.text.removeprefix("worst: ") or "unknown (no structure was found)"


def _dice(rows: Any) -> str:
    value = mean_dice(rows)
    return "unknown (no structure was found)" if value is None else f"{value:.4f}"


def _report(package: ModelPackage, runs: dict[str, Any], case: _Case) -> tuple[dict[str, Any], dict[str, Any]]:
    labels, ml = package.spec.labels, case.volume.grid.voxel_ml
    label_maps = {precision: run.result.labels for precision, run in runs.items()}
    rows = {"fp32": agreement(label_maps["int8"], label_maps["fp32"], labels, ml)}
    agreements = [agreement_json(case.name, "int8", "fp32", rows["fp32"])]
    if case.truth is not None:
        for key, precision in (("fp32-truth", "fp32"), ("truth", "int8")):
            rows[key] = agreement(label_maps[precision], case.truth, labels, ml)
            agreements.append(agreement_json(case.name, precision, "labels", rows[key]))
    picture = comparison_slices(case.volume, label_maps["fp32"], label_maps["int8"], labels)
    # Both precisions ran in this process, after calibration: its peak of memory tells nothing of either.
    described = [{**run_json(case.name, run), "peak_memory_bytes": None} for run in runs.values()]
    value = report_json(
        package,
        described,
        agreements,
        [
            picture_json(comparison_title(case.name, label_maps["fp32"], label_maps["int8"]), picture),
            picture_json(
                f"{case.name}: what INT8 found", segmentation_picture(case.volume, label_maps["int8"], labels)
            ),
        ],
    )
    return value, rows


def _results(
    folder: Path,
    package: ModelPackage,
    case: _Case,
    run: Any,
    page: tuple[dict[str, Any], list[ViewerScan]],
    task: Task,
) -> str:
    """Write what was found; returns why there is no picture of a scene, or an empty string."""
    from ..imaging.segmentation_files import write_segmentation

    labels = package.spec.labels
    report, viewed = page
    with task.stage("writing the results"):
        missing = (
            ""
            if _has_slicer()
            else "Neither 3D Slicer nor its core is installed, which draws it: pip install slicer-core"
        )
        if missing:
            write_segmentation(folder / "segmentation.seg.nrrd", run.result.labels, run.result.ijk_to_ras, labels)
        else:
            from ..slicer_module.scene import add_segmentation, headless_scene, save_segmentation, volume_node
            from ..slicer_module.views import save_picture

            node = volume_node(case.volume, case.name, headless_scene())
            segmentation = add_segmentation(run.result.labels, labels, node, surface=True)
            save_segmentation(segmentation, folder / "segmentation.seg.nrrd")
            save_picture(node, segmentation, folder / "picture.png")
            title = "INT8's segmentation in Slicer: slices and surfaces"
            report["pictures"].append(picture_json(title, (folder / "picture.png").read_bytes()))
        write_report(report, folder, viewed)
    return missing


def _has_slicer() -> bool:
    try:
        return importlib.util.find_spec("slicer") is not None
    except (ImportError, ValueError):
        return False
