"""The label maps of a task's parts merged into one on a GPU, where each was made: one map comes down, and not one of every part."""

from __future__ import annotations

import ctypes
import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.cuda.device import DeviceBuffer, Gpu, GpuError, GpuMemoryError, Stream
from ..engines.cuda.several import connect, copy_between, reaches
from ..engines.cuda.transfers import download
from ..errors import DependencyError
from ..imaging.region_of_interest import Box
from .gpu_kernels import MERGING_NAMES, merging_source
from .gpu_label_download import Landing
from .label_merging import merge_labels, target_table

_THREADS, _MOST_BLOCKS = 256, 65535
#: By the kind of GPU: whether it merges as the processor does, looked at once in a process.
_TRUSTED: dict[str, bool] = {}


class NotThere(Exception):
    """A part that a GPU cannot merge: the processor does it."""


class GpuMerging:
    """Merges on the GPU that the first part lies on; parts of other GPUs are copied to it.

    What a part's engine has made is taken over, so that the engine may be closed. Parts are kept by several threads, and painted by one.

    Args:
        shape: (K, J, I) of the merged map.
        dtype: of that: uint8 or uint16.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: Any) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._lock = threading.Lock()
        self._gpus: dict[int, Gpu] = {}
        self._merged: DeviceBuffer | None = None
        self._stream: Stream | None = None
        self._landing: Landing | None = None

    def keep(self, labels: DeviceBuffer) -> bool:
        """Take over the map of a part, which is whole; False where no GPU may merge it."""
        if labels.dtype not in (np.uint8, np.uint16):
            return False
        with self._lock:
            gpu = self._gpu(labels)
            return _trusted(gpu) and labels.change_owner(gpu)

    def _gpu(self, labels: DeviceBuffer) -> Gpu:
        """Return this object's own view of the GPU that a map lies on."""
        index = labels.gpu.info.index
        if index not in self._gpus:
            self._gpus[index] = Gpu(index)
        self._gpus[index].enter()
        return self._gpus[index]

    def paint(self, labels: DeviceBuffer, box: Box, targets: dict[int, int]) -> None:
        """Paint the map of a part, which was kept, over the merged one, and free it.

        Args:
            box: of the merged map, (I, J, K).
            targets: as :func:`.label_merging.merge_labels` takes them.

        Raises:
            NotThere: no memory for it, or no way between two GPUs; the part is as it was.
        """
        try:
            merged, stream = self._begun(labels.gpu)
            if not reaches(merged.gpu, labels.gpu):
                raise NotThere
            if merged.gpu is not labels.gpu:
                connect([merged.gpu, labels.gpu])
            merged.gpu.enter()
            _paint(merged, labels, box, targets, stream)
        except GpuMemoryError as error:
            raise NotThere from error
        labels.gpu.enter()
        labels.free()

    def _begun(self, gpu: Gpu) -> tuple[DeviceBuffer, Stream]:
        """Return the merged map, which begins as background on the GPU of the first part."""
        if self._merged is None or self._stream is None:
            gpu.enter()
            merged = gpu.allocate(self.shape, self.dtype)
            self._stream = gpu.stream()
            merged.zero(self._stream)
            self._merged, self._landing = merged, Landing(self.shape, self.dtype)
        return self._merged, self._stream

    def brought_down(self, labels: DeviceBuffer) -> NDArray[Any]:
        """Return the map of a part, which was kept, in the computer's memory, and free it."""
        labels.gpu.enter()
        array, stream = np.empty(labels.shape, labels.dtype), labels.gpu.stream()
        try:
            download(labels, array, stream)
        finally:
            stream.free()
        labels.free()
        return array

    def end(self) -> NDArray[Any] | None:
        """Return the merged map in the computer's memory, and free it; None where nothing was painted."""
        merged, stream, landing = self._merged, self._stream, self._landing
        if merged is None or stream is None or landing is None:
            return None
        merged.gpu.enter()
        array = landing.array()
        download(merged, array, stream)
        merged.free()
        stream.free()
        self._stream = self._merged = self._landing = None
        return array

    def close(self) -> None:
        """Free all that is held."""
        if self._merged is not None and self._stream is not None:
            # An engine that was closed meanwhile may have left this thread without a GPU.
            self._merged.gpu.enter()
            self._stream.free()
        self._stream = self._merged = self._landing = None
        gpus, self._gpus = self._gpus, {}
        for gpu in gpus.values():
            # Engines that stay find their blocks again in the next run.
            gpu.close(spare_blocks=True)


