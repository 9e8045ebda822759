"""The grid that a volume is resampled to, and the part of a grid that a crop leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.spec import Geometry
from .corner_zoom import zoomed_size
from .monai_grid import monai_grid
from .nnunet_resampling import network_size
from .volume import Grid


def along_ijk(values: tuple[Any, Any, Any], geometry: Geometry) -> tuple[Any, Any, Any]:
    """Return numbers along the tensor's axes as numbers along I, J and K, or the other way."""
    return values if geometry.axis_order == "IJK" else (values[2], values[1], values[0])


def network_grid(grid: Grid, geometry: Geometry) -> Grid:
    """Return the grid that a volume on ``grid`` is resampled to: the model's spacing or size, or the volume's own."""
    if geometry.size is not None or geometry.longest is not None:
        return _resized(grid, geometry)
    if geometry.spacing is None:
        return grid
    old_size, old_spacing = np.array(grid.size), np.array(grid.spacing)
    new_spacing, unchanged = _spacing(old_spacing, geometry)
    if geometry.anchor in ("monai", "monai_extent"):
        return monai_grid(grid, new_spacing, by_extent=geometry.anchor == "monai_extent", diagonal=geometry.diagonal)
    if unchanged.all():
        return grid
    if geometry.anchor == "corners":
        return _between_centers(grid, np.array(zoomed_size(grid.size, grid.spacing, tuple(new_spacing))))
    # The extent between the outermost centers is kept, or the extent between the outer edges (nnU-Net).
    edges = geometry.anchor == "edges"
    if edges:
        new_size = np.array(network_size(grid.size, grid.spacing, tuple(new_spacing)))
    else:
        new_size = np.maximum(np.round((old_size - 1) * old_spacing / new_spacing + 1).astype(int), 1)
    if edges:
        new_spacing = old_spacing * old_size / new_size
    return _grid_along(grid, new_size, new_spacing, edges)


def _spacing(old: NDArray[np.float64], geometry: Geometry) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the new spacing along I, J and K, and which axes keep their own."""
    assert geometry.spacing is not None
    target = along_ijk(geometry.spacing, geometry)
    low = along_ijk(geometry.min_spacing or (None, None, None), geometry)
    high = along_ijk(geometry.max_spacing or (None, None, None), geometry)
    unchanged = np.ones(3, dtype=bool)
    for axis, (own, want, least, most) in enumerate(zip(old, target, low, high, strict=True)):
        if want is None:
            continue
        margin = geometry.tolerance * want if geometry.tolerance_mm is None else geometry.tolerance_mm
        unchanged[axis] = (
            min(want, want if least is None else least) - margin
            <= own
            <= max(want, want if most is None else most) + margin
        )
    return np.array(
        [own if keep else want for own, want, keep in zip(old, target, unchanged, strict=True)], dtype=float
    ), unchanged


def _resized(grid: Grid, geometry: Geometry) -> Grid:
    old_size, old_spacing = np.array(grid.size), np.array(grid.spacing)
    if geometry.longest is not None:
        scale = geometry.longest / max(grid.size)
        new_size = np.array([round(n * scale) for n in grid.size])
    else:
        assert geometry.size is not None
        new_size = np.array(
            [n if want is None else want for n, want in zip(grid.size, along_ijk(geometry.size, geometry), strict=True)]
        )
    new_size = np.maximum(new_size, 1)
    if geometry.anchor == "corners":
        return _between_centers(grid, new_size)
    return _grid_along(grid, new_size, old_spacing * old_size / new_size, edges=True)


def _between_centers(grid: Grid, size: NDArray[Any]) -> Grid:
    """Return the grid of ``size`` voxels whose outermost centers are those of ``grid``."""
    spacing = np.array(grid.spacing) * (np.array(grid.size) - 1) / np.maximum(size - 1, 1)
    # A single voxel has no second center: its side stays what it is, as a grid needs one.
    spacing = np.where(spacing > 0, spacing, np.array(grid.spacing))
    return _grid_along(grid, size, spacing, edges=False)


def _grid_along(grid: Grid, size: NDArray[Any], spacing: NDArray[np.float64], edges: bool) -> Grid:
    """Return a grid along the same axes, which begins at the center of the first voxel or at its outer edges."""
    old_spacing = np.array(grid.spacing)
    matrix = grid.ijk_to_ras.copy()
    directions = matrix[:3, :3] / old_spacing
    matrix[:3, :3] = directions * spacing
    if edges:
        matrix[:3, 3] += directions @ ((spacing - old_spacing) / 2)
    return Grid((int(size[0]), int(size[1]), int(size[2])), matrix)


def sub_grid(grid: Grid, box: tuple[tuple[int, int], ...]) -> Grid:
    """Return the part of a grid between (start, stop) along I, J, K, which may lie outside of it."""
    matrix = grid.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, :3] @ np.array([start for start, _ in box], dtype=float)
    i, j, k = (stop - start for start, stop in box)
    return Grid((i, j, k), matrix)
