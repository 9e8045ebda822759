"""Convolutions and matrix products as one matrix product: output channels by inputs, and what it reads for sampled outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models import rewrites
from ..models.onnx_graph import Graph

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerMatrix:
    """A layer with a constant weight, seen as the product of a matrix with columns of its input.

    Attributes:
        node: the ONNX node: a Conv, ConvTranspose, MatMul or Gemm.
        shape: of its weight, as ONNX stores it.
        groups: of a convolution: output channels read only their group's input channels.
    """

    node: Any
    shape: tuple[int, ...]
    groups: int = 1

    @staticmethod
    def of(graph: Graph, node: Any, shape: tuple[int, ...]) -> LayerMatrix | None:
        """The layer of a node whose weight has this shape; None for a form that is not understood."""
        values = rewrites.attributes(node)
        groups = int(values.get("group", 1))
        if node.op_type == "Conv" and len(shape) >= 3 and shape[0] % groups == 0:
            return LayerMatrix(node, shape, groups)
        if node.op_type == "ConvTranspose" and groups == 1 and len(shape) >= 3:
            plain = values.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID") and "output_shape" not in values
            return LayerMatrix(node, shape) if plain else None
        if node.op_type == "MatMul" and len(shape) == 2 and not graph.is_constant(node.input[0]):
            return LayerMatrix(node, shape)
        if node.op_type == "Gemm" and len(shape) == 2:
            factors = (values.get("alpha", 1.0), values.get("beta", 1.0), values.get("transA", 0))
            return LayerMatrix(node, shape) if factors == (1.0, 1.0, 0) else None
        return None

    @property
    def channel_axis(self) -> int:
        """The axis of the output channels in the weight."""
        if self.node.op_type == "Gemm":
            return 0 if rewrites.attributes(self.node).get("transB", 0) else 1
        return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[self.node.op_type]

    @property
    def taps(self) -> int:
        """How many weights of one output channel read the same input channel."""
        return math.prod(self.shape[2:])

    def matrix(self, weight: Array) -> Array:
        """The weight as (output channels, inputs): a row holds input channel by input channel, each with its taps."""
        rows = np.moveaxis(weight, self.channel_axis, 0)
        return np.ascontiguousarray(rows).reshape(rows.shape[0], -1)

    def weight(self, matrix: Array) -> Array:
        """The inverse of :meth:`matrix`."""
        moved = list(self.shape)
        channels = moved.pop(self.channel_axis)
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(channels, *moved), 0, self.channel_axis))

    def has_bias(self) -> bool:
        """Whether the layer can take a bias of its own."""
        return bool(self.node.op_type in ("Conv", "ConvTranspose", "Gemm"))

    def outputs(self, output: Array) -> int:
        """The number of outputs of one channel, which :meth:`sample` chooses from."""
        return output.size // self._channels(output)

    def _channels(self, output: Array) -> int:
        return int(output.shape[1] if self.is_convolution else output.shape[-1])

    @property
    def is_convolution(self) -> bool:
        return bool(self.node.op_type in ("Conv", "ConvTranspose"))

    def sample(self, source: Array, output: Array, chosen: Array) -> tuple[Array, Array]:
        """The columns that chosen outputs are computed of, and those outputs.

        Args:
            source: the layer's input.
            output: the layer's output, of one batch.
            chosen: numbers of outputs, below :meth:`outputs`.

        Returns:
            (chosen, groups * inputs of a group) and (chosen, output channels), float32.
        """
        channels = self._channels(output)
        if not self.is_convolution:
            return source.reshape(-1, source.shape[-1])[chosen], output.reshape(-1, channels)[chosen]
        # Slices and windows may lie along the batch.
        place = np.stack(np.unravel_index(chosen, (output.shape[0], *output.shape[2:])), 1)
        taps = np.stack(np.unravel_index(np.arange(self.taps), self.shape[2:]), 1)
        read = self._read_by_transposed if self.node.op_type == "ConvTranspose" else self._read_by
        inside, index = read(place[:, 1:], taps, source.shape[2:], output.shape[2:])
        flat = np.moveaxis(source, 1, 0).reshape(source.shape[1], -1)
        values = flat[:, index + place[:, :1] * math.prod(source.shape[2:])]
        values[:, ~inside] = 0
        columns = np.ascontiguousarray(values.transpose(1, 0, 2)).reshape(len(chosen), -1)
        # Channels first is how they lie: only the chosen ones are copied.
        return columns, np.ascontiguousarray(np.moveaxis(output, 1, 0).reshape(channels, -1)[:, chosen].T)

    def _read_by(
        self, positions: Array, taps: Array, size: tuple[int, ...], output: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """Where each tap of a convolution reads for each output position: whether inside the input, and its flat index."""
        steps, spread, pads = self._steps(len(size))
        mode = rewrites.attributes(self.node).get("auto_pad", b"NOTSET")
        if mode in (b"SAME_UPPER", b"SAME_LOWER"):
            total = [
                max((o - 1) * s + (k - 1) * d + 1 - n, 0)
                for o, s, k, d, n in zip(output, steps, self.shape[2:], spread, size, strict=True)
            ]
            pads = np.array([n // 2 if mode == b"SAME_UPPER" else n - n // 2 for n in total])
        places = positions[:, None] * steps - pads + taps[None] * spread
        return _inside(places, size), _flat(places, size)

    def _read_by_transposed(
        self, positions: Array, taps: Array, size: tuple[int, ...], output: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """The same for a transposed convolution: most taps of one output read nothing where its stride is more than 1."""
        steps, spread, pads = self._steps(len(size))
        places = positions[:, None] + pads - taps[None] * spread
        read = places // steps
        return (places % steps == 0).all(-1) & _inside(read, size), _flat(read, size)

    def _steps(self, axes: int) -> tuple[Array, Array, Array]:
        """Strides, dilations and pads before each axis."""
        values = rewrites.attributes(self.node)
        steps, spread = values.get("strides") or [1] * axes, values.get("dilations") or [1] * axes
        return np.array(steps), np.array(spread), np.array((values.get("pads") or [0] * axes)[:axes])


def _inside(places: Array, size: tuple[int, ...]) -> Array:
    return np.asarray((places >= 0).all(-1) & (places < np.array(size)).all(-1))


def _flat(places: Array, size: tuple[int, ...]) -> Array:
    clipped = np.clip(places, 0, np.array(size) - 1)
    return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(clipped, -1, 0)), size))