def _paint(merged: DeviceBuffer, labels: DeviceBuffer, box: Box, targets: dict[int, int], stream: Stream) -> None:
    """Paint labels (K, J, I), which may lie on another GPU, over a box of the merged map, and wait for that.

    Raises:
        GpuMemoryError: no memory beside the merged map, which is as it was.
    """
    gpu = merged.gpu
    size = 1 + max(targets, default=0)
    table = target_table(targets, merged.dtype, size)
    kernel = gpu.kernels(merging_source(), MERGING_NAMES)[f"paint_{_kind(labels)}_{_kind(merged)}"]
    (i, _), (j, _), (k, _) = box
    _, rows, columns = merged.shape
    held: list[DeviceBuffer] = []
    try:
        held.append(gpu.allocate(table.shape, table.dtype))
        if labels.gpu.info.index != gpu.info.index:
            held.append(gpu.allocate(labels.shape, labels.dtype))
            copy_between(labels, held[1], stream)
        held[0].upload(table, stream)
        kernel(
            (min(_MOST_BLOCKS, max(1, math.prod(labels.shape[:2]))), 1, 1),
            (_THREADS, 1, 1),
            stream,
            held[-1] if len(held) > 1 else labels,
            merged,
            held[0],
            *map(ctypes.c_int, (size, *labels.shape)),
            *map(ctypes.c_longlong, ((k * rows + j) * columns + i, rows * columns, columns)),
        )
        stream.synchronize()
    finally:
        for buffer in held:
            buffer.free()


def _kind(buffer: DeviceBuffer) -> str:
    return f"u{8 * buffer.dtype.itemsize}"


def _trusted(gpu: Gpu) -> bool:
    """Whether a GPU merges small label maps as the processor does."""
    title = gpu.info.title
    if title not in _TRUSTED:
        try:
            _TRUSTED[title] = all(
                _same(gpu, np.dtype(part), np.dtype(whole))
                for part in (np.uint8, np.uint16)
                for whole in (np.uint8, np.uint16)
            )
        except GpuMemoryError:
            return False
        except (GpuError, DependencyError):
            # There is no compiler for its kernels, or they do not run.
            _TRUSTED[title] = False
    return _TRUSTED[title]


def _same(gpu: Gpu, part: np.dtype[Any], whole: np.dtype[Any]) -> bool:
    """Whether a GPU paints one map over another as the processor does."""
    rng = np.random.default_rng(0)
    merged = rng.integers(0, 200, (5, 7, 301)).astype(whole)
    labels = rng.choice(np.array([0, 0, 1, 2, 3, 255], part), (3, 4, 290))
    targets = {1: 7, 2: 200, 3: np.iinfo(whole).max}
    box = ((9, 299), (2, 6), (1, 4))
    stream, held = gpu.stream(), list[DeviceBuffer]()
    try:
        for array in (merged, labels):
            held.append(gpu.allocate(array.shape, array.dtype))
            held[-1].upload(array, stream)
        _paint(held[0], held[1], box, targets, stream)
        there = np.empty_like(merged)
        held[0].download(there, stream)
        stream.synchronize()
    finally:
        for buffer in held:
            buffer.free()
        stream.free()
    (i, right), (j, back), (k, top) = box
    merge_labels(merged[k:top, j:back, i:right], labels, targets, 1)
    return bool(np.array_equal(there, merged))
