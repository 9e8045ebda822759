"""Results as other modules of Slicer take them: Segment Statistics, Segment Editor, DICOM; as far as Slicer's core has them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MedQuantINT8Lib.imaging.phantom import phantom_labels
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.slicer_module import scene as mrml
from MedQuantINT8Lib.slicer_module.results import run_result, segment_ids, voxel_ml

pytestmark = pytest.mark.slicer
#: Voxels of 2 x 3 x 4 mm, turned about an axis.
MATRIX = np.diag([2.0, 3.0, 4.0, 1.0])
MATRIX[:2, :2] = np.array([[1.6, -1.8], [1.2, 2.4]])
MATRIX[:3, 3] = (-20, 30, 7)
LABELS = np.zeros((8, 9, 10), np.uint8)
LABELS[2:5, 3:7, 1:5] = 1
LABELS[2:5, 3:7, 5:8] = 2


@pytest.fixture
def result():
    scene = mrml.headless_scene()
    scene.Clear(0)
    voxels = np.arange(LABELS.size, dtype=np.int16).reshape(LABELS.shape)
    volume = mrml.volume_node(Volume(voxels[None], MATRIX, "scan"), "scan", scene)
    names = phantom_labels()[:3]
    node = mrml.add_segmentation(LABELS, names, volume)
    counts = {int(value): int((value == LABELS).sum()) for value in (1, 2)}
    yield volume, node, run_result(node, names, counts, voxel_ml(volume), [])
    scene.Clear(0)


def label_map(node, identifier):
    """A segment by itself, as modules ask for it."""
    image = slicer.vtkOrientedImageData()
    assert node.GetBinaryLabelmapRepresentation(identifier, image)
    return image


def test_a_runs_result_names_segments_volumes_and_what_is_missing(result):
    volume, _node, run = result
    ml = abs(float(np.linalg.det(MATRIX[:3, :3]))) / 1000
    assert voxel_ml(volume) == pytest.approx(ml)
    assert [(s.segmentID, s.ml) for s in run.structures] == [
        ("Segment_1", pytest.approx(48 * ml)),
        ("Segment_2", pytest.approx(36 * ml)),
    ]
    assert run.missing == (phantom_labels()[2].name,) and run.center("gone") is None
    middle = MATRIX @ [2.5, 4.5, 3.0, 1]
    assert np.allclose(run.center("Segment_1"), middle[:3], atol=2.0)


def test_segment_statistics_counts_what_was_found(result):
    """Its label map statistics: the voxels of a segment's own label map, times the size of a voxel."""
    _volume, node, run = result
    for structure in run.structures:
        image = label_map(node, structure.segmentID)
        threshold = vtk.vtkImageThreshold()
        threshold.SetInputData(image)
        threshold.ThresholdByLower(0)
        threshold.SetInValue(0)
        threshold.SetOutValue(1)
        counted = vtk.vtkImageAccumulate()
        counted.SetInputConnection(threshold.GetOutputPort())
        counted.IgnoreZeroOn()
        counted.Update()
        size = float(np.prod(image.GetSpacing())) / 1000
        assert counted.GetVoxelCount() * size == pytest.approx(structure.ml)


def test_segment_statistics_finds_the_scan_that_was_segmented(result):
    """Its intensities: the segment on the reference geometry, which is the scan's."""
    volume, node, _run = result
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume
    for identifier, value in (("Segment_1", 1), ("Segment_2", 2)):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume)
        assert np.array_equal(mask > 0, value == LABELS)


def test_segment_editor_changes_one_segment_and_no_other(result):
    volume, node, _run = result
    binary = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    assert node.GetSegmentation().GetSourceRepresentationName() == binary
    editor = volume.GetScene().AddNewNodeByClass("vtkMRMLSegmentEditorNode", "Editor")
    editor.SetAndObserveSegmentationNode(node)
    editor.SetAndObserveSourceVolumeNode(volume)
    editor.SetSelectedSegmentID("Segment_1")
    image = label_map(node, "Segment_1")
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = 0
    assert slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, node, "Segment_1")
    masks = [slicer.util.arrayFromSegmentBinaryLabelmap(node, name, volume) for name in ("Segment_1", "Segment_2")]
    assert not masks[0].any() and np.array_equal(masks[1] > 0, LABELS == 2)


@pytest.mark.parametrize("terminology", mrml.terminology_names()[:2])
def test_dicom_export_finds_codes_place_and_geometry(terminology):
    """What the DICOM module's exporter asks for: codes of each segment, the study that both lie in, the scan's geometry."""
    scene = mrml.headless_scene()
    scene.Clear(0)
    volume = mrml.volume_node(Volume(LABELS[None].astype(np.int16), MATRIX, "scan"), "scan", scene)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    hierarchy.CreateItem(study, volume)
    node = mrml.add_segmentation(LABELS, phantom_labels()[:2], volume, terminology=terminology)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    logic = slicer.modules.terminologies.logic()
    for identifier, label in zip(segment_ids(node), phantom_labels(), strict=False):
        entry, tag = slicer.vtkSlicerTerminologyEntry(), vtk.mutable("")
        assert node.GetSegmentation().GetSegment(identifier).GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
        assert logic.DeserializeTerminologyEntry(str(tag), entry) and entry.GetTerminologyContextName() == terminology
        assert entry.GetTypeObject().GetCodeValue() == label.terminology.type.value
        assert entry.GetCategoryObject().GetCodingSchemeDesignator() == "SCT"
    geometry = node.GetSegmentation().GetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    )
    assert geometry
    scene.Clear(0)
