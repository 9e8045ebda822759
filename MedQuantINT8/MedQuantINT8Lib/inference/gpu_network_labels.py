"""Labels of network space, made on a GPU of the sliding window's blended scores."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.cuda.device import DeviceBuffer, Gpu, Stream
from .gpu_label_placing import NearestLabels
from .gpu_strips import Strip, lines_axis
from .windows import WindowPlan

_THREADS = 256


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


class NetworkLabels:
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
        strip: Strip | None = None,
    ) -> None:
        self._gpu, self._kernel, self._ring, self._plan = gpu, kernels["reduce_planes"], ring, plan
        self._reduction, self._stream, self._strip = reduction, stream, strip
        self._values = gpu.allocate(reduction.values.shape, np.uint16)
        self._values.upload(reduction.values, stream)
        self.buffers = [self._values]
        self.total: DeviceBuffer | None = None
        if reduction.threshold is not None:
            self.total = gpu.allocate(ring.shape[1:], np.float32)
            self.buffers.append(self.total)
            self.total.zero(stream)
        self.sigmoid = self.total is not None and reduction.sigmoid

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the whole label map."""
        return self._plan.volume_shape

    @property
    def nbytes(self) -> int:
        """The bytes of the whole label map."""
        return math.prod(self.shape) * np.dtype(np.uint16).itemsize

    def keep_own_rows(self) -> None:
        """Make the rows of the strip alone; they lie in the whole map here."""

    @property
    def by_planes(self) -> bool:
        """Whether planes of the label map along its first axis are made one after the other."""
        return self._plan.order[0] == 0

    @property
    def rows(self) -> tuple[int, int] | None:
        """Which rows of a plane of the label map, (first, last + 1) along its second axis, the strip's lines are; None where they are no rows."""
        if self._strip is None or not self.by_planes:
            return None
        before, size = self._plan.pad_before[1], self._plan.volume_shape[1]
        first, stop = (min(max(0, line - before), size) for line in (self._strip.first, self._strip.stop))
        return first, stop

    def resume(self, finished: int) -> None:
        """Go on where another GPU has finished the planes before ``finished``: all that this takes is in the ring."""

    def labels(self) -> DeviceBuffer:
        """Return memory for the labels (n0, n1, n2) of the whole volume; the caller frees it."""
        return self._gpu.allocate(self._plan.volume_shape, np.uint16)

    def finish(self, labels: DeviceBuffer, begin: int, end: int) -> tuple[int, int] | None:
        """Make labels of the planes from ``begin`` to ``end`` - 1. The last step may finish as many as a window is long, never more.

        Returns:
            Which planes of the label map along its first axis are whole by that, (first, last + 1); None where planes run otherwise.
        """
        plan, slow = self._plan, self._plan.order[0]
        classes, depth, nu, nv = self._ring.shape
        before = list(plan.pad_before)
        if self._strip is not None:
            before[lines_axis(plan)] -= self._strip.first
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
            *map(ctypes.c_int, (slow, depth, nu, nv, begin, end, *before, *plan.volume_shape)),
        )
        if not self.by_planes:
            return None
        low, high = (min(max(0, n - plan.pad_before[0]), plan.volume_shape[0]) for n in (begin, end))
        return (low, high) if low < high else None
