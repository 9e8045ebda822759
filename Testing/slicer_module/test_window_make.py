"""The section Make INT8 engine: every field reaches the work, models of several networks, and why something cannot be clicked."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from MedQuantINT8Lib.models.task_package import peek_task
from MedQuantINT8Lib.models.task_writing import write_task
from MedQuantINT8Lib.slicer_module import dependencies
from MedQuantINT8Lib.slicer_module.model_entries import shares_of_all
from panel_user import read  # first: it skips where there is no panel
from task_packages import three_parts

pytestmark = pytest.mark.slicer


def choose(combo, data):
    combo.setCurrentIndex(combo.findData(data))


def enter(user, name, value):
    """Type a number into a field of the section, and leave it."""
    field = {"patches": "patchesSpin", "agreement": "agreementSpin", "worstStructure": "worstStructureSpin"}[name]
    getattr(user.ui, field).setValue(value)
    user.view.build._writers[name]()


@pytest.fixture
def asked(user, monkeypatch):
    """What calibrating is asked for; nothing is begun."""
    calls = []
    monkeypatch.setattr(
        user.widget.logic.implementation, "calibrate", lambda nodes, *rest, **how: calls.append((nodes, rest, how))
    )
    monkeypatch.setattr(user.view.build, "_begin", lambda start, *_rest: bool(start()))
    return calls


def report(network=None, float_layer="tail"):
    layers = [
        {"name": "head", "macs": 90, "quantized": True, "reason": ""},
        {"name": float_layer, "macs": 10, "quantized": False, "reason": "the guard"},
    ]
    found = {
        "layers": layers,
        "guard": {"returned": {float_layer: 0.9}, "returned_stored_as_int8": []},
        "held_out": {"lines": ["from scan to scan: 0.01"], "held_out": True},
        "int8_mac_share": 0.9,
        "agreement": 0.99,
        "fp32_bytes": 4e6,
        "int8_bytes": 1e6,
        "warnings": [],
    }
    return found if network is None else {"network": network, **found}


def test_every_field_reaches_the_work_and_is_saved_with_the_scene(user, asked):
    node = user.load(size=(16, 16, 16))
    user.ui.calibrationSelector.setCheckState(node, user.qt.Qt.Checked)
    for name, value in (("patches", 7), ("agreement", 0.95), ("worstStructure", 0.9)):
        enter(user, name, value)
    choose(user.ui.effortCombo, "best")
    choose(user.ui.methodCombo, "entropy")
    choose(user.ui.weightBitsCombo, "4")
    user.ui.transposedCheck.setChecked(True)
    user.ui.fallbackCheck.setChecked(False)
    user.click(user.ui.buildButton)
    ((nodes, (model, _output, method, patches, agreement), how),) = asked
    assert (nodes, model, method, patches, agreement) == ([node], "demo", "entropy", 7, 0.95)
    wanted = {"fallback": False, "effort": "best", "weightBits": 4, "worstStructure": 0.9, "transposed": True}
    assert {name: how[name] for name in wanted} == wanted
    user.view.build.show()
    assert user.ui.weightBitsCombo.itemData(read(user.ui.weightBitsCombo, "currentIndex")) == "4"
    assert read(user.ui.worstStructureSpin, "value") == 0.9 and read(user.ui.transposedCheck, "checked")


def test_what_does_not_go_together_is_refused_before_anything_is_installed(user, asked, monkeypatch):
    monkeypatch.setattr(dependencies, "missing", lambda *_a: pytest.fail("packages were looked for"))
    user.load(size=(16, 16, 16))
    choose(user.ui.effortCombo, "fast")
    choose(user.ui.weightBitsCombo, "4")
    user.click(user.ui.buildButton)
    assert "4 bits need learned rounding" in user.errors()[-1] and not asked


def test_a_task_is_offered_and_each_of_its_networks_is_told_of(user, asked, tmp_path):
    models = Path(os.environ["MEDQUANT_MODELS"])
    shutil.copytree(three_parts(tmp_path / "three"), models / "together")
    user.view.show()
    user.view.build.select("together")
    assert "Its 3 networks have INT8" in read(user.ui.buildModelLabel, "text")
    node = user.load(size=(16, 16, 16))
    user.ui.calibrationSelector.setCheckState(node, user.qt.Qt.Checked)
    user.click(user.ui.buildButton)
    ((_nodes, (model, output, *_rest), _how),) = asked
    assert (model, output) == ("together", None), "its networks get INT8 in place"
    networks = [report("dim"), report("bright", "head2")]
    user.view.build._quantized("together", {"networks": networks})
    log = read(user.ui.logText, "plainText")
    assert "dim: 1 of 2 layers compute in INT8" in log and "bright: in floating point: head2" in log
    assert "INT8: 90.0 % of the work, 2 layers" in read(user.ui.buildBarText, "text")
    engine = {"engine": "openvino", "verdict": "INT8", "int8_mac_share": 0.9, "note": "", "fidelity": None}
    user.view.build._built({"networks": [{"network": "dim", **engine}, {"network": "bright", **engine}]})
    assert "bright: openvino: INT8, 90.0 % of the work in INT8" in read(user.ui.logText, "plainText")
    assert "dim: from scan to scan" in read(user.ui.buildStatusLabel, "text")


def test_a_task_whose_models_are_not_all_installed_says_which(user, asked, tmp_path):
    spec = peek_task(three_parts(tmp_path / "three"))
    parts = [replace(part, packages=(), installed=f"{part.name}-model") for part in spec.parts]
    write_task(Path(os.environ["MEDQUANT_MODELS"]) / "together", replace(spec, parts=tuple(parts)), {})
    user.view.show()
    user.view.build.select("together")
    assert "dim-model, which is not installed" in read(user.ui.buildModelLabel, "text")
    user.click(user.ui.buildButton)
    assert "dim-model, which is not installed" in user.errors()[-1] and not asked


def test_layers_of_several_networks_are_summed_up_by_their_work():
    shares = shares_of_all([report("dim"), report("bright", "head2")])
    assert shares.int8 == 0.9 and shares.by_guard == pytest.approx(0.1)
    assert [name for name, _why in shares.layers] == ["dim: tail", "bright: head2"]
    assert shares_of_all([report()]).layers == (("tail", "the guard"),)


def test_what_cannot_be_clicked_says_why_and_has_its_own_tip_back_afterwards(user, monkeypatch):
    ui = user.ui
    tips = {name: read(getattr(ui, name), "toolTip") for name in ("undoButton", "saveReportButton", "replaceCheck")}
    assert not any(read(getattr(ui, name), "enabled") for name in tips)
    assert "no segmentation to take back" in tips["undoButton"] and "Nothing was compared" in tips["saveReportButton"]
    assert "choose an output first" in tips["replaceCheck"]
    own = read(ui.segmentAllButton, "toolTip")
    monkeypatch.setattr(type(user.view.runner), "busy", True)
    for panel in (user.view.segment, user.view.models, user.view.build):
        panel._showButtons()
    for button in (ui.segmentAllButton, ui.importFileButton, ui.buildButton, ui.undoButton):
        assert not read(button, "enabled") and "Something is at work" in read(button, "toolTip")
    monkeypatch.undo()
    user.view.show()
    assert read(ui.segmentAllButton, "enabled") and read(ui.segmentAllButton, "toolTip") == own
    output = user.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Output")
    ui.outputSelector.setCurrentNodeID(output.GetID())
    assert read(ui.replaceCheck, "enabled") and "Otherwise" in read(ui.replaceCheck, "toolTip")


def test_what_will_be_compared_is_said_before_the_click(user):
    assert "Choose a volume" in read(user.ui.comparePlanLabel, "text")
    node = user.load("Scan", size=(16, 16, 16))
    assert read(user.ui.comparePlanLabel, "text") == "Demo: organs of a synthetic abdomen, on Scan"
    user.load("Other", size=(16, 16, 16))
    user.ui.compareSelector.setCheckState(node, user.qt.Qt.Checked)
    user.ui.volumeSelector.setCurrentNodeID(user.scene.GetFirstNodeByName("Other").GetID())
    user.look()
    assert read(user.ui.comparePlanLabel, "text").endswith("on Scan"), "a volume that is checked comes first"


def test_a_status_line_without_text_takes_no_room(user):
    labels = ("segmentStatusLabel", "modelsStatusLabel", "buildStatusLabel", "compareStatusLabel")
    assert not any(read(getattr(user.ui, name), "visible") for name in labels)
    user.click(user.ui.segmentButton)
    assert read(user.ui.segmentStatusLabel, "visible") and read(user.ui.segmentStatusLabel, "text")
    user.view.segment.forget()
    assert not read(user.ui.segmentStatusLabel, "visible")
