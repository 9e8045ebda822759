"""From a volume to network space and from labels back, driven by model.json alone.

Order of steps: foreground crop, reorientation by flips and swaps, intensity normalisation (if it belongs to the input),
resampling, intensity normalisation (if it belongs to network space). The way back undoes them in reverse; without
resampling it is exact.
"""

from __future__ import annotations

import numpy as np

from .errors import InputError
from .foreground_mask import filled_nonzero
from .intensity import normalize, percentiles
from .model_spec import NATIVE, ModelSpec
from .network_grid import network_grid, sub_grid
from .network_input import NetworkInput
from .nnunet_resampling import nnunet_resampler
from .volume import UNTURNED, Volume, axis_map, resample, resample_by_slices

__all__ = ["NetworkInput", "network_grid", "normalize", "percentiles", "preprocess"]


def preprocess(volume: Volume, spec: ModelSpec) -> NetworkInput:
    """Bring a volume into network space.

    Raises:
        InputError: a volume that :meth:`Volume.check` refuses, or one with nothing left after the foreground crop.
    """
    volume.check(channels=len(spec.channels))
    box = _crop_box(volume, spec)
    inside = (slice(None), *(slice(*bounds) for bounds in reversed(box)))
    cropped_grid = sub_grid(volume.grid, box)
    native = spec.geometry.orientation == NATIVE
    turn = UNTURNED if native else axis_map(cropped_grid, spec.geometry.orientation)
    first, last = (turn, UNTURNED) if spec.geometry.reorient == "first" else (UNTURNED, turn)
    oriented_grid = first.map_grid(cropped_grid)
    oriented = first.apply(volume.data[inside])
    target = last.map_grid(network_grid(oriented_grid, spec))
    resampler = nnunet_resampler(spec.geometry, target)
    inside_head = filled_nonzero(oriented) if any(step.mask == "nonzero_filled" for step in spec.normalization) else None
    channels = []
    for number, channel in enumerate(oriented):
        values = channel.astype(np.float32)
        steps = tuple(step for step in spec.normalization if not step.channels or number in step.channels)
        if spec.normalize_in == "input":
            values = normalize(values, steps, inside_head)
        if resampler is not None:
            values = resampler.forward(values, oriented_grid, target.size)
        elif spec.geometry.interpolation == "nnunet":
            values = resample_by_slices(values, oriented_grid, target, "bspline")
        else:
            values = resample(values, oriented_grid, target, spec.geometry.interpolation)
        if spec.normalize_in == "network":
            values = normalize(values, steps)
        channels.append(values if spec.geometry.axis_order == "KJI" else values.swapaxes(0, 2))
    data = np.stack(channels) if len(channels) > 1 else channels[0][None]
    data = np.ascontiguousarray(data, dtype=np.float32)
    return NetworkInput(data, target, oriented_grid, volume.grid, box, first, spec.geometry.axis_order, resampler)


def _crop_box(volume: Volume, spec: ModelSpec) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    i, j, k = volume.grid.size
    if spec.crop.kind == "none":
        return (0, i), (0, j), (0, k)
    threshold = spec.crop.threshold
    mask = np.any(volume.data != 0 if spec.crop.kind == "nonzero" else volume.data > threshold, axis=0)
    bounds = []
    for axis, size in ((2, i), (1, j), (0, k)):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(np.any(mask, axis=others))
        if hits.size == 0:
            raise InputError(
                f"{volume.name} has no voxel above {threshold:g}: nothing is left after the foreground crop.",
                "Choose another volume or another model.",
            )
        bounds.append((max(0, int(hits[0]) - spec.crop.margin), min(size, int(hits[-1]) + 1 + spec.crop.margin)))
    return bounds[0], bounds[1], bounds[2]
