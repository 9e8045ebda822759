"""The logic on Slicer's real core: nodes in, nodes out, errors in words, nothing lost."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

from MedQuantINT8Lib.errors import Cancelled, InputError
from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_labels
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.slicer_module import scene as mrml
from MedQuantINT8Lib.slicer_module.logic import MedQuantINT8Logic
from scans import PHANTOM_SIZE, PHANTOM_SPACING

pytestmark = pytest.mark.slicer


@pytest.fixture(scope="module")
def logic():
    made = MedQuantINT8Logic()
    yield made
    made.close()


@pytest.fixture
def node(phantom):
    made = mrml.volume_node(phantom[0], "Scan")
    yield made
    if made.GetScene() is not None:
        made.GetScene().RemoveNode(made)


def names(segmentation):
    inside = segmentation.GetSegmentation()
    return [inside.GetNthSegment(n).GetName() for n in range(inside.GetNumberOfSegments())]


def test_one_call_from_volume_node_to_segmentation_node(logic, node, int8_package):
    events = []
    found = logic.segment(node, model=str(int8_package.folder), progress=events.append)
    assert len(names(found)) == len(phantom_labels()) and "liver" in names(found)
    assert "segmenting" in {event.stage for event in events}
    again = logic.process(node, found, str(int8_package.folder))
    assert again is found and len(names(found)) == 2 * len(phantom_labels())
    assert logic.segment(node, found, str(int8_package.folder), replace=True) is found and len(names(found)) == len(
        phantom_labels()
    )


def test_a_subset_of_structures(logic, node, int8_package):
    found = logic.segment(node, model=str(int8_package.folder), segments=["liver", "spleen"])
    assert sorted(names(found)) == ["liver", "spleen"]
    with pytest.raises(InputError, match="does not know 'heart'"):
        logic.segment(node, model=str(int8_package.folder), segments=["heart"])


def test_in_the_background_with_a_timer_and_cancel(logic, node, int8_package):
    scene = node.GetScene()
    job = logic.segment(node, model=str(int8_package.folder), waitForCompletion=False)
    end = time.monotonic() + 60
    while not job.poll() and time.monotonic() < end:
        time.sleep(0.02)
    assert len(names(job.value)) == len(phantom_labels())
    before = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    job = logic.segment(
        node, model=str(int8_package.folder), waitForCompletion=False, options=SegmentationOptions(overlap=0.9)
    )
    job.cancel()
    with pytest.raises(Cancelled):
        while not job.poll():
            time.sleep(0.02)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == before


def test_a_volume_that_is_deleted_meanwhile(logic, node, int8_package):
    job = logic.segment(node, model=str(int8_package.folder), waitForCompletion=False)
    node.GetScene().RemoveNode(node)
    with pytest.raises(InputError, match="deleted"):
        while not job.poll():
            time.sleep(0.02)


def test_bad_input_is_refused_before_any_work(logic, node, int8_package):
    with pytest.raises(InputError, match="no volume"):
        logic.segment(None, model=str(int8_package.folder))
    with pytest.raises(InputError, match="No model was chosen"):
        logic.segment(node)
    with pytest.raises(InputError, match="no model 'nonsense'"):
        logic.segment(node, model="nonsense")
    with pytest.raises(InputError, match="label map"):
        labels = node.GetScene().AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
        logic.segment(labels, model=str(int8_package.folder))


@pytest.mark.slow
def test_compare_shows_where_int8_differs(logic, node, int8_package):
    found = logic.compare(node, str(int8_package.folder))
    assert (
        found.meanDice > 0.9
        and len(found.structures) == len(phantom_labels())
        and {row[0] for row in found.rows()} >= {"time, s", "engine, MB"}
    )
    shown = names(logic.showDifferences(found))
    table = logic.differencesTable(found)
    assert (
        table.IsA("vtkMRMLTableNode")
        and table.GetNumberOfRows() == len(found.regions)
        and table.GetColumnName(2) == "FP32"
    )
    assert table.GetCellText(0, 2) == found.regions[0]["first"] and 0 <= float(table.GetCellText(0, 9)) < 0.9
    assert found.verdict in found.report["pointed_out"] or "volume by more than 5 %" in found.verdict
    assert 2 < len(shown) <= 31 and "in FP32" in shown[0]


@pytest.mark.slow
def test_calibrate_on_loaded_volumes_and_build(logic, fp32_package, phantom, tmp_path):
    nodes = [
        mrml.volume_node(make_phantom(seed, PHANTOM_SIZE, PHANTOM_SPACING)[0], f"Calibration {seed}")
        for seed in (2001, 2002)
    ]
    report = logic.calibrate(nodes, str(fp32_package.folder), str(tmp_path / "int8"), patches=2, agreement=0)
    assert report["int8_mac_share"] > 0.9 and report["size_ratio"] <= 0.27
    built = logic.buildEngine(str(tmp_path / "int8"), nodes[0])
    assert built["verdict"] == "INT8" and built["fidelity"]["trusted"]
    for made in nodes:
        made.GetScene().RemoveNode(made)


def test_models_and_engines_are_listed(logic, int8_package, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path))
    assert [model["name"] for model in logic.models()] == ["demo"]
    int8_package.save(tmp_path / "phantom" / "package")
    model = logic.models()[1]
    assert model["name"] == "phantom" and model["int8"] and "liver" in model["labels"]
    assert logic.engines()["openvino"]["available"]


def test_every_scan_of_the_scene(logic, node, int8_package):
    scene = node.GetScene()
    others = [
        scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode")
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"))
    ]
    for other in others:
        if other is not node:
            scene.RemoveNode(other)
    second = mrml.volume_node(make_phantom(2003, PHANTOM_SIZE, PHANTOM_SPACING)[0], "Second")
    made = logic.segmentAll(str(int8_package.folder))
    assert len(made) == 2 and all(len(names(found)) >= 4 for found in made)
    assert all(found.GetDisplayNode() is not None for found in made)
    scene.RemoveNode(second)
