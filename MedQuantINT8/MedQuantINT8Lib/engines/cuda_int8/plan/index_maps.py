"""Where the numbers of a tensor lie in another one: what reshaping, transposing, cutting, padding and rolling come to, without doing them.

A transformer's graph moves voxels about (windows, shifts, heads) far more often than it computes. Movements are followed here as two small
tables, one of voxels and one of channels, and are carried out where a computation cannot take its input as it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.int32]
Shape = tuple[int, ...]
#: In a table: nothing is there, which reads as 0.
NOWHERE = -1


class Mixed(Exception):
    """A movement that takes voxels and channels together."""


@dataclass(frozen=True)
class IndexMap:
    """A tensor of any rank whose numbers are those of a tensor (1, C, A0, A1, A2), elsewhere.

    Attributes:
        base: that tensor.
        rows: of the rank of this one, 1 along the axes of channels: the base's voxel (A2 fastest), or NOWHERE.
        columns: of the same rank, 1 along the axes of voxels: the base's channel, or NOWHERE.
        scale: what the base's numbers are multiplied by.
    """

    base: str
    rows: Table
    columns: Table
    scale: float = 1.0

    @staticmethod
    def still(base: str, shape: Shape) -> IndexMap:
        """A tensor (1, C, A0, A1, A2) as it is."""
        voxels = np.arange(int(np.prod(shape[2:])), dtype=np.int32).reshape(1, 1, *shape[2:])
        return IndexMap(base, voxels, np.arange(shape[1], dtype=np.int32).reshape(1, -1, 1, 1, 1))

    @property
    def shape(self) -> Shape:
        return tuple(map(max, self.rows.shape, self.columns.shape))

    @property
    def has_gaps(self) -> bool:
        """Whether some of it is 0 that is not 0 in the base."""
        return bool((self.rows < 0).any() or (self.columns < 0).any())

    @property
    def in_order(self) -> bool:
        """Whether the first voxels are the base's first ones, in its order."""
        return bool(np.array_equal(self.rows.reshape(-1), np.arange(self.rows.size)))

    def is_still(self, shape: Shape) -> bool:
        """Whether it is its base, of this shape, as it is."""
        whole = self.shape == shape and self.rows.shape == (1, 1, *shape[2:]) and self.in_order
        return whole and self.scale == 1.0 and np.array_equal(self.columns.reshape(-1), np.arange(shape[1]))

    def is_of_channels(self, axis: int) -> bool:
        """Whether an axis is that of channels. Of one channel alone nothing tells: then it is the second of five, as ONNX has it, else the last."""
        if self.columns.size > 1 or self.rows.shape[axis] > 1:
            return self.columns.shape[axis] > 1
        return axis == (1 if self.rows.ndim == 5 else self.rows.ndim - 1)

    def has_all_channels(self, channels: int) -> bool:
        return np.array_equal(np.sort(self.columns.reshape(-1)), np.arange(channels))

    def reshaped(self, shape: Sequence[int]) -> IndexMap:
        """The tensor in another shape.

        Raises:
            Mixed: an axis would hold voxels and channels.
        """
        rows: list[int] = []
        columns: list[int] = []
        for before, after in _groups(self.shape, tuple(shape)):
            channels = max((self.columns.shape[a] for a in before), default=1) > 1
            if channels and max((self.rows.shape[a] for a in before), default=1) > 1:
                raise Mixed
            lengths, ones = [shape[a] for a in after], [1] * len(after)
            rows += ones if channels else lengths
            columns += lengths if channels else ones
        return replace(self, rows=self.rows.reshape(rows), columns=self.columns.reshape(columns))

    def transposed(self, order: Sequence[int]) -> IndexMap:
        return replace(self, rows=self.rows.transpose(order), columns=self.columns.transpose(order))

    def cut(self, axis: int, part: slice) -> IndexMap:
        return self.take(axis, np.arange(self.shape[axis])[part])

    def take(self, axis: int, indices: NDArray[np.int64]) -> IndexMap:
        """Some indices of an axis, in their order."""
        if self.is_of_channels(axis):
            return replace(self, columns=self.columns.take(indices, axis))
        return replace(self, rows=self.rows.take(indices, axis))

    def padded(self, before: Sequence[int], after: Sequence[int], edge: bool) -> IndexMap:
        """The tensor with zeros, or what is nearest, around the voxels; and zeros beside the channels.

        Raises:
            Mixed: channels would be repeated.
        """
        rows, columns = self.rows, self.columns
        for axis, width in enumerate(zip(before, after, strict=True)):
            widths = [width if a == axis else (0, 0) for a in range(rows.ndim)]
            if any(width) and self.is_of_channels(axis):
                if edge:
                    raise Mixed
                columns = np.pad(columns, widths, constant_values=NOWHERE)
            elif any(width):
                rows = np.pad(rows, widths, mode="edge") if edge else np.pad(rows, widths, constant_values=NOWHERE)
        return replace(self, rows=rows, columns=columns)

    def broadcast(self, shape: Sequence[int], channels: Sequence[bool]) -> IndexMap:
        """Repeated along axes of one, to this shape; ``channels`` says which axes are then of channels."""
        rows, columns = self.rows, self.columns
        for axis, length in enumerate(shape):
            if length > self.shape[axis]:
                columns = np.repeat(columns, length, axis) if channels[axis] else columns
                rows = rows if channels[axis] else np.repeat(rows, length, axis)
        return replace(self, rows=rows, columns=columns)


def joined(parts: Sequence[IndexMap], axis: int) -> IndexMap | None:
    """Parts of one base, one behind the other along an axis of voxels; None where they are not."""
    first = parts[0]
    alike = all(
        p.base == first.base and p.scale == first.scale and np.array_equal(p.columns, first.columns) for p in parts
    )
    if not alike or all(part.is_of_channels(axis) for part in parts):
        return None
    return replace(first, rows=np.concatenate([p.rows for p in parts], axis))


def _groups(before: Shape, after: Shape) -> Iterator[tuple[range, range]]:
    """The axes of two shapes of the same numbers, in the smallest groups that hold equally many."""
    i = j = 0
    while i < len(before) or j < len(after):
        first, second = i, j
        a = b = 1
        while True:
            if i < len(before) and (i == first or a < b):
                a *= before[i]
                i += 1
            elif j < len(after) and (j == second or b < a):
                b *= after[j]
                j += 1
            else:
                break
        # Axes of one voxel at the end belong to the last group.
        if i == len(before):
            j = max(j, len(after) if int(np.prod(after[j:])) == 1 else j)
        if j == len(after):
            i = max(i, len(before) if int(np.prod(before[i:])) == 1 else i)
        yield range(first, i), range(second, j)
