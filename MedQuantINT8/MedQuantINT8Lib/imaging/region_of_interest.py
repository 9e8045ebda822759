"""Boxes in which a scan is segmented: given in millimeters in the patient, and as voxels of the scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .masks import bounding_box
from .network_grid import sub_grid
from .spatial_steps import Box
from .volume import Grid, Volume

#: A box along the axes of the patient: (least, largest) R, A and S in millimeters.
Region = tuple[float, float, float, float, float, float]
System = Literal["LPS", "RAS"]
#: Of a voxel: a box that was drawn at voxel centers keeps them, although files round positions.
_TOLERANCE = 1e-4


def region_ras(limits: Sequence[float], system: System) -> Region:
    """Return a box given as (least, largest) along x, y and z of "LPS" or "RAS" as one in RAS.

    Raises:
        InputError: not six finite numbers, a least one that is not below the largest, or another coordinate system.
    """
    if system not in ("LPS", "RAS"):
        raise InputError(f"There are no coordinates called {system!r}.", "Say LPS or RAS.")
    if len(limits) != 6 or not all(math.isfinite(value) for value in limits):
        raise InputError(
            "A region of interest needs six numbers in millimeters: x0,x1,y0,y1,z0,z1.", "Correct the region."
        )
    x0, x1, y0, y1, z0, z1 = (float(value) for value in limits)
    for name, low, high in (("x", x0, x1), ("y", y0, y1), ("z", z0, z1)):
        if not low < high:
            raise InputError(
                f"The region of interest goes from {name} = {low:g} to {high:g} mm: nothing is in it.",
                "Give the smaller number first, and a size above 0.",
            )
    return (x0, x1, y0, y1, z0, z1) if system == "RAS" else (-x1, -x0, -y1, -y0, z0, z1)


def region_box(grid: Grid, region: Region, name: str = "The scan") -> Box:
    """Return the smallest box of voxels, (start, stop) along I, J, K, that holds every voxel whose center lies in a region.

    On an oblique grid it holds other voxels as well; :func:`inside_region` says which.

    Raises:
        InputError: no voxel's center lies in the region; says where the scan lies.
    """
    outer = outer_box(grid, region, name)
    inside = inside_region(grid, region, outer)
    if not inside.any():
        raise _outside(grid, region, name)
    # On an oblique grid the region's corners reach further than its voxels.
    slices = bounding_box(inside)
    i, j, k = ((start + part.start, start + part.stop) for (start, _), part in zip(outer, slices[::-1], strict=True))
    return i, j, k


def outer_box(grid: Grid, region: Region, name: str = "The scan") -> Box:
    """Return the box of voxels, (start, stop) along I, J, K, around the corners of a region, without a look at any voxel.

    On a grid along the axes of the patient it is that of :func:`region_box`; on an oblique one it is larger.

    Raises:
        InputError: the box is empty; says where the scan lies.
    """
    corners = np.array([[r, a, s, 1.0] for r in region[:2] for a in region[2:4] for s in region[4:]])
    indices = (corners @ np.linalg.inv(grid.ijk_to_ras).T)[:, :3]
    box = []
    for axis, size in enumerate(grid.size):
        start = max(0, math.ceil(indices[:, axis].min() - _TOLERANCE))
        stop = min(size, math.floor(indices[:, axis].max() + _TOLERANCE) + 1)
        if stop <= start:
            raise _outside(grid, region, name)
        box.append((start, stop))
    return box[0], box[1], box[2]


def _outside(grid: Grid, region: Region, name: str) -> InputError:
    return InputError(
        f"The region of interest ({_in_words(region)}) holds no voxel of {name}, which lies in {_in_words(extent(grid))}.",
        "Give a region inside the scan, and say rightly whether it is in LPS or RAS.",
    )


def inside_region(grid: Grid, region: Region, box: Box) -> NDArray[np.bool_]:
    """Return which voxels of a box of a grid have their center in a region, (K, J, I) of the box."""
    matrix = sub_grid(grid, box).ijk_to_ras
    size = [stop - start for start, stop in box]
    inside = np.ones((size[2], size[1], size[0]), bool)
    slack = _TOLERANCE * min(grid.spacing)
    for axis in range(3):
        along = [matrix[axis, n] * np.arange(size[n]) for n in range(3)]
        place = along[2][:, None, None] + along[1][None, :, None] + along[0][None, None, :] + matrix[axis, 3]
        low, high = region[2 * axis : 2 * axis + 2]
        inside &= (place >= low - slack) & (place <= high + slack)
    return inside


def extent(grid: Grid) -> Region:
    """Return the box along R, A and S around all voxel centers of a grid."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.size) - 1)
    places = corners @ grid.ijk_to_ras[:3, :3].T + grid.ijk_to_ras[:3, 3]
    low, high = places.min(axis=0), places.max(axis=0)
    return (float(low[0]), float(high[0]), float(low[1]), float(high[1]), float(low[2]), float(high[2]))


