"""The few kinds of nodes that a network is read as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Node:
    """One thing to do.

    op: "conv", "deconv", "maxpool", "avgpool", "resize", "act", "prelu", "affine", "add", "mul", "norm", "concat", "softmax", "quant".
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
