"""Volume nodes as volumes, and the way back: voxels, geometry, and what a node knows of the DICOM images that it was read from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.volume import Volume
from .core import headless_scene, require_slicer

#: The attribute of a volume node that names the DICOM files that it was read from, as a JSON list. Slicer's own DICOM module names UIDs.
DICOM_FILES = "MedQuantINT8.dicomFiles"


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
    """Return a new scalar volume node that holds the first channel of ``volume``."""
    scene = scene or headless_scene()
    node = require_slicer().vtkMRMLScalarVolumeNode()
    node.SetName(scene.GetUniqueNameByString(name))
    node.SetAndObserveImageData(image_data(volume.data[0]))
    node.SetIJKToRASMatrix(vtk_matrix(volume.ijk_to_ras))
    # Last: whoever listens to the scene looks at a new node at once.
    node = scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    return node


def dicom_files(node: Any) -> tuple[str, ...]:
    """Return the files of the DICOM images that a volume node was loaded from, by Slicer's DICOM database or by :func:`load_volume_node`; none where
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
    """Return a volume node as a :class:`Volume` in its own coordinates, ``others`` being further channels on the same grid.

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
    """Return the modality that a volume's DICOM series names ("CT", "MR" ...), or an empty string."""
    slicer = require_slicer()
    scene = node.GetScene()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene) if scene else None
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    modality = ""
    if hierarchy is not None and (item := hierarchy.GetItemByDataNode(node)):
        modality = hierarchy.GetItemAttribute(item, name)
    return modality or node.GetAttribute(name) or ""


def ijk_to_ras(node: Any) -> NDArray[np.float64]:
    """Return a volume node's IJK-to-RAS matrix, 4x4."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def vtk_matrix(matrix: NDArray[np.float64]) -> Any:
    """Return a 4x4 matrix as a vtkMatrix4x4."""
    import vtk

    copy = vtk.vtkMatrix4x4()
    for r in range(4):
        for c in range(4):
            copy.SetElement(r, c, float(matrix[r, c]))
    return copy


def image_data(array: NDArray[Any]) -> Any:
    """Return a vtkImageData of a (K, J, I) array; the voxels are copied."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    image = vtk.vtkImageData()
    image.SetDimensions(array.shape[2], array.shape[1], array.shape[0])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True))
    return image


def add_table(columns: Sequence[str], rows: Sequence[Sequence[str]], volume: Any, name: str) -> Any:
    """Put rows of text into a new table node beside a volume's node, and return the node."""
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
