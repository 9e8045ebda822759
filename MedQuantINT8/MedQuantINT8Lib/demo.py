"""The whole road on a volume that the project makes: calibrate, quantize, build, segment in a Slicer scene, report."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from . import runs
from .calibration import CalibrationOptions, PatchSampler
from .evaluation import agreement, mean_dice
from .files import storage_errors
from .importers.onnx import import_onnx
from .model import ModelPackage
from .phantom import make_phantom, phantom_spec
from .pictures import comparison_slices
from .progress import Task
from .report import agreement_json, picture_json, report_json
from .resources import resource
from .segmenter import SegmentationOptions

#: Seeds that the network was not trained on.
_CALIBRATION_SEEDS, _SCAN_SEED = (1001, 1002, 1003), 1000


def run_demo(folder: Path, task: Task) -> dict[str, Any]:
    """Write segmentation.seg.nrrd, picture.png, report.json and report.html into ``folder``.

    Raises:
        DependencyError: slicer-core, ModelOpt or an engine is not installed.
    """
    from .mrml import headless_scene, volume_from_node, volume_node

    began = time.perf_counter()
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with task.stage("making a scene"):
        scene = headless_scene()
        phantom, truth = make_phantom(_SCAN_SEED, (176, 144, 128), 2.2)
        node = volume_node(phantom, "Phantom", scene)
        calibration_nodes = [volume_node(make_phantom(seed)[0], f"Calibration {seed}", scene) for seed in _CALIBRATION_SEEDS]
    with TemporaryDirectory(prefix="medquant-demo-") as scratch:
        package = import_onnx(resource("phantom_unet.onnx"), phantom_spec(), Path(scratch) / "model")
        options = CalibrationOptions(patches=12)
        from .quantization import calibration_patch, quantize_package

        sources = [lambda n=n: volume_from_node(n) for n in calibration_nodes]
        sampler = PatchSampler(sources, package.spec, calibration_patch(package), options, task=task)
        package, quantized = quantize_package(package, sampler, folder / "model.zip", options, task=task)
        volume = volume_from_node(node)
        done = {}
        for precision in ("fp32", "int8"):
            choice = runs.EngineChoice(precision=precision)  # type: ignore[arg-type]
            # The first run builds the engine and compares it with the simulation; the second is what a user waits for.
            runs.segment(package, volume, choice, SegmentationOptions(), task)
            done[precision] = runs.segment(package, volume, choice, SegmentationOptions(), task)
        report, rows = _report(package, done, volume, truth)
        segmentation = _results(folder, package, node, done["int8"], report, task)
        package.close()
    engine = done["int8"].engine["description"]
    first, second = done["fp32"], done["int8"]
    lines = [
        f"INT8 network      {quantized.int8_bytes / 1e3:.0f} kB instead of {quantized.fp32_bytes / 1e3:.0f} kB",
        f"engine            {second.engine['title']}: {engine['verdict']}, {100 * engine['int8_mac_share']:.1f} % of multiply-accumulates in INT8",
        f"one call          {first.latency_ms['median']:.1f} ms in FP32, {second.latency_ms['median']:.1f} ms in INT8",
        f"agreement         mean Dice {mean_dice(rows['fp32']):.4f} with FP32, {mean_dice(rows['truth']):.4f} with the truth (FP32: {mean_dice(rows['fp32-truth']):.4f})",
        f"segmentation node {segmentation} segments; all took {time.perf_counter() - began:.0f} s",
        f"wrote             {folder / 'report.html'}, {folder / 'segmentation.seg.nrrd'}, {folder / 'picture.png'}, {folder / 'model.zip'}",
    ]
    return {"folder": str(folder), "report": report, "lines": lines}


def _report(package: ModelPackage, done: dict[str, Any], volume: Any, truth: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    from .commands import run_json

    labels, ml = package.spec.labels, volume.grid.voxel_ml
    found = {precision: run.result.labels for precision, run in done.items()}
    rows = {
        "fp32": agreement(found["int8"], found["fp32"], labels, ml),
        "truth": agreement(found["int8"], truth, labels, ml),
        "fp32-truth": agreement(found["fp32"], truth, labels, ml),
    }
    agreements = [
        agreement_json("Phantom", "int8", "fp32", rows["fp32"]),
        agreement_json("Phantom", "int8", "labels", rows["truth"]),
        agreement_json("Phantom", "fp32", "labels", rows["fp32-truth"]),
    ]
    picture = comparison_slices(volume, found["fp32"], found["int8"], labels)
    value = report_json(
        package,
        [run_json("Phantom", run) for run in done.values()],
        agreements,
        [picture_json("Phantom: FP32, voxels where INT8 differs in red", picture)],
    )
    return value, rows


def _results(folder: Path, package: ModelPackage, node: Any, run: Any, report: dict[str, Any], task: Task) -> int:
    from .commands import write_report
    from .mrml import add_segmentation, save_segmentation
    from .mrml_views import save_picture

    with task.stage("writing the results"):
        segmentation = add_segmentation(run.result.labels.astype(np.uint8), package.spec.labels, node, surface=True)
        save_segmentation(segmentation, folder / "segmentation.seg.nrrd")
        save_picture(node, segmentation, folder / "picture.png")
        report["pictures"].insert(0, picture_json("Slices and surface in Slicer's views", (folder / "picture.png").read_bytes()))
        write_report(report, folder)
    return int(segmentation.GetSegmentation().GetNumberOfSegments())
