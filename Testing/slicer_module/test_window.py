"""The module's real panel and .ui file over the real scene, driven as a person would: click, watch, cancel, look.

The same tests run in Slicer's own application (WindowInSlicer.py) and in the stand-in of Testing/host; see docs/verification.md.
What a section of the panel shows is tested beside, in the files test_window_*.py.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import slicer

from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_labels
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.slicer_module import dependencies
from MedQuantINT8Lib.slicer_module import scene as mrml
from panel_user import read, slow_down, window  # first: it skips where there is no panel

pytestmark = pytest.mark.slicer
NO_SEQUENCES = "this build of Slicer has no Sequences module"


def test_the_active_volume_is_chosen_and_one_click_segments_it(user):
    node = user.load()
    assert user.ui.volumeSelector.currentNode() is node
    assert (
        read(user.ui.modelCombo, "currentText").startswith("Demo") and read(user.ui.segmentButton, "text") == "Segment"
    )
    user.click(user.ui.segmentButton)
    assert read(user.ui.segmentButton, "text") == "Cancel" and read(user.ui.segmentWorkWidget, "visible")
    assert not read(user.ui.compareButton, "enabled")
    seen = user.watch()
    assert any("Segmenting" in text for text in seen) and "Done" in seen[-1] and "OpenVINO" in seen[-1]
    [segmentation] = user.segmentations()
    assert len(user.structures(segmentation)) == len(phantom_labels())
    assert segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    assert read(user.ui.segmentButton, "text") == "Segment" and not user.errors()


def test_cancel_stops_and_a_second_click_works(user):
    user.load()
    faster = slow_down(user)
    user.click(user.ui.segmentButton)
    user.watch(lambda: "Segmenting" in read(user.ui.segmentStatusLabel, "text"))
    user.click(user.ui.segmentButton)
    assert read(user.ui.segmentStatusLabel, "text") == "Stopping …"
    user.watch()
    assert read(user.ui.segmentStatusLabel, "text") == "Canceled." and not user.segmentations() and not user.errors()
    faster()
    user.click(user.ui.segmentButton)
    user.watch()
    assert len(user.segmentations()) == 1


@pytest.mark.slow
def test_structures_output_and_undo(user):
    user.load()
    user.click(user.ui.noClassesButton)
    for n in range(read(user.ui.classList, "count")):
        item = user.ui.classList.item(n)
        if item.text() in ("liver", "spleen"):
            item.setCheckState(user.qt.Qt.Checked)
    assert user.view.segment.parameters.segments == ["liver", "spleen"]
    user.click(user.ui.segmentButton)
    user.watch()
    [segmentation] = user.segmentations()
    assert sorted(user.structures(segmentation)) == ["liver", "spleen"]
    user.ui.outputSelector.setCurrentNodeID(segmentation.GetID())
    user.ui.replaceCheck.setChecked(True)
    user.click(user.ui.allClassesButton)
    user.click(user.ui.segmentButton)
    user.watch()
    assert len(user.structures(segmentation)) == len(phantom_labels()) and len(user.segmentations()) == 1
    user.click(user.ui.undoButton)
    assert sorted(user.structures(segmentation)) == ["liver", "spleen"]
    user.click(user.ui.undoButton)
    assert not user.segmentations() and not read(user.ui.undoButton, "enabled")


def test_an_empty_scene_a_label_map_and_a_volume_without_voxels_are_told(user):
    user.click(user.ui.segmentButton)
    assert "no volume to segment" in user.errors()[-1]
    labels = user.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    user.look()
    assert user.ui.volumeSelector.currentNode() is None
    user.view.segment.parameters.volume = labels
    user.click(user.ui.segmentButton)
    assert "label map, not a scan" in user.errors()[-1]
    empty = user.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
    user.view.segment.parameters.volume = empty
    user.click(user.ui.segmentButton)
    assert "holds no voxels" in user.errors()[-1] and not user.view.runner.busy


def test_a_scan_of_another_modality_is_warned_of(user):
    mrml.volume_node(Volume(np.abs(make_phantom(2000, (40, 40, 40), 8.0)[0].data), np.eye(4), "T1"), "T1", user.scene)
    user.look()
    assert "made for CT" in read(user.ui.warningLabel, "text") and read(user.ui.warningLabel, "visible")
    assert read(user.ui.warningsSection, "text") == "Warnings and notes (1)"
    node = user.load("CT scan")
    user.ui.volumeSelector.setCurrentNodeID(node.GetID())
    assert not read(user.ui.warningsSection, "visible")
    node.SetAttribute("DICOM.Modality", "MR")
    user.view.segment.show()
    assert "is a MR scan" in read(user.ui.warningLabel, "text")


def test_voxels_that_come_after_the_node_are_looked_at(user):
    user.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Loading")
    user.look()
    node = user.ui.volumeSelector.currentNode()
    full = mrml.volume_node(Volume(np.full((8, 8, 8), 3, np.int16), np.eye(4), "MR"), "Other", user.scene)
    node.SetAndObserveImageData(full.GetImageData())
    user.look()
    assert "made for CT" in read(user.ui.warningLabel, "text")


def test_a_network_of_two_channels_gets_two_selectors(user, fp32_package):
    from dataclasses import replace

    from MedQuantINT8Lib.files import write_json
    from MedQuantINT8Lib.models.spec import Channel

    folder = Path(os.environ["MEDQUANT_MODELS"]) / "two" / "package"
    fp32_package.save(folder)
    spec = replace(
        fp32_package.spec,
        name="two",
        title="Two channels",
        channels=(Channel("T1"), Channel("T2")),
        normalization=fp32_package.spec.normalization,
    )
    write_json(folder / "model.json", {**spec.to_json(), "files": fp32_package.hashes})
    first, second = user.load("first"), user.load("second", 2001)
    user.view.segment.selectModel("two")
    [(selector, label)] = user.view.segment.channels.rows
    assert read(label, "text") == "T2"
    selector.setCurrentNodeID(second.GetID())
    assert user.view.segment.parameters.channels == [second] and user.view.segment.parameters.volume is first
    user.view.segment.channels.close()
    user.load("third", 2002, size=(16, 16, 16))
    assert selector.nodeCount() == 0, "a selector of a panel that is gone follows the scene"
    user.view.segment.selectModel("demo")
    assert not user.view.segment.channels


def test_the_state_is_saved_with_the_scene_and_comes_back(user, tmp_path):
    node = user.load()
    user.ui.surfaceCheck.setChecked(False)
    user.ui.precisionCombo.setCurrentIndex(user.ui.precisionCombo.findData("fp32"))
    user.ui.classList.item(0).setCheckState(user.qt.Qt.Unchecked)
    user.ui.patchesSpin.setValue(7)
    user.view.build._writers["patches"]()
    user.ui.calibrationSelector.setCheckState(node, user.qt.Qt.Checked)
    path = tmp_path / "scene.mrml"
    assert user.scene.Commit(str(path))
    user.scene.Clear(0)
    user.look()
    assert user.view.segment.parameters.surface and user.view.segment.parameters.patches == 20
    user.scene.SetURL(str(path))
    user.scene.Import()
    user.look()
    assert not read(user.ui.surfaceCheck, "checked") and read(user.ui.patchesSpin, "value") == 7
    assert user.ui.precisionCombo.itemData(read(user.ui.precisionCombo, "currentIndex")) == "fp32"
    assert user.ui.classList.item(0).checkState() == user.qt.Qt.Unchecked
    assert user.ui.volumeSelector.currentNode().GetName() == "Scan"
    assert [n.GetName() for n in user.ui.calibrationSelector.checkedNodes()] == ["Scan"]


def test_loading_a_scene_overwrites_no_setting_of_make_and_compare(user, tmp_path):
    """The selectors tell late that their nodes changed: what the scene brought has come by then, and must stay."""
    first, second = user.load("First", size=(8, 8, 8)), user.load("Second", 2001, size=(8, 8, 8))
    parameters = user.view.segment.parameters
    parameters.patches, parameters.method, parameters.agreement = 7, "percentile", 0.9
    parameters.fallback, parameters.calibrationFolder = False, "/scans"
    parameters.calibrationVolumes, parameters.compareVolumes = [second], [first, second]
    parameters.volume = second
    user.view.show()
    path = tmp_path / "scene.mrml"
    assert user.scene.Commit(str(path))
    for way in ("closed before", "loaded over another"):
        if way == "closed before":
            user.scene.Clear(0)
            user.look()
        else:
            # Other settings and other checks in the panel, as a person leaves them.
            user.ui.compareSelector.setCheckState(user.load("Third", size=(8, 8, 8)), user.qt.Qt.Checked)
            user.ui.calibrationSelector.setCheckState(user.ui.volumeSelector.currentNode(), user.qt.Qt.Checked)
        user.scene.SetURL(str(path))
        user.scene.Connect() if way == "loaded over another" else user.scene.Import()
        user.look()
        user.look()
        p = user.view.segment.parameters
        assert (p.patches, p.method, p.agreement, p.fallback) == (7, "percentile", 0.9, False), way
        assert p.calibrationFolder == "/scans" and p.volume.GetName() == "Second"
        assert [n.GetName() for n in p.calibrationVolumes] == ["Second"]
        assert [n.GetName() for n in p.compareVolumes] == ["First", "Second"]
        assert [n.GetName() for n in user.ui.calibrationSelector.checkedNodes()] == ["Second"]
        assert sorted(n.GetName() for n in user.ui.compareSelector.checkedNodes()) == ["First", "Second"]
        assert read(user.ui.patchesSpin, "value") == 7 and not read(user.ui.fallbackCheck, "checked")


def test_a_setting_that_is_changed_writes_no_other(user):
    """What a widget shows may be stale; only the one that was touched is the user's word."""
    user.load(size=(8, 8, 8))
    parameters = user.view.segment.parameters
    parameters.patches, parameters.precision, parameters.surface = 9, "fp32", False
    user.ui.fallbackCheck.setChecked(not read(user.ui.fallbackCheck, "checked"))
    user.ui.replaceCheck.setChecked(True)
    assert (parameters.patches, parameters.precision, parameters.surface) == (9, "fp32", False)
    assert parameters.replace and not parameters.fallback


