"""The sliding window on the GPU: the volume goes up, the label map comes down, and nothing in between.

The same plan of windows and the same weights as on the processor (:mod:`.windows`); patches are cut, normalized, blended and
reduced to labels by small kernels (:mod:`.gpu_kernels`), the network runs between them in the same stream. Labels are those of
network space, or, resampled from the blended scores, those of the scan's grid (:mod:`.gpu_label_resampling`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import GpuNetwork
from ..engines.cuda.device import DeviceBuffer, Event, Gpu, GpuMemoryError, Stream, patch_address
from ..engines.cuda.interop import borrowed, is_on_gpu
from ..errors import EngineError
from ..models.spec import Window
from ..progress import Task
from .gpu_kernels import NAMES, RESAMPLING_NAMES, resampling_source, source
from .gpu_label_placing import NearestLabels
from .gpu_label_resampling import GpuLabelResampling, GridLabels
from .gpu_mean import MeanNetwork
from .mirroring import Flip
from .windows import WindowPlan, importance_map

_THREADS = 256
_SOURCES = {"float32": "f32", "int16": "i16", "uint16": "u16", "uint8": "u8"}
_TARGETS = {"float32": "f32", "float16": "f16"}
#: How many windows may be under way before the host waits: enough to keep the GPU busy, few enough for a quick cancel.
_AHEAD = 8


@dataclass(frozen=True)
class Intensity:
    """What the cut does to a value: clamp to ``low`` and ``high``, times ``scale``, plus ``offset``."""

    low: float = -3e38
    high: float = 3e38
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Reduction:
    """How scores become labels of network space: ``values`` of each channel; a threshold makes them regions of probabilities.

    sigmoid: regions only: the network gives logits, not probabilities.
    nearest: brings the labels to the scan's grid; None leaves them in network space.
    """

    values: NDArray[np.uint16]
    threshold: float | None = None
    sigmoid: bool = True
    nearest: NearestLabels | None = None


def ring_bytes(plan: WindowPlan, classes: int) -> int:
    """Memory of the planes that scores are added up in."""
    slow = plan.order[0]
    others = [n for axis, n in enumerate(plan.shape) if axis != slow]
    return 4 * classes * plan.patch[slow] * int(np.prod(others))


class GpuSlidingWindow:
    """Segments volumes of one plan.

    Args:
        batch: patches a call of the network, at most.
        flips: the mirrored forms in which each window is run, by the axes along which it is reversed. Their scores are added, each turned
            back, which decides as their mean does.
        grid_labels: brings scores to the scan's grid, where labels are made of them; None makes labels of network space.

    Raises:
        GpuMemoryError: the buffers do not fit, also with one window at a time.
    """

    def __init__(
        self,
        gpu: Gpu,
        network: GpuNetwork,
        channels: int,
        classes: int,
        plan: WindowPlan,
        window: Window,
        batch: int = 1,
        flips: Sequence[Flip] = ((),),
        grid_labels: GridLabels | None = None,
    ) -> None:
        self._flips, self._grid_labels = tuple(flips), grid_labels
        self._gpu, self._network, self._plan, self._window = gpu, network, plan, window
        self._channels, self._classes = channels, classes
        # Another engine that was closed in the meantime may have left this thread without a GPU.
        gpu.enter()
        self._kernels = gpu.kernels(source(), NAMES)
        self._stream = gpu.stream()
        self._slow = plan.order[0]
        self._u, self._v = (axis for axis in range(3) if axis != self._slow)
        self._buffers: list[Any] = []
        self._resampling: GpuLabelResampling | None = None
        self.batch = self._allocate(batch)

    def _allocate(self, batch: int) -> int:
        """Buffers for the largest batch that fits; halved until it does."""
        while True:
            try:
                patch = self._plan.patch
                nu, nv = self._plan.shape[self._u], self._plan.shape[self._v]
                self._weights = self._hold((patch), np.float32)
                # Between the last finished plane and the next one lie new voxels that are still to come.
                depth = patch[self._slow] + (self._grid_labels is not None)
                self._ring = self._hold((self._classes, depth, nu, nv), np.float32)
                self._patches = self._hold((batch, self._channels, *patch), self._network.dtype)
                network = self._network
                scores_dtype = network.scores_dtype if isinstance(network, MeanNetwork) else network.dtype
                self._scores = self._hold((batch, self._classes, *patch), scores_dtype)
                if self._grid_labels is not None:
                    kernels = self._gpu.kernels(resampling_source(), RESAMPLING_NAMES)
                    self._resampling = GpuLabelResampling(
                        self._gpu, kernels, self._ring, self._plan, self._grid_labels, self._stream
                    )
                break
            except GpuMemoryError:
                self._release()
                if batch == 1:
                    raise
                batch //= 2
        self._weights.upload(
            importance_map(patch, self._window.blend, self._window.placement, self._window.sigma), self._stream
        )
        self._ring.zero(self._stream)
        self._stream.synchronize()
        return batch

    def _hold(self, shape: tuple[int, ...], dtype: Any) -> DeviceBuffer:
        buffer = self._gpu.allocate(shape, dtype)
        self._buffers.append(buffer)
        return buffer

    def _release(self) -> None:
        if self._resampling is not None:
            self._resampling.close()
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []

    def close(self) -> None:
        self._gpu.enter()
        self._release()
        self._stream.free()

    def run(
        self,
        volume: NDArray[Any] | DeviceBuffer,
        reduction: Reduction | None = None,
        intensity: Intensity = Intensity(),
        task: Task | None = None,
    ) -> NDArray[Any]:
        """Segment (C, n0, n1, n2) float32, int16, uint16 or uint8; labels (n0, n1, n2), or (K, J, I) of the scan's grid.

        Args:
            volume: an array, or one that is on the GPU already (a buffer, a torch or CuPy array; it is not copied).
            reduction: how labels of network space are made; needed where no grid's labels were asked for.

        Raises:
            Cancelled: within a few windows after ``task.cancel()``; the object can be used again.
        """
        task = task or Task()
        self._gpu.enter()
        if is_on_gpu(volume):
            volume = borrowed(self._gpu, volume, self._stream)
        kind = _SOURCES.get(str(volume.dtype))
        if kind is None:
            if isinstance(volume, DeviceBuffer):
                raise EngineError(
                    f"A volume of {volume.dtype} cannot be cut on the GPU.", "Give float32, int16, uint16 or uint8."
                )
            volume, kind = np.ascontiguousarray(volume, np.float32), "f32"
        buffers: list[Any] = []
        try:
            source = self._source(volume, buffers)
            receiver: GpuLabelResampling | _NetworkLabels
            if self._resampling is not None:
                receiver = self._resampling
            else:
                assert reduction is not None
                receiver = _NetworkLabels(self._gpu, self._kernels, self._ring, self._plan, reduction, self._stream)
                buffers += receiver.buffers
            labels = receiver.labels()
            buffers.append(labels)
            self._slide(source, kind, labels, receiver, intensity, task)
            if self._resampling is None and reduction is not None and reduction.nearest is not None:
                labels = reduction.nearest.placed(self._gpu, labels, self._stream)
                buffers.append(labels)
            # Straight to where they stay: to pin memory for so many would take longer than the driver's own detour.
            result = np.empty(labels.shape, labels.dtype)
            labels.download(result, self._stream)
            self._stream.synchronize()
            return result
        except BaseException:
            # What is under way must end before its memory goes, and the next run begins with an empty ring.
            self._stream.synchronize()
            self._ring.zero(self._stream)
            self._stream.synchronize()
            raise
        finally:
            if self._resampling is not None:
                self._resampling.reset()
            for buffer in buffers:
                buffer.free()

    def _source(self, volume: NDArray[Any] | DeviceBuffer, buffers: list[Any]) -> DeviceBuffer:
        if isinstance(volume, DeviceBuffer):
            return volume
        buffer = self._gpu.allocate(volume.shape, volume.dtype)
        buffers.append(buffer)
        buffer.upload(volume, self._stream)
        return buffer

    def _slide(
        self,
        source: DeviceBuffer,
        kind: str,
        labels: DeviceBuffer,
        receiver: GpuLabelResampling | _NetworkLabels,
        intensity: Intensity,
        task: Task,
    ) -> None:
        plan, slow = self._plan, self._slow
        starts = plan.starts[slow]
        cut_kernel = self._kernels[f"cut_{kind}_{_TARGETS[self._network.dtype]}"]
        reduced_to = 0
        marks: list[Event] = []
        first_row = [window for window in plan.windows() if window[slow] == starts[0]]
        with task.stage("segmenting", plan.count * len(self._flips)):
            for number, begin in enumerate(starts):
                row = [(_moved(window, slow, begin), flip) for window in first_row for flip in self._flips]
                for batch in _batched(row, self.batch):
                    self._cut(cut_kernel, source, batch, intensity)
                    self._network.enqueue(len(batch), self._patches, self._scores, self._stream)
                    self._blend(batch, receiver.total, receiver.sigmoid)
                    marks.append(Event(self._gpu).record(self._stream))
                    if len(marks) > _AHEAD:
                        first = marks.pop(0)
                        first.wait()
                        first.free()
                    task.step(len(batch))
                finished_to = starts[number + 1] if number + 1 < len(starts) else plan.shape[slow]
                receiver.finish(labels, reduced_to, finished_to)
                reduced_to = finished_to
            for mark in marks:
                mark.wait()
                mark.free()

    def _cut(self, kernel: Any, source: DeviceBuffer, batch: Any, intensity: Intensity) -> None:
        plan = self._plan
        size = self._channels * int(np.prod(plan.patch))
        for n, (start, flip) in enumerate(batch):
            first = [s - b for s, b in zip(start, plan.pad_before, strict=True)]
            kernel(
                (min(4096, -(-size // _THREADS)), 1, 1),
                (_THREADS, 1, 1),
                self._stream,
                source,
                ctypes.c_void_p(patch_address(self._patches, n)),
                *map(ctypes.c_int, (self._channels, *plan.volume_shape, *plan.patch, *first, _bits(flip))),
                *map(
                    ctypes.c_float,
                    (intensity.low, intensity.high, intensity.scale, intensity.offset, self._window.pad_value),
                ),
            )

    def _blend(self, batch: Any, total: DeviceBuffer | None, sigmoid: bool) -> None:
        plan = self._plan
        voxels = int(np.prod(plan.patch))
        kernel = self._kernels[f"blend_{_TARGETS[str(self._scores.dtype)]}"]
        for n, (start, flip) in enumerate(batch):
            kernel(
                (-(-voxels // _THREADS), 1, 1),
                (_THREADS, 1, 1),
                self._stream,
                ctypes.c_void_p(patch_address(self._scores, n)),
                self._weights,
                self._ring,
                ctypes.c_void_p(total.pointer if total else 0),
                *map(ctypes.c_int, (self._classes, int(sigmoid), _bits(flip), *plan.patch, *start)),
                *map(ctypes.c_int, (self._slow, *self._ring.shape[1:])),
            )


class _NetworkLabels:
    """Makes labels of network space of the ring's finished planes.

    Attributes:
        total: the sum of the weights of each voxel of the ring; None where the largest score decides.
        sigmoid: whether probabilities are blended.
        buffers: what the caller frees.
    """

    def __init__(
        self,
        gpu: Gpu,
        kernels: dict[str, Any],
        ring: DeviceBuffer,
        plan: WindowPlan,
        reduction: Reduction,
        stream: Stream,
    ) -> None:
        self._gpu, self._kernel, self._ring, self._plan = gpu, kernels["reduce_planes"], ring, plan
        self._reduction, self._stream = reduction, stream
        self._values = gpu.allocate(reduction.values.shape, np.uint16)
        self._values.upload(reduction.values, stream)
        self.buffers = [self._values]
        self.total: DeviceBuffer | None = None
        if reduction.threshold is not None:
            self.total = gpu.allocate(ring.shape[1:], np.float32)
            self.buffers.append(self.total)
            self.total.zero(stream)
        self.sigmoid = self.total is not None and reduction.sigmoid

    def labels(self) -> DeviceBuffer:
        """Return memory for the labels (n0, n1, n2) of the whole volume; the caller frees it."""
        return self._gpu.allocate(self._plan.volume_shape, np.uint16)

    def finish(self, labels: DeviceBuffer, begin: int, end: int) -> None:
        """Make labels of the planes from ``begin`` to ``end`` - 1. The last step may finish as many as a window is long, never more."""
        plan, slow = self._plan, self._plan.order[0]
        classes, depth, nu, nv = self._ring.shape
        self._kernel(
            (-(-nu * nv * (end - begin) // _THREADS), 1, 1),
            (_THREADS, 1, 1),
            self._stream,
            self._ring,
            ctypes.c_void_p(self.total.pointer if self.total else 0),
            self._values,
            labels,
            ctypes.c_int(classes),
            ctypes.c_float(self._reduction.threshold or 0.0),
            *map(ctypes.c_int, (slow, depth, nu, nv, begin, end, *plan.pad_before, *plan.volume_shape)),
        )


def _moved(window: tuple[int, int, int], axis: int, begin: int) -> tuple[int, int, int]:
    start = list(window)
    start[axis] = begin
    return start[0], start[1], start[2]


def _bits(flip: Flip) -> int:
    """Return the axes of a flip as the kernels take them: a bit each."""
    return sum(1 << axis for axis in flip)


def _batched(row: list[tuple[tuple[int, int, int], Flip]], size: int) -> list[list[tuple[tuple[int, int, int], Flip]]]:
    return [row[n : n + size] for n in range(0, len(row), size)]
