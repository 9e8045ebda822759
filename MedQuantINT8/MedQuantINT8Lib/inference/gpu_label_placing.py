"""A label map of network space on a GPU to the scan's grid by the nearest voxel, for models whose labels, not scores, are brought back."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines.cuda.device import DeviceBuffer, Gpu, Stream
from ..imaging.array_layout import ArrayLayout
from ..imaging.label_resampling import Axes
from .gpu_cleaning import GpuCleaning
from .gpu_kernels import RESAMPLING_NAMES, resampling_source

_THREADS, _MOST_BLOCKS = 256, 8192


@dataclass(frozen=True)
class NearestLabels:
    """Where each voxel of the scan's grid gets its label from.

    Attributes:
        axes: the nearest voxel along each axis of the tensor.
        layout: how the resampled volume lies in the scan's own array.
        axis_order: of the tensor, "IJK" or "KJI".
        dtype: of the labels: uint8 or uint16.
        cleaning: what is done with the labels before; None leaves them as they are.
    """

    axes: Axes
    layout: ArrayLayout
    axis_order: str
    dtype: Any
    cleaning: GpuCleaning | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """The label map's shape, (K, J, I)."""
        i, j, k = self.layout.whole
        return k, j, i

    def placed(self, gpu: Gpu, labels: DeviceBuffer, stream: Stream) -> DeviceBuffer:
        """Return labels (n0, n1, n2), uint16, on the scan's grid (K, J, I), 0 where a crop has left nothing; the caller frees it."""
        kernel = gpu.kernels(resampling_source(), RESAMPLING_NAMES)[f"place_u{8 * np.dtype(self.dtype).itemsize}"]
        if self.cleaning is not None:
            self.cleaning.clean_all(gpu, labels, stream)
        target = gpu.allocate(self.shape, self.dtype)
        tables: list[DeviceBuffer] = []
        try:
            target.zero(stream)
            (first, steps), laid = self.layout.steps(self.axis_order), self.layout.along(self.axis_order)
            for axis, place, step in zip(self.axes, laid, steps, strict=True):
                rows = axis.low[place.low : place.high].astype(np.int32)
                tables.append(gpu.allocate(rows.shape, np.int32))
                tables[-1].upload(rows, stream)
                first += place.low * step
            sizes = [table.shape[0] for table in tables]
            if total := math.prod(sizes):
                kernel(
                    (min(_MOST_BLOCKS, -(-total // _THREADS)), 1, 1),
                    (_THREADS, 1, 1),
                    stream,
                    labels,
                    target,
                    *tables,
                    *map(ctypes.c_int, (*sizes, *labels.shape[1:])),
                    *map(ctypes.c_longlong, (first, *steps)),
                )
            stream.synchronize()
        except BaseException:
            target.free()
            raise
        finally:
            for table in tables:
                table.free()
        return target
