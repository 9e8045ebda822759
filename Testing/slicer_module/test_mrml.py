"""The MRML scene, with Slicer's real core: nodes to volumes and back, files, geometry, pictures."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs Slicer or slicer-core")

from MedQuantINT8Lib.errors import InputError  # noqa: E402
from MedQuantINT8Lib.imaging.phantom import phantom_labels  # noqa: E402
from MedQuantINT8Lib.imaging.preprocessing import preprocess  # noqa: E402
from MedQuantINT8Lib.imaging.segmentation_files import terminology_tag, write_segmentation  # noqa: E402
from MedQuantINT8Lib.imaging.volume import Volume  # noqa: E402
from MedQuantINT8Lib.models.spec import Geometry, Label  # noqa: E402
from MedQuantINT8Lib.slicer_module import scene as mrml  # noqa: E402
from MedQuantINT8Lib.slicer_module import volume_nodes  # noqa: E402
from scans import GEOMETRIES, spec_with  # noqa: E402
from slicer_nodes import centroid_in_slicer, names, segments  # noqa: E402

pytestmark = pytest.mark.slicer
LABELS = (
    Label(1, "ball", 1, (200, 30, 40)),
    Label(2, "absent", 2),
    Label(7, "cube", 3, (30, 200, 40), phantom_labels()[1].terminology),
)


@pytest.fixture
def scene():
    made = mrml.headless_scene()
    yield made
    made.Clear(0)


def labelled(mask):
    labels = mask.astype(np.uint8)
    labels[:3, :4, :5] = 7
    return labels


def test_a_volume_goes_through_a_node_unchanged(scene, geometry, blob):
    volume, _ = blob(geometry)
    back = mrml.volume_from_node(mrml.volume_node(volume, "scan", scene))
    assert np.array_equal(back.data, volume.data)
    assert np.allclose(back.ijk_to_ras, geometry)


def test_segments_carry_name_colour_terminology_and_geometry(scene, geometry, blob):
    volume, mask = blob(geometry)
    node = mrml.volume_node(volume, "scan", scene)
    result = mrml.add_segmentation(labelled(mask), LABELS, node)
    assert names(result) == ["ball", "cube"]
    assert np.allclose(segments(result)[0].GetColor(), [c / 255 for c in LABELS[0].color])
    import vtk

    tag = vtk.mutable("")
    segments(result)[1].GetTag("TerminologyEntry", tag)
    assert str(tag) == terminology_tag(LABELS[2].terminology) and "64033007" in str(tag)
    assert result.GetNodeReferenceID("referenceImageGeometryRef") == node.GetID()
    found = slicer.vtkOrientedImageData()
    result.GetBinaryLabelmapRepresentation(result.GetSegmentation().GetNthSegmentID(0), found)
    matrix = vtk.vtkMatrix4x4()
    found.GetImageToWorldMatrix(matrix)
    directions = np.array([[matrix.GetElement(r, c) for c in range(3)] for r in range(3)])
    assert np.allclose(directions, geometry[:3, :3])


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "PIR"])
def test_a_structure_stays_where_slicer_shows_it(scene, geometry, blob, orientation):
    """Through network space and back into the scene, a label's centroid in RAS moves by less than half a voxel."""
    volume, mask = blob(geometry)
    node = mrml.volume_node(volume, "scan", scene)
    network_input = preprocess(
        mrml.volume_from_node(node), spec_with(geometry=Geometry("KJI", orientation, spacing=(1.6, 1.2, 1.4)))
    )
    found = network_input.restore((network_input.data[0] > 60).astype(np.uint8))
    result = mrml.add_segmentation(found, LABELS, node)
    truth = geometry[:3] @ np.append(np.argwhere(mask).mean(axis=0)[::-1], 1)
    moved = np.linalg.inv(geometry[:3, :3]) @ (centroid_in_slicer(result, "Segment_1") - truth)
    assert np.abs(moved).max() < 0.5


def test_resampling_equals_slicers_own(scene, geometry, blob):
    """Against vtkOrientedImageDataResample, Slicer's own resampler, with linear interpolation."""
    volume, _ = blob(geometry)
    network_input = preprocess(volume, spec_with(geometry=Geometry("KJI", "RAS", spacing=(1.6, 1.2, 1.4))))
    source, reference, output = (slicer.vtkOrientedImageData() for _ in range(3))
    source.ShallowCopy(volume_nodes.image_data(volume.data[0].astype(np.float32)))
    source.SetImageToWorldMatrix(volume_nodes.vtk_matrix(geometry))
    reference.ShallowCopy(volume_nodes.image_data(np.zeros(network_input.grid.size[::-1], np.float32)))
    reference.SetImageToWorldMatrix(volume_nodes.vtk_matrix(network_input.grid.ijk_to_ras))
    assert slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        source, reference, output, True
    )
    from vtk.util.numpy_support import vtk_to_numpy

    theirs = vtk_to_numpy(output.GetPointData().GetScalars()).reshape(network_input.data.shape[1:])
    inside = np.s_[2:-2, 2:-2, 2:-2]
    assert np.abs(theirs - network_input.data[0])[inside].max() < 0.05