def test_a_volume_deleted_and_a_scene_closed_during_the_run(user):
    node = user.load()
    slow_down(user)
    user.click(user.ui.segmentButton)
    user.watch(lambda: "Segmenting" in read(user.ui.segmentStatusLabel, "text"))
    user.scene.RemoveNode(node)
    user.watch()
    assert "was deleted" in user.errors()[-1] and not user.segmentations()
    user.load("Again")
    user.click(user.ui.segmentButton)
    user.watch(lambda: "Segmenting" in read(user.ui.segmentStatusLabel, "text"))
    user.scene.Clear(0)
    user.watch()
    assert (
        read(user.ui.segmentStatusLabel, "text") == "Canceled." and not user.segmentations() and len(user.errors()) == 1
    )


def test_what_was_said_of_a_scene_goes_with_it(user):
    labels = (user.ui.segmentStatusLabel, user.ui.buildStatusLabel, user.ui.compareStatusLabel)
    for panel in (user.view.segment, user.view.build, user.view.compare):
        panel._say("Done in 3 s.")
    assert all(read(label, "text") for label in labels)
    user.scene.Clear(0)
    user.look()
    assert not any(read(label, "text") for label in labels)


def test_dialogs_for_files_lie_over_the_panel_that_asks(user, file_dialogs, monkeypatch):
    over = []

    class Dialogs:
        def __getattr__(self, _name):
            return lambda parent, *_rest: over.append(parent) or ""

    monkeypatch.setattr(file_dialogs, "qt", SimpleNamespace(QFileDialog=Dialogs()))
    view, ui = user.view, user.ui
    for ask in (view.segment._pressFolder, view.models._importFile, view.models._importFolder, view.compare._save):
        ask()
    assert over == [ui.segmentSection, ui.modelsSection, ui.modelsSection, ui.compareSection]


