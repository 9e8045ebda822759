"""A network's last layer apart from the network, where that is a convolution of 1 x 1 x 1 from few channels to many classes.

Such a head is a linear map of each voxel's features. So is blending, and a mean over mirrored windows: it makes no difference whether the
scores of each window are blended, or its features, to which the head is then applied once. For 118 classes of 32 channels that is less than a
third of the memory and of its traffic, and the head is computed once a voxel, not once in each window that covers it. The results are
the same but for the rounding of float32, in which sums are taken in another order; where the head is quantized, the features are
the same rounded ones, and its weights what the 8-bit ones stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .onnx_graph import Graph, pruned
from .rewrites import attributes, copied

_FILE = "head.npz"
#: A head is taken off a network that has this many times as many classes as features: below, blending features saves too little.
WIDE = 2
#: Bytes of scores that are computed at a time.
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class PointwiseHead:
    """A convolution of 1 x 1 x 1.

    Attributes:
        weights: float32 (classes, features).
        bias: float32 (classes,).
        name: of its ONNX node.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    name: str = ""

    @property
    def classes(self) -> int:
        """Channels of the scores."""
        return len(self.weights)

    @property
    def features(self) -> int:
        """Channels of what the head is applied to."""
        return self.weights.shape[1]

    def scores(self, features: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Compute the scores of some voxels.

        Args:
            features: float32 (features, voxels), contiguous or rows of a larger array.
            out: float32 (classes, voxels), which is written.
        """
        columns = max(1, _CHUNK_BYTES // (4 * self.classes))
        for begin in range(0, features.shape[1], columns):
            # The bias is added while the scores are still in the cache.
            some = slice(begin, begin + columns)
            product = np.matmul(self.weights, features[:, some], out=out[:, some])
            product += self.bias[:, None]

    def save(self, folder: Path) -> None:
        """Write the head into an engine's folder."""
        np.savez(folder / _FILE, weights=self.weights, bias=self.bias, name=np.array(self.name))

    @classmethod
    def load(cls, folder: Path) -> PointwiseHead | None:
        """Read the head of an engine's folder; None where the engine's network is whole."""
        path = folder / _FILE
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["weights"], arrays["bias"], str(arrays["name"]))


def without_head(model: Any, wide: int = WIDE) -> tuple[Any, PointwiseHead | None]:
    """Return a network that gives the features which its head is applied to, and the head; the network itself and None where it has no such head.

    Args:
        model: an ONNX network with one output, in float or with Q/DQ pairs.
        wide: how many times as many classes as features there have to be.
    """
    graph = Graph(model)
    if len(model.graph.output) != 1:
        return model, None
    node = graph.producer.get(model.graph.output[0].name)
    head = None if node is None else _head_of(graph, node)
    if node is None or head is None or head.classes < wide * head.features:
        return model, None
    copy = copied(model)
    # As the scores are, but for the channels.
    output = copy.graph.output[0]
    output.name = node.input[0]
    if len(output.type.tensor_type.shape.dim) > 1:
        output.type.tensor_type.shape.dim[1].dim_value = head.features
    return pruned(copy), head


def _head_of(graph: Graph, node: Any) -> PointwiseHead | None:
    """The head that a node is; None for any other node, or where its weights are no constants."""
    if node.op_type != "Conv" or node.input[0] in {i.name for i in graph.model.graph.input}:
        return None
    values = attributes(node)
    if any(values.get("pads", ())) or values.get("group", 1) != 1 or set(values.get("strides", (1,))) != {1}:
        return None
    weights = _constant(graph, node.input[1])
    if weights is None or weights.ndim < 3 or set(weights.shape[2:]) != {1}:
        return None
    bias = _constant(graph, node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(len(weights))
    if bias is None:
        return None
    matrix = np.ascontiguousarray(weights.reshape(weights.shape[:2]), np.float32)
    return PointwiseHead(matrix, np.ascontiguousarray(bias, np.float32), node.name)


def _constant(graph: Graph, name: str) -> NDArray[Any] | None:
    """A constant as float32, dequantized where it is quantized for each channel or as a whole; None for anything else."""
    array = graph.array(name)
    if array is not None:
        return np.asarray(array, np.float32) if array.dtype == np.float32 else None
    node = graph.producer.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    values = attributes(node)
    integers, scale, *zero = (graph.array(i) for i in node.input if i)
    if integers is None or scale is None or values.get("block_size", 0) or (zero and zero[0] is None):
        return None
    shape = [1] * integers.ndim
    if np.size(scale) > 1:
        shape[values.get("axis", 1)] = -1
    offset = np.reshape(zero[0].astype(np.int32), shape) if zero else 0
    return ((integers.astype(np.int32) - offset) * np.reshape(scale, shape)).astype(np.float32)
