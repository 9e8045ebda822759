"""An ONNX network as few kinds of nodes: constants folded, Q/DQ pairs as one node, patterns of exporters under the name of what they do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import graph, rewrites
from ..base import UnsupportedNetwork
from .folding import folded
from .nodes import Network, Node
from .patterns import PATTERNS, epsilon_of

#: Operators of one tensor, element by element, and the attributes that they take (with ONNX's defaults).
_ACTIVATIONS: dict[str, tuple[tuple[str, float], ...]] = {
    "Relu": (),
    "LeakyRelu": (("alpha", 0.01),),
    "Elu": (("alpha", 1.0),),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": (),
    "Mish": (),
    "Gelu": (),
}
#: Operators that give on what they get.
_PASSING = ("Identity", "Dropout", "Cast")


def unsupported(node: Any, why: str = "") -> UnsupportedNetwork:
    what = f"{node.op_type} (node {node.name or node.output[0]})"
    return UnsupportedNetwork(f"CUDA INT8 has no kernel for {what}{': ' + why if why else ''}.", "Choose another engine with --engine: tensorrt, or openvino.")


def read_network(model: Any) -> Network:
    """Read an ONNX network of fixed shape, batch 1.

    Raises:
        UnsupportedNetwork: an operator without a kernel; names it.
    """
    model = graph.pruned(folded(model))
    found = _Reader(model)
    nodes = _quantized_first([node for node in map(found.read, found.graph.nodes) if node is not None])
    output = found.tensor(found.output)
    return Network(_used(nodes, output), found.shapes, found.input, output)


class _Reader:
    def __init__(self, model: Any) -> None:
        self.graph = graph.Graph(model)
        self.shapes = {name: tuple(shape) for name, shape in self.graph.shapes.items()}
        self.input = next(i.name for i in model.graph.input if i.name not in self.graph.initializers)
        self.output = model.graph.output[0].name
        #: Tensors that are another one under a new name.
        self._alias: dict[str, str] = {}
        self._done: set[str] = set()
        self._quantized: dict[tuple[str, float], str] = {}
        #: What is read at the last node of a pattern, by that node's output.
        self._patterns: dict[str, Node] = {}
        for node in self.graph.nodes:
            self._match(node)

    def _match(self, node: Any) -> None:
        """Note the nodes that are part of a longer pattern, which is read at its last node."""
        for pattern in PATTERNS:
            if matched := pattern(self.graph, node):
                self._patterns[matched[0]] = matched[1]
                self._done |= matched[2]

    def tensor(self, name: str) -> str:
        while name in self._alias:
            name = self._alias[name]
        return name

    def array(self, name: str) -> NDArray[Any] | None:
        value = self.graph.array(name)
        return None if value is None else np.asarray(value)

    def read(self, node: Any) -> Node | None:
        """The node, or None for one that does nothing by itself."""
        if node.output[0] in self._patterns:
            made = self._patterns[node.output[0]]
            return replace(made, inputs=tuple(map(self.tensor, made.inputs)))
        if node.output[0] in self._done or self.graph.is_constant(node.output[0]):
            return None
        if node.op_type in _PASSING:
            self._alias[node.output[0]] = node.input[0]
            return None
        reader = getattr(self, f"_{node.op_type.lower()}", None)
        if node.op_type in _ACTIVATIONS:
            reader = self._activation
        if reader is None:
            raise unsupported(node)
        if len(self.shapes.get(node.output[0], ())) not in (0, 5):
            raise unsupported(node, "it makes another tensor than one of patches")
        read: Node | None = reader(node)
        return read

    def _node(self, node: Any, op: str, inputs: tuple[str, ...], **values: Any) -> Node:
        return Node(op, node.name, tuple(map(self.tensor, inputs)), node.output[0], values, (node.name,))

    def _quantizelinear(self, node: Any) -> None:
        """Read at its DequantizeLinear."""

    def _dequantizelinear(self, node: Any) -> Node | None:
        quantize = self.graph.producer[node.input[0]]
        if quantize.op_type != "QuantizeLinear":
            raise unsupported(node, "it does not follow a QuantizeLinear")
        scale = float(np.asarray(self.array(node.input[1])).reshape(()))
        source = self.tensor(quantize.input[0])
        known = self._quantized.setdefault((source, scale), node.output[0])
        if known != node.output[0]:
            self._alias[node.output[0]] = known
            return None
        return self._node(node, "quant", (quantize.input[0],), scale=scale)

    def _weight(self, node: Any) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """A layer's weight, and the scale of each output channel where it is stored as INT8."""
        name = node.input[1]
        if (array := self.array(name)) is not None:
            return array, None
        producer = self.graph.producer.get(name)
        if producer is None or producer.op_type != "DequantizeLinear" or (array := self.array(producer.input[0])) is None:
            raise unsupported(node, "its weight is no constant")
        return array, np.asarray(self.array(producer.input[1]), np.float32).reshape(-1)

    def _conv(self, node: Any) -> Node:
        return self._convolution(node, "conv")

    def _convtranspose(self, node: Any) -> Node:
        return self._convolution(node, "deconv")

    def _convolution(self, node: Any, op: str) -> Node:
        given = rewrites.attributes(node)
        weight, scales = self._weight(node)
        if weight.ndim != 5:
            raise unsupported(node, "it is not in three dimensions")
        group = int(given.get("group", 1))
        if op == "deconv":
            weight = np.concatenate([np.swapaxes(part, 0, 1) for part in np.split(weight, group)])
        channels = self.shapes[node.input[0]][1] if node.input[0] in self.shapes else weight.shape[1] * group
        kernel = weight.shape[2:]
        values = {
            "weight": _dense(weight, group, channels),
            "scales": None if scales is None else np.broadcast_to(scales, (weight.shape[0],)),
            "bias": self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(weight.shape[0], np.float32),
            **self._window(node, given, kernel),
        }
        return self._node(node, op, (node.input[0],), **values)

    def _window(self, node: Any, given: dict[str, Any], kernel: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """How a kernel goes over its input."""
        return {
            "stride": tuple(given.get("strides", (1, 1, 1))),
            "dilation": tuple(given.get("dilations", (1, 1, 1))),
            "before": self._before(node, given, kernel),
        }

    def _before(self, node: Any, given: dict[str, Any], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Padding before each axis; what lies behind follows from the output's size."""
        mode = _word(given, "auto_pad", "NOTSET")
        if mode in ("NOTSET", ""):
            return tuple(given.get("pads", (0,) * 6))[:3]
        if mode == "VALID":
            return 0, 0, 0
        if node.op_type == "ConvTranspose":
            raise unsupported(node, f"auto_pad {mode}")
        sizes, strides = self.shapes[node.input[0]][2:], given.get("strides", (1, 1, 1))
        dilations = given.get("dilations", (1, 1, 1))
        total = [max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n) for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)]
        return tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)

    def _activation(self, node: Any) -> Node:
        given = rewrites.attributes(node)
        if _word(given, "approximate", "none") != "none":
            raise unsupported(node, "its approximation by tanh")
        params = tuple(float(given.get(name, default)) for name, default in _ACTIVATIONS[node.op_type])
        return self._node(node, "act", (node.input[0],), function=node.op_type.lower(), params=params)

    def _clip(self, node: Any) -> Node:
        low, high = (self.array(node.input[n]) if len(node.input) > n and node.input[n] else None for n in (1, 2))
        params = (-3.4e38 if low is None else float(low), 3.4e38 if high is None else float(high))
        return self._node(node, "act", (node.input[0],), function="clip", params=params)

    def _prelu(self, node: Any) -> Node:
        return self._node(node, "prelu", (node.input[0],), slope=self._by_channel(node, node.input[1]))

    def _by_channel(self, node: Any, name: str) -> NDArray[np.float32]:
        """A constant that is one number, or one for each channel."""
        value, channels = self.array(name), self.shapes[node.output[0]][1]
        if value is None:
            raise unsupported(node, "one of its inputs is computed")
        shape = (1,) * (5 - value.ndim) + value.shape
        if value.size not in (1, channels) or (value.size > 1 and shape[1] != channels):
            raise unsupported(node, "its constant differs from voxel to voxel")
        return np.broadcast_to(value.reshape(-1), (channels,)).astype(np.float32)

    def _add(self, node: Any) -> Node:
        return self._pair(node, 1.0)

    def _sub(self, node: Any) -> Node:
        return self._pair(node, -1.0)

    def _pair(self, node: Any, sign: float) -> Node:
        a, b = node.input[:2]
        one = np.ones(self.shapes[node.output[0]][1], np.float32)
        if self.graph.is_constant(b):
            return self._node(node, "affine", (a,), scale=one, shift=sign * self._by_channel(node, b))
        if self.graph.is_constant(a):
            return self._node(node, "affine", (b,), scale=sign * one, shift=self._by_channel(node, a))
        if sign < 0:
            raise unsupported(node, "the difference of two tensors")
        return self._both(node, "add")

    def _mul(self, node: Any) -> Node:
        a, b = node.input[:2]
        zero = np.zeros(self.shapes[node.output[0]][1], np.float32)
        for value, constant in ((a, b), (b, a)):
            if self.graph.is_constant(constant):
                return self._node(node, "affine", (value,), scale=self._by_channel(node, constant), shift=zero)
        return self._both(node, "mul")

    def _div(self, node: Any) -> Node:
        if not self.graph.is_constant(node.input[1]):
            raise unsupported(node, "division by a tensor")
        by = self._by_channel(node, node.input[1])
        return self._node(node, "affine", (node.input[0],), scale=1 / by, shift=np.zeros_like(by))

    def _both(self, node: Any, op: str) -> Node:
        if any(self.shapes.get(name, self.shapes[node.output[0]]) != self.shapes[node.output[0]] for name in node.input):
            raise unsupported(node, "its inputs differ in shape")
        return self._node(node, op, tuple(node.input[:2]))

    def _batchnormalization(self, node: Any) -> Node:
        gamma, beta, mean, variance = (np.asarray(self.array(n), np.float64) for n in node.input[1:5])
        scale = gamma / np.sqrt(variance + rewrites.attributes(node).get("epsilon", 1e-5))
        return self._node(node, "affine", (node.input[0],), scale=scale.astype(np.float32), shift=(beta - mean * scale).astype(np.float32))

    def _instancenormalization(self, node: Any) -> Node:
        gamma, beta = (np.asarray(self.array(n), np.float32) for n in node.input[1:3])
        return self._node(node, "norm", (node.input[0],), groups=len(gamma), gamma=gamma, beta=beta, epsilon=epsilon_of(node))

    def _groupnormalization(self, node: Any) -> Node:
        channels, groups = self.shapes[node.input[0]][1], int(rewrites.attributes(node)["num_groups"])
        # One number a group up to opset 20, a channel from 21 on.
        gamma, beta = (np.repeat(v, channels // len(v)) for v in (np.asarray(self.array(n), np.float32) for n in node.input[1:3]))
        return self._node(node, "norm", (node.input[0],), groups=groups, gamma=gamma, beta=beta, epsilon=epsilon_of(node))

    def _concat(self, node: Any) -> Node:
        if rewrites.attributes(node).get("axis") not in (1, -4):
            raise unsupported(node, "along another axis than that of channels")
        return self._node(node, "concat", tuple(node.input))

    def _maxpool(self, node: Any) -> Node:
        return self._pool(node, "maxpool")

    def _averagepool(self, node: Any) -> Node:
        return self._pool(node, "avgpool")

    def _pool(self, node: Any, op: str) -> Node:
        given = rewrites.attributes(node)
        kernel = tuple(given["kernel_shape"])
        values = {
            "kernel": kernel,
            **self._window(node, given, kernel),
            "whole": bool(given.get("count_include_pad", 0)),
        }
        return self._node(node, op, (node.input[0],), **values)

    def _resize(self, node: Any) -> Node:
        given = rewrites.attributes(node)
        mode, where = _word(given, "mode", "nearest"), _word(given, "coordinate_transformation_mode", "half_pixel")
        if mode not in ("nearest", "linear") or where not in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
            raise unsupported(node, f"mode {mode}, {where}")
        rounding = _word(given, "nearest_mode", "round_prefer_floor")
        if mode == "nearest" and rounding not in ("floor", "round_prefer_floor"):
            raise unsupported(node, f"nearest, {rounding}")
        scales = self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return self._node(node, "resize", (node.input[0],), mode=mode, where=where, rounding=rounding, scales=scales)

    def _pad(self, node: Any) -> Node | None:
        pads = self.array(node.input[1])
        mode = _word(rewrites.attributes(node), "mode", "constant")
        if pads is None or len(pads) != 10 or mode not in ("constant", "edge") or any(pads[[0, 1, 5, 6]]):
            raise unsupported(node, f"mode {mode}")
        value = self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if value is not None and float(np.asarray(value).reshape(())) != 0:
            raise unsupported(node, "with another value than 0")
        if not np.any(pads):
            self._alias[node.output[0]] = node.input[0]
            return None
        sizes = self.shapes[node.input[0]][2:]
        starts = [-int(b) for b in pads[2:5]]
        return self._moved(node, sizes, starts, [n + int(b) + int(a) for n, b, a in zip(sizes, pads[2:5], pads[7:], strict=True)], mode == "edge")

    def _slice(self, node: Any) -> Node:
        given = [self.array(name) for name in node.input[1:5]]
        if any(value is None for value in given[:3]) or (len(given) > 3 and np.any(given[3] != 1)):
            raise unsupported(node, "its bounds are computed")
        sizes = list(self.shapes[node.input[0]])
        starts, counts = [0] * 5, list(sizes)
        for axis, start, end in zip(given[2], given[0], given[1], strict=True):  # type: ignore[arg-type]
            low, high, _ = slice(int(start), int(end)).indices(sizes[axis])
            starts[axis], counts[axis] = low, high - low
        if counts[:2] != sizes[:2]:
            raise unsupported(node, "along another axis than those of space")
        return self._moved(node, tuple(sizes[2:]), starts[2:], counts[2:], False)

    def _moved(self, node: Any, sizes: tuple[int, ...], starts: list[int], counts: list[int], edge: bool) -> Node:
        """Voxels from ``starts`` on; those outside are 0, or the nearest inside."""
        tables = []
        for n, start, count in zip(sizes, starts, counts, strict=True):
            at = np.arange(start, start + count)
            at = np.clip(at, 0, n - 1) if edge else np.where((at >= 0) & (at < n), at, -1)
            tables.append(np.stack([at, at, np.zeros(count)]).astype(np.float32))
        return self._node(node, "resize", (node.input[0],), mode="moved", tables=tables)

    def _softmax(self, node: Any) -> Node:
        if rewrites.attributes(node).get("axis", -1) not in (1, -4):
            raise unsupported(node, "along another axis than that of channels")
        return self._node(node, "softmax", (node.input[0],))


def _word(given: dict[str, Any], name: str, default: str) -> str:
    """An attribute that is text, which ONNX keeps as bytes."""
    value = given.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _dense(weight: NDArray[Any], group: int, channels: int) -> NDArray[Any]:
    """(out, in of a group, ...) with zeros for the other groups: (out, in, ...)."""
    if group == 1:
        return weight
    full = np.zeros((weight.shape[0], channels, *weight.shape[2:]), weight.dtype)
    out, each = weight.shape[0] // group, channels // group
    for g in range(group):
        full[g * out : (g + 1) * out, g * each : (g + 1) * each] = weight[g * out : (g + 1) * out]
    return full


def _quantized_first(nodes: list[Node]) -> list[Node]:
    """Rounding before pooling and nearest-neighbour resizing, where all readers take the same rounding: both only choose among values."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    renamed: dict[str, str] = {}
    made = list(nodes)
    for node in nodes:
        following = readers.get(node.output, [])
        chooses = node.op == "maxpool" or (node.op == "resize" and node.values["mode"] == "nearest")
        if not chooses or len(following) != 1 or following[0].op != "quant":
            continue
        quant = following[0]
        rounded = f"{node.output}_rounded"
        place = made.index(node)
        made[place : place + 1] = [replace(quant, inputs=node.inputs, output=rounded), replace(node, inputs=(rounded,))]
        made.remove(quant)
        again = f"{node.output}_again"
        made.insert(made.index(next(n for n in made if n.output == node.output)) + 1, replace(quant, inputs=(node.output,), output=again))
        renamed[quant.output] = again
    return [replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)) for node in made]


def _used(nodes: list[Node], output: str) -> list[Node]:
    """Without what nobody reads."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if node.output in wanted:
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]
