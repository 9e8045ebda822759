"""From class scores to labels where each output channel is a region of its own, and the activations that come before.

Regions may overlap; a label map holds one value a voxel. They are painted one after the other, a later one over an earlier
one, in the order of the model's labels; or, where the model asks for it, so that a region inside another one stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.spec import ModelSpec, Output

#: As many regions fit into the bits of one number.
_MOST_MARKS = 64
_MARK_TYPES = ((8, np.uint8), (16, np.uint16), (32, np.uint32), (_MOST_MARKS, np.uint64))
#: A region lies inside a larger one if more than this share of it does.
_INSIDE = 0.5


@dataclass(frozen=True)
class Regions:
    """Which output channels are painted, in their order.

    Attributes:
        channels: of the network's output.
        values: the label value of each, unsigned integer, shape (regions,).
        cuts: a score above it lies in the region; float32, shape (regions,).
        nested: a region of which the larger part lies inside a larger one is painted after it, whatever the order.
    """

    channels: tuple[int, ...]
    values: NDArray[Any]
    cuts: NDArray[np.float32]
    nested: bool = False

    @classmethod
    def of(cls, spec: ModelSpec, dtype: Any) -> Regions:
        """Return the regions of a model, cut at its thresholds of probability."""
        channels = tuple(label.channel for label in spec.labels)
        cuts = [probability_cut(spec.output, channel) for channel in channels]
        values = np.array([label.value for label in spec.labels], dtype)
        return cls(
            channels, values, np.array(cuts, np.float32), spec.output.paint == "nested" and len(channels) <= _MOST_MARKS
        )

    def paint(self, score: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
        """Return the label map of scores that ``score`` gives for a channel, all of one shape."""
        if self.nested:
            return self.painted(self.marked(score))
        labels: NDArray[Any] | None = None
        for channel, value, cut in zip(self.channels, self.values, self.cuts, strict=True):
            inside = score(channel) > cut
            labels = np.zeros(inside.shape, self.values.dtype) if labels is None else labels
            labels[inside] = value
        assert labels is not None
        return labels

    @property
    def mark_type(self) -> Any:
        """The smallest unsigned NumPy type with a bit for each region."""
        return next(dtype for most, dtype in _MARK_TYPES if len(self.channels) <= most)

    def marked(self, score: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
        """Return one bit a region, the first region's lowest: whether the voxel lies in it."""
        marks: NDArray[Any] | None = None
        for number, (channel, cut) in enumerate(zip(self.channels, self.cuts, strict=True)):
            inside = score(channel) > cut
            marks = np.zeros(inside.shape, self.mark_type) if marks is None else marks
            marks |= inside.astype(self.mark_type) << self.mark_type(number)
        assert marks is not None
        return marks

    def painted(self, marks: NDArray[Any]) -> NDArray[Any]:
        """Return the label map of :meth:`marked` voxels."""
        labels = np.zeros(marks.shape, self.values.dtype)
        for number in self._order(marks):
            labels[(marks >> self.mark_type(number)) & self.mark_type(1) > 0] = self.values[number]
        return labels

    def _order(self, marks: NDArray[Any]) -> list[int]:
        """Return the regions' numbers, each after those that it lies inside, else as they are listed."""
        kinds, counts = np.unique(marks, return_counts=True)
        inside = np.array(
            [(kinds >> self.mark_type(n)) & self.mark_type(1) for n in range(len(self.channels))], dtype=np.float64
        )
        overlaps = (inside * counts) @ inside.T
        size = np.diagonal(overlaps)
        remaining = list(range(len(self.channels)))
        order: list[int] = []
        while remaining:
            for number in remaining:
                enclosing = [
                    o for o in remaining if size[o] > size[number] and overlaps[number, o] > _INSIDE * size[number]
                ]
                if not enclosing:
                    break
            remaining.remove(number)
            order.append(number)
        return order


def probability_cut(output: Output, channel: int) -> np.float32:
    """Return the probability above which a voxel lies in a channel's region; just below the threshold where that itself counts as inside."""
    cut = np.float32(output.thresholds[channel] if output.thresholds else output.threshold)
    return np.nextafter(cut, np.float32(-1)) if output.inclusive else cut


def logit_cut(output: Output, channel: int) -> float:
    """Return the logit of a sigmoid above which a voxel lies in a channel's region; see :func:`probability_cut`."""
    cut = output.thresholds[channel] if output.thresholds else output.threshold
    if not 0 < cut < 1:
        return float("-inf") if cut <= 0 and output.inclusive else -88.0 if cut <= 0 else 88.0
    logit = float(np.log(cut / (1 - cut)))
    # Next to 0 the next smaller float is smaller than what processors count with.
    return (logit - max(1e-30, abs(logit) * 1e-7)) if output.inclusive else logit


def activate(scores: NDArray[Any], activation: str) -> None:
    """Turn scores (C, n0, n1, n2) into probabilities in place, float; slab by slab, so that little memory is needed beside them."""
    for slab in (scores[:, n] for n in range(scores.shape[1])):
        if activation == "softmax":
            slab -= slab.max(axis=0)
            np.exp(slab, out=slab)
            slab /= slab.sum(axis=0)
        else:
            np.clip(slab, -60, 60, out=slab)
            np.negative(slab, out=slab)
            np.exp(slab, out=slab)
            slab += 1
            np.reciprocal(slab, out=slab)
