"""The MRML scene: volume nodes to volumes, label maps to segmentation nodes.

With :mod:`.views` the only room that imports slicer. It works in Slicer and on the bare core (slicer-core), where
:func:`headless_scene` makes the scene that the application would.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, InputError, StorageError
from ..files import replacing
from ..imaging.itk_file import check_written
from ..imaging.segmentation_files import segment_id, terminology_tag
from ..imaging.volume import Volume
from ..models.spec import Label

#: The attribute of a volume node that names the DICOM files that it was read from, as a JSON list. Slicer's own DICOM module names UIDs.
DICOM_FILES = "MedQuantINT8.dicomFiles"


def require_slicer() -> Any:
    """The slicer module, from Slicer or slicer-core.

    Raises:
        DependencyError: neither is there.
    """
    try:
        import slicer
    except ImportError as error:
        raise DependencyError(
            "Neither 3D Slicer nor its core is installed.", "Run inside Slicer, or: pip install slicer-core"
        ) from error
    return slicer


def headless_scene() -> Any:
    """A scene with the module logics that this package uses, as the application sets them up.

    In Slicer it is the application's own scene.
    """
    slicer = require_slicer()
    if getattr(slicer, "mrmlScene", None) is not None:
        return slicer.mrmlScene
    import vtk

    # Its warnings would go to a window that does not exist; errors still raise or return a status.
    vtk.vtkObject.GlobalWarningDisplayOff()
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    modules = SimpleNamespace()
    # slicer-core looks the logics up by the application logic, slicer.util by slicer.modules.
    logics = [application]
    for name, cls in (
        ("Terminologies", "vtkSlicerTerminologiesModuleLogic"),
        ("SubjectHierarchy", "vtkSlicerSubjectHierarchyModuleLogic"),
        ("Volumes", "vtkSlicerVolumesLogic"),
        ("Segmentations", "vtkSlicerSegmentationsModuleLogic"),
    ):
        logic = getattr(slicer, cls)()
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        application.SetModuleLogic(name, logic)
        setattr(modules, name.lower(), SimpleNamespace(logic=lambda module_logic=logic: module_logic))
        logics.append(logic)
    slicer.mrmlScene, slicer.modules = scene, modules
    scene._medquant_keep_alive = logics
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    return scene


def load_volume_node(path: str | os.PathLike[str], scene: Any = None) -> Any:
    """Read a scan into a scalar volume node with Slicer's own storage nodes; DICOM folders through our reader.

    Raises:
        InputError: the file cannot be read.
    """
    slicer = require_slicer()
    scene = scene or headless_scene()
    if Path(path).is_dir():
        from ..imaging.volume_files import read_volume

        volume = read_volume(path)
        node = volume_node(volume, Path(path).name, scene)
        if volume.dicom_files:
            node.SetAttribute(DICOM_FILES, json.dumps(volume.dicom_files))
        return node
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(scene)
    node = logic.AddArchetypeVolume(str(path), Path(path).name.split(".")[0], 0)
    if node is None:
        raise InputError(f"{path} cannot be read as a volume.", "Check that it is a scan that Slicer can open.")
    return node


def volume_node(volume: Volume, name: str, scene: Any = None) -> Any:
    """A new scalar volume node that holds the first channel of ``volume``."""
    scene = scene or headless_scene()
    node = require_slicer().vtkMRMLScalarVolumeNode()
    node.SetName(scene.GetUniqueNameByString(name))
    node.SetAndObserveImageData(_image_data(volume.data[0]))
    node.SetIJKToRASMatrix(_vtk_matrix(volume.ijk_to_ras))
    # Last: whoever listens to the scene looks at a new node at once.
    node = scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    return node


def dicom_files(node: Any) -> tuple[str, ...]:
    """The files of the DICOM images that a volume node was loaded from, by Slicer's DICOM database or by :func:`load_volume_node`; none where
    neither knows of them."""
    slicer = require_slicer()
    if text := node.GetAttribute(DICOM_FILES):
        files = [str(path) for path in json.loads(text)]
    else:
        database = getattr(slicer, "dicomDatabase", None)
        uids = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
        files = [database.fileForInstance(uid) for uid in uids] if database is not None else []
    return tuple(files) if all(path and Path(path).is_file() for path in files) else ()


def volume_from_node(node: Any, others: Sequence[Any] = ()) -> Volume:
    """A volume node as a :class:`Volume` in its own coordinates, ``others`` being further channels on the same grid.

    The matrix is the node's own IJK-to-RAS. Its parent transform moves image and result alike, so it is not applied
    here; :func:`add_segmentation` puts the segmentation under the same transform.

    Raises:
        InputError: no volume node, no voxels, or channels on other grids.
    """
    require_slicer()
    volumes = [_one_volume(n) for n in (node, *others)]
    for other in volumes[1:]:
        if other.grid != volumes[0].grid:
            raise InputError(
                f"The volume {other.name!r} does not lie on the same grid as {volumes[0].name!r}.",
                "Resample one to the other with Slicer's Resample modules.",
            )
    data = volumes[0].data if len(volumes) == 1 else np.concatenate([v.data for v in volumes])
    return Volume(data, volumes[0].ijk_to_ras, volumes[0].name)


def _one_volume(node: Any) -> Volume:
    if node is None or not node.IsA("vtkMRMLScalarVolumeNode"):
        raise InputError("There is no volume to segment.", "Choose a volume.")
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InputError(f"{node.GetName()!r} is a label map, not a scan.", "Choose the scan.")
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise InputError(f"The volume {node.GetName()!r} holds no voxels.", "Load it again.")
    from vtk.util.numpy_support import vtk_to_numpy

    scalars = image.GetPointData().GetScalars()
    if scalars is None:
        raise InputError(
            f"The volume {node.GetName()!r} holds no voxels: its image has a size, but no values.", "Load it again."
        )
    if any(image.GetExtent()[::2]):
        begin = ", ".join(map(str, image.GetExtent()[::2]))
        raise InputError(
            f"The image of the volume {node.GetName()!r} begins at voxel ({begin}), not at (0, 0, 0).",
            "Call ShiftImageDataExtentToZeroStart() of the node, or save the volume and load it again.",
        )
    i, j, k = image.GetDimensions()
    components = image.GetNumberOfScalarComponents()
    if components in (3, 4) and scalars.GetDataTypeAsString() == "unsigned char":
        raise InputError(
            f"The volume {node.GetName()!r} is a color image, not a scan.",
            "Choose a scan; give one volume for each channel of the network.",
        )
    array = vtk_to_numpy(scalars).reshape(k, j, i, components)
    return Volume(np.moveaxis(array, -1, 0), ijk_to_ras(node), node.GetName())


def dicom_modality(node: Any) -> str:
    """The modality that a volume's DICOM series names ("CT", "MR" ...), or an empty string."""
    slicer = require_slicer()
    scene = node.GetScene()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene) if scene else None
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    modality = ""
    if hierarchy is not None and (item := hierarchy.GetItemByDataNode(node)):
        modality = hierarchy.GetItemAttribute(item, name)
    return modality or node.GetAttribute(name) or ""


