"""Regions of interest of a Slicer scene, as the box that the library takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from ..imaging.region_of_interest import Region, region_ras


def region_of_interest(roi: Any, volumeNode: Any = None) -> Region:
    """A markups ROI node, or six numbers, as the box (least, largest) R, A, S that the library takes, in the volume's own coordinates.

    A ROI that is turned, or a volume under a transform, gives the box along R, A and S around the ROI.

    Args:
        roi: a node that has bounds, such as vtkMRMLMarkupsROINode; or least and largest R, A and S in millimeters.
        volumeNode: whose parent transform is undone; None for a scan that lies under none.

    Raises:
        InputError: no such node, a ROI that was not placed yet, or other than six finite numbers that rise in pairs.
    """
    if hasattr(roi, "GetRASBounds"):
        bounds = [0.0] * 6
        roi.GetRASBounds(bounds)
        if not all(low < high for low, high in zip(bounds[::2], bounds[1::2], strict=True)):
            raise InputError(f"The region {roi.GetName()!r} is empty.", "Place it in a view first.")
    elif isinstance(roi, str) or not hasattr(roi, "__iter__"):
        raise InputError(
            f"{roi!r} is no region of interest.", "Give a markups ROI node, or six numbers: R0, R1, A0, A1, S0, S1."
        )
    else:
        bounds = list(roi)
        if not all(isinstance(value, int | float | np.number) for value in bounds):
            raise InputError(f"{roi!r} is no region of interest.", "Give six numbers: R0, R1, A0, A1, S0, S1.")
    region = region_ras(bounds, "RAS")
    transform = volumeNode.GetParentTransformNode() if volumeNode is not None else None
    if transform is None:
        return region
    import vtk

    to_local = vtk.vtkGeneralTransform()
    transform.GetTransformFromWorld(to_local)
    corners = [to_local.TransformPoint(r, a, s) for r in region[:2] for a in region[2:4] for s in region[4:]]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    return region_ras([limit for pair in zip(low, high, strict=True) for limit in pair], "RAS")
