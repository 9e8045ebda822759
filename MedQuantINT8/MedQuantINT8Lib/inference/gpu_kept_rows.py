"""Scores of whole rows of windows, kept on a GPU until no later window touches a plane, in place of a ring in which they are added up.

A voxel's score is read once from each window and written once. Adding windows up one after the other reads and writes a voxel's sum for
each batch: three times as many bytes. What it takes is memory, so that the ring stays where that is short.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..engines.cuda.device import DeviceBuffer, Gpu, PartBuffer, Stream
from .windows import WindowPlan

_THREADS = 256
#: The share of a GPU's memory that scores may take.
_SHARE = 1 / 8


class KeptRows:
    """Memory for the scores of some rows of windows along the slowest axis, of which the oldest goes for the newest.

    Args:
        weights: of a window's voxels, float32.

    Raises:
        GpuMemoryError: they do not fit.
    """

    def __init__(
        self, gpu: Gpu, plan: WindowPlan, classes: int, dtype: DTypeLike, weights: DeviceBuffer, stream: Stream
    ) -> None:
        self._gpu, self._plan, self._weights, self._stream = gpu, plan, weights, stream
        self.rows, self.per_row = rows_kept(plan), plan.count // len(plan.starts[plan.order[0]])
        self._buffers: list[DeviceBuffer] = []
        try:
            self._scores = self._hold((self.rows * self.per_row, classes, *plan.patch), dtype)
            self._tables = [self._uploaded(table) for axis in plan.order for table in _tables(plan, axis)]
        except BaseException:
            self.free()
            raise
        patch = plan.patch
        strides = (patch[1] * patch[2], patch[2], 1)
        per_outer = len(plan.starts[plan.order[2]])
        u = min(axis for axis in range(3) if axis != plan.order[0])
        steps = (strides[axis] for axis in plan.order)
        self._sizes = (self.rows, self.per_row, per_outer, math.prod(patch), *steps, int(plan.order[1] != u))

    def _hold(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceBuffer:
        buffer = self._gpu.allocate(shape, dtype)
        self._buffers.append(buffer)
        return buffer

    def _uploaded(self, table: NDArray[np.int32]) -> DeviceBuffer:
        buffer = self._hold(table.shape, np.int32)
        buffer.upload(table, self._stream)
        return buffer

    @property
    def all(self) -> bool:
        """Whether there is room for all rows of the plan."""
        return self.rows == len(self._plan.starts[self._plan.order[0]])

    def place(self, row: int, first: int, count: int) -> DeviceBuffer:
        """Return where scores of the windows from number ``first`` on of a row go, (count, classes, *patch)."""
        return PartBuffer(self._scores, row % self.rows * self.per_row + first, count)

    def gather(
        self,
        kernels: dict[str, Any],
        ring: DeviceBuffer,
        cuts: ctypes.c_void_p,
        ways: tuple[int, int],
        planes: tuple[int, int],
    ) -> None:
        """Fill planes of the ring, (first, last + 1), with blended scores, ready to be interpolated.

        Args:
            cuts: as ``prepare_planes`` takes them.
            ways: whether each window's scores go through a sigmoid before they are blended, and the activation afterwards.
        """
        classes, depth, nu, nv = ring.shape
        begin, end = planes
        items = nu * nv * (end - begin)
        if items < 1:
            return
        kernels["gather_f16" if self._scores.dtype == np.float16 else "gather_f32"](
            (-(-items // _THREADS), 1, 1),
            (_THREADS, 1, 1),
            self._stream,
            self._scores,
            self._weights,
            ring,
            cuts,
            *map(ctypes.c_int, (classes, *ways)),
            *self._tables,
            *map(ctypes.c_int, (*self._sizes, depth, nu, nv, begin, end)),
        )

    def free(self) -> None:
        """Free all that it holds."""
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []


def rows_kept(plan: WindowPlan) -> int:
    """Return how many rows are kept: those that planes are still made of, and one that is run meanwhile."""
    slow = plan.order[0]
    starts, length = plan.starts[slow], plan.patch[slow]
    touched = max(sum(begin <= start < begin + length for begin in starts) for start in starts)
    return min(touched + 1, len(starts))


def fits(gpu: Gpu, plan: WindowPlan, classes: int, dtype: DTypeLike) -> bool:
    """Whether the scores of the rows that are kept take no more of a GPU's memory than they may."""
    per_row = plan.count // len(plan.starts[plan.order[0]])
    size = rows_kept(plan) * per_row * classes * math.prod(plan.patch) * np.dtype(dtype).itemsize
    return size <= _SHARE * gpu.info.total_bytes


def _tables(plan: WindowPlan, axis: int) -> list[NDArray[np.int32]]:
    """Return where the windows of an axis begin, and of each coordinate the first window that touches it and the one after the last."""
    starts, places = np.array(plan.starts[axis], np.int32), np.arange(plan.shape[axis])
    first = np.searchsorted(starts + plan.patch[axis], places, side="right")
    stop = np.searchsorted(starts, places, side="right")
    return [starts, first.astype(np.int32), stop.astype(np.int32)]
