"""A volume in network space, and the way back of its labels and scores to the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..thread_pool import Threads
from .array_layout import ArrayLayout
from .axis_interpolation import AxisInterpolation
from .label_resampling import Axes, Decision, LabelResampling, Largest, LargestMask, Painted
from .regions import Regions
from .spatial_steps import Cut, Sampling, SpatialStep, Turn
from .volume import Grid

FloatArray = NDArray[np.float32]
#: Up to this many labels are resampled as masks, linearly; more by nearest neighbor, which costs one pass in all.
_SMOOTH_LABELS = 32


@dataclass(frozen=True)
class NetworkInput:
    """A volume in network space and all that is needed to come back.

    Attributes:
        data: float32 (C, A0, A1, A2), spatial axes in the tensor's order (``axis_order``).
        grid: the grid of ``data`` in I, J, K order.
        original: the grid of the volume as it came.
        axis_order: "IJK" or "KJI".
        steps: what was done in space, in this order; at most one of them is a :class:`.spatial_steps.Sampling`.
    """

    data: FloatArray
    grid: Grid
    original: Grid
    axis_order: str
    steps: tuple[SpatialStep, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``data``, which need not be there yet."""
        return self.data.shape

    def every(self, stride: int) -> FloatArray:
        """Return every so many voxels of ``data`` along each axis, (C, n0, n1, n2)."""
        return self.data[:, ::stride, ::stride, ::stride]

    @property
    def sampling(self) -> Sampling | None:
        """The step that resampled, if one did."""
        return next((step for step in self.steps if isinstance(step, Sampling) and step.changes), None)

    @property
    def resampled(self) -> bool:
        """Whether a step resampled the volume."""
        return self.sampling is not None

    @property
    def oriented(self) -> Grid:
        """The grid before resampling, or the network's where nothing resampled."""
        return self.grid if self.sampling is None else self.sampling.source

    def to_kji(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array whose last three axes are the tensor's, with them as (K, J, I) instead; a view."""
        return array if self.axis_order == "KJI" else array.swapaxes(-1, -3)

    def labels_in_network_space(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return a label map on the original grid (K, J, I) in network space (A0, A1, A2), by nearest neighbor."""
        for step in self.steps:
            if isinstance(step, Sampling):
                labels = step.nearest(labels)
            else:
                labels = step.forward(labels, 0) if isinstance(step, Cut) else step.forward(labels)
        return np.ascontiguousarray(self.to_kji(labels))

    def restore(self, labels: NDArray[Any], nearest: bool | None = None) -> NDArray[Any]:
        """Return a label map in network space (A0, A1, A2) on the original grid, array (K, J, I); 0 outside the crop.

        Args:
            nearest: take the nearest voxel's label; or (False) interpolate each label's mask linearly and take the largest. None: the
                latter, but for more than a few labels the former.
        """
        kji = self._before_sampling(np.ascontiguousarray(self.to_kji(labels)))
        sampling = self.sampling
        if sampling is None:
            return self._place(kji)
        values = np.unique(kji)
        if nearest or (nearest is None and len(values) > _SMOOTH_LABELS):
            return self._place(sampling.nearest(kji, back=True))
        if axes := self.back_axes():
            resampling = LabelResampling(axes, LargestMask(labels.dtype))
            with Threads() as threads:
                resampling.take(labels[None], 0, threads)
            return self.place_resampled(resampling.result)
        # Nearest neighbor would move a surface by half a voxel where the grids are commensurate.
        return self._largest((sampling.back((kji == value).astype(np.float32)) for value in values), values)

    def restore_from_scores(self, scores: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        """Return class scores (C, A0, A1, A2) resampled class by class to the original grid, then the largest wins.

        Args:
            scores: blended scores in network space, any float dtype.
            values: label value of each channel, shape (C,).

        Returns:
            Label map (K, J, I) on the original grid, dtype of ``values``.
        """
        if axes := self.back_axes():
            return self._resampled(scores, axes, Largest(values))
        return self._largest((self._back(score) for score in scores), values)

    def _largest(self, scores: Iterable[FloatArray], values: NDArray[Any]) -> NDArray[Any]:
        """Keep the value of the largest of scores that were resampled (K, J, I), the first winning ties."""
        best: FloatArray | None = None
        for sampled, value in zip(scores, values, strict=True):
            if best is None:
                best, labels = sampled.copy(), np.full(sampled.shape, value, values.dtype)
            else:
                labels[sampled > best] = value
                np.maximum(best, sampled, out=best)
        return self._place(labels)

    def restore_regions(self, scores: NDArray[Any], regions: Regions) -> NDArray[Any]:
        """Return the label map (K, J, I) of regions' scores (C, A0, A1, A2), which are cut and painted on the original grid."""
        if axes := self.back_axes():
            marks = self._resampled(scores, axes, Painted(regions))
            return regions.painted(marks) if regions.nested else marks
        return self._place(regions.paint(lambda channel: self._back(scores[channel])))

    def back_axes(self) -> Axes | None:
        """Return the interpolation that brings scores (A0, A1, A2) to the grid before resampling, along each axis of the tensor.

        None where nothing was resampled, where that is a spline of a higher order, or where a part was cut out after it.
        """
        sampling = self.sampling
        return None if sampling is None else self._after(sampling, sampling.back_axes())

    def nearest_back_axes(self) -> Axes | None:
        """Return what brings labels (A0, A1, A2) to the grid before resampling by the nearest voxel, as :meth:`back_axes`.

        None where nothing was resampled, where a part was cut out after it, or where what is nearest cannot be said axis by axis.
        """
        sampling = self.sampling
        return None if sampling is None else self._after(sampling, sampling.nearest_back_axes())

    def _after(self, sampling: Sampling, kji: tuple[AxisInterpolation, ...] | None) -> Axes | None:
        """Return the interpolation along K, J and I of the resampled grid along each axis of the tensor, after all later steps."""
        if kji is None:
            return None
        ijk = list(kji[::-1])
        for step in self.steps[self.steps.index(sampling) + 1 :]:
            if isinstance(step, Turn):
                ijk = [
                    ijk[axis].flipped() if flip else ijk[axis]
                    for axis, flip in zip(step.axes.permutation, step.axes.flips, strict=True)
                ]
            elif isinstance(step, Cut):
                if any(start > 0 or stop < axis.size for (start, stop), axis in zip(step.box, ijk, strict=True)):
                    return None
                ijk = [axis.within(-start, stop - start) for (start, stop), axis in zip(step.box, ijk, strict=True)]
        a, b, c = ijk if self.axis_order == "IJK" else ijk[::-1]
        return a, b, c

    def place_resampled(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array with the tensor's axes that :meth:`back_axes` resampled, on the original grid (K, J, I)."""
        sampling = self.sampling
        assert sampling is not None
        kji = self.to_kji(array)
        for step in reversed(self.steps[self.steps.index(sampling) + 1 :]):
            if isinstance(step, Turn):
                kji = step.back(kji)
        return self._place(kji)

    def resampled_layout(self) -> ArrayLayout:
        """Return how what :meth:`back_axes` resamples lies in the array (K, J, I) on the original grid."""
        sampling = self.sampling
        assert sampling is not None
        number = self.steps.index(sampling)
        layout = ArrayLayout.of(self.original.size, self.steps[:number])
        for step in self.steps[number + 1 :]:
            if isinstance(step, Turn):
                layout = layout.after(step)
        return layout

    def restore_probabilities(
        self,
        scores: NDArray[Any],
        prepare: Callable[[NDArray[Any]], None] | None,
        finish: Callable[[NDArray[Any]], None],
    ) -> FloatArray:
        """Return class scores (C, A0, A1, A2) on the original grid, (C, K, J, I), float32.

        Args:
            prepare: changes scores in network space in place, before they are resampled.
            finish: changes them (C, K, J, I) in place once they are resampled, before what was cropped away is put around them as 0.
        """
        if prepare is not None:
            prepare(scores)
        resampled = np.stack([self._back(score) for score in scores])
        finish(resampled)
        placed = [self._place(channel) for channel in resampled]
        return np.stack(placed) if any(a is not b for a, b in zip(placed, resampled, strict=True)) else resampled

    def cropped(self) -> NDArray[np.bool_]:
        """Return which voxels (K, J, I) of the original grid no step before resampling has left out."""
        i, j, k = self.oriented.size
        return self._place(np.ones((k, j, i), bool))

    def _resampled(self, scores: NDArray[Any], axes: Axes, decision: Decision) -> NDArray[Any]:
        resampling = LabelResampling(axes, decision)
        with Threads() as threads:
            resampling.take(np.asarray(scores, np.float32), 0, threads)
        return self.place_resampled(resampling.result)

    def _back(self, score: NDArray[Any]) -> FloatArray:
        """Return one class's scores (A0, A1, A2) on the grid before resampling, (K, J, I)."""
        kji = self._before_sampling(np.ascontiguousarray(self.to_kji(score), np.float32))
        return kji if self.sampling is None else self.sampling.back(kji)

    def _before_sampling(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undo the steps (of an array (K, J, I)) that came after resampling."""
        sampling = self.sampling
        if sampling is not None:
            for step in reversed(self.steps[self.steps.index(sampling) + 1 :]):
                array = step.back(array)
        return array

    def _place(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undo the steps that came before resampling."""
        sampling = self.sampling
        for step in reversed(self.steps if sampling is None else self.steps[: self.steps.index(sampling)]):
            if not isinstance(step, Sampling):
                array = step.back(array)
        return np.ascontiguousarray(array)
