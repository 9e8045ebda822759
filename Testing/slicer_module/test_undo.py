"""Segmenting into a node that holds something: what it held stays where it is, and undo brings back all that the node was."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs Slicer or slicer-core")

import vtk  # noqa: E402

from MedQuantINT8Lib.errors import InputError  # noqa: E402
from MedQuantINT8Lib.imaging.volume import Volume  # noqa: E402
from MedQuantINT8Lib.models.spec import Label  # noqa: E402
from MedQuantINT8Lib.slicer_module import scene as mrml  # noqa: E402
from MedQuantINT8Lib.slicer_module import segmentation_nodes, volume_nodes  # noqa: E402
from MedQuantINT8Lib.slicer_module.undo import SegmentationUndo  # noqa: E402
from scans import GEOMETRIES  # noqa: E402
from slicer_nodes import centroid_in_slicer, names  # noqa: E402

pytestmark = pytest.mark.slicer
LABELS = (Label(1, "ball", 1, (200, 30, 40)),)
SHAPE = (12, 14, 16)


@pytest.fixture
def scene():
    made = mrml.headless_scene()
    yield made
    made.Clear(0)


def mask():
    made = np.zeros(SHAPE, np.uint8)
    made[4:8, 5:9, 6:11] = 1
    return made


def volume(scene, name, geometry="axial", transform=None):
    node = mrml.volume_node(
        Volume(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), GEOMETRIES[geometry]), name, scene
    )
    if transform is not None:
        node.SetAndObserveTransformNodeID(transform.GetID())
    return node


def shift(scene, millimeters, angle=0.0):
    transform = vtk.vtkTransform()
    transform.Translate(millimeters, 0, 0)
    transform.RotateZ(angle)
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    node.SetMatrixTransformToParent(transform.GetMatrix())
    return node


def in_world(node, segment_id):
    """Centre of a segment in the world, the node's transform applied."""
    centre = np.append(centroid_in_slicer(node, segment_id), 1)
    return (segmentation_nodes.to_world(node.GetParentTransformNode()) @ centre)[:3]


def true_centre(node):
    ijk = np.append(np.argwhere(mask()).mean(axis=0)[::-1], 1)
    return (segmentation_nodes.to_world(node.GetParentTransformNode()) @ mrml.ijk_to_ras(node) @ ijk)[:3]


def ids(node):
    held = node.GetSegmentation()
    return [held.GetNthSegmentID(n) for n in range(held.GetNumberOfSegments())]


@pytest.mark.parametrize("first", [None, 20.0])
@pytest.mark.parametrize("second", [None, -50.0])
def test_kept_segments_stay_and_new_ones_lie_on_their_volume(scene, first, second):
    one = volume(scene, "one", "oblique", first and shift(scene, first, 10))
    other = volume(scene, "other", "flipped", second and shift(scene, second, -25))
    result = mrml.add_segmentation(mask(), LABELS, one)
    before = in_world(result, "Segment_1")
    assert np.allclose(before, true_centre(one), atol=1e-3)
    reference = result.GetNodeReferenceID("referenceImageGeometryRef")
    assert mrml.add_segmentation(mask(), LABELS, other, result) is result
    kept, new = ids(result)
    assert np.allclose(in_world(result, kept), before, atol=1e-3)
    assert np.allclose(in_world(result, new), true_centre(other), atol=1e-3)
    assert result.GetNodeReferenceID("referenceImageGeometryRef") == reference


def test_what_cannot_share_a_node_is_refused_and_nothing_is_changed(scene):
    bent = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "bent")
    result = mrml.add_segmentation(mask(), LABELS, volume(scene, "one"))
    with pytest.raises(InputError, match="'bent' is not linear"):
        mrml.add_segmentation(mask(), LABELS, volume(scene, "other", transform=bent), result)
    assert names(result) == ["ball"] and result.GetTransformNodeID() is None
    both = mrml.add_segmentation(mask(), LABELS, volume(scene, "other", transform=bent))
    assert (
        mrml.add_segmentation(mask(), LABELS, volume(scene, "third", transform=bent), both) is both
        and len(names(both)) == 2
    )
    surface = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surface")
    ball = vtk.vtkSphereSource()
    ball.Update()
    surface.GetSegmentation().SetSourceRepresentationName("Closed surface")
    surface.AddSegmentFromClosedSurfaceRepresentation(ball.GetOutput(), "ball")
    with pytest.raises(InputError, match="no binary label maps"):
        mrml.add_segmentation(mask(), LABELS, volume(scene, "fourth"), surface)


