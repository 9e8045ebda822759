"""Label maps as segmentation nodes: segments with names, colors and terms, beside what a node holds already; and their files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, StorageError
from ..files import replacing
from ..imaging.itk_file import check_written
from ..imaging.segmentation_files import segment_id, terminology_tag
from ..models.spec import Label
from .core import headless_scene, require_slicer
from .volume_nodes import ijk_to_ras, image_data, vtk_matrix

#: Lists of terms that every Slicer has.
_TERMINOLOGIES = (
    "Segmentation category and type - 3D Slicer General Anatomy list",
    "Segmentation category and type - DICOM master list",
)


def add_segmentation(
    labels: NDArray[Any],
    names: Sequence[Label],
    volume: Any,
    target: Any = None,
    *,
    replace: bool = False,
    surface: bool = False,
    name: str = "",
    voxels: Mapping[int, int] | None = None,
    terminology: str = "",
) -> Any:
    """Put a label map into a segmentation node.

    Args:
        labels: (K, J, I) on the grid of ``volume``.
        names: the label of each value; structures that were not found get no segment.
        volume: the volume node that was segmented. A new segmentation, or one that holds nothing else, takes its geometry as
            reference, its parent transform and its place in the subject hierarchy.
        target: an existing segmentation node; None makes a new one.
        replace: remove what ``target`` holds first. Otherwise its segments are kept, where they are: the node keeps its own
            transform, and the new segments are put where the volume lies. A new segment whose name is already taken gets a number.
        surface: make the closed surface, for the 3D view.
        voxels: how many voxels each value has, where that is known already: counting a large map holds up the window.
        terminology: name of the list of terms that the segments are shown with (:func:`terminology_names`); empty for Slicer's own.

    Returns:
        The segmentation node.

    Raises:
        InputError: segments are kept, and cannot share a node with new ones; nothing was changed.
    """
    slicer = require_slicer()
    scene = volume.GetScene()
    keeping = target is not None and not replace and target.GetSegmentation().GetNumberOfSegments() > 0
    matrix = _matrix_within(slicer, target, volume) if keeping else ijk_to_ras(volume)
    if voxels is None:
        counts = np.bincount(labels.ravel())
        voxels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    node = target or scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name or f"{volume.GetName()} segmentation")
    try:
        show(node)
        segmentation = node.GetSegmentation()
        if not keeping:
            segmentation.RemoveAllSegments()
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
            node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        present = [label for label in names if voxels.get(label.value)]
        if present:
            values = {label.value for label in present}
            strangers = [value for value in voxels if value and value not in values]
            if strangers:
                value_map = np.arange(max(voxels) + 1).astype(labels.dtype)
                value_map[strangers] = 0
                labels = value_map[labels]
            _add_shared_labelmap(slicer, segmentation, labels, present, matrix, terminology)
        if surface:
            node.CreateClosedSurfaceRepresentation()
        if not keeping:
            _place_in_subject_hierarchy(slicer, scene, node, volume)
    except BaseException:
        if target is None:
            _remove_with_display(scene, node)
        raise
    return node


def _remove_with_display(scene: Any, node: Any) -> None:
    display = node.GetDisplayNode()
    scene.RemoveNode(node)
    if display is not None:
        scene.RemoveNode(display)


def _matrix_within(slicer: Any, target: Any, volume: Any) -> NDArray[np.float64]:
    """Return the matrix from a volume's voxels to the coordinates of a segmentation node whose segments are to stay where they are.

    Raises:
        InputError: a transform between them that is not linear, or segments that are no label maps.
    """
    binary = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    if target.GetSegmentation().GetSourceRepresentationName() != binary:
        raise InputError(
            f"{target.GetName()!r} holds segments that are no binary label maps.",
            "Choose another segmentation, or a new one.",
        )
    own, theirs = target.GetParentTransformNode(), volume.GetParentTransformNode()
    if own is theirs:
        return ijk_to_ras(volume)
    for transform in (own, theirs):
        if transform is not None and not transform.IsTransformToWorldLinear():
            raise InputError(
                f"{target.GetName()!r} and {volume.GetName()!r} are not under the same transform, and {transform.GetName()!r} is not linear.",
                "Choose a new segmentation, or put both under one transform.",
            )
    matrix: NDArray[np.float64] = np.linalg.inv(to_world(own)) @ to_world(theirs) @ ijk_to_ras(volume)
    return matrix


def to_world(transform: Any) -> NDArray[np.float64]:
    """Return the 4x4 matrix of a transform node to the world; the identity for None."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    if transform is not None:
        transform.GetMatrixTransformToWorld(matrix)
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def show(segmentationNode: Any) -> None:
    """Give a segmentation node what it needs to be seen."""
    if segmentationNode.GetDisplayNode() is None:
        segmentationNode.CreateDefaultDisplayNodes()