def test_existing_segments_are_kept_unless_replacement_is_asked_for(scene, blob):
    volume, mask = blob(GEOMETRIES["oblique"])
    node = mrml.volume_node(volume, "scan", scene)
    result = mrml.add_segmentation(labelled(mask), LABELS, node)
    mrml.add_segmentation(labelled(mask), LABELS, node, result)
    assert names(result) == ["ball", "cube", "ball 2", "cube 2"]
    mrml.add_segmentation(labelled(mask), LABELS, node, result, replace=True)
    assert names(result) == ["ball", "cube"]


def test_the_segmentation_moves_with_its_volume(scene, blob):
    volume, mask = blob(GEOMETRIES["flipped"])
    node = mrml.volume_node(volume, "scan", scene)
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    node.SetAndObserveTransformNodeID(transform.GetID())
    result = mrml.add_segmentation(labelled(mask), LABELS, node)
    assert result.GetTransformNodeID() == transform.GetID()


def test_the_segmentation_lies_beside_its_volume_in_the_subject_hierarchy(scene, blob):
    volume, mask = blob(GEOMETRIES["axial"])
    node = mrml.volume_node(volume, "scan", scene)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.CreateItem(study, node)
    result = mrml.add_segmentation(labelled(mask), LABELS, node)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) == study


def test_a_closed_surface_is_made_on_request(scene, blob):
    volume, mask = blob(GEOMETRIES["anisotropic"])
    node = mrml.volume_node(volume, "scan", scene)
    result = mrml.add_segmentation(labelled(mask), LABELS, node, surface=True)
    surface = result.GetClosedSurfaceInternalRepresentation("Segment_1")
    assert surface is not None and surface.GetNumberOfPolys() > 100


@pytest.mark.parametrize("writer", ["slicer", "ours"])
def test_seg_nrrd_is_read_back_by_slicer(scene, geometry, blob, tmp_path, writer):
    volume, mask = blob(geometry)
    path = tmp_path / "result.seg.nrrd"
    labels = labelled(mask)
    if writer == "slicer":
        mrml.save_segmentation(mrml.add_segmentation(labels, LABELS, mrml.volume_node(volume, "scan", scene)), path)
    else:
        write_segmentation(path, labels, geometry, LABELS)
    back = mrml.load_segmentation(path)
    found = {segment.GetName(): segment for segment in segments(back)}
    assert set(found) - {"absent"} == {"ball", "cube"}
    assert np.allclose(found["cube"].GetColor(), [c / 255 for c in LABELS[2].color], atol=1e-3)
    import vtk

    tag = vtk.mutable("")
    found["cube"].GetTag("TerminologyEntry", tag)
    assert str(tag) == terminology_tag(LABELS[2].terminology)
    truth = geometry[:3] @ np.append(np.argwhere(labels == 1).mean(axis=0)[::-1], 1)
    segment_id = next(
        i
        for i in map(back.GetSegmentation().GetNthSegmentID, range(len(found)))
        if back.GetSegmentation().GetSegment(i).GetName() == "ball"
    )
    assert np.allclose(centroid_in_slicer(back, segment_id), truth, atol=1e-2)


def test_a_picture_shows_scan_and_segmentation(scene, phantom, tmp_path):
    import SimpleITK as sitk

    from MedQuantINT8Lib.slicer_module.views import save_picture

    volume, truth = phantom
    node = mrml.volume_node(volume, "phantom", scene)
    result = mrml.add_segmentation(truth, phantom_labels(), node)
    save_picture(node, result, tmp_path / "picture.png", size=200)
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "picture.png"))).astype(int)
    assert pixels.shape == (200, 800, 3)
    for panel in np.split(pixels, 4, axis=1):
        colourful = np.ptp(panel, axis=2) > 30
        assert 0.02 < colourful.mean() < 0.9
    grey = (np.ptp(pixels[:, :600], axis=2) < 3) & (pixels[:, :600, 0] > 60) & (pixels[:, :600, 0] < 250)
    assert grey.mean() > 0.05


def test_what_is_no_scan_is_refused(scene, blob):
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    label_map = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    for node, problem in (
        (None, "no volume"),
        (empty, "'empty' holds no voxels"),
        (label_map, "'labels' is a label map"),
    ):
        with pytest.raises(InputError, match=problem):
            mrml.volume_from_node(node)
    first, second = (
        mrml.volume_node(Volume(blob(GEOMETRIES[g])[0].data[0], GEOMETRIES[g]), g, scene) for g in ("axial", "oblique")
    )
    with pytest.raises(InputError, match="same grid"):
        mrml.volume_from_node(first, [second])


@pytest.mark.data
def test_a_real_scan_loads_as_slicer_loads_it(scene, data):
    node = mrml.load_volume_node(data / "brain" / "t1_head_b.nii.gz")
    assert mrml.volume_from_node(node).data.shape == (1, 93, 137, 137)
    series = mrml.load_volume_node(data / "ct" / "dicom_series")
    assert mrml.volume_from_node(series).data.shape[1] == 20
    with pytest.raises(InputError):
        mrml.load_volume_node(data / "README.md")