@pytest.mark.parametrize("replace", [True, False])
def test_undo_brings_back_all_that_the_node_was(scene, replace):
    one, other = volume(scene, "one", transform=shift(scene, 20)), volume(scene, "other", "oblique", shift(scene, -50))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    studies = [hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), name) for name in ("first", "second")]
    for study, node in zip(studies, (one, other), strict=True):
        hierarchy.CreateItem(study, node)
    result = mrml.add_segmentation(mask(), LABELS, one)
    display = result.GetDisplayNode()
    display.SetSegmentVisibility("Segment_1", False)
    display.SetSegmentOpacity3D("Segment_1", 0.25)
    geometry = result.GetSegmentation().GetConversionParameter("Reference image geometry")
    centre, parent = in_world(result, "Segment_1"), hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result))
    undo = SegmentationUndo()
    before = undo.remember(result)
    mrml.add_segmentation(mask(), LABELS, other, result, replace=replace)
    undo.changed(result, before)
    if replace:
        assert result.GetTransformNodeID() == other.GetTransformNodeID()
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) == studies[1]
    assert undo.undo() is result
    assert ids(result) == ["Segment_1"] and np.allclose(in_world(result, "Segment_1"), centre, atol=1e-3)
    assert result.GetTransformNodeID() == one.GetTransformNodeID()
    assert result.GetNodeReferenceID("referenceImageGeometryRef") == one.GetID()
    assert result.GetSegmentation().GetConversionParameter("Reference image geometry") == geometry
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) == parent == studies[0]
    assert not display.GetSegmentVisibility("Segment_1") and display.GetSegmentOpacity3D("Segment_1") == 0.25


def test_undo_of_a_replaced_surface(scene):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surface")
    ball = vtk.vtkSphereSource()
    ball.Update()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.AddSegmentFromClosedSurfaceRepresentation(ball.GetOutput(), "ball")
    undo = SegmentationUndo()
    before = undo.remember(node)
    mrml.add_segmentation(mask(), LABELS, volume(scene, "one"), node, replace=True)
    undo.changed(node, before)
    assert node.GetSegmentation().GetSourceRepresentationName() == "Binary labelmap"
    undo.undo()
    assert node.GetSegmentation().GetSourceRepresentationName() == "Closed surface" and names(node) == ["ball"]
    assert node.GetTransformNodeID() is None and node.GetNodeReferenceID("referenceImageGeometryRef") is None
    gone = undo.remember(None)
    made = mrml.add_segmentation(mask(), LABELS, volume(scene, "two"))
    undo.changed(made, gone)
    assert undo.undo() is None and made.GetScene() is None and not undo.possible


def node_of(scene, array, extent=None, cls="vtkMRMLScalarVolumeNode"):
    from vtk.util.numpy_support import numpy_to_vtk

    k, j, i = array.shape[:3]
    image = vtk.vtkImageData()
    image.SetExtent(*(extent or (0, i - 1, 0, j - 1, 0, k - 1)))
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array).reshape(k * j * i, -1), deep=True))
    node = scene.AddNewNodeByClass(cls, "CT: a/b\\c <1>")
    node.SetAndObserveImageData(image)
    return node


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u4", "i8", "f4", "f8"])
def test_every_type_of_voxel_is_taken(scene, kind):
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(kind)
    found = mrml.volume_from_node(node_of(scene, array))
    assert np.array_equal(found.data[0], array) and found.name == "CT: a/b\\c <1>"


def test_nodes_that_are_not_understood_are_refused(scene):
    array = np.zeros(SHAPE, np.float32)
    k, j, i = SHAPE
    with pytest.raises(InputError, match=r"begins at voxel \(10, 5, 0\), not at \(0, 0, 0\)"):
        mrml.volume_from_node(node_of(scene, array, (10, 9 + i, 5, 4 + j, 0, k - 1)))
    with pytest.raises(InputError, match="is a color image"):
        mrml.volume_from_node(node_of(scene, np.zeros((*SHAPE, 3), np.uint8), cls="vtkMRMLVectorVolumeNode"))
    empty = node_of(scene, array)
    empty.GetImageData().GetPointData().SetScalars(None)
    with pytest.raises(InputError, match="a size, but no values"):
        mrml.volume_from_node(empty)


def test_sheared_and_left_handed_volumes_keep_their_structures(scene):
    sheared, left = np.eye(4), np.diag([1, -1.5, 2, 1.0])
    sheared[1, 2] = 0.5
    for matrix in (sheared, left):
        node = node_of(scene, np.zeros(SHAPE, np.float32))
        node.SetIJKToRASMatrix(volume_nodes.vtk_matrix(matrix))
        result = mrml.add_segmentation(mask(), LABELS, node)
        assert np.allclose(in_world(result, "Segment_1"), true_centre(node), atol=1e-3)
