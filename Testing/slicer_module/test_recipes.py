"""The five recipes of examples/slicer_recipes.py, on Slicer's real core; the third on a database of series as Slicer's has them."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")
pytest.importorskip("pydicom", reason="needs pydicom")

import slicer

import tiny
from dicom_files import write_series
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.slicer_module import scene as mrml
from MedQuantINT8Lib.slicer_module.logic import MedQuantINT8Logic
from places import ROOT
from slicer_nodes import names

pytestmark = pytest.mark.slicer
#: Voxels of 2 x 3 x 4 mm; 60 of them are bright.
MATRIX = np.diag([2.0, 3.0, 4.0, 1.0])
VOXELS = np.zeros((8, 9, 10), np.float32)
VOXELS[2:5, 3:7, 1:6] = 1


@pytest.fixture(scope="module")
def recipes():
    spec = importlib.util.spec_from_file_location("slicer_recipes", ROOT / "examples" / "slicer_recipes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def logic():
    made = MedQuantINT8Logic()
    # Of the simulated engine: the tiny network has no real INT8 kernels to be fast with.
    plain = made.segment
    made.segment = lambda *nodes, **how: plain(*nodes, **{"engine": "onnxruntime", "precision": "fp32", **how})
    yield made
    made.close()


@pytest.fixture
def model(tmp_path):
    return str(tiny.package(tmp_path / "made").folder)


@pytest.fixture
def volume():
    scene = mrml.headless_scene()
    scene.Clear(0)
    yield mrml.volume_node(Volume(VOXELS[None], MATRIX, "scan"), "scan", scene)
    scene.Clear(0)


def test_segment_and_measure(recipes, logic, volume, model):
    assert recipes.segment_and_measure(logic, volume, model) == {"bright": pytest.approx(60 * 0.024)}


def test_segment_in_background_and_give_up(recipes, logic, volume, model):
    turns = []
    segmentation = recipes.segment_in_background(logic, volume, model, lambda: turns.append(1))
    assert names(segmentation) == ["bright"]
    assert recipes.segment_in_background(logic, volume, model, lambda: None, lambda: True) is None
    assert volume.GetScene().GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1


def test_segment_series_of_the_dicom_database(recipes, logic, volume, model, tmp_path):
    files = {}
    for number, uid in enumerate(("1.2.3.4", "1.2.3.5")):
        slices = list((VOXELS * 100 * (number + 1)).astype(np.int16))
        positions = [(0.0, 0.0, 2.0 * n) for n in range(len(slices))]
        files[uid] = [str(path) for path in write_series(tmp_path / uid, slices, positions, series=uid)]
    database = SimpleNamespace(filesForSeries=lambda uid: tuple(files[uid]))
    nodes = volume.GetScene().GetNumberOfNodesByClass("vtkMRMLDisplayableNode")
    written = recipes.segment_series(logic, database, list(files), model, tmp_path)
    assert sorted(written) == sorted(files)
    assert volume.GetScene().GetNumberOfNodesByClass("vtkMRMLDisplayableNode") == nodes
    for path in written.values():
        assert names(mrml.load_segmentation(path)) == ["bright"]


def test_compare_precisions(recipes, logic, volume, model, tmp_path, monkeypatch):
    # On the tiny network INT8 is as FP32; what a difference looks like is in test_logic.
    dice = recipes.compare_precisions(logic, volume, model, tmp_path / "page.html")
    assert dice == 1.0 and "bright" in (tmp_path / "page.html").read_text()


def test_label_map_for_other_modules(recipes, logic, volume, model):
    labels = recipes.label_map_for_other_modules(logic, volume, model)
    found = slicer.util.arrayFromVolume(labels)
    assert np.array_equal(found > 0, VOXELS > 0.5) and np.allclose(mrml.ijk_to_ras(labels), MATRIX)
