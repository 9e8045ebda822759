"""Windows cut out of a volume on a GPU, and their scores blended: the launches of sliding_window.cu."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines.cuda.device import DeviceBuffer, Stream, patch_address
from ..models.spec import Window
from .gpu_blending import BLENDED_AT_ONCE, FlippedWindow, box_around, flip_bits, near_windows
from .gpu_strips import Strip
from .windows import WindowPlan

_THREADS = 256
#: Types of a volume that can be cut, and of a network's ends, by the names of the kernels.
SOURCES = {"float32": "f32", "int16": "i16", "uint16": "u16", "uint8": "u8"}
_TARGETS = {"float32": "f32", "float16": "f16"}


@dataclass(frozen=True)
class Intensity:
    """What the cut does to a value: clamp to ``low`` and ``high``, times ``scale``, plus ``offset``."""

    low: float = -3e38
    high: float = 3e38
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class WindowKernels:
    """Cuts and blends the windows of a plan.

    Attributes:
        strip: the lines of the planes that are blended; None for all.
    """

    kernels: dict[str, Any]
    plan: WindowPlan
    window: Window
    channels: int
    classes: int
    strip: Strip | None = None

    def cut(
        self,
        source: DeviceBuffer,
        patches: DeviceBuffer,
        batch: Sequence[FlippedWindow],
        intensity: Intensity,
        stream: Stream,
    ) -> None:
        """Cut windows out of a volume (C, n0, n1, n2)."""
        plan = self.plan
        kernel = self.kernels[f"cut_{SOURCES[str(source.dtype)]}_{_TARGETS[str(patches.dtype)]}"]
        size = self.channels * int(np.prod(plan.patch))
        for n, (start, flip) in enumerate(batch):
            first = [s - b for s, b in zip(start, plan.pad_before, strict=True)]
            kernel(
                (min(4096, -(-size // _THREADS)), 1, 1),
                (_THREADS, 1, 1),
                stream,
                source,
                ctypes.c_void_p(patch_address(patches, n)),
                *map(ctypes.c_int, (self.channels, *plan.volume_shape, *plan.patch, *first, flip_bits(flip))),
                *map(
                    ctypes.c_float,
                    (intensity.low, intensity.high, intensity.scale, intensity.offset, self.window.pad_value),
                ),
            )

    def blend(
        self,
        batch: Sequence[FlippedWindow],
        scores: DeviceBuffer,
        first: int,
        into: Blended,
        stream: Stream,
    ) -> None:
        """Blend windows whose scores are those of a buffer from the number ``first`` on."""
        plan, slow, strip = self.plan, self.plan.order[0], self.strip
        u = min(axis for axis in range(3) if axis != slow)
        kernel = self.kernels[f"blend_{_TARGETS[str(scores.dtype)]}"]
        shift = [0, 0, 0]
        if strip is not None:
            shift[u] = strip.first
        for group in near_windows(batch, plan.patch):
            begin, size = box_around([start for start, _ in group], plan.patch)
            if strip is not None:
                begin[u], end = max(strip.first, begin[u]), min(strip.end, begin[u] + size[u])
                size[u] = end - begin[u]
            begin = [b - s for b, s in zip(begin, shift, strict=True)]
            places = [
                number
                for start, flip in group
                for number in (*(a - s for a, s in zip(start, shift, strict=True)), flip_bits(flip))
            ]
            kernel(
                (-(-math.prod(size) // _THREADS), 1, 1),
                (_THREADS, 1, 1),
                stream,
                ctypes.c_void_p(patch_address(scores, first)),
                into.weights,
                into.ring,
                ctypes.c_void_p(into.total.pointer if into.total else 0),
                *map(ctypes.c_int, (self.classes, int(into.sigmoid), len(group))),
                *map(ctypes.c_int, places + [0] * (4 * BLENDED_AT_ONCE - len(places))),
                *map(ctypes.c_int, (*plan.patch, *begin, *size, slow, *into.ring.shape[1:])),
            )
            first += len(group)


@dataclass(frozen=True)
class Blended:
    """Where weighted scores are added up.

    Attributes:
        ring: planes of scores, (classes, depth, u, v).
        weights: of a window's voxels.
        total: the sum of the weights of each voxel of the ring; None where it is not needed.
        sigmoid: whether probabilities are blended, not scores.
    """

    ring: DeviceBuffer
    weights: DeviceBuffer
    total: DeviceBuffer | None
    sigmoid: bool
