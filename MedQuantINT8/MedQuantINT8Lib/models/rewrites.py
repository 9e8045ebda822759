"""Exact rewrites of ONNX graphs: other operators, the same numbers.

Each returns a copy. Which of them an engine's build uses is decided by measurement: see the engines and
``benchmarks/rewrites.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .onnx_graph import Graph, name_nodes, pruned, require_onnx, with_nodes

#: Operators whose output channel c depends on input channel c alone, on the same axis.
_CHANNEL_WISE = {
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Erf", "Sigmoid", "HardSigmoid", "Tanh", "Softplus"),
    *("Mish", "HardSwish", "Exp", "Sqrt", "Neg", "Abs", "Clip", "Identity", "Cast", "Pow"),
    *("Add", "Sub", "Mul", "Div", "Min", "Max"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "InstanceNormalization", "BatchNormalization"),
    *("QuantizeLinear", "DequantizeLinear"),
}
_PER_CHANNEL_INPUTS = {"InstanceNormalization": (1, 2), "BatchNormalization": (1, 2, 3, 4)}


def copied(model: Any) -> Any:
    """Return a copy of a network without noted shapes, in which every node has a name of its own."""
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    # Constants made here are named after their nodes.
    name_nodes(copy)
    return copy


def attributes(node: Any) -> dict[str, Any]:
    """Return the values of a node's attributes by name; text as bytes, as ONNX holds it."""
    onnx = require_onnx()
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


class _Sets:
    """Disjoint sets of tensor names (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """Return the name that stands for the set of ``name``."""
        root = name
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        self._parent[name] = root
        return root

    def join(self, names: Iterable[str]) -> None:
        """Make one set of the sets of all ``names``."""
        first, *rest = names
        for name in rest:
            self._parent[self.find(name)] = self.find(first)


def with_padded_channels(model: Any, multiple: int, only_with: str = "") -> Any:
    """Return a network whose widths are filled up to multiples of ``multiple`` with channels that nothing reads.

    A filled channel has zero weights where it is made and zero weights where it is read, so every number that is read
    stays the same. It is done where a width is only seen by convolutions and by operators that treat each channel by
    itself; concatenations, reshapes and the network's own inputs and outputs are left as they are.

    Args:
        model: of inferred shapes.
        only_with: only widths that an operator of this type works on.
    """
    graph = Graph(model)
    sets, blocked = _Sets(), set[str]()
    members: dict[str, list[Any]] = {}
    for node in graph.nodes:
        kind = node.op_type
        if kind in ("Conv", "ConvTranspose"):
            if attributes(node).get("group", 1) != 1 or _weight_name(graph, node.input[1]) is None:
                blocked.update((node.input[0], node.output[0]))
            continue
        inputs = [name for name in node.input if name and not graph.is_constant(name)]
        if kind == "DequantizeLinear" and not inputs:
            continue
        if kind in _CHANNEL_WISE and _keeps_channels(graph, node, inputs):
            sets.join([*inputs, *node.output])
        else:
            blocked.update((*inputs, *node.output))
    blocked.update(value.name for value in (*model.graph.input, *model.graph.output))
    blocked_roots = {sets.find(name) for name in blocked}
    for node in graph.nodes:
        if node.op_type in _CHANNEL_WISE and node.output[0] in graph.producer:
            members.setdefault(sets.find(node.output[0]), []).append(node)
    widths = {}
    for node in graph.nodes:
        if node.op_type in ("Conv", "ConvTranspose"):
            root, width = sets.find(node.output[0]), _output_channels(graph, node)
            types = {member.op_type for member in members.get(root, ())}
            if root not in blocked_roots and width % multiple and (not only_with or only_with in types):
                widths[root] = (width, -width % multiple)
    if not widths:
        return model
    return _Padding(copied(model), sets, widths).run()


def _keeps_channels(graph: Graph, node: Any, inputs: list[str]) -> bool:
    """Return whether a node's constants are scalars, or one value a channel where the operator means it so."""
    for position, name in enumerate(node.input):
        if not name or name in inputs or position in _PER_CHANNEL_INPUTS.get(node.op_type, ()):
            continue
        if node.op_type in ("Resize", "Clip", "Pow", "QuantizeLinear", "DequantizeLinear"):
            continue
        array = graph.array(name)
        if array is None or (array.size != 1 and node.op_type != "PRelu"):
            return False
    return bool(inputs) and len({tuple(graph.shapes.get(t, ())[1:2]) for t in (*inputs, *node.output)} - {()}) == 1


