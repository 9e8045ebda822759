"""Arrays of float32 on a GPU with what bringing a scan to network space does with them: laid out, resampled, measured, changed."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.cuda.device import DeviceBuffer, Gpu, Stream
from ..engines.cuda.transfers import download, upload
from ..imaging.array_layout import ArrayLayout
from ..imaging.sampling_weights import AxisWeights
from .gpu_kernels import PREPARATION_NAMES, preparation_source
from .gpu_team import TeamMember

_THREADS = 256
#: Blocks of kernels whose threads take one voxel after the other.
_MOST_BLOCKS = 8192
#: Threads that look at a whole array, and at one slice, for its smallest and largest value or its sum.
_LANES, _SLICE_LANES = 16384, 256
_RANKS = 1 << 16
#: Voxels that one is made of at most where all axes are resampled in one pass.
_MOST_TAPS = 27
#: Voxels of a scan as they lie in memory.
SOURCES = {
    "int8": "i8",
    "uint8": "u8",
    "int16": "i16",
    "uint16": "u16",
    "int32": "i32",
    "uint32": "u32",
    "float32": "f32",
    "float64": "f64",
}


class GpuArrays:
    """Works on arrays of one GPU, in one stream. Every array that it gives is freed with it, unless it was freed or handed over before.

    Args:
        member: of a team of GPUs that all get the same scan: each brings a share of it up, and the others' from their memory.
    """

    def __init__(self, gpu: Gpu, member: TeamMember | None = None) -> None:
        self._member = member
        gpu.enter()
        self._gpu = gpu
        self._kernels = gpu.kernels(preparation_source(), PREPARATION_NAMES)
        self.stream: Stream = gpu.stream()
        self._buffers: list[DeviceBuffer] = []

    def close(self) -> None:
        self._gpu.enter()
        self.stream.synchronize()
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []
        self.stream.free()

    def allocate(self, shape: Sequence[int], dtype: Any = np.float32) -> DeviceBuffer:
        buffer = self._gpu.allocate(shape, dtype)
        self._buffers.append(buffer)
        return buffer

    def free(self, buffer: DeviceBuffer) -> None:
        """Free an array whose last work is in the stream already: memory is given back once that is done."""
        self._buffers.remove(buffer)
        self.stream.synchronize()
        buffer.free()

    def hand_over(self, buffer: DeviceBuffer) -> DeviceBuffer:
        """Return an array that is whole, and that the caller frees."""
        self.stream.synchronize()
        self._buffers.remove(buffer)
        return buffer

    def upload(self, array: NDArray[Any]) -> DeviceBuffer:
        buffer = self.allocate(array.shape, array.dtype)
        buffer.upload(array, self.stream)
        return buffer

    def upload_scan(self, array: NDArray[Any]) -> DeviceBuffer:
        """As :meth:`upload`, for what every GPU of a team gets."""
        buffer = self.allocate(array.shape, array.dtype)
        if self._member is None:
            upload(buffer, array, self.stream)
        else:
            self._member.upload(buffer, array, self.stream)
        return buffer

    def lay_out(
        self,
        source: DeviceBuffer,
        layout: ArrayLayout,
        axis_order: str = "KJI",
        pad: float = 0.0,
        into: tuple[DeviceBuffer, int] | None = None,
    ) -> DeviceBuffer:
        """Return what a layout names of an array (K, J, I), float32, in a tensor's order of axes.

        Args:
            pad: what lies outside of the array.
            into: an array of channels and the number of the one that is written.
        """
        axes, (first, steps) = layout.along(axis_order), layout.steps(axis_order)
        target = self.allocate([axis.size for axis in axes]) if into is None else into[0]
        count = math.prod(axis.size for axis in axes)
        address = target.pointer + (0 if into is None else 4 * count * into[1])
        self._run(
            f"lay_out_{SOURCES[str(source.dtype)]}",
            count,
            source,
            ctypes.c_void_p(address),
            *map(ctypes.c_int, [axis.size for axis in axes]),
            *map(ctypes.c_int, [axis.low for axis in axes]),
            *map(ctypes.c_int, [axis.high for axis in axes]),
            *map(ctypes.c_longlong, (first, *steps)),
            ctypes.c_float(pad),
        )
        return target

    def resample(self, array: DeviceBuffer, weights: Sequence[AxisWeights]) -> DeviceBuffer:
        """Return an array (K, J, I) resampled axis after axis, and free it."""
        # Clipping is to the range of the array as it came.
        clip = next((step.clip for step in weights if step.clip is not None), None)
        limits = None if clip is None else self.extremes(array, None if clip == "whole" else int(clip))
        for step in weights:
            resampled = self._weigh(array, step)
            self.free(array)
            array = resampled
            if step.clip is not None and limits is not None:
                self._clip(array, limits, None if clip == "whole" else step.clip)
        return array

    def resample_laid_out(
        self, source: DeviceBuffer, layout: ArrayLayout, weights: Sequence[AxisWeights]
    ) -> DeviceBuffer | None:
        """Return what a layout names of an array (K, J, I), resampled along all axes in one pass; None where that does not go.

        It goes where nothing is padded or clipped and a voxel is made of few others: linear interpolation to a grid that is not much coarser.
        """
        axes, (first, steps) = layout.along("KJI"), layout.steps("KJI")
        padded = any(axis.low > 0 or axis.high < axis.size for axis in axes)
        by_axis = {step.axis: step for step in weights}
        if padded or len(by_axis) < len(weights) or any(step.clip is not None for step in weights):
            return None
        if math.prod(step.weights.shape[1] for step in weights) > _MOST_TAPS:
            return None
        tables = []
        for number, axis in enumerate(axes):
            step = by_axis.get(number)
            starts = np.arange(axis.size, dtype=np.int32) if step is None else step.starts
            shares = np.ones((axis.size, 1), np.float32) if step is None else step.weights
            tables.append((self.upload(starts), self.upload(shares)))
        shape = [starts.shape[0] for starts, _ in tables]
        target = self.allocate(shape)
        self._run(
            f"weigh_axes_{SOURCES[str(source.dtype)]}",
            math.prod(shape),
            source,
            target,
            *(starts for starts, _ in tables),
            *(shares for _, shares in tables),
            *(ctypes.c_int(shares.shape[1]) for _, shares in tables),
            *map(ctypes.c_int, shape),
            *map(ctypes.c_longlong, (first, *steps)),
        )
        for pair in tables:
            for table in pair:
                self.free(table)
        return target

    def _weigh(self, array: DeviceBuffer, step: AxisWeights) -> DeviceBuffer:
        shape, axis = array.shape, step.axis
        fresh, taps = step.weights.shape
        target = self.allocate((*shape[:axis], fresh, *shape[axis + 1 :]))
        starts, weights = self.upload(step.starts), self.upload(step.weights)
        total, inner = math.prod(target.shape), math.prod(shape[axis + 1 :])
        sizes = (*map(ctypes.c_int, (taps, shape[axis], fresh)), ctypes.c_longlong(inner), ctypes.c_longlong(total))
        self._run("weigh_axis", total, array, target, starts, weights, *sizes)
        self.free(starts)
        self.free(weights)
        return target

    def extremes(self, array: DeviceBuffer, axis: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the smallest and the largest value, (1,) each, or, with an axis of (K, J, I), of each slice across it."""
        shape = array.shape
        slices = 1 if axis is None else shape[axis]
        outer = 1 if axis is None else math.prod(shape[:axis])
        inner = math.prod(shape if axis is None else shape[axis + 1 :])
        lanes = _LANES if axis is None else _SLICE_LANES
        lows, highs = self.allocate((slices, lanes)), self.allocate((slices, lanes))
        sizes = (ctypes.c_int(slices), ctypes.c_longlong(outer), ctypes.c_longlong(inner), ctypes.c_int(lanes))
        self._run("find_extremes", slices * lanes, array, lows, highs, *sizes)
        return self._downloaded(lows).min(axis=1), self._downloaded(highs).max(axis=1)

    def _clip(self, array: DeviceBuffer, limits: tuple[NDArray[Any], NDArray[Any]], axis: int | str | None) -> None:
        inner = math.prod(array.shape if axis is None else array.shape[int(axis) + 1 :])
        lows, highs = self.upload(limits[0]), self.upload(limits[1])
        total = math.prod(array.shape)
        sizes = (ctypes.c_int(len(limits[0])), ctypes.c_longlong(inner), ctypes.c_longlong(total))
        self._run("clip_slices", total, array, lows, highs, *sizes)
        self.free(lows)
        self.free(highs)

    def moments(self, array: DeviceBuffer, mask: int = 0, above: float = 0.0) -> tuple[int, float, float]:
        """Return how many values there are, their mean, and their standard deviation.

        Args:
            mask: 0 for all, 1 for those that are not 0, 2 for those above ``above``.
        """
        count, total, _ = self._sums(array, mask, above, 0.0)
        if count == 0:
            return 0, 0.0, 0.0
        mean = total / count
        return count, mean, math.sqrt(self._sums(array, mask, above, mean)[2] / count)

    def _sums(self, array: DeviceBuffer, mask: int, above: float, center: float) -> tuple[int, float, float]:
        sums, squares = self.allocate((_LANES,), np.float64), self.allocate((_LANES,), np.float64)
        counts = self.allocate((_LANES,), np.int64)
        how = (ctypes.c_int(mask), ctypes.c_float(above), ctypes.c_double(center))
        total = ctypes.c_longlong(math.prod(array.shape))
        self._run("sum_values", _LANES, array, sums, squares, counts, *how, total)
        return (
            int(self._downloaded(counts).sum()),
            float(self._downloaded(sums).sum()),
            float(self._downloaded(squares).sum()),
        )

    def percentiles(self, array: DeviceBuffer, which: Sequence[float]) -> list[float]:
        """Return percentiles with linear interpolation, as ``numpy.percentile`` gives them."""
        size = math.prod(array.shape)
        upper = np.cumsum(self._ranks(array, -1))
        lower: dict[int, NDArray[np.int64]] = {}

        def value(position: int) -> float:
            prefix = int(np.searchsorted(upper, position, side="right"))
            if prefix not in lower:
                lower[prefix] = np.cumsum(self._ranks(array, prefix))
            left = position - (int(upper[prefix - 1]) if prefix else 0)
            rank = (prefix << 16) | int(np.searchsorted(lower[prefix], left, side="right"))
            bits = rank & 0x7FFFFFFF if rank & 0x80000000 else ~rank & 0xFFFFFFFF
            return float(np.uint32(bits).view(np.float32))

        results = []
        for percent in which:
            position = percent / 100 * (size - 1)
            below, above = value(math.floor(position)), value(math.ceil(position))
            results.append(below + (above - below) * (position - math.floor(position)))
        return results

    def _ranks(self, array: DeviceBuffer, prefix: int) -> NDArray[np.int64]:
        counts = self.allocate((_RANKS,), np.uint32)
        counts.zero(self.stream)
        total = math.prod(array.shape)
        self._run("count_ranks", total, array, counts, ctypes.c_int(prefix), ctypes.c_longlong(total))
        return self._downloaded(counts).astype(np.int64)

    def change(self, array: DeviceBuffer, kind: int, a: float = 0.0, b: float = 0.0, c: float = 0.0) -> None:
        """Change all values in place; the kinds are those of ``change_values`` in scan_preparation.cu."""
        total = math.prod(array.shape)
        values = map(ctypes.c_float, (a, b, c))
        self._run("change_values", total, array, ctypes.c_int(kind), *values, ctypes.c_longlong(total))

    def downloaded(self, buffer: DeviceBuffer) -> NDArray[Any]:
        """Return an array as it is now."""
        array = np.empty(buffer.shape, buffer.dtype)
        download(buffer, array, self.stream)
        return array

    def every(self, array: DeviceBuffer, stride: int) -> NDArray[np.float32]:
        """Return every so many voxels along each axis of an array (C, n0, n1, n2) of float32."""
        channels, n0, n1, n2 = array.shape
        sizes = [-(-n // stride) for n in (n0, n1, n2)]
        target, count = self.allocate((channels, *sizes)), math.prod(sizes)
        for channel in range(channels):
            self._run(
                "lay_out_f32",
                count,
                array,
                ctypes.c_void_p(target.pointer + 4 * count * channel),
                *map(ctypes.c_int, (*sizes, 0, 0, 0, *sizes)),
                *map(ctypes.c_longlong, (channel * n0 * n1 * n2, stride * n1 * n2, stride * n2, stride)),
                ctypes.c_float(0.0),
            )
        return self._downloaded(target)

    def _downloaded(self, buffer: DeviceBuffer) -> NDArray[Any]:
        """Return a small array, and free it."""
        array = np.empty(buffer.shape, buffer.dtype)
        buffer.download(array, self.stream)
        self.free(buffer)
        return array

    def _run(self, name: str, items: int, *arguments: Any) -> None:
        blocks = min(_MOST_BLOCKS, -(-items // _THREADS))
        self._kernels[name]((blocks, 1, 1), (_THREADS, 1, 1), self.stream, *arguments)