def test_two_models_of_one_title_are_told_apart_by_their_names(user, fp32_package):
    for name in ("first", "second"):
        fp32_package.save(Path(os.environ["MEDQUANT_MODELS"]) / name / "package")
    user.view.show()
    combos = (user.ui.modelCombo, user.ui.buildModelCombo)
    lists = (
        [user.ui.modelList.item(n).text() for n in range(read(user.ui.modelList, "count"))],
        *([combo.itemText(n) for n in range(read(combo, "count"))] for combo in combos),
    )
    for texts in lists:
        assert len(set(texts)) == len(texts)
        assert sum(t.startswith(("first: ", "second: ")) for t in texts) == 2, "a narrow panel cuts what comes last"


@pytest.mark.parametrize("width", [270, 400])
def test_no_table_is_wider_than_the_panel(user, width):
    from MedQuantINT8Lib.slicer_module.panels.qt_compat import fill_table

    ui = user.ui
    user.parent.resize(width, 1000)
    for section in (ui.compareSection, ui.structureSection, ui.summarySection):
        section.setProperty("collapsed", False)
    ui.compareDetails.setVisible(True)
    long_name = "left common carotid artery, proximal part"
    fill_table(ui.structureTable, [[long_name, "0.9876", "-1234.56"]], [f"{long_name}: 5 ml in FP32, 4 ml in INT8"])
    fill_table(ui.summaryTable, [["work in INT8", "0 %", "99 %"], ["time of one window, ms", "1234.5", "123.4"]])
    for table in (ui.structureTable, ui.summaryTable):
        user.look()
        columns = [table.columnWidth(n) for n in range(read(table, "columnCount"))]
        assert sum(columns) <= read(table, "width") <= width and min(columns) > 30, columns
        # The numbers are whole; what is cut of a name is told where the pointer rests on it.
        fonts = user.qt.QFontMetrics(table.font() if callable(table.font) else table.font)
        for n in (1, 2):
            texts = [table.item(row, n).text() for row in range(read(table, "rowCount"))]
            assert all(fonts.boundingRect(text).width() < columns[n] for text in texts)
        assert table.item(0, 0).text() in table.item(0, 0).toolTip()