def _weight_name(graph: Graph, name: str) -> str | None:
    """Return the initializer behind a weight, directly or through a DequantizeLinear."""
    if name in graph.initializers:
        return name
    node = graph.producer.get(name)
    return (
        node.input[0]
        if node is not None and node.op_type == "DequantizeLinear" and node.input[0] in graph.initializers
        else None
    )


def _output_channels(graph: Graph, node: Any) -> int:
    name = _weight_name(graph, node.input[1])
    return int(graph.initializers[name].dims[0 if node.op_type == "Conv" else 1]) if name else 0


class _Padding:
    """Fills up constants in place."""

    def __init__(self, model: Any, sets: _Sets, widths: dict[str, tuple[int, int]]) -> None:
        self._model, self._graph, self._sets, self._widths = model, Graph(model), sets, widths

    def run(self) -> Any:
        """Fill up the constants of all layers, and return the network."""
        for node in self._graph.nodes:
            if node.op_type in ("Conv", "ConvTranspose"):
                out_axis, in_axis = (0, 1) if node.op_type == "Conv" else (1, 0)
                _, more = self._of(node.output[0])
                self._weight(node, 1, {out_axis: more, in_axis: self._of(node.input[0])[1]}, scale_axis=out_axis)
                if len(node.input) > 2 and node.input[2]:
                    self._weight(node, 2, {0: more}, scale_axis=0)
            elif node.op_type in _CHANNEL_WISE:
                width, more = self._of(node.output[0])
                positions = _PER_CHANNEL_INPUTS.get(node.op_type, (1,) if node.op_type == "PRelu" else ())
                for position in positions if more else ():
                    array = self._graph.array(node.input[position])
                    if array is not None and array.size == width:
                        # A variance of 1 keeps a BatchNormalization's filled channel finite.
                        self._replace(node, position, array, {0: more}, value=float(position == 4))
        return pruned(self._model)

    def _of(self, name: str) -> tuple[int, int]:
        return self._widths.get(self._sets.find(name), (0, 0))

    def _weight(self, node: Any, position: int, pads: dict[int, int], scale_axis: int) -> None:
        if not any(pads.values()):
            return
        name = node.input[position]
        if name in self._graph.initializers:
            self._replace(node, position, self._graph.array(name), pads)
            return
        dequantize = self._graph.producer[name]
        self._replace(dequantize, 0, self._graph.array(dequantize.input[0]), pads)
        for scale in range(1, len(dequantize.input)):
            array = self._graph.array(dequantize.input[scale])
            if array.ndim == 1 and array.size > 1 and pads.get(scale_axis):
                self._replace(dequantize, scale, array, {0: pads[scale_axis]}, value=float(scale == 1))

    def _replace(self, node: Any, position: int, array: NDArray[Any], pads: dict[int, int], value: float = 0.0) -> None:
        onnx = require_onnx()
        widths = [(0, pads.get(axis, 0)) for axis in range(array.ndim)]
        padded = np.pad(array, widths, constant_values=np.array(value, array.dtype))
        name = f"{node.name}_{position}_filled"
        if name not in self._graph.initializers:
            initializer = onnx.numpy_helper.from_array(padded, name)
            self._model.graph.initializer.append(initializer)
            self._graph.initializers[name] = initializer
        node.input[position] = name


def is_pointwise_deconvolution(graph: Graph, node: Any) -> bool:
    """Return whether a node is a transposed convolution whose kernel equals its stride: each output voxel comes from one input voxel."""
    if node.op_type != "ConvTranspose":
        return False
    settings, name = attributes(node), _weight_name(graph, node.input[1])
    if (
        name is None
        or settings.get("group", 1) != 1
        or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    ):
        return False
    kernel = list(graph.initializers[name].dims)[2:]
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    return (
        kernel == list(settings.get("strides", ones))
        and settings.get("dilations", ones) == ones
        and not any(settings.get("pads", zeros))
        and not any(settings.get("output_padding", zeros))
        and "output_shape" not in settings
    )


