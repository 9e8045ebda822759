"""Masks of where a scan holds anything, with their holes filled, and z-scores inside of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def filled_nonzero(data: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the voxels that are not 0 in any channel, and the holes that they enclose.

    A hole is what cannot be reached from the border of the array from face to face (nnU-Net's mask for normalization).

    Args:
        data: (C, n0, n1, n2).

    Returns:
        (n0, n1, n2).
    """
    import SimpleITK as sitk

    mask = np.any(data != 0, axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask, np.uint8))
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(image, fullyConnected=False, foregroundValue=1)) != 0


def zscore_inside(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return ``values`` less their mean, over their standard deviation, both inside of a mask; outside they are left as they are."""
    voxels = values[inside]
    if voxels.size == 0:
        return values
    mean, std = float(voxels.mean(dtype=np.float64)), float(voxels.std(dtype=np.float64))
    scaled = values.copy()
    scaled[inside] = (voxels - np.float32(mean)) / np.float32(max(std, 1e-8))
    return scaled
