"""Blended class scores on a GPU to labels on the scan's grid, plane by plane, so that scores of that grid never exist.

The rules are the processor's (:class:`.score_reduction.ScoreRule`, :mod:`..imaging.label_resampling`), the arithmetic is that of
score_resampling.cu; labels are equal but where two scores are equal up to rounding.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.cuda.device import DeviceBuffer, Gpu, Stream
from ..imaging.array_layout import ArrayLayout
from ..imaging.label_resampling import Axes
from .gpu_kept_rows import KeptRows
from .gpu_strips import Strip
from .windows import WindowPlan

_THREADS = 256
#: How many planes of labels a thread makes (PLANES_AT_ONCE in score_resampling.cu).
_PLANES_AT_ONCE = 2
_ACTIVATIONS = {None: 0, "sigmoid": 1, "softmax": 2}
_LABELS = {"uint8": "u8", "uint16": "u16"}


@dataclass(frozen=True)
class GridLabels:
    """How blended scores become labels on the scan's grid.

    Attributes:
        axes: the interpolation along each axis of the tensor.
        layout: how the resampled volume lies in the scan's own array.
        axis_order: of the tensor, "IJK" or "KJI".
        values: uint8 or uint16 (n,): the label of each channel, or of each region.
        channels: the channel of each region, in the order in which they are painted; None where the largest score decides.
        cuts: float32 (n,): above which a score lies in a region.
        activation: what makes probabilities of blended scores: "sigmoid", "softmax", or None.
        mask_cuts: channels that become 1 above a number and 0 elsewhere before they are interpolated.
        by_window: each window's probabilities of a sigmoid are blended, not its scores.
    """

    axes: Axes
    layout: ArrayLayout
    axis_order: str
    values: NDArray[Any]
    channels: tuple[int, ...] | None = None
    cuts: NDArray[np.float32] | None = None
    activation: str | None = None
    mask_cuts: dict[int, np.float32] = field(default_factory=dict)
    by_window: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """The label map's shape, (K, J, I)."""
        i, j, k = self.layout.whole
        return k, j, i