def with_pointwise_deconvolutions(model: Any) -> Any:
    """Return a network with its transposed convolutions of kernel equal to stride as convolutions of one voxel and depth-to-space.

    Channel c and place (a, b, d) in the kernel become channel ((c, a), b), d of the convolution; a reshape and a
    transposition bring the places to where they belong. Of two spatial axes or three, isotropic or not; Q/DQ pairs before the layer stay.

    Args:
        model: of inferred, fixed spatial shapes.
    """
    onnx = require_onnx()
    graph = Graph(model)
    names = {node.name for node in graph.nodes if is_pointwise_deconvolution(graph, node)}
    if not names:
        return model
    copy = copied(model)
    new_nodes: list[Any] = []

    def constant(array: NDArray[Any], name: str) -> str:
        copy.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    dequantized = dict[str, str]()
    for node in copy.graph.node:
        if node.name not in names:
            new_nodes.append(node)
            continue
        name = node.name
        shape = graph.shapes[node.input[0]]
        weight_name = _weight_name(graph, node.input[1])
        assert weight_name is not None
        weight = graph.array(weight_name)
        channels, kernel = weight.shape[1], weight.shape[2:]
        places, axes = int(np.prod(kernel)), len(kernel)
        # (in, out, a, b, d) to (out * a * b * d, in, 1, 1, 1)
        flat = np.ascontiguousarray(np.moveaxis(weight, 0, -1)).reshape(channels * places, -1, *[1] * axes)
        new_weight = constant(flat, f"{name}_pointwise_weight")
        if weight_name != node.input[1]:
            dequantize = graph.producer[node.input[1]]
            inputs = [new_weight]
            for position, source in enumerate(dequantize.input[1:], start=1):
                array = graph.array(source)
                inputs.append(
                    constant(np.repeat(array, places), f"{name}_pointwise_{position}") if array.ndim else source
                )
            dequantized[name] = f"{name}_pointwise_dequantized"
            new_nodes.append(
                onnx.helper.make_node(
                    "DequantizeLinear", inputs, [dequantized[name]], name=f"{name}_pointwise_DQ", axis=0
                )
            )
            new_weight = dequantized[name]
        inputs = [node.input[0], new_weight]
        if len(node.input) > 2 and node.input[2]:
            inputs.append(constant(np.repeat(graph.array(node.input[2]), places), f"{name}_pointwise_bias"))
        spatial = shape[2:]
        wide = constant(np.array([0, channels, *kernel, *spatial], np.int64), f"{name}_pointwise_wide")
        # (n, c, a, b, d, A, B, D) to (n, c, A, a, B, b, D, d)
        order = [0, 1, *(place for axis in range(axes) for place in (2 + axes + axis, 2 + axis))]
        target = constant(
            np.array([0, channels, *(s * k for s, k in zip(spatial, kernel, strict=True))], np.int64),
            f"{name}_pointwise_shape",
        )
        helper = onnx.helper
        new_nodes += [
            helper.make_node("Conv", inputs, [f"{name}_pointwise"], name=name, kernel_shape=[1] * axes),
            helper.make_node("Reshape", [f"{name}_pointwise", wide], [f"{name}_places"], name=f"{name}_Reshape"),
            helper.make_node("Transpose", [f"{name}_places"], [f"{name}_moved"], name=f"{name}_Transpose", perm=order),
            helper.make_node("Reshape", [f"{name}_moved", target], list(node.output), name=f"{name}_Reshape_back"),
        ]
    return with_nodes(copy, new_nodes)


def with_folded_normalization(model: Any) -> Any:
    """Return a network with each BatchNormalization behind a convolution as part of that one's weights and bias.

    Exporters usually do it; where they did not, the scale would stand between the convolution and its quantized output.
    Left alone: a convolution whose result something else reads as well, or whose weights are computed.
    """
    onnx = require_onnx()
    graph = Graph(model)
    outputs = {value.name for value in model.graph.output}
    pairs = []
    for node in graph.nodes:
        source = graph.producer.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if (
            source is None
            or source.op_type not in ("Conv", "ConvTranspose")
            or attributes(node).get("training_mode", 0)
        ):
            continue
        single = len(graph.readers[source.output[0]]) == 1 and source.output[0] not in outputs
        constant = all(graph.array(name) is not None for name in (*node.input[1:5], *source.input[1:]) if name)
        unshared = len(graph.readers[source.input[1]]) == 1
        if single and constant and unshared and (source.op_type == "Conv" or attributes(source).get("group", 1) == 1):
            pairs.append((source.name, node.name))
    if not pairs:
        return model
    copy = copied(model)
    nodes = {node.name: node for node in copy.graph.node}
    for convolution, normalization in pairs:
        conv, norm = nodes[convolution], nodes[normalization]
        scale, shift, mean, variance = (graph.array(name).astype(np.float64) for name in norm.input[1:5])
        factor = scale / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
        weight = graph.array(conv.input[1]).astype(np.float64)
        axis = 0 if conv.op_type == "Conv" else 1
        shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
        bias = graph.array(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else np.zeros_like(mean)
        for position, array in ((1, weight * factor.reshape(shape)), (2, (bias - mean) * factor + shift)):
            name = f"{convolution}_{position}_folded"
            copy.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
            if position < len(conv.input):
                conv.input[position] = name
            else:
                conv.input.append(name)
        conv.output[0] = norm.output[0]
        copy.graph.node.remove(norm)
    return pruned(copy)
