"""The demo: the whole road with no download, in a scene or without Slicer, on a synthetic abdomen or the user's scan."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import jsonschema
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_labels
from MedQuantINT8Lib.imaging.volume import to_sitk
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.models.package import ModelPackage
from MedQuantINT8Lib.resources import resource

#: A process in which slicer-core is not installed.
WITHOUT_SLICER = (
    "import sys; sys.modules['slicer'] = None; from MedQuantINT8Lib.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


def checked_report(folder):
    report = json.loads((folder / "report.json").read_text())
    jsonschema.validate(report, json.loads(resource("report.schema.json").read_text()))
    int8 = next(r for r in report["runs"] if r["precision"] == "int8")
    assert int8["engine"]["description"]["int8_mac_share"] > 0.9 and int8["engine"]["fidelity"]["trusted"]
    with ModelPackage.load(folder / "model.zip") as package:
        assert package.has("model.int8.onnx")
    return report


@pytest.mark.slow
@pytest.mark.slicer
@pytest.mark.skipif(importlib.util.find_spec("slicer") is None, reason="needs Slicer or slicer-core")
def test_the_demo_goes_from_scan_to_report(tmp_path, capsys):
    from MedQuantINT8Lib.slicer_module import scene as mrml

    assert main(["demo", "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "mean Dice" in text and "least agreement" in text and "unknown" not in text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "model.zip",
        "picture.png",
        "report.html",
        "report.json",
        "segmentation.seg.nrrd",
    ]
    report = checked_report(tmp_path / "out")
    pairs = {(a["first"], a["second"]): a for a in report["agreement"]}
    assert pairs["fp32", "labels"]["mean_dice"] > 0.98 and pairs["int8", "labels"]["mean_dice"] > 0.98
    assert pairs["int8", "fp32"]["mean_dice"] > 0.995
    assert pairs["fp32", "labels"]["mean_dice"] - pairs["int8", "labels"]["mean_dice"] <= 0.002
    assert all(min(row["dice"] for row in pair["structures"]) > 0.95 for pair in pairs.values())
    assert "Nothing that can be seen" in (tmp_path / "out" / "report.html").read_text()
    node = mrml.load_segmentation(tmp_path / "out" / "segmentation.seg.nrrd")
    assert node.GetSegmentation().GetNumberOfSegments() == len(phantom_labels())


@pytest.mark.slow
def test_it_runs_on_a_users_scan_and_without_slicer(tmp_path):
    volume, _ = make_phantom(1010, (64, 60, 40), 5.0)
    scan, folder = tmp_path / "mine.nii.gz", tmp_path / "out"
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(scan))
    arguments = [sys.executable, "-c", WITHOUT_SLICER, "demo", "--scan", str(scan), "--output", str(folder), "-q"]
    ran = subprocess.run(arguments, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "no picture.png" in ran.stdout and "slicer-core" in ran.stdout and "with the truth" not in ran.stdout
    assert "on another scan look at how INT8 agrees" in ran.stdout
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.zip",
        "report.html",
        "report.json",
        "segmentation.seg.nrrd",
    ]
    report = checked_report(folder)
    assert [(a["scan"], a["first"], a["second"]) for a in report["agreement"]] == [("mine.nii.gz", "int8", "fp32")]
    assert (
        len(report["pictures"]) == 2
        and list(report["calibration"]["volumes"])
        and {r["scan"] for r in report["runs"]} == {"mine.nii.gz"}
    )
    assert read_volume(folder / "segmentation.seg.nrrd").grid == read_volume(scan).grid


def test_a_scan_that_cannot_be_read_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / "scan.nii.gz").write_bytes(b"no scan")
    assert main(["demo", "--scan", str(tmp_path / "scan.nii.gz"), "--output", str(tmp_path / "out")]) == 2
    assert "scan.nii.gz" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["demo", "--scan", str(tmp_path / "none.nii.gz"), "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
