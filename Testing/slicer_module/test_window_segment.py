"""The section Segment: what is said before, during and after a run; structures, region and terminology."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import slicer

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.progress import ProgressEvent
from MedQuantINT8Lib.resources import resource
from MedQuantINT8Lib.slicer_module.load_gauge import GpuLoad, Load
from MedQuantINT8Lib.slicer_module.run_records import keep_run
from panel_user import read  # first: it skips where there is no panel

pytestmark = pytest.mark.slicer


def choose(combo, data):
    combo.setCurrentIndex(combo.findData(data))


def test_what_will_happen_is_said_before_and_what_is_not_known_is_not_made_up(user, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    assert "Choose a volume" in read(user.ui.forecastLabel, "text")
    node = user.load()
    choose(user.ui.precisionCombo, "int8")
    user.look()
    text = read(user.ui.forecastLabel, "text")
    assert text.startswith("INT8 on the fastest engine") and "time unknown until the first run" in text and "GB" in text
    report = {
        "engine": {"title": "OpenVINO (CPU)", "precision": "int8"},
        "seconds": {"network": 30.0, "total": 36.0},
        "windows": 12,
    }
    voxels = int(node.GetImageData().GetNumberOfPoints())
    keep_run(str(resource("demo.zip")), EngineChoice("auto", "int8"), report, voxels)
    user.view.show()
    user.look()
    text = read(user.ui.forecastLabel, "text")
    assert text.startswith("INT8 on OpenVINO (CPU), about ") and "unknown" not in text
    user.ui.classList.item(0).setCheckState(user.qt.Qt.Unchecked)
    user.look()
    assert read(user.ui.forecastLabel, "text") == text, "one network computes all structures, whichever are kept"
    user.ui.classList.item(0).setCheckState(user.qt.Qt.Checked)
    # A share of windows that FP32 runs as well makes it another kind of run.
    choose(user.ui.checkShareCombo, "1")
    user.look()
    assert "time unknown" in read(user.ui.forecastLabel, "text")
    choose(user.ui.checkShareCombo, "")
    user.look()
    assert read(user.ui.forecastLabel, "text") == text


def test_a_region_that_is_moved_is_forecast_anew(user, tmp_path, monkeypatch):
    if not hasattr(slicer, "vtkMRMLMarkupsROINode"):
        pytest.skip("this build of Slicer has no Markups module")
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    user.load(spacing=2.0, size=(128, 96, 96))
    region = user.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    user.look()
    user.ui.regionSelector.setCurrentNodeID(region.GetID())
    user.look()
    assert "'Region' is empty" in read(user.ui.forecastLabel, "text"), "it was not placed yet"
    seen = []
    node = user.view.segment.parameters.volume
    bounds = [0.0] * 6
    node.GetRASBounds(bounds)
    center = [(low + high) / 2 for low, high in zip(bounds[::2], bounds[1::2], strict=True)]
    for side in (400, 60):
        region.SetCenter(*center)
        region.SetSize(side, side, side)
        before = read(user.ui.forecastLabel, "text")
        user.watch(lambda before=before: read(user.ui.forecastLabel, "text") != before)
        seen.append(read(user.ui.forecastLabel, "text"))
    region.SetCenter(5000, 5000, 5000)
    user.watch(lambda: "holds no voxel" in read(user.ui.forecastLabel, "text"))
    numbers = [float(re.search(r"([\d.]+)\u00a0GB", text)[1]) for text in seen]
    assert numbers[1] < numbers[0], seen


def test_the_share_that_is_checked_in_fp32_reaches_the_logic(user, monkeypatch):
    user.load(size=(16, 16, 16))
    shares = []
    monkeypatch.setattr(
        user.widget.logic.implementation, "segment", lambda *_n, **how: shares.append(how["options"].check_share)
    )
    monkeypatch.setattr(user.view.segment, "_begin", lambda start, *_rest: bool(start()))
    for name in ("0.05", "0", "1", ""):
        choose(user.ui.checkShareCombo, name)
        user.click(user.ui.segmentButton)
    assert shares == [0.05, 0.0, 1.0, None]
    choose(user.ui.checkShareCombo, "0.2")
    choose(user.ui.precisionCombo, "fp32")
    assert not read(user.ui.checkShareCombo, "enabled") and "Only INT8" in read(user.ui.checkShareCombo, "toolTip")
    user.click(user.ui.segmentButton)
    assert shares[-1] is None
    choose(user.ui.precisionCombo, "auto")
    assert read(user.ui.checkShareCombo, "enabled")
    # A scene may come from anywhere.
    user.view.segment.parameters.checkShare = "all"
    user.click(user.ui.segmentButton)
    assert shares[-1] is None


def test_stages_time_and_load_are_shown_while_it_runs_and_the_result_leads_to_its_place(user):
    user.load()
    seen = set()
    user.click(user.ui.segmentButton)
    assert not read(user.ui.forecastLabel, "visible") and read(user.ui.segmentWorkWidget, "visible")
    user.watch(lambda: seen.add(read(user.ui.stageLabel, "text")) or not user.view.runner.busy)
    assert any("✓" in text and "▸\u00a0Segmenting" in text for text in seen), seen
    assert "GB" in user.ui.memoryBar.format() if callable(user.ui.memoryBar.format) else user.ui.memoryBar.format
    table, result = user.ui.resultTable, user.widget.logic.result
    rows = [(table.item(n, 0).text(), float(table.item(n, 1).text())) for n in range(read(table, "rowCount"))]
    assert len(rows) > 5 and [ml for _name, ml in rows] == sorted((ml for _name, ml in rows), reverse=True)
    assert read(user.ui.resultWidget, "visible") and not read(user.ui.segmentWorkWidget, "visible")
    number = next(n for n, (name, _ml) in enumerate(rows) if name == "spleen")
    table.cellClicked.emit(number, 0)
    center = result.center(result.structures[number].segmentID)
    matrix = user.scene.GetNodeByID("vtkMRMLSliceNodeRed").GetSliceToRAS()
    assert abs(matrix.GetElement(2, 3) - center[2]) < 1e-3
    user.click(user.ui.undoButton)
    assert not read(user.ui.resultWidget, "visible") and result.center(result.structures[0].segmentID) is None


def test_a_load_that_is_not_known_is_not_shown(user):
    view, ui = user.view.segment.load, user.ui
    ui.segmentWorkWidget.setVisible(True)
    view.show(Load(2_000_000_000, 6_000_000_000, 0.5, GpuLoad(1, 0.25, 3_000_000_000, 8_000_000_000)))
    assert [read(bar, "value") for bar in (ui.processorBar, ui.memoryBar, ui.gpuBar)] == [50, 25, 25]
    view.show(Load(None, 6_000_000_000, None, None))
    assert not any(read(bar, "visible") for bar in (ui.processorBar, ui.memoryBar, ui.gpuBar))


def test_warnings_have_a_fold_that_opens_by_itself_only_before_a_run(user):
    results, ui = user.view.segment.results, user.ui
    assert not read(ui.warningsSection, "visible")
    results.warn(["Another modality."])
    assert read(ui.warningsSection, "visible") and not read(ui.warningsSection, "collapsed")
    ui.warningsSection.setProperty("collapsed", True)
    results.show(SimpleNamespace(structures=(), missing=("liver",), warnings=("Out of range.",)))
    assert read(ui.warningsSection, "collapsed") and read(ui.warningsSection, "text") == "Warnings and notes (2)"
    assert read(ui.warningLabel, "text") == "Another modality.\n\nOut of range."
    assert read(ui.missingLabel, "text") == "Not found: liver"


def test_structures_are_found_by_words_and_by_group(user):
    ui, items = user.ui, user.ui.classList

    def shown():
        return [items.item(n).text() for n in range(read(items, "count")) if not items.item(n).isHidden()]

    assert len(shown()) == 11
    ui.structureSearchEdit.setText("KIDNEY")
    assert shown() == ["right kidney", "left kidney"]
    user.click(ui.noClassesButton)
    assert len(user.view.segment.parameters.segments) == 9 and "9 of 11" in read(ui.structuresSection, "text")
    ui.structureSearchEdit.setText("")
    choose(ui.structureGroupCombo, "vessels")
    assert shown() and all("aorta" in name or "vein" in name or "vena" in name for name in shown())
    choose(ui.structureGroupCombo, "")
    user.click(ui.allClassesButton)
    assert user.view.segment.parameters.segments is None


def test_a_region_and_a_terminology_reach_the_logic(user, monkeypatch):
    if not hasattr(slicer, "vtkMRMLMarkupsROINode"):
        pytest.skip("this build of Slicer has no Markups module")
    asked = {}
    monkeypatch.setattr(
        user.widget.logic.implementation, "segment", lambda *_nodes, **how: asked.update(how) or pytest.fail("not run")
    )
    monkeypatch.setattr(user.view.segment, "_begin", lambda start, *_rest: bool(contextless(start)))
    region = user.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    region.SetSize(10, 20, 30)
    user.load(size=(16, 16, 16))
    user.ui.regionSelector.setCurrentNodeID(region.GetID())
    name = "Segmentation category and type - DICOM master list"
    choose(user.ui.terminologyCombo, name)
    user.click(user.ui.segmentButton)
    assert asked["roi"] is region and asked["terminology"] == name
    assert user.view.segment.parameters.region is region, "it is saved with the scene"


def contextless(start):
    """Start what would be started; whatever it does then does not matter here."""
    try:
        start()
    except pytest.fail.Exception:
        return True
    return True


def test_a_terminology_that_slicer_has_not_loaded_is_refused(user):
    node = user.load(size=(16, 16, 16))
    with pytest.raises(InputError, match="no terminology 'mine'"):
        user.widget.logic.segment(node, model="demo", terminology="mine")


def test_a_report_of_stages_goes_back_where_a_stage_within_has_ended(user):
    stages = user.view.segment._stages
    for stage in ("preprocessing", "preparing the engine", "timing INT8 against FP32", "preparing the engine"):
        stages.add(ProgressEvent(stage, 0, 0, None))
    assert read(user.ui.stageLabel, "text").split() == ["✓", "Preprocessing", "▸", "Preparing", "the", "engine"]
