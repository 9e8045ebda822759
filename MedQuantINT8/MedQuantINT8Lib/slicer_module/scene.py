"""The MRML scene: volume nodes to volumes, label maps to segmentation nodes.

With :mod:`.views` this is what the logic knows of MRML. It works in Slicer and on the bare core (slicer-core), where
:func:`headless_scene` makes the scene that the application would. What it gives lies in three files: the scene itself, volume nodes, and
segmentation nodes.
"""

from __future__ import annotations

from .core import headless_scene, require_slicer
from .segmentation_nodes import (
    add_segmentation,
    check_terminology,
    load_segmentation,
    save_segmentation,
    show,
    terminology_names,
)
from .volume_nodes import (
    DICOM_FILES,
    add_table,
    dicom_files,
    dicom_modality,
    ijk_to_ras,
    load_volume_node,
    volume_from_node,
    volume_node,
)

__all__ = [
    "DICOM_FILES",
    "add_segmentation",
    "add_table",
    "check_terminology",
    "dicom_files",
    "dicom_modality",
    "headless_scene",
    "ijk_to_ras",
    "load_segmentation",
    "load_volume_node",
    "require_slicer",
    "save_segmentation",
    "show",
    "terminology_names",
    "volume_from_node",
    "volume_node",
]
