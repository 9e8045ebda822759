"""Convolutions of a concatenation whose parts have very unlike ranges become one convolution for each part.

One scale for the whole concatenation leaves the smaller part a few steps, or none: where a U-Net's decoder adds up to 280,000 and the
skip connection beside it to 7, INT8 sees nothing of the latter. A convolution of a concatenation is the sum of convolutions of its
parts; so each part gets scales of its own, for its values and its weights, at no more multiply-accumulates. FP32 computes
the same, but for the order of a sum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models import onnx_graph as graph
from ..models import rewrites
from ..models.onnx_graph import Graph
from ..models.tensor_names import FreshNames
from .fp32_network import Fp32Network

Patch = NDArray[np.float32]
#: What stands behind a layer's name, with a number, in the names of the convolutions of its second part and so on.
PART = "/part"
#: Ranges of two parts are unlike from this ratio on: four of eight bits are lost to the smaller one.
UNLIKE = 16.0


@dataclass(frozen=True)
class SplitNetwork:
    """A network with split convolutions, and the layers that were split."""

    model: Any
    layers: list[str]


def split_unlike(fp32: Fp32Network, patches: Sequence[Patch], whole: Collection[str] = ()) -> SplitNetwork | None:
    """Split the convolutions of concatenations whose parts' ranges on the patches are unlike; None where there are none.

    Args:
        patches: (C, A0, A1, A2) each, of the network's shape.
        whole: layers that stay as they are.
    """
    network = Graph(fp32.model)
    concatenations = {name for node in network.nodes if node.op_type == "Concat" for name in node.output}
    if not any(node.op_type == "Conv" and node.input[0] in concatenations for node in network.nodes):
        return None
    model = with_split_concatenations(fp32.model, fp32.channel_maxima(patches), fp32.shape, whole)
    if model is None:
        return None
    names = {node.name for node in model.graph.node}
    return SplitNetwork(model, [node.name for node in network.nodes if f"{node.name}{PART}2" in names])


def with_split_concatenations(
    fp32: Any, maxima: Mapping[str, NDArray[Any]], shape: tuple[int, int, int], whole: Collection[str] = ()
) -> Any:
    """Return a copy of the network with a convolution for each part of a concatenation of unlike parts; None where there is none.

    The first convolution keeps the layer's name and bias; the others have "/part2" and so on behind it.

    Args:
        maxima: the largest magnitude of each channel of the convolutions' inputs (:meth:`.fp32_network.Fp32Network.channel_maxima`).
        shape: of a patch.
        whole: layers that stay as they are.
    """
    copy = rewrites.copied(fp32)
    fixed = Graph(graph.fixed_shape(copy, shape))
    widths = {name: sizes[1] for name, sizes in fixed.shapes.items() if len(sizes) > 2}
    network, fresh = Graph(copy), FreshNames(copy)
    nodes: list[Any] = []
    for node in copy.graph.node:
        groups = [] if node.name in whole else _groups(network, node, maxima, widths)
        nodes += _split(copy, network, node, groups, fresh) if len(groups) > 1 else [node]
    if len(nodes) == len(copy.graph.node):
        return None
    return graph.with_nodes(copy, nodes)


def _groups(
    network: Graph, node: Any, maxima: Mapping[str, NDArray[Any]], widths: Mapping[str, int]
) -> list[list[tuple[str, int, int]]]:
    """The parts of the concatenation that a convolution reads, those of like ranges together: names, and first and last channels."""
    concatenation = network.producer.get(node.input[0]) if node.op_type == "Conv" else None
    if (
        concatenation is None
        or concatenation.op_type != "Concat"
        or rewrites.attributes(concatenation).get("axis") != 1
        or rewrites.attributes(node).get("group", 1) != 1
        or node.input[1] not in network.initializers
        or any(not widths.get(name) for name in concatenation.input)
        or node.input[0] not in maxima
    ):
        return []
    channels = maxima[node.input[0]]
    if len(channels) != sum(widths[name] for name in concatenation.input):
        return []
    parts, start = [], 0
    for name in concatenation.input:
        end = start + widths[name]
        parts.append(((name, start, end), float(channels[start:end].max())))
        start = end
    groups: list[list[tuple[str, int, int]]] = []
    largest = 0.0
    # From the largest range down; a part that is 0 all over fits anywhere.
    for part, maximum in sorted(parts, key=lambda item: -item[1]):
        if groups and (maximum == 0 or largest / maximum < UNLIKE):
            groups[-1].append(part)
        else:
            groups.append([part])
            largest = maximum
    return [sorted(group, key=lambda part: part[1]) for group in groups]


def _split(
    model: Any, network: Graph, node: Any, groups: Sequence[Sequence[tuple[str, int, int]]], fresh: FreshNames
) -> list[Any]:
    """The convolutions of the groups and their sum."""
    onnx = graph.require_onnx()
    weight = network.array(node.input[1])
    nodes: list[Any] = []
    total = ""
    for number, group in enumerate(groups, start=1):
        suffix = "" if number == 1 else f"{PART}{number}"
        if len(group) == 1:
            source = group[0][0]
        else:
            source = fresh(f"{node.name}_part{number}")
            nodes.append(
                onnx.helper.make_node("Concat", [part[0] for part in group], [source], name=f"{source}_Concat", axis=1)
            )
        name = fresh(f"{node.name}_part{number}_weight")
        columns = np.concatenate([weight[:, start:end] for _, start, end in group], axis=1)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(columns), name))
        part = graph.copied_node(node)
        part.name = node.name + suffix
        part.input[0], part.input[1] = source, name
        if number > 1:
            del part.input[2:]
        part.output[0] = fresh(f"{node.name}_part{number}_product")
        nodes.append(part)
        if number > 1:
            sum_name = node.output[0] if number == len(groups) else fresh(f"{node.name}_sum{number}")
            nodes.append(
                onnx.helper.make_node("Add", [total, part.output[0]], [sum_name], name=f"{node.name}/sum{number}")
            )
            total = sum_name
        else:
            total = part.output[0]
    return nodes
