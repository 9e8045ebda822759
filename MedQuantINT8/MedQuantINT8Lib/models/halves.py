"""Layers that run as two INT8 halves: a quantized input of 16 bits, for layers whose input 8 bits cannot hold.

The form, in plain Q/DQ ONNX (``L`` is a Conv, ConvTranspose, MatMul or Gemm; ``W`` is one DequantizeLinear of one INT8 weight,
which both read; every scale is one value, every zero point an INT8 0)::

    high = DequantizeLinear(QuantizeLinear(x, s), s)
    rest = Sub(x, high)
    low  = DequantizeLinear(QuantizeLinear(rest, s / 254), s / 254)
    y    = Add(L(high, W, bias), L(low, W))

``rest`` lies within half a step of ``s``, which is 127 steps of ``s / 254``: nothing of it is clipped where nothing of ``high``
is. Both products are INT8 convolutions, so that the layer costs about twice; what is lost of ``x`` is 254 times less.
The first ``L`` has the layer's name, the second that name with :data:`LOW` behind it. Layers that read the same ``x`` share both
halves. It is told by its form, not by names: :func:`halved_layers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .onnx_graph import Graph, pruned, remove, require_onnx, with_nodes
from .tensor_names import FreshNames

#: What stands behind a layer's name in the name of its second product.
LOW = "/low_half"
#: Steps of the low half in one step of the high half.
STEPS = 254
_OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Halves:
    """A layer that runs as two halves.

    Attributes:
        high, low: the nodes of its two products; ``high`` has the layer's name and bias.
        total: the Add of both.
        source: the float tensor that is quantized in halves.
        rest: what the high half leaves of it.
    """

    high: Any
    low: Any
    total: Any
    source: str
    rest: str

    def products(self) -> tuple[tuple[Any, str], tuple[Any, str]]:
        """Return the two nodes, each with what it is: "high" or "low"."""
        return (self.high, "high"), (self.low, "low")


def halved_layers(graph: Graph) -> dict[str, Halves]:
    """Return the layers that run as two halves, by name."""
    layers = {}
    for node in graph.nodes:
        if node.op_type == "Add" and (halves := _halves(graph, node)) is not None:
            layers[halves.high.name] = halves
    return layers


def _halves(graph: Graph, total: Any) -> Halves | None:
    high, low = (graph.producer.get(name) for name in total.input)
    if high is None or low is None or high.op_type not in _OPERATORS or low.op_type != high.op_type:
        return None
    if low.input[1] != high.input[1] or len(low.input) > 2:
        return None
    source, rest = _quantized(graph, high.input[0]), _quantized(graph, low.input[0])
    subtraction = graph.producer.get(rest)
    if not source or subtraction is None or subtraction.op_type != "Sub":
        return None
    return Halves(high, low, total, source, rest) if list(subtraction.input) == [source, high.input[0]] else None


def _quantized(graph: Graph, name: str) -> str:
    """Return the float tensor that a DequantizeLinear and the QuantizeLinear before it make ``name`` of; empty if they do not."""
    dequantize = graph.producer.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return ""
    quantize = graph.producer.get(dequantize.input[0])
    return str(quantize.input[0]) if quantize is not None and quantize.op_type == "QuantizeLinear" else ""


def quantized_inputs(model: Any) -> dict[str, str]:
    """Return the float tensor that each layer of quantized input and constant weight takes, by the layer's name; of two halves the high one's."""
    graph = Graph(model)
    second = {halves.low.name for halves in halved_layers(graph).values()}
    return {
        node.name: source
        for node in graph.nodes
        if node.op_type in _OPERATORS
        and node.name not in second
        and graph.is_constant(node.input[1])
        and (source := _quantized(graph, node.input[0]))
    }


def with_halves(model: Any, scales: Mapping[str, float]) -> Any:
    """Return a copy in which the named quantized layers run as two INT8 halves.

    Args:
        scales: for each layer the scale of the high half: the largest magnitude of its input over 127. Layers of one input
            share the largest of theirs. Layers that are halved already, or whose input or weight is not quantized, stay
            as they are.
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, fresh = Graph(copy), FreshNames(copy)
    halved = halved_layers(graph)
    sources = {name: source for name, source in quantized_inputs(copy).items() if name in scales and name not in halved}
    shared = {source: max(scales[n] for n, s in sources.items() if s == source) for source in sources.values()}
    # Transposed convolutions share with each other alone: see as_unsigned.
    dequantized_halves: dict[tuple[str, bool], tuple[str, str]] = {}
    nodes: list[Any] = []
    for node in copy.graph.node:
        if node.name not in sources:
            nodes.append(node)
            continue
        source = sources[node.name]
        key = source, node.op_type == "ConvTranspose"
        if key not in dequantized_halves:
            new_nodes, dequantized_halves[key] = _make_halves(copy, source, shared[source], fresh)
            nodes += new_nodes
        node.input[0] = dequantized_halves[key][0]
        low = onnx.NodeProto()
        low.CopyFrom(node)
        low.name = node.name + LOW
        low.input[0] = dequantized_halves[key][1]
        del low.input[2:]
        total, parts = node.output[0], [fresh(f"{node.name}_high_product"), fresh(f"{node.name}_low_product")]
        node.output[0], low.output[0] = parts
        nodes += [node, low, onnx.helper.make_node("Add", parts, [total], name=f"{node.name}/halves")]
    return with_nodes(copy, nodes)


def _make_halves(model: Any, source: str, scale: float, fresh: FreshNames) -> tuple[list[Any], tuple[str, str]]:
    """Return the nodes that quantize a tensor in two halves, and the names of the two dequantized halves."""
    onnx = require_onnx()
    zero = fresh(f"{source}_halves_zero")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int8), zero))
    nodes: list[Any] = []

    def dequantized(tensor: str, half: str, step: float) -> str:
        names = [fresh(f"{source}_{half}_{what}") for what in ("scale", "quantized", "dequantized")]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(step, np.float32), names[0]))
        for kind, name, output in (("QuantizeLinear", tensor, names[1]), ("DequantizeLinear", names[1], names[2])):
            nodes.append(onnx.helper.make_node(kind, [name, names[0], zero], [output], name=f"{output}_{kind}"))
        return names[2]

    high, rest = dequantized(source, "high", scale), fresh(f"{source}_rest")
    nodes.append(onnx.helper.make_node("Sub", [source, high], [rest], name=f"{rest}_Sub"))
    return nodes, (high, dequantized(rest, "low", scale / STEPS))


def rejoin(model: Any, layers: set[str]) -> None:
    """Make one product again of the named layers that run as halves, in place: their input is the float tensor."""
    graph = Graph(model)
    gone = set()
    for name, halves in halved_layers(graph).items():
        if name in layers:
            halves.high.input[0] = halves.source
            halves.high.output[0] = halves.total.output[0]
            gone |= {id(halves.low), id(halves.total)}
    if gone:
        remove(model.graph.node, [n for n, node in enumerate(graph.nodes) if id(node) in gone])
        pruned(model)
