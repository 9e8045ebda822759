"""FP32 against INT8 on scans: runs, agreement, pictures, one report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import free_name
from ..imaging.label_map_checks import check_same_place, in_words, label_values
from ..imaging.pictures import segmentation_picture
from ..imaging.volume import Volume
from ..imaging.volume_files import read_volume, scan_paths
from ..models.package import ModelPackage
from ..models.spec import Label
from ..progress import Task
from .agreement import agreement
from .reports.pictures import comparison_slices, comparison_title
from .reports.report import agreement_json, picture_json, report_json
from .reports.viewer import MOST_BYTES, ViewerScan, viewer_module
from .viewing import viewer_pair

#: Segment a scan at a precision into a label map file; returns what ``medquant segment --json`` prints.
RunScan = Callable[[str, str, Path], dict[str, Any]]


def compare_scans(
    package: ModelPackage,
    scans: Sequence[str],
    references: Sequence[str],
    run_scan: RunScan,
    task: Task,
    reader: Callable[[Any], Volume] = read_volume,
    viewed: list[ViewerScan] | None = None,
) -> dict[str, Any]:
    """Run every scan in FP32 and INT8 and report.

    Structures that a reference does not hold are left out of its mean: nobody drew them, or they are not there.

    Args:
        reader: how scans and references are read.
        references: label maps with the model's label values, one a scan, or none.
        viewed: gets what a page's viewer shows of each scan, where a viewer is installed.

    Raises:
        InputError: a reference that does not lie on its scan's grid, is no label map, or holds none of the model's structures.
    """
    labels = package.spec.labels
    for scan, reference in zip(scans, references, strict=False):
        check_reference(scan, reference, labels, reader)
    names, results = distinct_names(scans), list[ScanComparison]()
    with task.stage("comparing", 2 * len(scans)):
        for index, scan in enumerate(scans):
            reference_path = references[index] if index < len(references) else None
            comparison = compare_scan(names[index], scan, reference_path, labels, run_scan, reader, task.step)
            results.append(comparison.scan)
            if viewed is not None and viewer_module():
                named = replace(comparison.volume, name=names[index])
                maps = comparison.label_maps
                viewed.append(viewer_pair(named, maps["fp32"], maps["int8"], labels, MOST_BYTES // len(scans)))
    return comparison_json(package, results)


@dataclass(frozen=True)
class ScanComparison:
    """What a report says of one scan: its two runs, agreements and a picture, as JSON values."""

    runs: list[dict[str, Any]]
    agreements: list[dict[str, Any]]
    pictures: list[dict[str, str]]


@dataclass(frozen=True)
class ComparedScan:
    """A comparison with what it was made of: the volume, and the label maps (K, J, I) by precision."""

    scan: ScanComparison
    volume: Volume
    label_maps: dict[str, Any]


def compare_scan(
    name: str,
    scan: str,
    reference_path: str | None,
    labels: tuple[Label, ...],
    run_scan: RunScan,
    reader: Callable[[Any], Volume] = read_volume,
    step: Callable[[], None] = lambda: None,
) -> ComparedScan:
    """Run one scan in FP32 and INT8, and hold the label maps against each other and against a reference.

    Args:
        name: what the report calls the scan.
        step: called after each run; what it raises ends the comparison.
    """
    runs, agreements, label_maps = list[dict[str, Any]](), list[dict[str, Any]](), dict[str, Any]()
    with TemporaryDirectory(prefix="medquant-compare-") as scratch:
        for precision in ("fp32", "int8"):
            output = Path(scratch) / f"{precision}.nrrd"
            runs.append({**run_scan(scan, precision, output), "scan": name})
            label_maps[precision] = read_volume(output).data[0]
            step()
    volume = reader(scan_paths(scan)[0])
    ml = volume.grid.voxel_ml
    agreements.append(
        agreement_json(name, "int8", "fp32", agreement(label_maps["int8"], label_maps["fp32"], labels, ml))
    )
    if reference_path is not None:
        read = reader(reference_path)
        reference, annotated = np.rint(read.data[0]).astype(np.int64), label_values(read)
        absent = [label.name for label in labels if label.value not in annotated]
        for precision, ours in label_maps.items():
            rows = agreement(ours, reference, labels, ml, annotated)
            agreements.append(agreement_json(name, precision, "labels", rows, absent))
    png = comparison_slices(volume, label_maps["fp32"], label_maps["int8"], labels)
    pictures = [
        picture_json(comparison_title(name, label_maps["fp32"], label_maps["int8"]), png),
        picture_json(f"{name}: what INT8 found", segmentation_picture(volume, label_maps["int8"], labels)),
    ]
    return ComparedScan(ScanComparison(runs, agreements, pictures), volume, label_maps)


def comparison_json(package: ModelPackage, results: Sequence[ScanComparison]) -> dict[str, Any]:
    """Put the scans together, as :func:`compare_scans` returns it."""
    return report_json(
        package,
        [run for result in results for run in result.runs],
        [item for result in results for item in result.agreements],
        [picture for result in results for picture in result.pictures],
    )


def distinct_names(scans: Sequence[str]) -> list[str]:
    """Return a name for each scan that no other one has: the file's, with as many of its folders as it takes; a number where even the paths are the same."""
    parts = [Path(scan).parts if Path(scan).exists() else (scan,) for scan in scans]
    names: list[str] = []
    for own in parts:
        count = next((n for n in range(1, len(own)) if sum(other[-n:] == own[-n:] for other in parts) == 1), None)
        if count is None:
            count = 1 if sum(other[-1] == own[-1] for other in parts) == 1 else len(own)
        name = str(Path(*own[-count:]))
        names.append(free_name(name, set(names)))
    return names


def check_reference(scan: str, reference: str, labels: Sequence[Label], reader: Callable[[Any], Volume]) -> None:
    """Refuse a reference that does not lie on its scan's grid, or holds none of the model's structures.

    Raises:
        InputError: says which.
    """
    volume, drawn = reader(scan_paths(scan)[0]), reader(reference)
    check_same_place(drawn, volume)
    if not label_values(drawn) & {label.value for label in labels}:
        raise InputError(
            f"{reference} holds none of the model's structures (label values {in_words({label.value for label in labels})}).",
            "Give a label map with the model's label values.",
        )
