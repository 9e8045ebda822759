"""How sure a network was of each voxel: by how much the probability of the label that won exceeds the next one's.

A small margin says that a small error of any kind, INT8's rounding among them, could have given another label.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..imaging.regions import activate
from ..models.spec import ModelSpec
from .blending import Array, Sink
from .resampling_sink import ResamplingSink

#: A margin of 1 as it is kept, in 8 bits.
ONE = 255


class MarginSink:
    """Notes the margins of finished, normalized blocks before it hands them on.

    Args:
        inner: what makes labels of the blocks.
        activation: what makes probabilities of the scores, "softmax" or "sigmoid"; None if they are probabilities already.
        thresholds: of regions, one a channel, each of which is there or not: then the margin is the least distance to it, of a largest
            possible 1.
    """

    def __init__(
        self,
        inner: Sink,
        shape: tuple[int, int, int],
        activation: str | None,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        self.margins = np.zeros(shape, np.uint8)
        self._inner, self._activation, self._thresholds = inner, activation, thresholds
        self.seconds = 0.0

    def __call__(self, start: tuple[int, int, int], block: Array) -> None:
        self._note(start, block)
        self._inner(start, block)

    def _note(self, start: tuple[int, int, int], block: Array) -> None:
        """Note the margins of a block, which is left as it is."""
        began = time.perf_counter()
        index = tuple(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True))
        scores = block
        if self._activation is not None and (self._thresholds is not None or self._activation == "sigmoid"):
            scores = block.copy()
            activate(scores, self._activation)
        if self._thresholds is not None:
            margins = _regions(scores, self._thresholds)
        else:
            margins = _classes(scores, self._activation != "softmax")
        self.margins[index] = np.rint(margins * ONE)
        self.seconds += time.perf_counter() - began


class SlabMarginSink(MarginSink):
    """As :class:`MarginSink`, before scores that are let go slab by slab (:class:`.blending.TakesSlabs`)."""

    def __init__(
        self,
        inner: ResamplingSink,
        shape: tuple[int, int, int],
        activation: str | None,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        super().__init__(inner, shape, activation, thresholds)
        self._slabs, self.shape, self.slab_planes = inner, inner.shape, inner.slab_planes

    def room(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Array:
        """Where the scores of the next block go."""
        return self._slabs.room(start, size)

    def filled(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        """Take what was written into the room of a block."""
        self._note(start, self.room(start, size))
        self._slabs.filled(start, size)


def margins_of(probabilities: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.uint8]:
    """Return the margins (K, J, I) of a model's probabilities (C, K, J, I), as they are kept."""
    output = spec.output
    if output.regions:
        thresholds = output.thresholds or (output.threshold,) * spec.output_channels
        return np.rint(_regions(probabilities, thresholds) * ONE).astype(np.uint8)
    return np.rint(_classes(probabilities, True) * ONE).astype(np.uint8)


def _classes(block: Array, probabilities: bool) -> NDArray[np.float32]:
    """Largest minus second largest probability; class by class, which is several times faster than a partition."""
    if len(block) == 1:
        return np.ones(block.shape[1:], np.float32)
    first, second = np.maximum(block[0], block[1]), np.minimum(block[0], block[1])
    for channel in block[2:]:
        np.maximum(second, np.minimum(first, channel), out=second)
        np.maximum(first, channel, out=first)
    if probabilities:
        return np.clip(first - second, 0, 1)
    total = np.zeros(first.shape, np.float32)
    for channel in block:
        total += np.exp(channel - first)
    margins: NDArray[Any] = (1 - np.exp(second - first)) / total
    return margins


def _regions(block: Array, thresholds: Sequence[float]) -> NDArray[np.float32]:
    least = np.ones(block.shape[1:], np.float32)
    for channel, threshold in zip(block, thresholds, strict=True):
        np.minimum(
            least, np.abs(channel - np.float32(threshold)) / np.float32(max(threshold, 1 - threshold)), out=least
        )
    return least
