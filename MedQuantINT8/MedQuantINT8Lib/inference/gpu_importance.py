"""Importance maps of windows on a GPU."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..engines.cuda.device import DeviceBuffer, Gpu, Stream
from ..models.spec import Window
from .windows import WindowPlan, importance_map

#: Of each GPU, importance maps by what they are of: so many, and none of more voxels.
_known_maps: WeakKeyDictionary[Gpu, dict[Any, DeviceBuffer]] = WeakKeyDictionary()
_MAPS_KEPT, _KEPT_VOXELS = 4, 1 << 23


def importance_on(gpu: Gpu, plan: WindowPlan, window: Window, stream: Stream) -> tuple[DeviceBuffer, bool]:
    """Return the importance map of a window, and whether it stays on the GPU until that is closed, as the first ones do; else the caller frees it."""
    key = (plan.patch, window.blend, window.placement, window.sigma)
    known = _maps_of(gpu)
    if key in known:
        return known[key], True
    stays = len(known) < _MAPS_KEPT and math.prod(plan.patch) <= _KEPT_VOXELS
    buffer = gpu.allocate(plan.patch, np.float32)
    buffer.upload(importance_map(*key), stream)
    stream.synchronize()
    if stays:
        gpu.when_closed(buffer.free)
        known[key] = buffer
    return buffer, stays


def _maps_of(gpu: Gpu) -> dict[Any, DeviceBuffer]:
    """Return the maps that stay on a GPU."""

    def forget() -> None:
        # They hold on to it.
        _known_maps.pop(gpu, None)

    if gpu not in _known_maps:
        _known_maps[gpu] = {}
        gpu.when_closed(forget)
    return _known_maps[gpu]
