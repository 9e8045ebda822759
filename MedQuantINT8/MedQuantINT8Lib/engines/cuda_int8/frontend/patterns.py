"""What exporters write in several operators and is one thing to do."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....models import onnx_graph as graph
from ....models import rewrites
from .nodes import Node


def word(attributes: dict[str, Any], name: str, default: str) -> str:
    """An attribute that is text, which ONNX keeps as bytes."""
    value = attributes.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def epsilon_of(node: Any) -> float:
    return float(rewrites.attributes(node).get("epsilon", 1e-5))


def _constant(look: graph.Graph, node: Any) -> tuple[str, float] | None:
    """The other input, and the number, of a node of a tensor and one number."""
    for value, constant in ((0, 1), (1, 0)):
        array = look.array(node.input[constant]) if len(node.input) == 2 else None
        if array is not None and np.size(array) == 1:
            return node.input[value], float(np.asarray(array).reshape(()))
    return None


def _only_reader(look: graph.Graph, name: str) -> Any:
    readers = look.readers.get(name, [])
    return readers[0] if len(readers) == 1 else None


#: The last output of a pattern, what it is, and the tensors between that are no more.
Pattern = tuple[str, Node, set[str]]


def _gelu(look: graph.Graph, node: Any) -> Pattern | None:
    """x / sqrt(2), Erf, + 1, * x and * 0.5 in any order, as torch writes torch.nn.GELU."""
    if node.op_type != "Erf":
        return None
    scaled = look.producer.get(node.input[0])
    if scaled is None or scaled.op_type not in ("Div", "Mul") or not (first := _constant(look, scaled)):
        return None
    x = first[0]
    plus = _only_reader(look, node.output[0])
    if plus is None or plus.op_type != "Add" or not (one := _constant(look, plus)) or one[1] != 1.0:
        return None
    inner, last, seen = {scaled.output[0], node.output[0], plus.output[0]}, plus, {"half": False, "x": False}
    for _ in range(2):
        following = _only_reader(look, last.output[0])
        if following is None or following.op_type != "Mul":
            return None
        half, others = _constant(look, following), [i for i in following.input if i != last.output[0]]
        if half and half[1] == 0.5:
            seen["half"] = True
        elif others == [x]:
            seen["x"] = True
        elif (
            (before := look.producer.get(others[0])) is not None
            and before.op_type == "Mul"
            and _constant(look, before) == (x, 0.5)
        ):
            seen, inner = {"half": True, "x": True}, inner | {before.output[0]}
        else:
            return None
        last = following
        if all(seen.values()):
            names = (scaled.name, node.name, plus.name, last.name)
            act = Node("act", node.name, (x,), last.output[0], {"function": "gelu", "params": ()}, names)
            return last.output[0], act, inner | ({following.output[0]} - {last.output[0]}) | _between(look, plus, last)
    return None


def _between(look: graph.Graph, first: Any, last: Any) -> set[str]:
    inner, at = set(), first
    while at is not last:
        inner.add(at.output[0])
        at = look.readers[at.output[0]][0]
    return inner


def _silu(look: graph.Graph, node: Any) -> Pattern | None:
    """x * Sigmoid(x)."""
    if node.op_type != "Sigmoid":
        return None
    product = _only_reader(look, node.output[0])
    if product is None or product.op_type != "Mul" or node.input[0] not in product.input:
        return None
    act = Node(
        "act",
        node.name,
        (node.input[0],),
        product.output[0],
        {"function": "silu", "params": ()},
        (node.name, product.name),
    )
    return product.output[0], act, {node.output[0]}


def _group_norm(look: graph.Graph, node: Any) -> Pattern | None:
    """Reshape to (N, groups, -1), InstanceNormalization, Reshape back, as torch writes GroupNorm; scale and shift follow as they are."""
    if node.op_type != "InstanceNormalization":
        return None
    before, after = look.producer.get(node.input[0]), _only_reader(look, node.output[0])
    if before is None or after is None or before.op_type != "Reshape" or after.op_type != "Reshape":
        return None
    shape = look.shapes.get(before.input[0], [])
    gamma, beta = (np.asarray(look.array(n), np.float32) for n in node.input[1:3])
    if len(shape) != 5 or list(look.shapes.get(after.output[0], shape)) != list(shape) or shape[1] % len(gamma):
        return None
    each = shape[1] // len(gamma)
    values = {
        "groups": len(gamma),
        "gamma": np.repeat(gamma, each),
        "beta": np.repeat(beta, each),
        "epsilon": epsilon_of(node),
    }
    norm = Node("norm", node.name, (before.input[0],), after.output[0], values, (node.name,))
    return after.output[0], norm, {before.output[0], node.output[0]}


def reduced_axes(look: graph.Graph, node: Any) -> list[int] | None:
    """The axes that a ReduceMean is over, where it keeps them; they are an attribute up to opset 17, an input from then on."""
    attributes = rewrites.attributes(node)
    axes = look.array(node.input[1]) if len(node.input) > 1 and node.input[1] else attributes.get("axes")
    rank = len(look.shapes.get(node.input[0], []))
    return (
        sorted(int(a) % rank for a in np.ravel(axes))
        if axes is not None and rank and attributes.get("keepdims", 1)
        else None
    )


def _over_last_axis(look: graph.Graph, node: Any) -> bool:
    return node.op_type == "ReduceMean" and reduced_axes(look, node) == [len(look.shapes[node.input[0]]) - 1]


def _layer_norm(look: graph.Graph, node: Any) -> Pattern | None:
    """(x - mean) / Sqrt(mean((x - mean)^2) + epsilon) over the last axis, as torch writes LayerNorm up to opset 16; scale and shift follow as they are."""
    if (
        node.op_type != "Sqrt"
        or (plus := look.producer.get(node.input[0])) is None
        or plus.op_type != "Add"
        or not (epsilon := _constant(look, plus))
    ):
        return None
    variance, last = look.producer.get(epsilon[0]), _only_reader(look, node.output[0])
    if (
        variance is None
        or not _over_last_axis(look, variance)
        or last is None
        or last.op_type != "Div"
        or last.input[1] != node.output[0]
    ):
        return None
    square, centered = look.producer.get(variance.input[0]), look.producer.get(last.input[0])
    if square is None or centered is None or centered.op_type != "Sub" or square.input[0] != centered.output[0]:
        return None
    power = look.array(square.input[1]) if square.op_type == "Pow" else None
    if not (square.op_type == "Mul" and square.input[1] == centered.output[0]) and not (
        power is not None and np.all(power == 2)
    ):
        return None
    x, mean = centered.input[0], look.producer.get(centered.input[1])
    if mean is None or not _over_last_axis(look, mean) or mean.input[0] != x:
        return None
    nodes = (mean, centered, square, variance, plus, node, last)
    norm = Node("layernorm", last.name, (x,), last.output[0], {"epsilon": epsilon[1]}, tuple(n.name for n in nodes))
    return last.output[0], norm, {n.output[0] for n in nodes[:-1]}


PATTERNS = (_gelu, _silu, _group_norm, _layer_norm)
