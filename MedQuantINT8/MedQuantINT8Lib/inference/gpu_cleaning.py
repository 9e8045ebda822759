"""Keeping the largest parts of structures, and removing small ones, in a label map on a GPU; the parts, and which of equal ones stays, are those
of :mod:`.postprocessing`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.cuda.device import DeviceBuffer, Gpu, GpuError, GpuMemoryError, Stream
from ..models.spec import Cleaning
from .gpu_kernels import COMPONENT_NAMES, components_source
from .postprocessing import cleaned, least_voxels

_THREADS, _MOST_BLOCKS = 256, 65535
#: Parts that are listed at once; where there are more, they are listed again.
_ROOM = 1 << 18
#: By the kind of GPU: whether its parts are the processor's, looked at once in a process.
_TRUSTED: dict[str, bool] = {}


def done_there(step: Cleaning) -> bool:
    """Whether a GPU does a step: holes, and structures that are compared as wholes, are the processor's."""
    return step.kind in ("largest", "remove_small") and not step.whole


class GpuCleaning:
    """Steps of a model's cleaning, on one GPU.

    Args:
        steps: as :func:`done_there` says.
        voxel_mm3: the volume of a voxel in cubic millimeters.
    """

    def __init__(self, steps: Sequence[Cleaning], voxel_mm3: float) -> None:
        self._steps, self._voxel_mm3 = tuple(steps), voxel_mm3

    def clean(self, gpu: Gpu, labels: DeviceBuffer, stream: Stream) -> int:
        """Apply the steps in place to a label map of three axes, uint8 or uint16; return how many were done.

        Fewer than all are done where the GPU has no memory for it, or finds other parts than the processor does.
        """
        if math.prod(labels.shape) >= 1 << 31 or not _trusted(gpu, stream):
            return 0
        for number, step in enumerate(self._steps):
            try:
                _apply(gpu, labels, step, self._voxel_mm3, stream)
            except GpuMemoryError:
                return number
        return len(self._steps)

    def clean_all(self, gpu: Gpu, labels: DeviceBuffer, stream: Stream) -> None:
        """As :meth:`clean`; what the GPU cannot do the processor does, on a copy that goes back."""
        done = self.clean(gpu, labels, stream)
        if left := self._steps[done:]:
            array = np.empty(labels.shape, labels.dtype)
            labels.download(array, stream)
            stream.synchronize()
            labels.upload(cleaned(array, left, self._voxel_mm3), stream)


def _trusted(gpu: Gpu, stream: Stream) -> bool:
    """Whether a GPU finds the processor's parts in a small label map."""
    title = gpu.info.title
    if title not in _TRUSTED:
        rng = np.random.default_rng(0)
        labels = rng.choice(np.array([0, 0, 1, 2, 300], np.uint16), (9, 21, 37))
        steps = [Cleaning(connectivity=n, equal="all") for n in (3, 2)]
        steps += [Cleaning("remove_small", size=5, connectivity=1), Cleaning(together=True)]
        try:
            results = [(_cleaned_there(gpu, labels, step, stream), cleaned(labels.copy(), [step])) for step in steps]
        except GpuMemoryError:
            return False
        except GpuError:
            results = [(labels, labels + 1)]
        _TRUSTED[title] = all(np.array_equal(there, here) for there, here in results)
    return _TRUSTED[title]


def _cleaned_there(gpu: Gpu, labels: NDArray[Any], step: Cleaning, stream: Stream) -> NDArray[Any]:
    buffer = gpu.allocate(labels.shape, labels.dtype)
    try:
        buffer.upload(labels, stream)
        _apply(gpu, buffer, step, 1.0, stream)
        result = np.empty_like(labels)
        buffer.download(result, stream)
        stream.synchronize()
        return result
    finally:
        buffer.free()


def _apply(gpu: Gpu, labels: DeviceBuffer, step: Cleaning, voxel_mm3: float, stream: Stream) -> None:
    """Apply one step, in place.

    Raises:
        GpuMemoryError: two numbers a voxel do not fit; the label map is as it was.
    """
    suffix = f"u{8 * labels.dtype.itemsize}"
    kernels = gpu.kernels(components_source(), COMPONENT_NAMES)
    planes, rows, columns = labels.shape
    total = planes * rows * columns
    if not total:
        return
    buffers: list[DeviceBuffer] = []

    def hold(shape: tuple[int, ...], dtype: Any) -> DeviceBuffer:
        buffers.append(gpu.allocate(shape, dtype))
        return buffers[-1]

    def run(name: str, items: int, *arguments: Any) -> None:
        blocks = min(_MOST_BLOCKS, -(-items // _THREADS))
        values = [ctypes.c_int(a) if isinstance(a, int) else a for a in arguments]
        kernels[name]((blocks, 1, 1), (_THREADS, 1, 1), stream, *values)

    try:
        groups = hold((1 << (8 * labels.dtype.itemsize),), np.uint16)
        parents, sizes = hold((total,), np.int32), hold((total,), np.int32)
        groups.upload(_groups(step, groups.shape[0]), stream)
        run(f"start_runs_{suffix}", planes * rows, labels, groups, parents, sizes, planes * rows, columns)
        run(f"join_runs_{suffix}", total, labels, groups, parents, planes, rows, columns, step.connectivity)
        run(f"measure_parts_{suffix}", planes * rows, labels, groups, parents, sizes, planes * rows, columns)
        found = hold((1,), np.int32)
        count, room = np.zeros(1, np.int32), _ROOM
        while True:
            parts = hold((room, 3), np.int32)
            found.zero(stream)
            run(f"list_parts_{suffix}", total, labels, groups, parents, sizes, parts, found, room, total)
            found.download(count, stream)
            stream.synchronize()
            if int(count[0]) <= room:
                break
            buffers.remove(parts)
            parts.free()
            room = int(count[0])
        listed = np.empty(parts.shape, np.int32)
        parts.download(listed, stream)
        stream.synchronize()
        gone = _gone(listed[: int(count[0])], step, least_voxels(step, voxel_mm3))
        if len(gone):
            firsts = hold(gone.shape, np.int32)
            firsts.upload(gone, stream)
            run("mark_parts", len(gone), firsts, sizes, len(gone))
            run(f"erase_parts_{suffix}", planes * rows, labels, groups, parents, sizes, planes * rows, columns)
        stream.synchronize()
    finally:
        for buffer in buffers:
            buffer.free()


def _groups(step: Cleaning, values: int) -> NDArray[np.uint16]:
    """Return what each value belongs to: each structure is a group of its own, or all of them are one; the others are in none."""
    groups = np.zeros(values, np.uint16)
    chosen = (
        np.array([value for value in step.labels if value < values] or [], np.int64)
        if step.labels
        else np.arange(1, values)
    )
    groups[chosen] = 1 if step.together else chosen
    return groups


def _gone(parts: NDArray[np.int32], step: Cleaning, least: int) -> NDArray[np.int32]:
    """Return the first voxels of the parts that a step does not keep, of (first voxel, group, size) of all."""
    first, group, size = parts.T
    if step.kind != "largest":
        return np.ascontiguousarray(first[size < least])
    # By group, the largest first, of equal ones that which comes first in memory.
    order = np.lexsort((first, -size, group))
    first, group, size = first[order], group[order], size[order]
    begins = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[begins, len(group)])
    rank = np.arange(len(group)) - np.repeat(begins, lengths)
    kept = rank < step.count
    if step.equal == "all":
        smallest = size[begins + np.minimum(step.count, lengths) - 1]
        kept = size >= np.repeat(smallest, lengths)
    return np.ascontiguousarray(first[~kept])