def test_what_is_told_of_a_network_is_that_of_the_one_that_was_kept(user, monkeypatch):
    view, said = user.view.build, []
    monkeypatch.setattr(view, "_log", said.append)
    monkeypatch.setattr(view, "_start", lambda *_a, **_o: None)
    layers = [{"name": f"conv{n}", "quantized": n == 0} for n in range(13)]
    guard = {"agreement": 0.991, "returned_stored_as_int8": ["conv1", "conv2"], "notes": []}
    warnings = ["INT8 is not worth it for this network: 1.1 % of its multiply-accumulates run in INT8"]
    sizes = {"fp32_bytes": 600_000, "int8_bytes": 200_000, "int8_mac_share": 0.011}
    held_out = {"held_out": True, "lines": ["7 scans would be enough"]}
    report = {"layers": layers, "guard": guard, "warnings": warnings, "agreement": 0.99, "held_out": held_out}
    view._quantized("demo", {**report, **sizes})
    text = "\n".join(said)
    assert "1 of 13 layers compute in INT8, 1.1 % of the work" in text and "0.6 MB to 0.2 MB" in text
    assert "7 scans would be enough" in text
    assert "2 layers compute in floating point on weights stored as INT8" in text and "not worth it" in text


@pytest.mark.slow
def test_a_killed_worker_is_told_and_the_next_click_starts_another(user):
    user.load()
    faster = slow_down(user)
    user.click(user.ui.segmentButton)
    user.watch(lambda: "Segmenting" in read(user.ui.segmentStatusLabel, "text"))
    os.kill(user.widget.logic.implementation._client.pid, signal.SIGKILL)
    user.watch()
    assert "killed, perhaps for want of memory" in user.errors()[-1]
    faster()
    user.click(user.ui.segmentButton)
    user.watch()
    assert len(user.segmentations()) == 1


def test_packages_are_asked_for_at_the_click_and_may_be_refused(user, monkeypatch):
    user.load()
    monkeypatch.setattr(dependencies, "_satisfied", lambda line: not line.startswith("openvino"))
    user.answers.agree = False
    user.click(user.ui.segmentButton)
    question = next(text for kind, text in user.answers.shown if kind == "consent")
    assert "openvino" in question and "Apache-2.0" in question and "MB" in question and "onnxruntime" not in question
    assert "Nothing was installed" in user.errors()[-1] and not user.view.runner.busy


