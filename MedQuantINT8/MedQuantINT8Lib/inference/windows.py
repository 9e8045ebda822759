"""Where the windows of a volume lie, how much each voxel of one weighs, and how a volume is cut into columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.spec import Window


def window_starts(size: int, patch: int, overlap: float, placement: str = "monai") -> list[int]:
    """First voxels of the windows along one axis that is at least ``patch`` long.

    "monai" steps by ``int(patch * (1 - overlap))`` and moves the last window back inside; "nnunet" spreads as few
    windows as that step allows evenly.
    """
    if size <= patch:
        return [0]
    if patch == 1:
        # Slice by slice: one voxel overlaps nothing, and none is run twice.
        return list(range(size))
    if placement == "nnunet":
        # Steps of less than a voxel would run windows twice, which the blending takes for one.
        count = math.ceil((size - patch) / max(1, patch * (1 - overlap))) + 1
        return [int(np.round((size - patch) / (count - 1) * n)) for n in range(count)]
    step = max(1, int(patch * (1 - overlap)))
    count = math.ceil((size - patch) / step) + 1
    return [min(n * step, size - patch) for n in range(count)]


#: Windows up to so many voxels have their importance map kept from run to run.
_KEPT_VOXELS = 1 << 22
#: The smallest weight of a Gaussian: MONAI's, and what nnU-Net's 16-bit map has left for its corners.
_LEAST_WEIGHT = {"monai": 1e-3, "nnunet": 6e-9}


def importance_map(
    patch: tuple[int, int, int],
    blend: str,
    placement: str = "monai",
    sigma: tuple[float, float, float] = (0.125, 0.125, 0.125),
) -> NDArray[np.float32]:
    """Weight of each voxel of a window: 1, or a Gaussian whose standard deviation along an axis is ``sigma`` times the patch.

    MONAI's has its peak in the middle, nnU-Net's at voxel size // 2. The array may be shared, and cannot be written to.
    """
    # A window as large as a scan is not kept: its map may take more memory than all else.
    build = _kept_importance if math.prod(patch) <= _KEPT_VOXELS else _importance
    weights: NDArray[np.float32] = build(patch, blend, placement, sigma)
    weights.flags.writeable = False
    return weights


def _importance(
    patch: tuple[int, int, int], blend: str, placement: str, sigma: tuple[float, float, float]
) -> NDArray[np.float32]:
    if blend == "constant":
        return np.ones(patch, np.float32)
    profiles = []
    for size, share in zip(patch, sigma, strict=True):
        offset = np.arange(size, dtype=np.float32) - (size // 2 if placement == "nnunet" else (size - 1) / 2)
        profiles.append(np.exp(-(offset**2) / (2 * (share * size) ** 2)).astype(np.float32))
    weights = profiles[0][:, None, None] * profiles[1][None, :, None] * profiles[2][None, None, :]
    return np.maximum(weights, _LEAST_WEIGHT[placement]).astype(np.float32)


_kept_importance = lru_cache(maxsize=2)(_importance)


def middle_of(shape: Sequence[int], overlap: float) -> tuple[slice, ...]:
    """The part of a window that the blended result takes mainly from it: a quarter of the overlap is left out at each side.

    Near its border a network sees half of what is there.
    """
    margins = [int(side * overlap / 4) for side in shape]
    return tuple(slice(m, side - m) for m, side in zip(margins, shape, strict=True))


@dataclass(frozen=True)
class WindowPlan:
    """The plan of the windows of one volume: where they lie.

    Attributes:
        shape: the volume, padded to at least the patch, along the tensor's axes.
        pad_before: voxels of padding before the volume (half of the missing ones, as MONAI and nnU-Net pad).
        patch: the window.
        starts: first voxels along each axis.
        order: the axes from slowest to fastest: the longest streams, so that the carried parts are smallest.
    """

    volume_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    pad_before: tuple[int, int, int]
    patch: tuple[int, int, int]
    starts: tuple[list[int], list[int], list[int]]
    order: tuple[int, int, int]

    @property
    def count(self) -> int:
        return math.prod(len(starts) for starts in self.starts)

    def windows(self) -> Iterator[tuple[int, int, int]]:
        """Start voxels of the windows in raster order of ``order``."""
        for picked in itertools.product(*(self.starts[axis] for axis in self.order)):
            by_axis = dict(zip(self.order, picked, strict=True))
            yield by_axis[0], by_axis[1], by_axis[2]

    def carried_shape(self, axis: int) -> tuple[int, int, int]:
        """What is carried over along ``axis``: the overlap; slower axes are one window long, faster ones the volume."""
        position = self.order.index(axis)
        shape = [self.shape[n] if self.order.index(n) > position else self.patch[n] for n in range(3)]
        shape[axis] = _largest_overlap(self.starts[axis], self.patch[axis])
        return shape[0], shape[1], shape[2]

    def longest_step(self, axis: int) -> int:
        """The most voxels that become finished along ``axis`` at once."""
        ends = [*self.starts[axis][1:], self.shape[axis]]
        return max(end - start for start, end in zip(self.starts[axis], ends, strict=True))

    def carried_bytes(self, classes: int, itemsize: int) -> int:
        """Memory of the parts carried over along all three axes."""
        return classes * itemsize * sum(math.prod(self.carried_shape(axis)) for axis in range(3))

    def columns(self, count: int) -> list[Column]:
        """The volume cut into ``count`` columns along the middle axis, to be run one after the other.

        A column carries less. Windows that reach over a border are run for both sides, so that the result is the same.
        """
        axis = self.order[1]
        starts = self.starts[axis]
        borders = [starts[len(starts) * n // count] for n in range(count)] + [self.shape[axis]]
        return [self._column(axis, low, high) for low, high in itertools.pairwise(borders)]

    def _column(self, axis: int, low: int, high: int) -> Column:
        starts = [s for s in self.starts[axis] if s + self.patch[axis] > low and s < high]
        begin, end = starts[0], starts[-1] + self.patch[axis]
        if len(starts) == len(self.starts[axis]):
            return Column(self, axis, 0, 0, self.volume_shape[axis])

        def at(values: tuple[int, int, int], value: int) -> tuple[int, int, int]:
            changed = [*values[:axis], value, *values[axis + 1 :]]
            return changed[0], changed[1], changed[2]

        shifted = list(self.starts)
        shifted[axis] = [s - begin for s in starts]
        part = replace(
            self,
            volume_shape=at(self.volume_shape, end - begin),
            shape=at(self.shape, end - begin),
            starts=(shifted[0], shifted[1], shifted[2]),
        )
        return Column(part, axis, begin, low - begin, high - begin)

    def columns_within(self, classes: int, itemsize: int, budget: float) -> list[Column]:
        """As few columns as carry at most ``budget`` bytes; as many as there are windows where none do.

        One where cutting would save nothing, because a column touches every window.
        """
        for count in range(1, len(self.starts[self.order[1]]) + 1):
            columns = self.columns(count)
            largest = max(column.plan.carried_bytes(classes, itemsize) for column in columns)
            if largest <= budget:
                break
        return columns if largest < self.carried_bytes(classes, itemsize) else self.columns(1)


@dataclass(frozen=True)
class Column:
    """A part of a volume along one axis.

    Attributes:
        plan: of the windows that touch the part; its coordinates begin at ``begin``.
        axis: the axis that is cut.
        begin: where the plan's volume begins in the whole one, along ``axis``.
        keep_from, keep_to: the part itself, in the plan's coordinates. What lies outside is unfinished.
    """

    plan: WindowPlan
    axis: int
    begin: int
    keep_from: int
    keep_to: int

    def of(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """The column's share of ``data`` (C, n0, n1, n2)."""
        index = [slice(None)] * 4
        index[self.axis + 1] = slice(self.begin, self.begin + self.plan.volume_shape[self.axis])
        return data[tuple(index)]


