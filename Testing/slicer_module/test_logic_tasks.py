"""Tasks and regions of interest in Slicer's console, on Slicer's real core."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.slicer_module import scene as mrml
from MedQuantINT8Lib.slicer_module.logic import MedQuantINT8Logic
from MedQuantINT8Lib.slicer_module.region_nodes import region_of_interest
from scans import GEOMETRIES
from task_packages import spotted, three_parts

pytestmark = pytest.mark.slicer
HOW = {"engine": "onnxruntime", "precision": "fp32"}


@pytest.fixture(scope="module")
def logic():
    made = MedQuantINT8Logic()
    yield made
    made.close()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return three_parts(tmp_path_factory.mktemp("three"))


@pytest.fixture(autouse=True)
def _empty_scene():
    """Other tests find the scene as they left it."""
    yield
    mrml.headless_scene().Clear(0)


@pytest.fixture
def node():
    return mrml.volume_node(spotted(), "Scan")


def roi_node(center, size, name="R"):
    made = mrml.headless_scene().AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    made.SetCenter(*center)
    made.SetSize(*size)
    return made


def names(segmentation):
    inside = segmentation.GetSegmentation()
    return [inside.GetNthSegment(n).GetName() for n in range(inside.GetNumberOfSegments())]


def test_a_task_gives_one_segmentation_with_its_structures(logic, node, together):
    segmentation = logic.segment(node, model=str(together), **HOW)
    assert names(segmentation) == ["white", "light", "grey", "shadow", "glow"]
    assert [part["name"] for part in logic.report["parts"]] == ["dim", "bright", "brightest"]
    segmentation = logic.segment(node, model=str(together), segments=["glow"], **HOW)
    assert names(segmentation) == ["glow"]
    assert [part["name"] for part in logic.report["parts"]] == ["brightest"]
    with pytest.raises(InputError, match="does not know 'heart'"):
        logic.segment(node, model=str(together), segments=["heart"], **HOW)


def test_an_installed_task_is_listed_and_named(logic, node, together, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    shutil.copytree(together, tmp_path / "models" / "together")
    (row,) = [row for row in logic.models() if row["name"] == "together"]
    assert row["task"] and row["int8"] and row["labels"] == ["white", "light", "grey", "shadow", "glow"]
    assert names(logic.segment(node, model="together", segments=["grey"], **HOW)) == ["grey"]
    report = logic.buildEngine("together", **HOW)
    assert [network["network"] for network in report["networks"]] == ["dim", "bright", "brightest"]
    assert logic.networksOf("together") == ["dim", "bright", "brightest"]


@pytest.mark.slow
def test_a_task_is_made_int8_each_network_in_turn(logic, node, together, tmp_path, monkeypatch):
    pytest.importorskip("modelopt", reason="needs NVIDIA ModelOpt")
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    shutil.copytree(together, tmp_path / "models" / "together")
    stages = []
    report = logic.calibrate(
        [node], "together", patches=2, effort="fast", agreement=0.0, progress=lambda event: stages.append(event.stage)
    )
    assert [network["network"] for network in report["networks"]] == ["dim", "bright", "brightest"]
    assert all(network["layers"] and network["held_out"]["lines"] is not None for network in report["networks"])
    assert {"dim (1 of 3): calibrating", "brightest (3 of 3): calibrating"} <= set(stages)
    assert names(logic.segment(node, model="together", engine="onnxruntime", precision="int8"))


def test_a_region_node_or_six_numbers_bound_the_run(logic, node, together):
    roi = roi_node((11.5, 9.5, 7.5), (15.2, 15.2, 7.2))
    counts = []
    for region in (roi, (3.9, 19.1, 1.9, 17.1, 3.9, 11.1), np.array([3.9, 19.1, 1.9, 17.1, 3.9, 11.1])):
        logic.segment(node, model=str(together), roi=region, **HOW)
        (box,) = logic.report["boxes"]
        assert (box["start"], box["stop"]) == ([4, 2, 4], [20, 18, 12])
        counts.append(json.dumps(logic.report["voxels"]))
    assert len(set(counts)) == 1
    assert sum(logic.report["voxels"].values()) <= 16 * 16 * 8
    with pytest.raises(InputError, match="holds no voxel of Scan"):
        logic.segment(node, model=str(together), roi=(900, 910, 0, 5, 0, 5), **HOW)


@pytest.mark.parametrize("roi", ["R", 7, (1, 2, 3), (2, 1, 0, 1, 0, 1), ("a",) * 6, (1, 2, 3, 4, 5, float("inf"))])
def test_what_is_no_region_is_refused_in_words(logic, node, together, roi):
    with pytest.raises(InputError):
        logic.segment(node, model=str(together), roi=roi, **HOW)


def test_a_region_that_was_not_placed_is_refused(logic, node, together):
    roi = mrml.headless_scene().AddNewNodeByClass("vtkMRMLMarkupsROINode", "not placed")
    with pytest.raises(InputError, match="'not placed' is empty"):
        logic.segment(node, model=str(together), roi=roi, **HOW)


def test_the_region_goes_with_a_scan_that_is_moved():
    """A ROI lies in the world; a scan under a transform is segmented in its own coordinates."""
    import vtk

    volume = mrml.volume_node(spotted(matrix=GEOMETRIES["axial"]), "Moved")
    transform = volume.GetScene().AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 100.0)
    transform.SetMatrixTransformToParent(matrix)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    assert region_of_interest((110, 120, 0, 5, 0, 5), volume) == pytest.approx((10, 20, 0, 5, 0, 5))


def test_a_region_bounds_a_single_package_too(logic, node, together):
    options = SegmentationOptions(check_ranges=False)
    logic.segment(node, model=str(together / "packages" / "dim"), roi=(0, 10, 0, 10, 0, 10), options=options, **HOW)
    assert logic.report["boxes"][0]["stop"] == [11, 11, 11]