def test_tensorrt_is_only_installed_after_its_licence_was_shown(user):
    user.load()
    user.ui.engineCombo.setCurrentIndex(user.ui.engineCombo.findData("tensorrt"))
    user.answers.agree = False
    user.click(user.ui.segmentButton)
    question = next(text for kind, text in user.answers.shown if kind == "consent")
    assert "tensorrt" in question and "proprietary" in question and "openvino" not in question
    assert "Nothing was installed" in user.errors()[-1]


def test_an_engine_that_is_not_there_is_told(user, tmp_path, monkeypatch):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise ImportError('no openvino here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    user.load()
    user.ui.engineCombo.setCurrentIndex(user.ui.engineCombo.findData("openvino"))
    user.click(user.ui.segmentButton)
    user.watch()
    assert "OpenVINO is installed but cannot be loaded: no openvino here" in user.errors()[-1]


def test_a_disk_that_cannot_be_written_is_told(user, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "file" / "cache"))
    user.load()
    user.click(user.ui.segmentButton)
    user.watch()
    assert str(tmp_path / "file") in user.errors()[-1] and not user.segmentations()


@pytest.mark.slow
def test_compare_shows_what_was_lost_and_leads_to_it(user, file_dialogs, tmp_path, monkeypatch):
    user.load()
    view = user.scene.GetNodeByID("vtkMRMLSliceNodeRed")
    user.click(user.ui.compareButton)
    seen = user.watch()
    assert any("FP32: Segmenting" in text for text in seen) and any("INT8: Segmenting" in text for text in seen)
    rows = [
        [user.ui.summaryTable.item(r, c).text() for c in range(3)]
        for r in range(read(user.ui.summaryTable, "rowCount"))
    ]
    summary = {name: (fp32, int8) for name, fp32, int8 in rows}
    fp32_mb, int8_mb = map(float, summary["file, MB"])
    assert 0 < int8_mb < 0.3 * fp32_mb and summary["memory, GB"][1] != "–"
    share, percent = summary["in INT8"][1].split()
    assert float(share) > 95 and percent == "%"
    assert read(user.ui.structureTable, "rowCount") == len(phantom_labels())
    assert "0.9" in read(user.ui.diceLabel, "text") and "×" in read(user.ui.speedLabel, "text")
    dices = [float(user.ui.structureTable.item(n, 1).text()) for n in range(len(phantom_labels()))]
    worst = user.ui.structureTable.item(0, 0).text()
    assert dices == sorted(dices) and f"Worst structure: {worst}" in read(user.ui.compareResultLabel, "text")
    assert read(user.ui.regionList, "count") > 3
    user.click(user.ui.showDifferencesButton)
    [differences] = user.segmentations()
    assert "ml, " in user.structures(differences)[0]
    user.ui.regionList.setCurrentRow(2)
    user.look()
    region = user.view.compare.comparisons[0].regions[2]
    matrix = view.GetSliceToRAS()
    assert abs(matrix.GetElement(2, 3) - region["center_ras"][2]) < 1e-3
    found = user.view.compare.comparisons[0]
    sizes = [r["voxels"] for r in found.regions]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) <= found.report["differences"]["voxels"]
    for name in ("report.html", "report.json", "report.csv"):
        monkeypatch.setattr(file_dialogs, "save_file", lambda *_a, name=name: str(tmp_path / name))
        user.click(user.ui.saveReportButton)
    page = (tmp_path / "report.html").read_text()
    assert (
        "liver" in page
        and "deepest voxel" in page
        and "mean margin" in page
        and (tmp_path / "report.csv").read_text().startswith("ml,voxels,FP32")
        and (tmp_path / "report.json").stat().st_size > 1000
    )
    user.click(user.ui.showDifferencesButton)
    assert len(user.segmentations()) == 1 and user.scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1
    assert "volume by more than 5 %" in read(user.ui.compareResultLabel, "text")
    assert slicer.mrmlScene is user.scene