def _add_shared_labelmap(
    slicer: Any,
    segmentation: Any,
    labels: NDArray[Any],
    names: Sequence[Label],
    matrix: NDArray[np.float64],
    terminology: str,
) -> None:
    """Add structures that share one label map layer: a hundred structures would else be a hundred volumes."""
    oriented = slicer.vtkOrientedImageData()
    oriented.ShallowCopy(image_data(labels))
    oriented.SetImageToWorldMatrix(vtk_matrix(matrix))
    used_names = {segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())}
    binary = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    if segmentation.GetNumberOfSegments() == 0:
        segmentation.SetSourceRepresentationName(binary)
    for label in names:
        segment = slicer.vtkSegment()
        segment.SetName(_free_name(label.name, used_names))
        used_names.add(segment.GetName())
        segment.SetColor(*(c / 255 for c in label.color))
        segment.SetLabelValue(label.value)
        own_list, codes = terminology_tag(label.terminology).split("~", 1)
        segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), f"{terminology or own_list}~{codes}")
        segment.AddRepresentation(binary, oriented)
        identifier = segment_id(label)
        segmentation.AddSegment(
            segment,
            identifier
            if segmentation.GetSegment(identifier) is None
            else segmentation.GenerateUniqueSegmentID(identifier),
        )


def terminology_names() -> list[str]:
    """Return the names of the lists of terms that Slicer has loaded; its list of anatomy, which is used if nothing is said, comes first."""
    import vtk

    names = vtk.vtkStringArray()
    modules: Any = getattr(require_slicer(), "modules", None)
    if hasattr(modules, "terminologies"):
        modules.terminologies.logic().GetLoadedTerminologyNames(names)
    loaded = [names.GetValue(n) for n in range(names.GetNumberOfValues())]
    return [*_TERMINOLOGIES, *(name for name in loaded if name not in _TERMINOLOGIES)]


def check_terminology(name: str) -> None:
    """Complain where Slicer has loaded no list of terms of that name; an empty one stands for its own.

    Raises:
        InputError: it has not.
    """
    if name and name not in terminology_names():
        raise InputError(f"Slicer has no terminology {name!r}.", f"Choose one of: {'; '.join(terminology_names())}.")


def _free_name(name: str, used_names: set[str]) -> str:
    if name not in used_names:
        return name
    number = 2
    while f"{name} {number}" in used_names:
        number += 1
    return f"{name} {number}"


def _place_in_subject_hierarchy(slicer: Any, scene: Any, node: Any, volume: Any) -> None:
    """Put a node under the same parent (study or folder) as the volume."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is None:
        return
    beside = hierarchy.GetItemByDataNode(volume)
    if not beside:
        return
    parent = hierarchy.GetItemParent(beside)
    if item := hierarchy.GetItemByDataNode(node):
        hierarchy.SetItemParent(item, parent)
    else:
        # The application makes an item for every node; a bare scene does not.
        hierarchy.CreateItem(parent, node)


def save_segmentation(node: Any, path: str | os.PathLike[str]) -> None:
    """Write a segmentation node as ``.seg.nrrd`` with Slicer's own storage node, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    slicer = require_slicer()
    with replacing(path) as scratch:
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetFileName(str(scratch))
        storage.SetUseCompression(1)
        if not storage.WriteData(node):
            raise StorageError(f"Slicer could not write {path}.", "Choose another folder.")
        check_written(scratch)


def load_segmentation(path: str | os.PathLike[str], scene: Any = None) -> Any:
    """Read a ``.seg.nrrd`` into a new segmentation node with Slicer's own storage node.

    Raises:
        InputError: the file cannot be read.
    """
    slicer = require_slicer()
    scene = scene or headless_scene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", Path(path).name.split(".")[0])
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    if not Path(path).is_file() or not storage.ReadData(node):
        scene.RemoveNode(node)
        raise InputError(f"{path} cannot be read as a segmentation.", "Give a .seg.nrrd file.")
    node.CreateDefaultDisplayNodes()
    return node
