"""Layers whose weights are two INT8 halves: 16 bits, for layers that 8 bits of weight cannot hold.

The form, in plain Q/DQ ONNX, behind a layer ``L`` of either kind, plain or with its input in two halves (:mod:`.halves`)::

    y = Add(L, R)    R = Conv(x, rest)    (or ConvTranspose, MatMul, Gemm, as L; without a bias)

``x`` is the quantized input that L reads as well (the high half of it, where there are two), and ``rest`` is what rounding the weights of L
to INT8 leaves of them, stored as INT8 with a scale of its own for each output channel. R is one INT8 product more, of the work of L. What is
lost of the weights is some 250 times less; what is lost of the input in R is lost of what is small already. R has the name of L with
:data:`REST` behind it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .halves import halved_layers
from .onnx_graph import Graph, copied_node, pruned, remove, require_onnx, with_nodes
from .tensor_names import FreshNames

#: What stands behind a layer's name in the name of the product of the rest of its weights.
REST = "/weight_rest"
_LARGEST = 127


@dataclass(frozen=True)
class WeightHalves:
    """A layer whose weights are two halves.

    Attributes:
        layer: its node; of an input in two halves that of the high one.
        rest: the node of the rest's product.
        total: the Add of both.
        product: the tensor that the layer gives without the rest.
    """

    layer: Any
    rest: Any
    total: Any
    product: str


def layers_with_weight_halves(graph: Graph) -> dict[str, WeightHalves]:
    """Return the layers whose weights are two halves, by name."""
    layers = {}
    for node in graph.nodes:
        if node.op_type != "Add":
            continue
        layer, rest = (graph.producer.get(name) for name in node.input)
        if layer is None or rest is None or not rest.name.endswith(REST):
            continue
        product = layer.output[0]
        if layer.op_type == "Add":
            layer = graph.producer.get(layer.input[0])
        if layer is not None and layer.name + REST == rest.name and layer.op_type == rest.op_type:
            layers[layer.name] = WeightHalves(layer, rest, node, product)
    return layers


def with_weight_halves(model: Any, fp32: Any, layers: Collection[str]) -> Any:
    """Return a copy of an INT8 network in which the named layers' weights are two INT8 halves.

    Args:
        fp32: the network before quantization, with the exact weights and biases. Layers that it does not have, and those whose input or
            weight is not quantized, or is quantized by other axes than the output channels, stay as they are.
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, exact, fresh = Graph(copy), Graph(fp32), FreshNames(copy)
    originals = {node.name: node for node in exact.nodes if node.name}
    done, halved = layers_with_weight_halves(graph), halved_layers(graph)
    nodes: list[Any] = []
    # By the output behind which it stands: for a layer in two halves the sum of these.
    pending: dict[str, Any] = {}
    for node in copy.graph.node:
        rest = None
        if node.name in layers and node.name in originals and node.name not in done:
            rest = _rest(copy, graph, node, exact.array(originals[node.name].input[1]), fresh)
        if rest is not None:
            _exact_bias(copy, node, exact, originals[node.name], fresh)
            total = halved[node.name].total if node.name in halved else node
            pending[total.output[0]] = rest
            nodes += rest[:-1]
        end = pending.get(node.output[0]) if node.output else None
        nodes.append(node)
        if end is not None:
            output, product = node.output[0], fresh(f"{end[-1].name}_product")
            node.output[0] = product
            nodes += [
                end[-1],
                onnx.helper.make_node("Add", [product, end[-1].output[0]], [output], name=f"{end[-1].name}/sum"),
            ]
    return with_nodes(copy, nodes)


def _rest(
    model: Any, graph: Graph, node: Any, weight: NDArray[np.float32] | None, fresh: FreshNames
) -> list[Any] | None:
    """Return the DequantizeLinear of what rounding leaves of a layer's weights, and its product; None for a layer of another form."""
    onnx = require_onnx()
    source, dequantize = graph.producer.get(node.input[0]), graph.producer.get(node.input[1])
    if source is None or dequantize is None or weight is None:
        return None
    if source.op_type != "DequantizeLinear" or dequantize.op_type != "DequantizeLinear":
        return None
    integers, scale = graph.array(dequantize.input[0]), graph.array(dequantize.input[1])
    if integers is None or scale is None or integers.shape != weight.shape:
        return None
    axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
    shape = [1] * weight.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    stored = integers.astype(np.float64) * scale.astype(np.float64).reshape(shape)
    rest, rest_scale = quantized_rest(weight.astype(np.float64) - stored, axis, per_channel=scale.size > 1)
    names = [fresh(f"{node.name}_rest_{part}") for part in ("weight", "scale", "zero", "dequantized")]
    arrays = (rest, rest_scale.reshape(scale.shape), np.zeros(scale.shape, np.int8))
    for name, array in zip(names, arrays, strict=False):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    dequantized = copied_node(dequantize)
    dequantized.name, dequantized.output[0] = f"{node.name}_rest_DequantizeLinear", names[3]
    dequantized.input[:] = names[:3]
    product = copied_node(node)
    product.name, product.input[1], product.output[0] = node.name + REST, names[3], fresh(f"{node.name}_rest_product")
    del product.input[2:]
    return [dequantized, product]


def quantized_rest(
    rest: NDArray[np.float64], axis: int, *, per_channel: bool, largest: int = _LARGEST
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return a rest of weights as INT8 of at most this size, and its scales: one for each channel along the axis, or one."""
    others = tuple(a for a in range(rest.ndim) if a != axis) if per_channel else None
    magnitude = np.abs(rest).max(axis=others, keepdims=True)
    scale = np.where(magnitude > 0, magnitude / largest, 1).astype(np.float32)
    return np.clip(np.rint(rest / scale), -largest, largest).astype(np.int8), scale.reshape(-1)


def _exact_bias(model: Any, node: Any, exact: Graph, original: Any, fresh: FreshNames) -> None:
    """Give a layer FP32's bias: one that makes up for the rounding of weights would be an error beside exact ones."""
    bias = exact.array(original.input[2]) if len(original.input) > 2 and original.input[2] else None
    del node.input[2:]
    if bias is not None:
        node.input.append(fresh(f"{node.name}_bias_exact"))
        model.graph.initializer.append(require_onnx().numpy_helper.from_array(bias, node.input[2]))


def drop_rests(model: Any, layers: Collection[str]) -> None:
    """Take the rests of the named layers' weights away, in place."""
    graph = Graph(model)
    gone = set()
    for name, halves in layers_with_weight_halves(graph).items():
        if name in layers:
            producer = graph.producer[halves.product]
            producer.output[0] = halves.total.output[0]
            gone |= {id(halves.rest), id(halves.total)}
    if gone:
        remove(model.graph.node, [n for n, node in enumerate(graph.nodes) if id(node) in gone])
        pruned(model)