@pytest.mark.slow
def test_all_volumes_and_a_folder(user, file_dialogs, tmp_path, monkeypatch):
    import SimpleITK as sitk

    user.load("one")
    user.load("two", 2001)
    flat = mrml.volume_node(Volume(np.full((8, 8, 8), 3, np.int16), np.eye(4), "flat"), "flat", user.scene)
    user.click(user.ui.segmentAllButton)
    seen = user.watch()
    assert any("two (2 of 3)" in text for text in seen) and len(user.segmentations()) == 2
    [(_, told)] = [item for item in user.answers.shown if item[0] == "warningDisplay"]
    assert told.startswith("flat: ") and "everywhere" in told
    user.scene.RemoveNode(flat)
    volume = make_phantom(2002, (60, 60, 60), 5.0)[0]
    for name in ("a.nii.gz", "b.nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(volume.data[0]), str(tmp_path / name))
    folders = iter([str(tmp_path), str(tmp_path / "out")])
    monkeypatch.setattr(file_dialogs, "open_folder", lambda *_a: next(folders))
    (tmp_path / "out").mkdir()
    user.click(user.ui.segmentFolderButton)
    user.watch()
    assert sorted(p.name for p in (tmp_path / "out").glob("*.seg.nrrd")) == ["a.seg.nrrd", "b.seg.nrrd"]


@pytest.mark.slow
def test_a_sequence_is_segmented_frame_by_frame(user):
    if not hasattr(slicer, "vtkSlicerSequencesLogic"):
        pytest.skip(NO_SEQUENCES)
    scene = user.scene
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Beating")
    for n, seed in enumerate((2000, 2001)):
        frame = mrml.volume_node(make_phantom(seed, (56, 48, 50), 5.0)[0], f"t{n}", scene)
        sequence.SetDataNodeAtValue(frame, str(n))
        scene.RemoveNode(frame)
    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(scene)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    logic.UpdateAllProxyNodes()
    proxy = browser.GetProxyNode(sequence)
    user.ui.volumeSelector.setCurrentNodeID(proxy.GetID())
    user.look()
    assert user.view.segment.parameters.volume is proxy
    user.click(user.ui.segmentSequenceButton)
    user.watch()
    found = [
        scene.GetNthNodeByClass(n, "vtkMRMLSequenceNode")
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceNode"))
    ]
    made = next(node for node in found if node is not sequence)
    assert made.GetNumberOfDataNodes() == 2 and browser.IsSynchronizedSequenceNode(made)
    assert len(user.structures(made.GetNthDataNode(1))) >= 4
    assert not user.errors()
    user.view.segment.parameters.volume = user.load("no frame")
    user.click(user.ui.segmentSequenceButton)
    assert "not a frame of a sequence" in user.errors()[-1]


@pytest.mark.slow
def test_an_int8_engine_is_made_in_the_window(user):
    if importlib.util.find_spec("modelopt") is None:
        pytest.skip("this build of Slicer has no ModelOpt")
    node = user.load("Calibration")
    user.ui.calibrationSelector.setCheckState(node, user.qt.Qt.Checked)
    user.ui.patchesSpin.setValue(2)
    user.view.build._writers["patches"]()
    user.click(user.ui.buildButton)
    assert read(user.ui.buildButton, "text") == "Cancel" and not read(user.ui.segmentButton, "enabled")
    user.watch(seconds=300)
    assert not user.errors(), user.errors()
    log = read(user.ui.logText, "plainText")
    assert "layers compute in INT8" in log and "file:" in log
    assert "openvino: INT8" in log and "real INT8 against the simulation" in log
    assert user.view.segment.parameters.model == "my-demo"
    user.click(user.ui.segmentButton)
    user.watch()
    assert len(user.segmentations()) == 1


def test_making_an_engine_without_scans_is_told_before_anything_is_installed(user, monkeypatch, tmp_path):
    monkeypatch.setattr(dependencies, "missing", lambda *_a: pytest.fail("packages were looked for"))
    user.click(user.ui.buildButton)
    assert "no volume to calibrate on" in user.errors()[-1]
    user.view.build.parameters.calibrationFolder = str(tmp_path / "none")
    user.click(user.ui.buildButton)
    assert f"There is no folder {tmp_path / 'none'}" in user.errors()[-1]


def test_the_module_reloads_and_nothing_of_the_old_panel_stays(user, monkeypatch):
    # Other tests go on with the library as they know it.
    for name in [n for n in sys.modules if n.startswith("MedQuantINT8Lib")]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    user.load(size=(8, 8, 8))
    slow_down(user)
    old, client = user.view, user.widget.logic.implementation._client
    user.click(user.ui.segmentButton)
    user.watch(lambda: client.pid is not None)
    # Another panel of the module, as the application has its own beside this one.
    parent = slicer.qMRMLWidget()
    parent.setLayout(user.qt.QVBoxLayout())
    beside = sys.modules[type(user.widget).__module__].MedQuantINT8Widget(parent)
    beside.setup()
    user.widget.onReload()
    assert client.pid is None, "the old panel's worker is alive"
    assert not user.panels(), "the old panel is alive"
    user.widget = slicer.modules.MedQuantINT8Widget
    user.look()
    assert user.view is not old
    node = user.load("Later")
    user.ui.compareSelector.setCheckState(node, user.qt.Qt.Checked)
    user.look()
    assert [n.GetName() for n in user.view.compare.parameters.compareVolumes] == ["Later"]
    user.ui.volumeSelector.setCurrentNodeID(node.GetID())
    beside.cleanup()
    user.click(user.ui.segmentButton)
    user.watch()
    assert len(user.segmentations()) == 1


@pytest.mark.slow
def test_the_modules_own_test_passes(user):
    import MedQuantINT8

    MedQuantINT8.MedQuantINT8Test().runTest()


def test_sample_data_is_registered_and_needs_no_network(user):
    window.start_up()
    [sample] = slicer.modules.sampleDataSources["MedQuantINT8"]
    node = sample.customDownloader(sample)
    assert node.GetImageData().GetDimensions()[0] > 50 and Path(sample.thumbnailFileName).is_file()
    assert user.answers.viewed[-1] is node, "Sample Data shows only what it has downloaded itself"


def test_sample_data_gives_the_scan_to_a_script_by_its_name(user):
    import SampleData

    window.start_up()
    node = SampleData.SampleDataLogic().downloadSample("SyntheticAbdomen")
    [sample] = slicer.modules.sampleDataSources["MedQuantINT8"]
    shown = sample.customDownloader(sample)
    assert node.GetName() == "SyntheticAbdomen" and node.GetImageData().GetDimensions()[0] > 50
    by_name, by_click = mrml.volume_from_node(node), mrml.volume_from_node(shown)
    assert np.array_equal(by_name.data, by_click.data) and np.allclose(by_name.ijk_to_ras, by_click.ijk_to_ras)


def test_another_module_stops_the_following_of_the_scan_and_coming_back_begins_it_again(user, monkeypatch):
    node = user.load(size=(32, 32, 32), spacing=8.0)
    user.view.show()
    looked_at = []
    monkeypatch.setattr(
        user.widget.logic.implementation, "advise", lambda volume, model: looked_at.append(volume) or ""
    )
    for step, follows in ((lambda: None, True), (user.widget.exit, False), (user.widget.enter, True)):
        step()
        looked_at.clear()
        node.InvokeEvent(slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent)
        assert bool(looked_at) == follows


def test_a_volume_is_segmented_from_its_context_menu(user):
    if not window.in_stand_in():
        pytest.skip("this build of Slicer has no context menu that a test could open")
    import subject_hierarchy

    window.start_up()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(user.scene)

    def item(node):
        return hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    first, second = user.load("First", size=(16, 16, 16)), user.load("Second", size=(48, 40, 40), spacing=6.0)
    labels = user.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Folder")
    for nothing in (0, folder, item(labels)):
        assert not subject_hierarchy.menu_of(nothing)
    [(_text, lines)] = subject_hierarchy.menu_of(item(second)).items()
    assert len(lines) == 1 and user.view.segment.parameters.volume is first
    next(iter(lines.values())).trigger()
    assert ("selectModule", "MedQuantINT8") in user.answers.shown and user.view.runner.busy
    assert user.ui.volumeSelector.currentNode() is second and read(user.ui.modelCombo, "currentIndex") == 0
    user.watch()
    assert not user.errors() and len(user.segmentations()) == 1
    [segmentation] = user.segmentations()
    assert segmentation.GetName().startswith("Second")