def ijk_to_ras(node: Any) -> NDArray[np.float64]:
    """A volume node's IJK-to-RAS matrix, 4x4."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def _vtk_matrix(matrix: NDArray[np.float64]) -> Any:
    import vtk

    vtk_matrix = vtk.vtkMatrix4x4()
    for r in range(4):
        for c in range(4):
            vtk_matrix.SetElement(r, c, float(matrix[r, c]))
    return vtk_matrix


def _image_data(array: NDArray[Any]) -> Any:
    """A vtkImageData of a (K, J, I) array; the voxels are copied."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    image = vtk.vtkImageData()
    image.SetDimensions(array.shape[2], array.shape[1], array.shape[0])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True))
    return image


def add_table(columns: Sequence[str], rows: Sequence[Sequence[str]], volume: Any, name: str) -> Any:
    """Put rows of text into a new table node beside a volume's node; the node."""
    require_slicer()
    node = volume.GetScene().AddNewNodeByClass("vtkMRMLTableNode", name)
    modified = node.StartModify()
    for column in columns:
        array = node.AddColumn()
        array.SetName(column)
    for row in rows:
        index = node.AddEmptyRow()
        for position, text in enumerate(row):
            node.SetCellText(index, position, text)
    node.EndModify(modified)
    return node


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
    """The matrix from a volume's voxels to the coordinates of a segmentation node whose segments are to stay where they are.

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
    matrix: NDArray[np.float64] = np.linalg.inv(_to_world(own)) @ _to_world(theirs) @ ijk_to_ras(volume)
    return matrix


def _to_world(transform: Any) -> NDArray[np.float64]:
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
    """All structures share one label map layer: a hundred structures would else be a hundred volumes."""
    oriented = slicer.vtkOrientedImageData()
    oriented.ShallowCopy(_image_data(labels))
    oriented.SetImageToWorldMatrix(_vtk_matrix(matrix))
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


#: Lists of terms that every Slicer has.
_TERMINOLOGIES = (
    "Segmentation category and type - 3D Slicer General Anatomy list",
    "Segmentation category and type - DICOM master list",
)


def terminology_names() -> list[str]:
    """Names of the lists of terms that Slicer has loaded; its list of anatomy, which is used if nothing is said, comes first."""
    import vtk

    names = vtk.vtkStringArray()
    modules: Any = getattr(require_slicer(), "modules", None)
    if hasattr(modules, "terminologies"):
        modules.terminologies.logic().GetLoadedTerminologyNames(names)
    loaded = [names.GetValue(n) for n in range(names.GetNumberOfValues())]
    return [*_TERMINOLOGIES, *(name for name in loaded if name not in _TERMINOLOGIES)]


def check_terminology(name: str) -> None:
    """Whether Slicer has loaded a list of terms of that name; an empty one stands for its own.

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
