"""An ONNX network as few kinds of nodes: constants folded, Q/DQ pairs as one node, patterns of exporters under the name of what they do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....models import onnx_graph as graph
from ....models import rewrites
from ..plan.index_maps import IndexMap
from .constant_folding import folded
from .convolution import WindowReader
from .nodes import Network, Node, unsupported
from .patterns import PATTERNS, epsilon_of, word

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


def read_network(model: Any) -> Network:
    """Read an ONNX network of fixed shape, batch 1.

    Raises:
        UnsupportedNetwork: an operator without a kernel; names it.
    """
    model = graph.pruned(folded(model))
    reader = _Reader(model)
    for node in reader.graph.nodes:
        reader.read(node)
    output = reader.plain(reader.graph.nodes[-1], reader.output)
    nodes = _rests_of_parts(_used(reader.nodes, output), reader.shapes)
    nodes = _moved_norms(_quantized_first(nodes), output)
    return Network(_used(nodes, output), reader.shapes, reader.input, output)


class _Reader(WindowReader):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.input = next(i.name for i in model.graph.input if i.name not in self.graph.initializers)
        self.output = model.graph.output[0].name
        self._done: set[str] = set()
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

    def read(self, node: Any) -> None:
        """Note what a node comes to; some do nothing by themselves.

        Raises:
            UnsupportedNetwork: nothing here can do it; names it.
        """
        if node.output[0] in self._patterns:
            self._pattern(node, self._patterns[node.output[0]])
            return
        if node.output[0] in self._done or self.graph.is_constant(node.output[0]):
            return
        if node.op_type in _PASSING:
            self._alias[node.output[0]] = node.input[0]
            return
        reader = getattr(self, f"_{node.op_type.lower()}", None)
        if self.is_scored(node):
            reader = self.scored
        elif node.op_type in _ACTIVATIONS:
            reader = self._activation
        if reader is None:
            raise unsupported(node)
        reader(node)

    def _pattern(self, node: Any, pattern: Node) -> None:
        if pattern.op == "layernorm":
            index_map = self.index_map(pattern.inputs[0])
            one = np.ones(index_map.shape[-1])
            self.normalized(node, index_map, one, 0 * one, pattern.values["epsilon"], pattern.sources)
        elif pattern.op == "act":
            self.through(
                node,
                "act",
                self.index_map(pattern.inputs[0]),
                node.output[0],
                sources=pattern.sources,
                **pattern.values,
            )
        else:
            self.nodes.append(replace(pattern, inputs=tuple(self.plain(node, name) for name in pattern.inputs)))

    def _quantizelinear(self, node: Any) -> None:
        """Do nothing: a QuantizeLinear is read at its DequantizeLinear."""

    def _dequantizelinear(self, node: Any) -> None:
        quantize = self.graph.producer[node.input[0]]
        if quantize.op_type != "QuantizeLinear":
            raise unsupported(node, "it does not follow a QuantizeLinear")
        scale = float(np.asarray(self.array(node.input[1])).reshape(()))
        index_map = self.index_map(quantize.input[0])
        if index_map.scale != 1.0:
            index_map = self.carried_out(index_map)
        # 0 stays 0, so that it does not matter whether there are gaps.
        self.put(node.output[0], replace(index_map, base=self.rounded(node.output[0], index_map.base, scale)))

    def _activation(self, node: Any) -> None:
        attributes = rewrites.attributes(node)
        if word(attributes, "approximate", "none") != "none":
            raise unsupported(node, "its approximation by tanh")
        params = tuple(float(attributes.get(name, default)) for name, default in _ACTIVATIONS[node.op_type])
        self.through(
            node, "act", self.index_map(node.input[0]), node.output[0], function=node.op_type.lower(), params=params
        )

    def _clip(self, node: Any) -> None:
        low, high = (self.array(node.input[n]) if len(node.input) > n and node.input[n] else None for n in (1, 2))
        params = (-3.4e38 if low is None else float(low), 3.4e38 if high is None else float(high))
        self.through(node, "act", self.index_map(node.input[0]), node.output[0], function="clip", params=params)

    def _prelu(self, node: Any) -> None:
        index_map = self.settled(self.index_map(node.input[0]))
        slope = self._values(node, index_map, node.input[1])
        if slope.ndim > 1:
            raise unsupported(node, "its slope differs from voxel to voxel")
        self.through(node, "prelu", index_map, node.output[0], slope=slope)

    def _values(self, node: Any, index_map: IndexMap, name: str) -> NDArray[np.float32]:
        """A constant that meets a tensor: for each channel of its base, or (voxel, channel) where it differs from voxel to voxel."""
        value = self.array(name)
        if value is None:
            raise unsupported(node, "one of its inputs is computed")
        channels, shape = self.shapes[index_map.base][1], index_map.shape
        if value.size == 1:
            return np.full(channels, value.reshape(()), np.float32)
        value = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
        if value.ndim != len(shape) or not index_map.has_all_channels(channels):
            raise unsupported(node, "its constant has other axes than the tensor that it meets")
        if all(n == 1 or rows == 1 for n, rows in zip(value.shape, index_map.rows.shape, strict=True)):
            by_channel = np.zeros(channels, np.float32)
            by_channel[index_map.columns.reshape(-1)] = np.broadcast_to(value, index_map.columns.shape).reshape(-1)
            return by_channel
        if not self.covers(index_map):
            raise unsupported(node, "its constant differs from voxel to voxel, of some voxels")
        table = np.zeros((self._voxels(index_map.base), channels), np.float32)
        table[np.broadcast_to(index_map.rows, shape), np.broadcast_to(index_map.columns, shape)] = np.broadcast_to(
            value, shape
        )
        return table

    def _add(self, node: Any) -> None:
        self._pair(node, 1.0)

    def _sub(self, node: Any) -> None:
        self._pair(node, -1.0)

    def _pair(self, node: Any, sign: float) -> None:
        a, b = node.input[:2]
        constant = [self.graph.is_constant(name) for name in (a, b)]
        if not any(constant):
            if sign < 0:
                self._rest(node)
            else:
                self._both(node, "add")
            return
        index_map = self.settled(self.index_map(a if constant[1] else b))
        values = self._values(node, index_map, b if constant[1] else a)
        one = np.ones(self.shapes[index_map.base][1], np.float32)
        if values.ndim > 1:
            if sign < 0 and constant[0]:
                raise unsupported(node, "a constant that differs from voxel to voxel, less a tensor")
            self.through(node, "offset", index_map, node.output[0], table=sign * values)
        elif constant[1]:
            self.through(node, "affine", index_map, node.output[0], scale=one, shift=sign * values)
        else:
            self.through(node, "affine", index_map, node.output[0], scale=sign * one, shift=values)

    def _rest(self, node: Any) -> None:
        """What rounding a tensor to INT8 leaves of it: the low half of a layer that runs as two (:mod:`...models.halves`).

        It follows from the tensor alone, and is worked out where that is made, before anything is rounded to FP16.
        """
        whole, rounded = node.input[:2]
        opened = self.graph.producer.get(rounded)
        quantize = None if opened is None else self.graph.producer.get(opened.input[0])
        if (
            opened is None
            or quantize is None
            or (opened.op_type, quantize.op_type) != ("DequantizeLinear", "QuantizeLinear")
            or self.tensor(quantize.input[0]) != self.tensor(whole)
        ):
            raise unsupported(node, "the difference of two tensors")
        scale = float(np.asarray(self.array(opened.input[1])).reshape(()))
        params = (scale, float(np.float32(1) / np.float32(scale)))
        self.through(node, "act", self.index_map(whole), node.output[0], function="rest", params=params)

    def _mul(self, node: Any) -> None:
        a, b = node.input[:2]
        for value, constant in ((a, b), (b, a)):
            if self.graph.is_constant(constant):
                self._scaled(node, value, constant, inverse=False)
                return
        self._both(node, "mul")

    def _div(self, node: Any) -> None:
        if not self.graph.is_constant(node.input[1]):
            raise unsupported(node, "division by a tensor")
        self._scaled(node, node.input[0], node.input[1], inverse=True)

    def _scaled(self, node: Any, value: str, constant: str, inverse: bool) -> None:
        index_map = self.index_map(value)
        factor = self.array(constant)
        if factor is not None and factor.size == 1 and not index_map.has_all_channels(self.shapes[index_map.base][1]):
            # Of some channels only: noted, and multiplied where they are read.
            number = float(factor.reshape(()))
            self.put(node.output[0], replace(index_map, scale=index_map.scale * (1 / number if inverse else number)))
            return
        index_map = self.settled(index_map)
        by = self._values(node, index_map, constant)
        if by.ndim > 1:
            raise unsupported(node, "its constant differs from voxel to voxel")
        self.through(
            node, "affine", index_map, node.output[0], scale=1 / by if inverse else by, shift=np.zeros_like(by)
        )

    def _alike(self, node: Any) -> tuple[IndexMap, IndexMap]:
        """Two tensors, the smaller one repeated to the shape of the other, with their channels in order."""
        a, b = (self.index_map(name) for name in node.input[:2])
        if len(a.shape) == len(b.shape) and a.shape != b.shape:
            shape = tuple(map(max, a.shape, b.shape))
            channels = [max(m, n) > 1 for m, n in zip(a.columns.shape, b.columns.shape, strict=True)]
            a, b = a.broadcast(shape, channels), b.broadcast(shape, channels)
        return self.ordered(a), self.ordered(b)

    def _both(self, node: Any, op: str) -> None:
        """Two tensors of one shape, number by number; the second is carried to where the first lies."""
        a, b = self._alike(node)
        if a.shape != b.shape or a.columns.shape != b.columns.shape or not np.array_equal(a.columns, b.columns):
            raise unsupported(node, "its inputs differ in shape")
        if not self.covers(a) and self.covers(b):
            a, b = b, a
        if not self.covers(a) or a.scale != 1.0:
            a = self.carried_out(a)
        shape = self.shapes[a.base]
        if self.shapes[b.base] != shape or not np.array_equal(a.rows, b.rows) or b.scale != 1.0:
            rows = np.full(int(np.prod(shape[2:])), -1, np.int32)
            rows[a.rows.reshape(-1)] = b.rows.reshape(-1)
            b = replace(a, base=self.gathered(b, rows, shape[2:]))
        self.through(node, op, a, node.output[0], (b.base,))

    def _batchnormalization(self, node: Any) -> None:
        gamma, beta, mean, variance = (np.asarray(self.array(n), np.float64) for n in node.input[1:5])
        scale = gamma / np.sqrt(variance + rewrites.attributes(node).get("epsilon", 1e-5))
        self.emit(
            node,
            "affine",
            (node.input[0],),
            scale=scale.astype(np.float32),
            shift=(beta - mean * scale).astype(np.float32),
        )

    def _instancenormalization(self, node: Any) -> None:
        gamma, beta = (np.asarray(self.array(n), np.float32) for n in node.input[1:3])
        self.emit(node, "norm", (node.input[0],), groups=len(gamma), gamma=gamma, beta=beta, epsilon=epsilon_of(node))

    def _groupnormalization(self, node: Any) -> None:
        channels, groups = self.shape(node.input[0])[1], int(rewrites.attributes(node)["num_groups"])
        # One number a group up to opset 20, a channel from 21 on.
        gamma, beta = (
            np.repeat(v, channels // len(v)) for v in (np.asarray(self.array(n), np.float32) for n in node.input[1:3])
        )
        self.emit(node, "norm", (node.input[0],), groups=groups, gamma=gamma, beta=beta, epsilon=epsilon_of(node))

    def _softmax(self, node: Any) -> None:
        if len(self.shape(node.input[0])) != 5 or rewrites.attributes(node).get("axis", -1) not in (1, -4):
            raise unsupported(node, "along another axis than that of channels")
        self.emit(node, "softmax", (node.input[0],))


def _rests_of_parts(nodes: list[Node], shapes: dict[str, tuple[int, ...]]) -> list[Node]:
    """The rest of a joined tensor as the join of its parts' rests, which are worked out where the parts are made."""
    joins = {node.output: node for node in nodes if node.op == "concat"}
    result: list[Node] = []
    for node in nodes:
        join = joins.get(node.inputs[0]) if node.op == "act" and node.values["function"] == "rest" else None
        if join is None:
            result.append(node)
            continue
        names = []
        for number, part in enumerate(join.inputs):
            name = f"{node.output}_{number}"
            shapes[name] = shapes[part]
            result.append(replace(node, inputs=(part,), output=name))
            names.append(name)
        result.append(replace(join, name=node.name, inputs=tuple(names), output=node.output, sources=node.sources))
    return _once(result)


