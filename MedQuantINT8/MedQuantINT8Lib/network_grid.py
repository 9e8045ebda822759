"""The grid that a volume is resampled to, and the part of a grid that a crop leaves."""

from __future__ import annotations

from typing import Any

import numpy as np

from .model_spec import ModelSpec
from .nnunet_resampling import network_size
from .volume import Grid


def network_grid(oriented: Grid, spec: ModelSpec) -> Grid:
    """The grid that a reoriented volume is resampled to: the model's spacing or size, or the volume's own."""
    geometry = spec.geometry

    def ijk(values: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        return values if geometry.axis_order == "IJK" else (values[2], values[1], values[0])

    old_size = np.array(oriented.size)
    old_spacing = np.array(oriented.spacing)
    if geometry.size is not None:
        new_size = np.array(ijk(geometry.size))
        new_spacing = old_spacing * old_size / new_size
    elif geometry.spacing is not None:
        new_spacing = np.array(ijk(geometry.spacing))
        close = np.abs(old_spacing / new_spacing - 1) <= geometry.tolerance
        if close.all():
            return oriented
        new_spacing = np.where(close, old_spacing, new_spacing)
        # MONAI's Spacing rounds the extent between the outermost centres, nnU-Net the extent between the outer edges.
        if geometry.anchor == "edges":
            new_size = np.array(network_size(oriented.size, oriented.spacing, tuple(new_spacing)))
        else:
            new_size = np.round((old_size - 1) * old_spacing / new_spacing + 1).astype(int)
    else:
        return oriented
    new_size = np.maximum(new_size, 1)
    edges = geometry.anchor == "edges" or geometry.size is not None
    if edges and geometry.size is None:
        new_spacing = old_spacing * old_size / new_size
    matrix = oriented.ijk_to_ras.copy()
    directions = matrix[:3, :3] / old_spacing
    matrix[:3, :3] = directions * new_spacing
    if edges:
        matrix[:3, 3] += directions @ ((new_spacing - old_spacing) / 2)
    return Grid((int(new_size[0]), int(new_size[1]), int(new_size[2])), matrix)


def sub_grid(grid: Grid, box: tuple[tuple[int, int], ...]) -> Grid:
    """The part of a grid between (start, stop) along I, J, K."""
    matrix = grid.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, :3] @ np.array([start for start, _ in box], dtype=float)
    i, j, k = (stop - start for start, stop in box)
    return Grid((i, j, k), matrix)
