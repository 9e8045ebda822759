"""The steps in space that a volume goes through on its way to the network, each with its way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.spec import Geometry, Padding
from . import corner_zoom
from .axis_interpolation import AxisInterpolation
from .network_grid import sub_grid
from .nnunet_resampling import NnunetResampler
from .resizing import Way, interpolation, smooth
from .resizing import resize as resize_array
from .volume import AxisMap, Grid, resample, resample_by_slices, slice_axis

FloatArray = NDArray[np.float32]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
#: SciPy continues a scan by this many of its outermost voxels before it fits a spline.
_SPLINE_BORDER = 12
#: Axes of two grids are the same where a voxel at the far end is off by less than this share of a voxel.
_ALONG_ONE_AXIS = 1e-6


@dataclass(frozen=True)
class Cut:
    """A box of a volume, which may reach beyond it.

    Attributes:
        source: the grid before.
        box: (start, stop) along I, J, K of ``source``; what lies outside of the volume is padded.
    """

    source: Grid
    box: Box
    padding: Padding = "constant"
    pad_value: float = 0.0

    @property
    def target(self) -> Grid:
        """The grid of the box."""
        return sub_grid(self.source, self.box)

    def forward(self, data: NDArray[Any], pad_value: float | None = None) -> NDArray[Any]:
        """Return the box of an array whose last three axes are (K, J, I); a view where nothing is padded."""
        lead = data.ndim - 3
        inside = [
            slice(max(start, 0), min(stop, size))
            for (start, stop), size in zip(self.box, self.source.size, strict=True)
        ]
        part = data[(slice(None),) * lead + tuple(reversed(inside))]
        pads = [
            (max(-start, 0), max(stop - size, 0))
            for (start, stop), size in zip(self.box, self.source.size, strict=True)
        ]
        if not any(a or b for a, b in pads):
            return part
        widths = [(0, 0)] * lead + pads[::-1]
        if pad_value is not None or self.padding == "constant":
            return np.pad(part, widths, constant_values=self.pad_value if pad_value is None else pad_value)
        return np.pad(part, widths, mode=self.padding)

    def back(self, data: NDArray[Any]) -> NDArray[Any]:
        """Return an array (K, J, I) of the box in its place in the whole volume, 0 around it."""
        i, j, k = self.source.size
        if self.box == ((0, i), (0, j), (0, k)):
            return data
        whole = np.zeros((k, j, i), data.dtype)
        there = [
            slice(max(start, 0), min(stop, size))
            for (start, stop), size in zip(self.box, self.source.size, strict=True)
        ]
        here = [slice(s.start - start, s.stop - start) for s, (start, _) in zip(there, self.box, strict=True)]
        whole[tuple(reversed(there))] = data[tuple(reversed(here))]
        return whole


@dataclass(frozen=True)
class Turn:
    """Flips and swaps of axes."""

    source: Grid
    axes: AxisMap

    @property
    def target(self) -> Grid:
        """The grid of the reoriented volume."""
        return self.axes.map_grid(self.source)

    def forward(self, data: NDArray[Any]) -> NDArray[Any]:
        """Return an array whose last three axes are (K, J, I), reoriented; a view."""
        return self.axes.apply(data)

    def back(self, data: NDArray[Any]) -> NDArray[Any]:
        """Return a reoriented array in its former order (K, J, I); a view."""
        return self.axes.inverse().apply(data)


@dataclass(frozen=True)
class Sampling:
    """Resampling from one grid to another, as ``geometry`` says."""

    source: Grid
    target: Grid
    geometry: Geometry
    #: What resamples as nnU-Net does, and takes scores back; None where that is done otherwise.
    nnunet: NnunetResampler | None = None

    @property
    def changes(self) -> bool:
        """Whether the two grids differ."""
        return self.source != self.target

    def forward(self, values: FloatArray) -> FloatArray:
        """Return a channel (K, J, I), float32, on the target."""
        geometry = self.geometry
        if self.nnunet is not None:
            return self.nnunet.forward(values, self.source, self.target.size)
        if geometry.resize == "torch":
            return self._resized(values)
        if self.zooms and geometry.interpolation == "bspline":
            return corner_zoom.cubic(values.astype(np.float32, copy=False), self.target.size)
        if geometry.interpolation == "nnunet":
            return resample_by_slices(values, self.source, self.target, "bspline")
        by_scipy = geometry.interpolation == "bspline" and geometry.anchor in ("monai", "monai_extent")
        return resample(
            values,
            self.source,
            self.target,
            geometry.interpolation,
            outside=geometry.outside,
            border=_SPLINE_BORDER if by_scipy else 0,
        )

    def back(self, score: FloatArray) -> FloatArray:
        """Return one class's scores (K, J, I) on the source."""
        if self.nnunet is not None:
            return self.nnunet.backward(score, self.source)
        if self.geometry.resize == "torch":
            i, j, k = self.source.size
            return resize_array(score, (k, j, i), self.way)
        if self.geometry.interpolation == "nnunet":
            return resample_by_slices(score, self.target, self.source, "linear")
        return resample(score, self.target, self.source, "linear")

    def back_axes(self) -> tuple[AxisInterpolation, ...] | None:
        """Return what :meth:`back` does along K, J and I; None where it cannot be said axis by axis, or is more than linear."""
        if self.nnunet is not None:
            return self.nnunet.backward_axes(self.target, self.source)
        sizes = list(zip(self.target.size[::-1], self.source.size[::-1], strict=True))
        if self.geometry.resize == "torch":
            resized = [interpolation(old, new, self.way) for old, new in sizes]
            return None if None in resized else tuple(axis for axis in resized if axis is not None)
        to_target = self.along_axes(self.target, self.source)
        if to_target is None:
            return None
        across = slice_axis(self.target, self.source) if self.geometry.interpolation == "nnunet" else None
        axes = []
        for axis, (old, new) in zip((2, 1, 0), sizes, strict=True):
            first, step = to_target[axis]
            positions = first + step * np.arange(new, dtype=np.float64)
            if axis == across:
                nearest = np.floor(np.clip(positions, 0, old - 1) + 0.5).astype(np.intp)
                axes.append(AxisInterpolation.nearest(nearest, old))
            else:
                axes.append(AxisInterpolation.linear(positions, old))
        return tuple(axes)

    def nearest_back_axes(self) -> tuple[AxisInterpolation, ...] | None:
        """Return what :meth:`nearest` does on its way back along K, J and I; None where millimeters, not whole numbers, say which voxel is nearest."""
        if not self.zooms:
            return None
        sizes = zip(self.target.size[::-1], self.source.size[::-1], strict=True)
        return tuple(AxisInterpolation.nearest(corner_zoom.nearest_indices(old, new), old) for old, new in sizes)

    def along_axes(self, old: Grid, new: Grid) -> list[tuple[float, float]] | None:
        """Return where the first voxel of ``new`` lies among those of ``old``, and how far the next one from it, along I, J and K.

        None where the axes of the two do not run along each other.
        """
        to_old = np.linalg.inv(old.ijk_to_ras) @ new.ijk_to_ras
        steps = np.diag(to_old)[:3]
        beside = to_old[:3, :3] - np.diag(steps)
        if np.abs(beside * new.size).max() > _ALONG_ONE_AXIS or (steps <= 0).any():
            return None
        return [(float(to_old[axis, 3]), float(steps[axis])) for axis in range(3)]

    def forward_labels(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return a label map (K, J, I) that is part of the network's input on the target."""
        if self.nnunet is not None:
            return self.nnunet.forward_labels(labels, self.source, self.target.size)
        return self.nearest(labels)

    def nearest(self, labels: NDArray[Any], *, back: bool = False) -> NDArray[Any]:
        """Return a label map (K, J, I) on the target, or from there on the source, by the nearest voxel."""
        source, target = (self.target, self.source) if back else (self.source, self.target)
        if self.zooms:
            # By whole numbers: where a new voxel lies halfway between two, a last bit of millimeters would choose.
            return corner_zoom.nearest(labels, target.size)
        return resample(labels, source, target, "nearest")

    @property
    def zooms(self) -> bool:
        """Whether the outermost centers of both grids are the same."""
        return self.geometry.anchor == "corners" and self.geometry.spacing is not None

    @property
    def way(self) -> Way:
        """How an array is resized, where ``geometry.resize`` is "torch"."""
        way = self.geometry.interpolation
        return "corners" if way == "linear" and self.geometry.anchor == "corners" else way  # type: ignore[return-value]

    def _resized(self, values: FloatArray) -> FloatArray:
        i, j, k = self.target.size
        if self.geometry.anti_aliasing and self.changes:
            a, b, c = (max(0.0, (old / new - 1) / 2) for old, new in zip(values.shape, (k, j, i), strict=True))
            values = smooth(values, (a, b, c))
        return resize_array(values, (k, j, i), self.way)


SpatialStep = Cut | Turn | Sampling
