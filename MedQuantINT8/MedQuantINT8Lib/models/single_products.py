"""An INT8 network as it is simulated: layers whose input is two INT8 halves as one product.

A layer in two halves (:mod:`.halves`) is two products, since an engine's are of 8 bits. In floating point the halves add up before one product
as well as behind two: the same numbers but for the order of a sum, in half of the time. The product of the rest of weights
(:mod:`.weight_halves`) stays, since it reads one of the halves alone.
"""

from __future__ import annotations

from typing import Any

from .halves import Halves, halved_layers
from .onnx_graph import Graph, require_onnx, with_nodes
from .tensor_names import FreshNames


def with_single_products(model: Any) -> Any:
    """Return a copy in which layers whose input is two halves read their sum; the model itself where there are none."""
    if not halved_layers(Graph(model)):
        return model
    copy = require_onnx().ModelProto()
    copy.CopyFrom(model)
    graph, fresh = Graph(copy), FreshNames(copy)
    layers = halved_layers(graph)
    dropped = {id(node) for halves in layers.values() for node in (halves.low, halves.total)}
    sums: dict[tuple[str, str], str] = {}
    nodes: list[Any] = []
    for node in graph.nodes:
        if id(node) in dropped:
            continue
        halves = layers.get(node.name)
        if halves is not None and node is halves.high:
            nodes += _sum_of_halves(halves, sums, fresh)
            node.input[0] = sums[node.input[0], halves.low.input[0]]
            node.output[0] = halves.total.output[0]
        nodes.append(node)
    return with_nodes(copy, nodes)


def _sum_of_halves(halves: Halves, sums: dict[tuple[str, str], str], fresh: FreshNames) -> list[Any]:
    """The node that adds both halves of a layer's input up, where another layer has not done so already."""
    pair = halves.high.input[0], halves.low.input[0]
    if pair in sums:
        return []
    sums[pair] = fresh(f"{halves.source}_sum_of_halves")
    return [require_onnx().helper.make_node("Add", list(pair), [sums[pair]], name=f"{sums[pair]}_Add")]
