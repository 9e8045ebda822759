"""What a reader should know before a model is run on a scan: a scan of another kind gives an answer, too, but a wrong one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..imaging.volume import Volume
from ..models.spec import ModelSpec
from ..models.task import TaskSpec
from .scene import dicom_modality

#: A scan in Hounsfield units holds air (about -1000); magnitude images of MR are not below zero.
_AIR = -300.0
_NAMES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PET", "PET": "PET"}


def modality_warning(volumeNode: Any, volume: Volume, spec: ModelSpec | TaskSpec) -> str:
    """A sentence if the scan seems to be of another modality than the model was made for; else an empty one.

    The DICOM header decides where the scan has one, otherwise the range of its values.
    """
    expected = _NAMES.get(spec.modality.upper())
    if expected is None:
        return ""
    name = volumeNode.GetName()
    title = spec.title or spec.name
    if modality := _NAMES.get(dicom_modality(volumeNode).upper()):
        return "" if modality == expected else f"{name!r} is a {modality} scan, but {title} was made for {expected}."
    lowest = float(np.min(volume.data[:, ::4, ::4, ::4]))
    if expected == "CT" and lowest >= 0:
        return f"{name!r} has no value below 0, as a CT scan in Hounsfield units has; {title} was made for CT."
    if expected == "MR" and lowest <= _AIR:
        return f"{name!r} has values down to {lowest:.0f}, as a CT scan has; {title} was made for MR."
    return ""
