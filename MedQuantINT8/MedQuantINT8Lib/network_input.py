"""A volume in network space, and the way back of its labels and scores to the scan's own grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .nnunet_resampling import NnunetResampler
from .regions import Regions
from .volume import AxisMap, Grid, resample

FloatArray = NDArray[np.float32]
#: Up to this many labels are resampled as masks, linearly; more by nearest neighbour, which costs one pass in all.
_SMOOTH_LABELS = 32


@dataclass(frozen=True)
class NetworkInput:
    """A volume in network space and all that is needed to come back.

    Attributes:
        data: float32 (C, A0, A1, A2), spatial axes in the tensor's order (``axis_order``).
        grid: the grid of ``data`` in I, J, K order.
        oriented: the cropped, reoriented grid before resampling.
        original: the grid of the volume as it came.
        box: the crop on the original grid, (start, stop) along I, J, K.
        reorientation: from the cropped original to ``oriented``.
        axis_order: "IJK" or "KJI".
        resampler: what resampled it as nnU-Net does, and takes scores back; None where that was done otherwise.
    """

    data: FloatArray
    grid: Grid
    oriented: Grid
    original: Grid
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    reorientation: AxisMap
    axis_order: str
    resampler: NnunetResampler | None = None

    @property
    def resampled(self) -> bool:
        return self.grid != self.oriented

    def to_kji(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array whose last three axes are the tensor's, with them as (K, J, I) instead; a view."""
        return array if self.axis_order == "KJI" else array.swapaxes(-1, -3)

    def labels_in_network_space(self, labels: NDArray[Any]) -> NDArray[Any]:
        """A label map on the original grid (K, J, I) in network space (A0, A1, A2), by nearest neighbour."""
        cropped = labels[tuple(slice(*bounds) for bounds in reversed(self.box))]
        oriented = self.reorientation.apply(cropped[None])[0]
        return np.ascontiguousarray(self.to_kji(resample(oriented, self.oriented, self.grid, "nearest")))

    def restore(self, labels: NDArray[Any], nearest: bool = False) -> NDArray[Any]:
        """A label map in network space (A0, A1, A2) on the original grid, array (K, J, I); 0 outside the crop.

        Each label's mask is interpolated linearly and the largest wins, unless ``nearest`` asks for the nearest voxel's label.
        """
        kji = np.ascontiguousarray(self.to_kji(labels))
        if not self.resampled:
            return self._place(kji)
        values = np.unique(kji)
        if nearest or len(values) > _SMOOTH_LABELS:
            return self._place(resample(kji, self.grid, self.oriented, "nearest"))
        # Nearest neighbour would move a surface by half a voxel where the grids are commensurate.
        return self._largest(((kji == value).astype(np.float32) for value in values), values)

    def restore_from_scores(self, scores: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        """Class scores (C, A0, A1, A2) resampled class by class to the original grid, then the largest wins.

        Args:
            scores: blended scores in network space, any float dtype.
            values: label value of each channel, shape (C,).

        Returns:
            Label map (K, J, I) on the original grid, dtype of ``values``.
        """
        return self._largest((np.ascontiguousarray(self.to_kji(score), np.float32) for score in scores), values)

    def _largest(self, scores: Iterable[FloatArray], values: NDArray[Any]) -> NDArray[Any]:
        """Resample scores (K, J, I) one by one and keep the value of the largest, the first winning ties."""
        best: FloatArray | None = None
        for score, value in zip(scores, values, strict=True):
            sampled = self._back(score)
            if best is None:
                best, labels = sampled.copy(), np.full(sampled.shape, value, values.dtype)
            else:
                labels[sampled > best] = value
                np.maximum(best, sampled, out=best)
        return self._place(labels)

    def restore_regions(self, scores: NDArray[Any], regions: Regions) -> NDArray[Any]:
        """As :meth:`restore_from_scores` for regions, which are cut and painted on the original grid."""
        return self._place(regions.paint(lambda channel: self._back(np.ascontiguousarray(self.to_kji(scores[channel]), np.float32))))

    def _back(self, score: FloatArray) -> FloatArray:
        """One class's scores (K, J, I) on the grid before resampling."""
        if self.resampler is not None:
            return self.resampler.backward(score, self.oriented)
        return resample(score, self.grid, self.oriented, "linear")

    def _place(self, oriented: NDArray[Any]) -> NDArray[Any]:
        cropped = self.reorientation.inverse().apply(oriented)
        i, j, k = self.original.size
        if cropped.shape == (k, j, i):
            return np.ascontiguousarray(cropped)
        whole = np.zeros((k, j, i), cropped.dtype)
        whole[tuple(slice(*bounds) for bounds in reversed(self.box))] = cropped
        return whole
