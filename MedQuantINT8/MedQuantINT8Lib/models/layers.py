"""The layers that carry the work of a network: convolutions and matrix products, and whether they are quantized."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .halves import halved_layers
from .onnx_graph import Graph
from .weight_halves import layers_with_weight_halves

WEIGHTED_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
#: Axis of the output channel in the weight of each convolution.
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product.

    Attributes:
        macs: multiply-accumulates for one patch.
        quantized: activations and weights both pass through Q/DQ.
        reason: why it is not quantized; empty if it is.
        half: "high" or "low" for the two products of a layer that runs as two INT8 halves (:mod:`.halves`, :mod:`.weight_halves`); each
            is a layer with work of its own, and the high one has the layer's name.
    """

    name: str
    op: str
    macs: int
    quantized: bool
    reason: str = ""
    half: str = ""


def weighted_layers(model: Any, reasons: dict[str, str] | None = None) -> list[Layer]:
    """Return all convolutions and matrix products with constant weights or two activations, in graph order.

    ``model`` must have fixed shapes (:func:`fixed_shape`), or the multiply-accumulates are 0.
    """
    graph = Graph(model)
    halves = {half.name: kind for pair in halved_layers(graph).values() for half, kind in pair.products()}
    for pair in layers_with_weight_halves(graph).values():
        halves |= {pair.layer.name: "high", pair.rest.name: "low"}
    layers = []
    for node in graph.nodes:
        if node.op_type not in WEIGHTED_OPS:
            continue
        quantized = all(is_dequantized(graph, name) for name in node.input[:2])
        reason = "" if quantized else (reasons or {}).get(node.name, "no Q/DQ pair was placed before it")
        layers.append(Layer(node.name, node.op_type, _macs(graph, node), quantized, reason, halves.get(node.name, "")))
    return layers


def work_shares(layers: Iterable[Layer]) -> dict[str, float]:
    """Return the shares of multiply-accumulates of the network as it runs: in plain INT8, in INT8 halves, and in float."""
    work = {"plain": 0, "halves": 0, "float": 0}
    for layer in layers:
        work["float" if not layer.quantized else "halves" if layer.half else "plain"] += layer.macs
    return {kind: macs / max(1, sum(work.values())) for kind, macs in work.items()}


def int8_share(layers: Iterable[Layer]) -> float:
    """Return the share of multiply-accumulates in quantized layers, 0 to 1."""
    layers = list(layers)
    return sum(layer.macs for layer in layers if layer.quantized) / max(1, sum(layer.macs for layer in layers))


def is_dequantized(graph: Graph, name: str) -> bool:
    """Return whether a DequantizeLinear gives the tensor."""
    node = graph.producer.get(name)
    return node is not None and node.op_type == "DequantizeLinear"


def _macs(graph: Graph, node: Any) -> int:
    weight = graph.shapes.get(node.input[1]) or _dequantized_shape(graph, node.input[1])
    source, target = graph.shapes.get(node.input[0], []), graph.shapes.get(node.output[0], [])
    if not source:
        source = _dequantized_shape(graph, node.input[0])
    if not weight or not source or not target:
        return 0
    if node.op_type == "Conv":
        return int(np.prod(weight)) * int(np.prod(target[2:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(weight)) * int(np.prod(source[2:]))
    return int(np.prod(target)) * int(source[-1])


def _dequantized_shape(graph: Graph, name: str) -> list[int]:
    node = graph.producer.get(name)
    while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        if node.input[0] in graph.shapes:
            return graph.shapes[node.input[0]]
        node = graph.producer.get(node.input[0])
    return []
