"""Tables of a resize: which two source voxels an output voxel lies between, along each axis, and how far."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernel_plan import Size


def resize_tables(source: Size, target: Size, values: dict[str, Any]) -> list[NDArray[np.float32]]:
    """For each axis (3, target): lower index, upper index, and the upper's share, by ONNX's definition of Resize.

    Args:
        values: "mode" ("nearest", "linear"), "where" (the coordinate transformation), "rounding" of nearest, "scales" or None.
    """
    scales = values["scales"]
    tables = []
    for axis, (n, m) in enumerate(zip(source, target, strict=True)):
        scale = float(scales[2 + axis]) if scales is not None and len(scales) == 5 else m / n
        at = _coordinates(n, m, scale, values["where"])
        if values["mode"] == "nearest":
            nearest = np.floor(at) if values["rounding"] == "floor" else np.ceil(at - 0.5)
            low = np.clip(nearest, 0, n - 1)
            tables.append(np.stack([low, low, np.zeros(m)]).astype(np.float32))
            continue
        at = np.clip(at, 0, n - 1)
        low = np.floor(at)
        tables.append(np.stack([low, np.minimum(low + 1, n - 1), at - low]).astype(np.float32))
    return tables


def _coordinates(n: int, m: int, scale: float, where: str) -> NDArray[np.float64]:
    index = np.arange(m, dtype=np.float64)
    if where == "align_corners":
        return index * (n - 1) / (m - 1) if m > 1 else np.zeros(m)
    if where == "asymmetric":
        return index / scale
    if where == "pytorch_half_pixel" and m == 1:
        return np.zeros(m)
    return (index + 0.5) / scale - 0.5
