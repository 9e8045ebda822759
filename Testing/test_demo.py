"""The demo: the whole road in a scene, with no download."""

from __future__ import annotations

import json

import jsonschema
import pytest

pytest.importorskip("slicer", reason="needs Slicer or slicer-core")

from MedQuantINT8Lib import mrml
from MedQuantINT8Lib.cli import main
from MedQuantINT8Lib.model import ModelPackage
from MedQuantINT8Lib.phantom import phantom_labels
from MedQuantINT8Lib.resources import resource

pytestmark = [pytest.mark.slicer, pytest.mark.slow]


def test_the_demo_goes_from_scan_to_report(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "out")]) == 0
    assert "mean Dice" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "model.zip",
        "picture.png",
        "report.html",
        "report.json",
        "segmentation.seg.nrrd",
    ]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    jsonschema.validate(report, json.loads(resource("report.schema.json").read_text()))
    int8 = next(r for r in report["runs"] if r["precision"] == "int8")
    assert int8["engine"]["description"]["int8_mac_share"] > 0.9 and int8["engine"]["fidelity"]["trusted"]
    by_pair = {(a["first"], a["second"]): a["mean_dice"] for a in report["agreement"]}
    assert by_pair["int8", "fp32"] > 0.97
    assert abs(by_pair["int8", "labels"] - by_pair["fp32", "labels"]) < 0.02 and by_pair["int8", "labels"] > 0.9
    node = mrml.load_segmentation(tmp_path / "out" / "segmentation.seg.nrrd")
    assert node.GetSegmentation().GetNumberOfSegments() == len(phantom_labels())
    with ModelPackage.load(tmp_path / "out" / "model.zip") as package:
        assert package.has("model.int8.onnx")