def mask_box(mask: NDArray[np.bool_], spacing: Sequence[float], margin_mm: float) -> Box:
    """Return the box around a mask (K, J, I) with at least one true voxel, made larger by a margin and cut at the volume's border.

    Args:
        spacing: millimeters along I, J, K.
        margin_mm: on each side, rounded up to whole voxels.

    Returns:
        (start, stop) along I, J, K.
    """
    sides = []
    for part, size, step in zip(bounding_box(mask)[::-1], mask.shape[::-1], spacing, strict=True):
        margin = math.ceil(margin_mm / step - _TOLERANCE)
        sides.append((max(0, part.start - margin), min(size, part.stop + margin)))
    return sides[0], sides[1], sides[2]


def whole_box(grid: Grid) -> Box:
    """Return the box of a whole grid."""
    i, j, k = grid.size
    return (0, i), (0, j), (0, k)


def at_least_two(box: Box, size: Sequence[int]) -> Box:
    """Return the box with sides of at least two voxels, where the volume has them: a single slice is no volume."""
    sides = []
    for (start, stop), length in zip(box, size, strict=True):
        stop = max(stop, min(length, start + 2))
        sides.append((min(start, max(0, stop - 2)), stop))
    return sides[0], sides[1], sides[2]


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    """Return the slices of a box, (start, stop) along I, J, K, for an array (K, J, I)."""
    i, j, k = (slice(start, stop) for start, stop in box)
    return k, j, i


def cut_volume(volume: Volume, box: Box) -> Volume:
    """Return a box of a volume, every voxel at its place in the patient; a view, no copy."""
    if box == whole_box(volume.grid):
        return volume
    part = volume.data[(slice(None), *box_slices(box))]
    return Volume(part, sub_grid(volume.grid, box).ijk_to_ras, volume.name, volume.notes)


def box_json(box: Box, grid: Grid) -> dict[str, Any]:
    """Return a box as JSON values: voxels along I, J, K (``start``, ``stop``), its sides and its place in millimeters (RAS)."""
    part = sub_grid(grid, box)
    return {
        "start": [start for start, _ in box],
        "stop": [stop for _, stop in box],
        "size_mm": [n * step for n, step in zip(part.size, part.spacing, strict=True)],
        "ras": list(extent(part)),
    }


def box_in_words(box: Box, grid: Grid) -> str:
    """Return how large a box is, in voxels of a grid and in millimeters."""
    size = [stop - start for start, stop in box]
    millimeters = " x ".join(f"{n * step:.0f}" for n, step in zip(size, grid.spacing, strict=True))
    return f"{' x '.join(map(str, size))} of {' x '.join(map(str, grid.size))} voxels, {millimeters} mm"


def is_oblique(grid: Grid) -> bool:
    """Return whether the axes of a grid are not those of the patient, up to flips and swaps."""
    directions = np.abs(grid.ijk_to_ras[:3, :3]) / np.array(grid.spacing)
    return bool((np.sort(directions, axis=0)[1] > 1e-4).any())


def _in_words(region: Region) -> str:
    return ", ".join(f"{axis} {region[2 * n]:.1f} to {region[2 * n + 1]:.1f}" for n, axis in enumerate("RAS")) + " mm"
