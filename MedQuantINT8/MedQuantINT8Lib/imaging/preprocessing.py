"""From a volume to network space and from labels back, driven by model.json alone.

The steps are taken in the order that the model says (:attr:`..models.spec.ModelSpec.steps`). The way back undoes those in space in
reverse (:class:`.network_input.NetworkInput`); without resampling it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.spec import Fit, ModelSpec
from .foreground_mask import filled_nonzero
from .intensity import normalize, normalize_channels, percentiles
from .network_grid import along_ijk, network_grid
from .network_input import NetworkInput
from .nnunet_resampling import nnunet_resampler
from .spatial_steps import Box, Cut, Sampling, SpatialStep, Turn
from .volume import Grid, Volume, axis_map

__all__ = ["NetworkInput", "network_grid", "normalize", "percentiles", "preprocess"]

_COMPARE = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal, "!=": np.not_equal}


def preprocess(volume: Volume, spec: ModelSpec) -> NetworkInput:
    """Bring a volume into network space.

    Raises:
        InputError: a volume that :meth:`Volume.check` refuses, one with nothing left after the foreground crop, or a channel that should be
            a label map and is none.
    """
    preparation = Preparation(volume, spec)
    preparation.check_volume()
    preparation.read_label_maps()
    for step in spec.steps:
        getattr(preparation, step)()
    return preparation.result()


class Preparation:
    """A volume on its way to network space, with a method for each step of a model."""

    def __init__(self, volume: Volume, spec: ModelSpec) -> None:
        self._volume, self._spec = volume, spec
        self._channels: list[NDArray[Any]] = list(volume.data[: spec.scans])
        self._label_maps: list[NDArray[Any]] = []
        self._spatial_steps = list[SpatialStep]()
        self._inside: NDArray[np.bool_] | None = None
        self._normalizations, self._fits = iter(spec.normalization), iter(spec.fits)

    def check_volume(self) -> None:
        """Refuse a volume that no network can answer for; errors as :meth:`Volume.check`."""
        channels, scans = len(self._spec.channels), self._spec.scans
        self._volume.check(channels=channels, label_maps=channels - scans)

    def read_label_maps(self) -> None:
        """Take the channels that are label maps; raises :class:`InputError` for one that is none."""
        self._label_maps = [_label_map(values, self._volume) for values in self._volume.data[self._spec.scans :]]

    @property
    def _grid(self) -> Grid:
        return self._spatial_steps[-1].target if self._spatial_steps else self._volume.grid

    def crop(self) -> None:
        crop = self._spec.crop
        self._cut(Cut(self._grid, self._foreground_box(), crop.padding, crop.pad_value))

    def fit(self) -> None:
        fit = next(self._fits)
        self._cut(Cut(self._grid, self._fit_box(fit), fit.padding, fit.pad_value))

    def _cut(self, cut: Cut) -> None:
        self._spatial_steps.append(cut)
        for n, channel in enumerate(self._channels):
            self._channels[n] = cut.forward(channel)
        self._label_maps = [cut.forward(labels, 0) for labels in self._label_maps]

    def reorient(self) -> None:
        turn = self._turn_grid()
        self._channels = [turn.forward(channel) for channel in self._channels]
        self._label_maps = [turn.forward(labels) for labels in self._label_maps]

    def _turn_grid(self) -> Turn:
        turn = Turn(self._grid, axis_map(self._grid, self._spec.geometry.orientation))
        self._spatial_steps.append(turn)
        return turn

    def _sampling(self) -> Sampling:
        geometry = self._spec.geometry
        target = network_grid(self._grid, geometry)
        return Sampling(self._grid, target, geometry, nnunet_resampler(geometry, target))

    def resample(self) -> None:
        sampling = self._sampling()
        # One after the other: each takes the place of the one that it comes from.
        for n in range(len(self._channels)):
            self._channels[n] = sampling.forward(self._channels[n].astype(np.float32, copy=False))
        if self._label_maps and sampling.nnunet is not None:
            # Background outside of the scan is a label of its own there, which masks of structures compete with.
            outside = ~self._filled_nonzero()
            self._label_maps = [np.where((labels == 0) & outside, -1, labels) for labels in self._label_maps]
        self._label_maps = [sampling.forward_labels(labels) for labels in self._label_maps]
        self._spatial_steps.append(sampling)

    def normalize(self) -> None:
        step = next(self._normalizations)
        if self._inside is None and step.mask == "nonzero_filled":
            # Found in the scan as it came: what another channel became in the meantime is no longer 0 outside.
            self._inside = self._filled_nonzero()
            for labels in self._label_maps:
                # nnU-Net marks what is background in both: a structure of the previous stage lies inside.
                self._inside = self._inside | (labels > 0)
        normalize_channels(self._channels, step, self._inside)

    def _filled_nonzero(self) -> NDArray[np.bool_]:
        """Return where the scan holds anything, with the holes in it, after the steps in space, none of which resamples."""
        scans = self._volume.data[: self._spec.scans]
        return filled_nonzero(np.stack([self._apply_spatial_steps(channel) for channel in scans]))

    def _apply_spatial_steps(self, channel: NDArray[Any]) -> NDArray[Any]:
        """Return a channel of the scan after the steps in space, none of which resamples."""
        for step in self._spatial_steps:
            channel = step.forward(channel)
        return channel

    def result(self) -> NetworkInput:
        order = self._spec.geometry.axis_order
        described = self._spec.channels[self._spec.scans :]
        masks = [
            labels == value
            for labels, channel in zip(self._label_maps, described, strict=True)
            for value in channel.one_hot
        ]
        channels = [
            c.astype(np.float32, copy=False) if order == "KJI" else c.astype(np.float32, copy=False).swapaxes(0, 2)
            for c in (*self._channels, *masks)
        ]
        data = np.stack(channels) if len(channels) > 1 else channels[0][None]
        data = np.ascontiguousarray(data, dtype=np.float32)
        return NetworkInput(data, self._grid, self._volume.grid, order, tuple(self._spatial_steps))

    def _foreground_box(self) -> Box:
        """Return the box around foreground, (start, stop) along I, J, K."""
        crop, size = self._spec.crop, self._grid.size
        compare = _COMPARE["!=" if crop.kind == "nonzero" else crop.comparison]
        threshold = 0.0 if crop.kind == "nonzero" else crop.threshold
        channels = (
            self._channels
            if crop.look_at == "current"
            else [self._apply_spatial_steps(channel) for channel in self._volume.data[: self._spec.scans]]
        )
        wanted = [channel for number, channel in enumerate(channels) if not crop.channels or number in crop.channels]
        margins = along_ijk(crop.margins or (crop.margin,) * 3, self._spec.geometry)
        multiples = along_ijk(crop.multiples, self._spec.geometry)
        box = []
        for axis, (length, margin, multiple) in enumerate(zip(size, margins, multiples, strict=True)):
            extent = _extent(wanted, 2 - axis, lambda part: compare(part, threshold))
            if extent is None:
                condition = "different from 0" if crop.kind == "nonzero" else f"{crop.comparison} {threshold:g}"
                condition = f"above {threshold:g}" if condition.startswith("> ") else condition
                raise InputError(
                    f"{self._volume.name} has no voxel {condition}: nothing is left after the foreground crop.",
                    "Choose another volume or another model.",
                )
            start, stop = extent[0] - margin, extent[1] + margin
            if crop.beyond == "cut":
                start, stop = max(0, start), min(length, stop)
            more = (start - stop) % multiple
            start -= more // 2
            box.append((start, stop + more - more // 2))
        return box[0], box[1], box[2]

    def _fit_box(self, fit: Fit) -> Box:
        """Return the box of a crop or padding around the middle."""
        sizes = along_ijk(fit.size, self._spec.geometry)
        shares = along_ijk(fit.share, self._spec.geometry)
        box = []
        for length, size, share in zip(self._grid.size, sizes, shares, strict=True):
            if fit.kind in ("crop", "crop_share"):
                target = math.ceil(share * length) if fit.kind == "crop_share" else size or length
                start = max(length // 2 - target // 2, 0)
                box.append((start, min(start + target, length)))
                continue
            target = (
                length
                if size is None
                else -(-length // size) * size
                if fit.kind == "pad_multiple"
                else max(size, length)
            )
            before = 0 if fit.at_end else (target - length) // 2
            box.append((-before, target - before))
        return box[0], box[1], box[2]


#: Planes that are looked at together when foreground is looked for from the outside.
_PLANES = 32


def _extent(
    channels: list[NDArray[Any]], axis: int, is_foreground: Callable[[NDArray[Any]], NDArray[np.bool_]]
) -> tuple[int, int] | None:
    """Return the first plane along an axis of (K, J, I) that has foreground in any channel, and the one behind the last; None without any.

    Planes are looked at from both ends: most scans have foreground in the outermost ones.
    """
    size = channels[0].shape[axis]
    others = tuple(a for a in range(3) if a != axis)

    def hits(begin: int, end: int) -> NDArray[np.intp]:
        index = (slice(None),) * axis + (slice(begin, end),)
        found = [np.any(is_foreground(channel[index]), axis=others) for channel in channels]
        return begin + np.flatnonzero(np.any(found, axis=0))

    for begin in range(0, size, _PLANES):
        if (first := hits(begin, min(begin + _PLANES, size))).size:
            break
    else:
        return None
    for end in range(size, 0, -_PLANES):
        if (last := hits(max(0, end - _PLANES), end)).size:
            break
    return int(first[0]), int(last[-1]) + 1


def _label_map(values: NDArray[Any], volume: Volume) -> NDArray[Any]:
    """Return a channel (K, J, I) that is a label map, as whole numbers."""
    labels = np.rint(values)
    if (labels != values).any() or labels.min(initial=0) < 0 or labels.max(initial=0) > 65535:
        raise InputError(
            f"{volume.name} has a scan in the place of a label map: its last channel holds other values than 0, 1, 2 and so on.",
            "Give the previous stage's label map as the last channel.",
        )
    return labels.astype(np.int32)
