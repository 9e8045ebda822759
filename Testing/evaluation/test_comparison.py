"""``medquant compare``: every scan has rows of its own, and labels count for what they hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

import tiny
from MedQuantINT8Lib.cli.compare import _comparison_lines
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.evaluation.agreement import agreement, mean_dice
from MedQuantINT8Lib.evaluation.comparison import compare_scans, distinct_names
from MedQuantINT8Lib.evaluation.reports.report import report_html
from MedQuantINT8Lib.models.spec import Label
from MedQuantINT8Lib.progress import Task

SHAPE = (8, 8, 8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return str(path)


def boxes(*values):
    made = np.zeros(SHAPE, np.uint8)
    for n, value in enumerate(values):
        made[2 * n : 2 * n + 2] = value
    return made


@pytest.fixture
def compared(tmp_path):
    """Compare with given label maps; the networks' answers are given too: {precision: label map}."""
    made = tiny.package(tmp_path / "made")
    labels = tuple(Label(value, f"structure {value}", value, (255, 0, 0)) for value in range(1, 6))
    package = replace(made, spec=replace(made.spec, labels=labels))

    def run(scans, references, answers):
        def run_scan(scan, precision, output):
            write(output, answers[precision])
            engine = {
                "name": "made",
                "title": "Made",
                "bytes": 1,
                "fidelity": None,
                "note": "",
                "description": {"int8_mac_share": 1.0, "verdict": "INT8", "layers": [], "version": "1"},
            }
            return {
                "scan": "scan.nrrd", "precision": precision, "seconds": {"total": 1.0, "network": 1.0}, "latency_ms": {"median": 1.0, "p95": 1.0},
                "windows": 1, "notes": [], "engine": engine, "peak_memory_bytes": 1, "ranges": None,
            }  # fmt: skip

        return compare_scans(package, scans, references, run_scan, Task())

    return run


def test_two_scans_of_one_name_stay_two(compared, tmp_path):
    noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    scans = [write(tmp_path / folder / "scan.nrrd", noise) for folder in ("first", "second")]
    report = compared(scans, [], {"fp32": boxes(1, 2), "int8": boxes(1, 2)})
    assert [run["scan"] for run in report["runs"]] == ["first/scan.nrrd"] * 2 + ["second/scan.nrrd"] * 2
    lines = "\n".join(_comparison_lines(report))
    assert "first/scan.nrrd\n" in lines and "second/scan.nrrd\n" in lines and lines.count("scan to file") == 2


def test_structures_that_the_labels_do_not_have_are_left_out_and_named(compared, tmp_path):
    noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    scan, labels = write(tmp_path / "scan.nrrd", noise), write(tmp_path / "labels.nrrd", boxes(1, 0, 0))
    report = compared([scan], [labels], {"fp32": boxes(1, 2, 3), "int8": boxes(1, 2, 3)})
    row = next(item for item in report["agreement"] if item["second"] == "labels")
    assert row["mean_dice"] == 1.0 and len(row["left_out"]) == 4
    lines = "\n".join(_comparison_lines(report))
    assert f"left out, as the labels do not have them: {', '.join(row['left_out'])}" in lines
    assert "Left out of the mean" in report_html(report)
    full = next(item for item in report["agreement"] if item["second"] == "fp32")
    assert full["left_out"] == [] and sum(s["dice"] is not None for s in full["structures"]) == 3


@pytest.mark.parametrize(
    ("values", "words"), [((0,), "none of the model's structures"), ((41,), "none of the model's structures")]
)
def test_labels_without_a_structure_of_the_model_are_refused(compared, tmp_path, values, words):
    scan = write(tmp_path / "scan.nrrd", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    with pytest.raises(InputError, match=words):
        compared([scan], [write(tmp_path / "labels.nrrd", boxes(*values))], {})


def test_scans_have_names_of_their_own(tmp_path):
    paths = [write(tmp_path / name, np.zeros(SHAPE, np.uint8)) for name in ("a/x/s.nrrd", "b/x/s.nrrd", "t.nrrd")]
    assert distinct_names(paths) == ["a/x/s.nrrd", "b/x/s.nrrd", "t.nrrd"]
    assert distinct_names([paths[2], paths[2]]) == [paths[2], f"{paths[2]} (2)"]
    assert distinct_names(["c0.nii,c1.nii", paths[2]]) == ["c0.nii,c1.nii", "t.nrrd"]


def test_agreement_counts_what_the_reference_says_something_of():
    labels = [Label(1, "a", 1), Label(2, "b", 2), Label(3, "c", 3)]
    rows = agreement(boxes(1, 2, 3), boxes(1, 3), labels, annotated={1, 3})
    assert [row.dice for row in rows] == [1.0, None, 0.0] and mean_dice(rows) == 0.5