class GpuLabelResampling:
    """Takes finished planes of the sliding window's ring of scores; see :class:`.gpu_sliding_window.GpuSlidingWindow`.

    Args:
        ring: scores (classes, depth, u, v), one plane deeper than a window.
        rows: keeps the windows' scores until planes are finished; None where they are added up in the ring.
        strip: the lines along u that the ring holds; None for all.

    Raises:
        GpuMemoryError: the sum of the weights does not fit.
    """

    def __init__(
        self,
        gpu: Gpu,
        kernels: dict[str, Any],
        ring: DeviceBuffer,
        plan: WindowPlan,
        rule: GridLabels,
        stream: Stream,
        rows: KeptRows | None = None,
        strip: Strip | None = None,
    ) -> None:
        self._rows = rows
        self._gpu, self._kernels, self._ring, self._stream, self.rule = gpu, kernels, ring, stream, rule
        self._strip = strip
        self._buffers: list[DeviceBuffer] = []
        self._tables: dict[str, DeviceBuffer] = {}
        self._size = plan.shape[plan.order[0]]
        #: The sum of the weights of each voxel of the ring.
        self.total = gpu.allocate(ring.shape[1:], np.float32)
        self._buffers.append(self.total)
        try:
            self._upload(plan)
        except BaseException:
            self.close()
            raise
        self.reset()

    def _upload(self, plan: WindowPlan) -> None:
        rule, slow = self.rule, plan.order[0]
        order = (slow, *(axis for axis in range(3) if axis != slow))
        laid, (first, steps) = rule.layout.along(rule.axis_order), rule.layout.steps(rule.axis_order)
        self._new: list[int] = []
        for name, axis in zip("wuv", order, strict=True):
            # What a crop has left outside of the scan's array is not computed.
            inside = slice(laid[axis].low, laid[axis].high)
            low = (rule.axes[axis].low[inside] + plan.pad_before[axis]).astype(np.int32)
            share = rule.axes[axis].share[inside].astype(np.float32)
            if name == "u" and self._strip is not None:
                begin, stop = np.searchsorted(low, (self._strip.first, self._strip.stop)).tolist()
                low, share = low[begin:stop] - np.int32(self._strip.first), share[begin:stop]
                first += begin * steps[axis]
            self._new.append(len(low))
            self._table(f"low_{name}", low)
            self._table(f"share_{name}", share)
            if axis == slow:
                self._last_needed = low + (share > 0)
            first += laid[axis].low * steps[axis]
        w, u, v = (steps[axis] for axis in order)
        self._first, self._steps = first, (w, u, v)
        self._table("values", rule.values)
        if rule.channels is not None:
            self._table("channels", np.array(rule.channels, np.int32))
            self._table("cuts", np.asarray(rule.cuts, np.float32))
        if rule.mask_cuts:
            cuts = np.full(self._ring.shape[0], np.nan, np.float32)
            for channel, cut in rule.mask_cuts.items():
                cuts[channel] = cut
            self._table("mask_cuts", cuts)

    def _table(self, name: str, array: NDArray[Any]) -> None:
        buffer = self._gpu.allocate(array.shape, array.dtype)
        self._buffers.append(buffer)
        buffer.upload(array, self._stream)
        self._tables[name] = buffer

    def reset(self) -> None:
        """Begin a volume: no plane is finished yet, and labels are those of the whole map."""
        self.total.zero(self._stream)
        self._own_rows: tuple[int, int] | None = None
        self._next = self._cleared = 0

    def resume(self, finished: int) -> None:
        """Go on where another GPU has finished the planes before ``finished``, with that one's ring and sum of weights."""
        self._next = int(np.searchsorted(self._last_needed, finished))
        self._cleared = max(0, finished - 1)

    def labels(self) -> DeviceBuffer:
        """Return a label map (K, J, I) of background on the scan's grid, for :meth:`finish`; the caller frees it."""
        k, j, i = self.rule.shape
        if self._own_rows is not None:
            j = self._own_rows[1] - self._own_rows[0]
        labels = self._gpu.allocate((k, j, i), self.rule.values.dtype)
        labels.zero(self._stream)
        return labels

    def keep_own_rows(self) -> None:
        """Let :meth:`labels` be (K, rows, I), those of :attr:`rows` alone, so that planes come down in one piece."""
        self._own_rows = self.rows

    def _places(self) -> tuple[int, tuple[int, int, int]]:
        """Return where the first label lies in the map that is made, and the steps along its axes, the slowest first."""
        if self._own_rows is None:
            return self._first, self._steps
        (low, high), (_, j, i) = self._own_rows, self.rule.shape
        own, (plane, rest) = (high - low) * i, divmod(self._first, j * i)
        return plane * own + rest - low * i, (self._steps[0] // (j * i) * own, *self._steps[1:])

    def finish(self, labels: DeviceBuffer, begin: int, end: int) -> tuple[int, int] | None:
        """Decide every label whose scores are finished, now that the planes from ``begin`` to ``end`` - 1 are.

        Returns:
            Which planes of the label map along its first axis are whole by that, (first, last + 1); None where planes run otherwise, or
            none is.
        """
        rule, classes = self.rule, self._ring.shape[0]
        _, depth, nu, nv = self._ring.shape
        plane = nu * nv
        first, steps = self._places()
        activation, cuts = _ACTIVATIONS[rule.activation], self._address("mask_cuts")
        if self._rows is not None:
            ways = int(self.sigmoid), activation
            self._rows.gather(self._kernels, self._ring, cuts, ways, (begin, end))
        else:
            places, sizes = _ints(depth, nu, nv, begin, end), _ints(classes, activation)
            self._run("prepare_planes", plane * (end - begin), self._ring, self.total, cuts, *sizes, *places)
        ready, planes = int(np.searchsorted(self._last_needed, end)), None
        if ready > self._next:
            self._run(
                f"resample_{_LABELS[str(rule.values.dtype)]}",
                -(-(ready - self._next) // _PLANES_AT_ONCE) * self._new[1] * self._new[2],
                self._ring,
                labels,
                self._tables["values"],
                self._address("channels"),
                self._address("cuts"),
                ctypes.c_int(len(rule.values)),
                *(self._tables[f"{kind}_{axis}"] for axis in "wuv" for kind in ("low", "share")),
                *_ints(self._next, ready, *self._new[1:], depth, nu, nv),
                *map(ctypes.c_longlong, (first, *steps)),
            )
            planes = self._planes(self._next, ready)
            self._next = ready
        # New voxels between the last finished plane and the next one are still to come.
        free = end if end == self._size else end - 1
        if free > self._cleared and self._rows is None:
            places = _ints(classes, depth, nu, nv, self._cleared, free)
            self._run("clear_planes", plane * (free - self._cleared), self._ring, *places)
            self._cleared = free
        return planes

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the whole label map."""
        return self.rule.shape

    @property
    def nbytes(self) -> int:
        """The bytes of the whole label map."""
        return math.prod(self.shape) * int(self.rule.values.dtype.itemsize)

    @property
    def by_planes(self) -> bool:
        """Whether planes of the label map along its first axis are made one after the other."""
        _, j, i = self.rule.shape
        return abs(self._steps[0]) == j * i

    @property
    def rows(self) -> tuple[int, int] | None:
        """Which rows of a plane of the label map, (first, last + 1) along its second axis, the strip's lines are; None where they are no rows."""
        _, j, i = self.rule.shape
        step = self._steps[1]
        if self._strip is None or not self.by_planes or abs(step) != i:
            return None
        begin = self._first // i % j
        ends = [begin, begin + (self._new[1] - 1) * (1 if step > 0 else -1)]
        return (min(ends), max(ends) + 1) if self._new[1] else (0, 0)

    def _planes(self, first: int, stop: int) -> tuple[int, int] | None:
        """Return where new voxels from ``first`` to ``stop`` - 1 along the slowest axis lie along the label map's first axis."""
        _, j, i = self.rule.shape
        if not self.by_planes:
            return None
        ends = [(self._first + n * self._steps[0]) // (j * i) for n in (first, stop - 1)]
        return min(ends), max(ends) + 1

    def _address(self, name: str) -> ctypes.c_void_p:
        table = self._tables.get(name)
        return ctypes.c_void_p(table.pointer if table else 0)

    @property
    def sigmoid(self) -> bool:
        """Whether probabilities are blended, not scores."""
        return self.rule.by_window

    def _run(self, name: str, items: int, *arguments: Any) -> None:
        if items < 1:
            return
        self._kernels[name]((-(-items // _THREADS), 1, 1), (_THREADS, 1, 1), self._stream, *arguments)

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []


def _ints(*values: int) -> Sequence[ctypes.c_int]:
    return [ctypes.c_int(value) for value in values]
