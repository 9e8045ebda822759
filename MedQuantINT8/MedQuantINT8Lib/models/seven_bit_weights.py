"""INT8 networks whose weights are kept to 7 bits, for processors whose kernels add products in 16 bits and overflow with more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layers import CHANNEL_AXIS, WEIGHTED_OPS, is_dequantized
from .onnx_graph import Graph, pruned, require_onnx
from .tensor_names import FreshNames
from .weight_halves import layers_with_weight_halves, quantized_rest


def with_seven_bit_weights(model: Any) -> Any:
    """Return a copy whose quantized layers have weights from -64 to 64: half as large, of twice the scale.

    An odd weight lies in the middle between two halves. Along an output channel the odd ones go up and down in turn, so
    that their errors do not move the channel's mean. Layers that compute in float keep their weights. Where weights are two halves, the
    second half takes on what the first loses.
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, fresh = Graph(copy), FreshNames(copy)
    halved: dict[tuple[str, int], str] = {}
    rests = {pair.rest.name: pair.layer.name for pair in layers_with_weight_halves(graph).values()}
    lost: dict[str, NDArray[Any]] = {}
    for node in list(copy.graph.node):
        if node.op_type not in WEIGHTED_OPS or not all(is_dequantized(graph, name) for name in node.input[:2]):
            continue
        dequantize = graph.producer[node.input[1]]
        if not graph.is_constant(dequantize.input[0]):
            continue
        weight, scale = graph.array(dequantize.input[0]), graph.array(dequantize.input[1])
        # A matrix product's output channels are its weight's last axis.
        axis = CHANNEL_AXIS.get(node.op_type, weight.ndim - 1)
        if (key := (node.input[1], axis)) in halved:
            # Both products of a layer that runs as two INT8 halves have one weight.
            node.input[1] = halved[key]
            continue
        half, new_scale = np.moveaxis(_halve(np.moveaxis(weight, axis, 0)), 0, axis), scale * np.float32(2)
        steps = scale.astype(np.float64).reshape(
            [-1 if n == axis and scale.size > 1 else 1 for n in range(weight.ndim)]
        )
        if node.name in rests.values():
            lost[node.name] = (weight.astype(np.float64) - 2.0 * half) * steps
        elif rests.get(node.name) in lost:
            rest = weight * steps + lost[rests[node.name]]
            half, new_scale = quantized_rest(rest, axis, per_channel=scale.size > 1, largest=64)
            new_scale = new_scale.reshape(scale.shape)
        names = [fresh(f"{node.name}_weight_7bit"), fresh(f"{node.name}_scale_7bit")]
        for name, array in zip(names, (np.ascontiguousarray(half), new_scale), strict=True):
            copy.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        # The weight may be another layer's as well, and that one's in float.
        own_dequantize = onnx.NodeProto()
        own_dequantize.CopyFrom(dequantize)
        own_dequantize.name, own_dequantize.output[0] = (
            fresh(f"{node.name}_DequantizeLinear_7bit"),
            fresh(f"{node.name}_dequantized_7bit"),
        )
        own_dequantize.input[:2] = names
        node.input[1] = halved[key] = own_dequantize.output[0]
        position = next(n for n, other in enumerate(copy.graph.node) if other.output[0] == dequantize.output[0])
        copy.graph.node.insert(position, own_dequantize)
    return pruned(copy)


def _halve(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return half of each weight (channels first); odd ones are rounded up and down in turn."""
    flat = weight.astype(np.int16).reshape(weight.shape[0], -1)
    odd = flat % 2
    turn = np.where(np.cumsum(odd, axis=1) % 2 == 1, 1, -1)
    return ((flat + odd * turn) // 2).astype(np.int8).reshape(weight.shape)
