"""The few kinds of nodes that a network is read as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...base import UnsupportedNetwork


@dataclass(frozen=True)
class Node:
    """A node: one operation of the network.

    op: "conv", "deconv", "maxpool", "avgpool", "resize", "act", "prelu", "affine", "add", "mul", "offset",
        "norm", "layernorm", "concat", "softmax", "quant", "move", "attention".
    values: what it needs besides its inputs, by name; arrays and numbers.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    values: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """Nodes in order, and shapes (1, C, A0, A1, A2) of their tensors."""

    nodes: list[Node]
    shapes: dict[str, tuple[int, ...]]
    input: str
    output: str


def unsupported(node: Any, why: str = "") -> UnsupportedNetwork:
    """The error for an ONNX node that nothing here can do."""
    what = f"{node.op_type} (node {node.name or node.output[0]})"
    return UnsupportedNetwork(
        f"CUDA INT8 has no kernel for {what}{': ' + why if why else ''}.",
        "Choose another engine with --engine: tensorrt, or openvino.",
    )