#: An axis that is longer by less than this factor is little longer.
_LITTLE = 1.1


def _largest_overlap(starts: list[int], patch: int) -> int:
    return max((patch - (after - before) for before, after in itertools.pairwise(starts)), default=0)


def plan_windows(
    shape: tuple[int, int, int], window: Window, patch: tuple[int, int, int], slices: int = 0
) -> WindowPlan:
    """Return where the windows of a volume (n0, n1, n2) lie.

    Args:
        slices: the axis along which the scan's slices follow each other in memory. It streams where another is little longer: planes that
            are finished are then whole slices.
    """
    padded = tuple(max(size, p) for size, p in zip(shape, patch, strict=True))
    before = tuple((large - small) // 2 for large, small in zip(padded, shape, strict=True))
    overlaps = window.overlaps or (window.overlap,) * 3
    starts = tuple(
        window_starts(size, p, overlap, window.placement)
        for size, p, overlap in zip(padded, patch, overlaps, strict=True)
    )
    order = tuple(sorted(range(3), key=lambda axis: -padded[axis] * (_LITTLE if axis == slices else 1.0)))
    return WindowPlan(shape, padded, before, patch, starts, order)  # type: ignore[arg-type]


def check_patch(patch: tuple[int, int, int], window: Window) -> None:
    """Raise :class:`InputError` unless ``patch`` is a size that the network takes."""
    for size, usual, multiple in zip(patch, window.patch_size, window.multiples, strict=True):
        if usual == 1 and size > 1:
            raise InputError(
                f"The patch size {patch} does not fit: the model works slice by slice, and its window {window.patch_size} is one voxel long there.",
                "Choose another patch size, with 1 along that axis.",
            )
        if size < 1 or size % multiple:
            raise InputError(
                f"The patch size {patch} does not fit: each side must be a multiple of {window.multiples}.",
                "Choose another patch size.",
            )
