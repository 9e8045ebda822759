"""Activations whose least value is known take all 256 steps of UINT8, by a zero point of their own.

Symmetric INT8 spends half of its steps on negative values, which a ReLU does not have, and an ELU has down to -1 only. An engine that
has zero points takes the range from the least value that the graph allows up to the largest one that symmetric INT8 holds: nothing more
is clipped, and the steps are up to half as wide. Nothing has to be calibrated for it, and the package stays symmetric for engines
without zero points.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .halves import halved_layers
from .onnx_graph import Graph, require_onnx
from .rewrites import attributes
from .tensor_names import FreshNames

#: Steps of UINT8, and the largest magnitude of symmetric INT8.
_STEPS, _LARGEST = 255, 127
#: The least values of what operators give.
_BOUNDED = {
    "Relu": 0.0,
    "Sigmoid": 0.0,
    "HardSigmoid": 0.0,
    "Softmax": 0.0,
    "Softplus": 0.0,
    "Exp": 0.0,
    "Abs": 0.0,
    "Sqrt": 0.0,
    "Tanh": -1.0,
    "HardSwish": -0.375,
}
#: Operators that only move the values of their first input.
_MOVES = frozenset(
    [
        "Identity",
        "Dropout",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Split",
        "DepthToSpace",
        "SpaceToDepth",
        "Expand",
        "Tile",
        "MaxPool",
        "GlobalMaxPool",
    ]
)
#: Operators that give means of their first input, or of it and of zeros around it.
_MEANS = frozenset(("AveragePool", "GlobalAveragePool"))


def least_value(graph: Graph, name: str, known: dict[str, float | None]) -> float | None:
    """Return a bound below which no value of a float tensor lies, as the graph alone shows it; None where it shows none.

    Args:
        known: the bounds of tensors that were asked for before; this one's is added.
    """
    if name not in known:
        known[name] = _of_node(graph, graph.producer.get(name), known)
    return known[name]


def _of_node(graph: Graph, node: Any, known: dict[str, float | None]) -> float | None:
    if node is None:
        return None
    kind, settings = node.op_type, attributes(node)
    if kind in _BOUNDED:
        return _BOUNDED[kind]
    if kind in ("Elu", "Celu"):
        return -abs(float(settings.get("alpha", 1.0)))
    if kind == "Mul":
        return _of_product(graph, node, known)
    if kind == "Concat":
        parts = [least_value(graph, name, known) for name in node.input]
        return None if None in parts else min(part for part in parts if part is not None)
    if kind == "Resize":
        interpolates = settings.get("mode", b"nearest") in (b"nearest", b"linear")
        source = least_value(graph, node.input[0], known) if interpolates else None
        return None if source is None else min(0.0, source)
    if kind in _MOVES or kind in _MEANS:
        source = least_value(graph, node.input[0], known)
        return source if source is None or kind in _MOVES else min(0.0, source)
    return None


def _of_product(graph: Graph, node: Any, known: dict[str, float | None]) -> float | None:
    """The bound of a tensor times a constant above 0, such as a scale for each channel."""
    constants = [name for name in node.input if graph.is_constant(name)]
    if len(constants) != 1 or (factors := graph.array(constants[0])) is None or not (factors > 0).all():
        return None
    source = least_value(graph, next(name for name in node.input if name != constants[0]), known)
    return None if source is None else source * float(factors.max() if source < 0 else factors.min())


def with_one_sided_ranges(model: Any) -> Any:
    """Return a copy in which activations that are bounded below are UINT8 of a zero point of their own; the model itself where there are none.

    The others stay as they are, and so do those of layers that run as two INT8 halves and those that transposed convolutions read
    (OpenVINO has INT8 kernels for these without a zero point alone).
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, fresh = Graph(copy), FreshNames(copy)
    in_halves = {name for halves in halved_layers(graph).values() for name in (halves.source, halves.rest)}
    known: dict[str, float | None] = {}
    names: dict[tuple[str, str], list[str]] = {}
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or graph.is_constant(node.input[0]) or node.input[0] in in_halves:
            continue
        readers = graph.readers.get(node.output[0], [])
        if any(n.op_type == "ConvTranspose" for r in readers for n in graph.readers.get(r.output[0], [])):
            continue
        scale, zero = (graph.array(name) for name in node.input[1:3])
        least = least_value(graph, node.input[0], known)
        if least is None or zero.dtype != np.int8 or zero.any() or scale.size != 1:
            continue
        below, above = max(0.0, -least), _LARGEST * float(scale.reshape(-1)[0])
        if below >= above:
            continue
        key = node.input[0], node.input[1]
        if key not in names:
            step = (below + above) / _STEPS
            names[key] = [fresh(f"{node.input[0]}_one_sided_{part}") for part in ("scale", "zero")]
            values = np.full(scale.shape, step, scale.dtype), np.full(zero.shape, round(below / step), np.uint8)
            copy.graph.initializer.extend(
                onnx.numpy_helper.from_array(v, n) for v, n in zip(values, names[key], strict=True)
            )
        for quantized in (node, *readers):
            quantized.input[1:3] = names[key]
    if not names:
        return model
    del copy.graph.value_info[:]
    return copy
