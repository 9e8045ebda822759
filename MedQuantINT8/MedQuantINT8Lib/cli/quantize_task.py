"""``medquant quantize`` of a task: each network that it runs, one after the other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.task_package import TaskPackage
    from ..progress import Task

#: Quantizes the package at the first path into the second, on these scans; what there is to say of it as JSON, and as lines for people.
QuantizeOne = Callable[[str, str, Sequence[str]], tuple[dict[str, Any], list[str]]]


def quantize_task(args: argparse.Namespace, task: Task, model: str, quantize_one: QuantizeOne) -> list[Any]:
    """Quantize every network of a task: those inside it are written into the output, installed models get their INT8 network in place.

    Returns:
        What there is to say: a JSON value, then lines for people.

    Raises:
        InputError: an option that is for a single network, or a model that is not installed.
    """
    from ..errors import InputError
    from ..imaging.volume_files import scan_paths
    from ..models.installed import source_paths
    from ..models.task import TASK_JSON
    from ..models.task_package import TaskPackage
    from ..models.task_writing import with_packages
    from ..outputs import check_output_package
    from .overwriting import overwriting

    if args.labels:
        raise InputError(
            "--labels is for a single network: those of a task have label values of their own.", "Leave it out."
        )
    target = Path(args.output or model)
    target = target.parent if target.name == TASK_JSON else target
    with TaskPackage.load(model) as package, TemporaryDirectory(prefix="medquant-quantized-") as scratch:
        spec = package.spec
        if args.output and spec.installed_names:
            raise InputError(
                f"{spec.name} runs installed models, which get their INT8 network in place.", "Leave --output out."
            )
        installed = dict.fromkeys(
            str(path)
            for source in spec.sources
            if source.installed is not None
            for path in source_paths(spec, source, package.folder)
        )
        check_output_package(target, [p for scan in args.calibrate for p in scan_paths(scan)], model, TASK_JSON)
        results, lines, inner = list[dict[str, Any]](), list[str](), dict[str, Path]()
        before = task.part
        try:
            for path in spec.package_paths:
                task.part = f"{before}{path}: "
                inner[path] = Path(scratch) / path
                scans = _scans_for(package, path, args, task, Path(scratch))
                value, text = quantize_one(str(package.folder / path), str(inner[path]), scans)
                results.append({**value, "package": f"{target}/{path}"})
                lines += [line.replace(str(inner[path]), f"{target}/{path}") for line in text]
            for path in installed:
                task.part = f"{before}{Path(path).parent.name}: "
                value, text = quantize_one(path, path, args.calibrate)
                results.append(value)
                lines += text
        finally:
            task.part = before
        if inner:
            in_place = target.exists() and target.samefile(package.folder if target.is_dir() else model)
            with overwriting(args, [] if in_place else [target]):
                with_packages(package, target, inner)
    return [{"task": str(target), "packages": results}, *lines]


def _scans_for(package: TaskPackage, path: str, args: argparse.Namespace, task: Task, scratch: Path) -> list[str]:
    """The scans that a package of the task is calibrated on: with the label maps of the previous stage where it is a cascade's second."""
    from ..imaging.segmentation_files import write_segmentation
    from ..imaging.volume_files import scan_paths
    from ..inference.engine_choice import EngineChoice
    from ..inference.pipeline import segment
    from ..inference.segmenter import SegmentationOptions
    from ..inference.task_model import TaskModel
    from .common import reader_of

    scans: list[str] = list(args.calibrate)
    previous = next((part.previous for part in package.spec.parts if path in part.packages), None)
    if previous is None:
        return scans
    step = next(step for step in package.spec.find if step.name == previous)
    folder = scratch / f"labels of {previous}"
    folder.mkdir(exist_ok=True)
    ensemble = TaskModel(package).ensemble(step)
    with ensemble:
        for number, scan in enumerate(scans):
            file = folder / f"{number}.nii.gz"
            if not file.is_file():
                volume = reader_of(args, task)(scan_paths(scan))
                run = segment(ensemble, volume, EngineChoice(precision="fp32"), SegmentationOptions(), task)
                write_segmentation(file, run.result.labels, run.result.ijk_to_ras, ensemble.first.spec.labels)
            scans[number] = f"{scan},{file}"
    return scans
