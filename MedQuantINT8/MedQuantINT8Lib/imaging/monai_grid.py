"""The grid that MONAI's Spacing gives a scan, worked out as MONAI does it.

Where the axes of a scan stand exactly at right angles, the center of the first voxel is kept. Where they do not, and a header in
32-bit floating point is enough for that, no corner of the scan is a corner of the new grid, and MONAI lays the middle of one on
the middle of the other: up to half a voxel beside. Both are meant here, decided by MONAI's own measure
(``monai.data.utils.zoom_affine`` and ``compute_shape_offset``, version 1.6).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from .volume import Grid

#: MONAI's tolerance for what counts as the same matrix.
_SAME = 1e-3
#: How far a corner may lie from being the outermost one, in voxels (``numpy.allclose``).
_CORNER = 1e-8


def monai_grid(grid: Grid, spacing: NDArray[np.float64], *, by_extent: bool = False, diagonal: bool = False) -> Grid:
    """Return the grid that a scan is resampled to.

    Args:
        grid: the scan's.
        spacing: millimeters along I, J and K of the new grid.
        by_extent: outer edges of voxels count, not their centers (``scale_extent``).
        diagonal: the new axes are R, A and S themselves (``diagonal``).

    Returns:
        ``grid`` itself where MONAI would leave the scan as it is.
    """
    old, size = grid.ijk_to_ras, np.array(grid.size, dtype=float)
    new = np.diag([*spacing, 1.0]) if diagonal else _with_spacing(old, spacing)
    edge = 0.5 if by_extent else 0.0
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*((-edge, n - 1 + edge) for n in size))]).T
    to_new = np.linalg.solve(new, old)
    new_corners = (to_new @ corners)[:3]
    extent = np.ptp(new_corners, axis=1)
    new_size = np.round(extent if by_extent else extent + 1)
    first = np.flatnonzero((new_corners.min(axis=1)[:, None] - new_corners > -_CORNER).all(axis=0))
    if by_extent:
        inside = np.append(0.5 * (size / new_size - 1), 1.0)
        sign = np.sign((old @ corners)[:3, first[0]] if len(first) else _centered_origin(old, new, size, new_size))
        new[:3, 3] = np.abs((old @ inside)[:3]) * sign
    else:
        new[:3, 3] = (old @ corners)[:3, first[0]] if len(first) else _centered_origin(old, new, size, new_size)
    i, j, k = (max(1, int(n)) for n in new_size)
    if (i, j, k) == grid.size and (
        np.allclose(old, new, atol=_SAME) or np.allclose(np.linalg.solve(old, new), np.eye(4), atol=_SAME)
    ):
        return grid
    return Grid((i, j, k), new)


def _with_spacing(matrix: NDArray[np.float64], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix with other spacing, without its shear and without a position."""
    directions = matrix[:3, :3]
    triangle = np.linalg.cholesky(directions.T @ directions).T
    result = np.eye(4)
    result[:3, :3] = directions @ np.linalg.inv(triangle) * (np.sign(np.diag(triangle)) * spacing)
    return result


def _centered_origin(
    old: NDArray[np.float64], new: NDArray[np.float64], size: NDArray[np.float64], new_size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return where the first voxel lies if the middles of both grids are the same (counted from the first voxel's center, as MONAI does)."""
    middle: NDArray[np.float64] = old[:3, :3] @ (size / 2) + old[:3, 3] - new[:3, :3] @ (new_size / 2)
    return middle
