"""FP32 against INT8 on scans: runs, agreement, pictures, one report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .errors import InputError
from .evaluation import agreement
from .model import ModelPackage
from .pictures import comparison_slices
from .progress import Task
from .report import agreement_json, picture_json, report_json
from .volume_io import read_volume

#: Segment a scan at a precision into a label map file; returns what ``medquant segment --json`` prints.
RunScan = Callable[[str, str, Path], dict[str, Any]]


def compare_scans(
    package: ModelPackage, scans: Sequence[str], references: Sequence[str], run_scan: RunScan, task: Task
) -> dict[str, Any]:
    """Run every scan in FP32 and INT8 and report.

    Args:
        references: label maps with the model's label values, one a scan, or none.

    Raises:
        InputError: a reference that does not lie on its scan's grid.
    """
    for scan, reference in zip(scans, references, strict=False):
        _check_reference(scan, reference)
    runs, agreements, pictures = [], [], []
    labels = package.spec.labels
    with task.stage("comparing", 2 * len(scans)), TemporaryDirectory(prefix="medquant-compare-") as scratch:
        for index, scan in enumerate(scans):
            found = {}
            for precision in ("fp32", "int8"):
                output = Path(scratch) / f"{index}-{precision}.nrrd"
                runs.append(run_scan(scan, precision, output))
                found[precision] = read_volume(output).data[0]
                task.step()
            volume = read_volume(scan.split(",")[0] if not Path(scan).exists() else scan)
            name, ml = Path(scan).name, volume.grid.voxel_ml
            agreements.append(agreement_json(name, "int8", "fp32", agreement(found["int8"], found["fp32"], labels, ml)))
            if index < len(references):
                reference = np.rint(read_volume(references[index]).data[0]).astype(np.int64)
                for precision, ours in found.items():
                    agreements.append(agreement_json(name, precision, "labels", agreement(ours, reference, labels, ml)))
            png = comparison_slices(volume, found["fp32"], found["int8"], labels)
            pictures.append(picture_json(f"{name}: FP32, voxels where INT8 differs in red", png))
    return report_json(package, runs, agreements, pictures)


def _check_reference(scan: str, reference: str) -> None:
    volume, labels = read_volume(scan.split(",")[0] if not Path(scan).exists() else scan), read_volume(reference)
    if volume.grid.size != labels.grid.size:
        raise InputError(
            f"{reference} has {labels.grid.size} voxels, but {scan} has {volume.grid.size}.", "Give the label map of that scan."
        )
    if labels.data.min() < 0:
        raise InputError(f"{reference} holds negative values: it is no label map.", "Give the label map of that scan.")
