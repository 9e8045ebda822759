"""Where two segmentations of one scan differ: connected regions, largest first, and how near they lie to a boundary.

INT8 moves voxels whose scores were nearly equal. They lie mostly on the surface of a structure, where two readers would
differ as well; a region away from every boundary is another finding, and is what a radiologist wants to be led to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..imaging.masks import bounding_box
from ..imaging.volume import Grid
from ..inference.margins import ONE
from ..models.spec import Label

#: Regions that are named one by one; the rest is counted.
MOST_REGIONS = 200


@dataclass(frozen=True)
class Region:
    """Voxels that touch (26 neighbors) and differ.

    Attributes:
        number: its value in the map of differences; 1 is the largest.
        center_ras: the voxel of the region that lies deepest in it, in millimeters.
        first, second: the structure that most of its voxels have in either segmentation; "background" where none.
        boundary_share: of its voxels, those within one voxel of a boundary of the first segmentation.
        depth_voxels: how far its deepest voxel lies from such a boundary, in voxels; 0 is on it.
        mean_margin: by how much the first segmentation's label won there in probability, 0 to 1; None if it is not known.
    """

    number: int
    voxels: int
    ml: float
    center_ras: tuple[float, float, float]
    first: str
    second: str
    boundary_share: float
    depth_voxels: int
    mean_margin: float | None = None


@dataclass(frozen=True)
class Differences:
    """All of them.

    Attributes:
        numbers: (K, J, I) uint16; 0 where both agree, else the region's number (the last one stands for all the rest).
        voxels: how many differ.
        boundary_share: of those, the share within one voxel of a boundary of the first segmentation; None if none differ.
    """

    numbers: NDArray[np.uint16]
    voxels: int
    ml: float
    boundary_share: float | None
    region_count: int
    regions: list[Region]
    mean_margin: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the map."""
        return {
            "voxels": self.voxels,
            "ml": self.ml,
            "boundary_share": self.boundary_share,
            "region_count": self.region_count,
            "mean_margin": self.mean_margin,
            "regions": [asdict(region) for region in self.regions],
        }


def find_differences(
    first: NDArray[Any],
    second: NDArray[Any],
    labels: Sequence[Label],
    grid: Grid,
    margins: NDArray[np.uint8] | None = None,
) -> Differences:
    """Compare two label maps (K, J, I) of one grid.

    Work is confined to the box around what differs, so that a large scan with few differences is quick.

    Args:
        margins: of the first, (K, J, I), as :mod:`..inference.margins` keeps them.
    """
    differ = first != second
    total = int(np.count_nonzero(differ))
    numbers = np.zeros(first.shape, np.uint16)
    if not total:
        return Differences(numbers, 0, 0.0, None, 0, [])
    box = bounding_box(differ)
    components, sizes = _components(differ[box])
    depth = _distance_from_boundary(first, box)
    kept = min(len(sizes), MOST_REGIONS)
    numbers[box] = np.minimum(components, kept + (len(sizes) > kept)).astype(np.uint16)
    names = {label.value: label.name for label in labels} | {0: "background"}
    origin = [part.start for part in box]
    sure = None if margins is None else np.ascontiguousarray(margins[box])
    where = np.flatnonzero(components)
    order = np.argsort(components.flat[where], kind="stable")
    where = where[order]
    ends = np.cumsum(sizes)
    regions = []
    for index in range(kept):
        flat = where[ends[index] - sizes[index] : ends[index]]
        deep = depth.flat[flat]
        kji = np.array(np.unravel_index(flat[int(np.argmax(deep))], components.shape)) + origin
        regions.append(
            Region(
                index + 1,
                int(sizes[index]),
                float(sizes[index]) * grid.voxel_ml,
                _ras(kji, grid),
                names.get(_most(first[box].flat[flat]), "other"),
                names.get(_most(second[box].flat[flat]), "other"),
                float((deep <= 1).mean()),
                int(deep.max()),
                _margin(sure, flat),
            )
        )
    share = float((depth.flat[where] <= 1).mean())
    return Differences(numbers, total, total * grid.voxel_ml, share, len(sizes), regions, _margin(sure, where))


def _margin(margins: NDArray[np.uint8] | None, flat: NDArray[Any]) -> float | None:
    return None if margins is None else float(margins.flat[flat].mean()) / ONE


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Connected components numbered from the largest, and their sizes."""
    import SimpleITK as sitk

    numbered = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    components = sitk.GetArrayFromImage(sitk.RelabelComponent(numbered, sortByObjectSize=True))
    return components, np.bincount(components.ravel())[1:]


def _distance_from_boundary(labels: NDArray[Any], box: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
    """For the voxels of ``box``: steps to the nearest voxel that has a neighbour (of 6) with another label; at most 9."""
    margin = 9
    around = tuple(slice(max(0, part.start - margin), part.stop + margin) for part in box)
    inside = labels[around]
    edge = np.zeros(inside.shape, bool)
    for axis in range(3):
        low: list[slice] = [slice(None)] * 3
        high: list[slice] = [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        step = inside[tuple(low)] != inside[tuple(high)]
        edge[tuple(low)] |= step
        edge[tuple(high)] |= step
    back = tuple(slice(p.start - a.start, p.stop - a.start) for p, a in zip(box, around, strict=True))
    return np.ascontiguousarray(_chessboard(edge, margin)[back])


def _chessboard(edge: NDArray[np.bool_], most: int) -> NDArray[np.uint8]:
    """Steps (26 neighbors) to the nearest true voxel, at most ``most``."""
    distance = np.where(edge, 0, most).astype(np.uint8)
    reached = edge
    for step in range(1, most):
        grown = reached
        for axis in range(3):
            wider = grown.copy()
            low: list[slice] = [slice(None)] * 3
            high: list[slice] = [slice(None)] * 3
            low[axis], high[axis] = slice(None, -1), slice(1, None)
            wider[tuple(low)] |= grown[tuple(high)]
            wider[tuple(high)] |= grown[tuple(low)]
            grown = wider
        distance[grown & ~reached] = step
        reached = grown
    return distance


def _ras(kji: NDArray[Any], grid: Grid) -> tuple[float, float, float]:
    r, a, s = (grid.ijk_to_ras @ np.array([*kji[::-1], 1.0]))[:3]
    return float(r), float(a), float(s)


def _most(values: NDArray[Any]) -> int:
    return int(np.bincount(values).argmax())