def _once(nodes: list[Node]) -> list[Node]:
    """Each rest of a tensor once, whoever reads it: with one reader it is worked out where the tensor is made."""
    known: dict[tuple[Any, ...], str] = {}
    renamed: dict[str, str] = {}
    result = []
    for node in nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        if node.op == "act" and node.values["function"] == "rest":
            first = known.setdefault((node.inputs, node.values["params"]), node.output)
            if first != node.output:
                renamed[node.output] = first
                continue
        result.append(node)
    return result


def _quantized_first(nodes: list[Node]) -> list[Node]:
    """Rounding before pooling and nearest-neighbor resizing, where all readers take the same rounding: both only choose among values."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    renamed: dict[str, str] = {}
    result = list(nodes)
    for node in nodes:
        following = readers.get(node.output, [])
        chooses = node.op == "maxpool" or (node.op == "resize" and node.values["mode"] == "nearest")
        if not chooses or len(following) != 1 or following[0].op != "quant":
            continue
        quant = following[0]
        rounded = f"{node.output}_rounded"
        place = result.index(node)
        result[place : place + 1] = [
            replace(quant, inputs=node.inputs, output=rounded),
            replace(node, inputs=(rounded,)),
        ]
        result.remove(quant)
        again = f"{node.output}_again"
        result.insert(
            result.index(next(n for n in result if n.output == node.output)) + 1,
            replace(quant, inputs=(node.output,), output=again),
        )
        renamed[quant.output] = again
    return [replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)) for node in result]


def _moved_norms(nodes: list[Node], output: str) -> list[Node]:
    """A LayerNorm whose only reader moves its voxels, as one that takes them from where they are."""
    readers: dict[str, int] = {output: 1}
    for name in (name for node in nodes for name in node.inputs):
        readers[name] = readers.get(name, 0) + 1
    norms = {node.output: node for node in nodes if node.op == "layernorm" and readers.get(node.output) == 1}
    moves = {node.inputs[0]: node for node in nodes if node.op == "move" and node.inputs[0] in norms}
    moved_outputs = {norms[name].output for name in moves}
    result = []
    for node in nodes:
        if node.op == "move" and node.inputs[0] in moves:
            norm = norms[node.inputs[0]]
            result.append(replace(norm, output=node.output, values={**norm.values, **node.values}))
        elif node.output not in moved_outputs:
            result.append(node)
    return result


def _used(nodes: list[Node], output: str) -> list[Node]:
    """Return the nodes without those whose output nobody reads."""
    names_read, nodes_read = {output}, []
    for node in reversed(nodes):
        if node.output in names_read:
            nodes_read.append(node)
            names_read.update(node.inputs)
    return nodes_read[::-1]
