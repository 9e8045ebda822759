"""Where the voxels of a cut or turned volume lie in the memory of the whole one: index arithmetic in place of copies."""

from __future__ import annotations

from dataclasses import dataclass

from .spatial_steps import Cut, Sampling, SpatialStep, Turn


@dataclass(frozen=True)
class LayoutAxis:
    """One axis of a cut or turned volume.

    Attributes:
        size: voxels.
        source: the axis (I, J or K: 0 to 2) of the whole volume that it runs along.
        sign: 1 if it runs the same way, else -1.
        offset: where its voxel 0 lies along that axis.
        low, high: its voxels from ``low`` to ``high`` - 1 lie inside of the whole volume.
    """

    size: int
    source: int
    sign: int
    offset: int
    low: int
    high: int


@dataclass(frozen=True)
class ArrayLayout:
    """How a volume that was cut and turned lies in a contiguous array (K, J, I) of the whole one.

    Attributes:
        whole: voxels of the whole volume along I, J and K.
        axes: the axes I, J and K of the cut or turned volume.
    """

    whole: tuple[int, int, int]
    axes: tuple[LayoutAxis, LayoutAxis, LayoutAxis]

    @classmethod
    def of(cls, whole: tuple[int, int, int], steps: tuple[SpatialStep, ...]) -> ArrayLayout:
        """Return the layout after steps, none of which resamples."""
        layout = cls(whole, _axes([LayoutAxis(size, axis, 1, 0, 0, size) for axis, size in enumerate(whole)]))
        for step in steps:
            layout = layout.after(step)
        return layout

    def after(self, step: SpatialStep) -> ArrayLayout:
        """Return the layout after one step more.

        Raises:
            ValueError: the step resamples.
        """
        if isinstance(step, Sampling):
            raise ValueError("resampled voxels lie nowhere in the array that they come from")
        if isinstance(step, Turn):
            turned = zip(step.axes.permutation, step.axes.flips, strict=True)
            return ArrayLayout(self.whole, _axes([_reversed(self.axes[n], flip) for n, flip in turned]))
        assert isinstance(step, Cut)
        return ArrayLayout(
            self.whole,
            _axes([_cut(axis, start, stop) for axis, (start, stop) in zip(self.axes, step.box, strict=True)]),
        )

    def steps(self, axis_order: str) -> tuple[int, tuple[int, int, int]]:
        """Return where the first voxel lies in the array, and how far the next one along each axis of a tensor lies from it, in voxels."""
        i, j, _ = self.whole
        strides = (1, i, i * j)
        first = sum(axis.offset * strides[axis.source] for axis in self.axes)
        a, b, c = (axis.sign * strides[axis.source] for axis in self.along(axis_order))
        return first, (a, b, c)

    def along(self, axis_order: str) -> tuple[LayoutAxis, LayoutAxis, LayoutAxis]:
        """Return the axes in a tensor's order, "IJK" or "KJI"."""
        return self.axes if axis_order == "IJK" else (self.axes[2], self.axes[1], self.axes[0])


def _axes(axes: list[LayoutAxis]) -> tuple[LayoutAxis, LayoutAxis, LayoutAxis]:
    i, j, k = axes
    return i, j, k


def _reversed(axis: LayoutAxis, flip: bool) -> LayoutAxis:
    if not flip:
        return axis
    end = axis.offset + axis.sign * (axis.size - 1)
    return LayoutAxis(axis.size, axis.source, -axis.sign, end, axis.size - axis.high, axis.size - axis.low)


def _cut(axis: LayoutAxis, start: int, stop: int) -> LayoutAxis:
    size = stop - start
    low, high = max(axis.low - start, 0), min(axis.high - start, size)
    return LayoutAxis(size, axis.source, axis.sign, axis.offset + axis.sign * start, low, max(low, high))
