"""Reading, checking and rewriting ONNX graphs.

Rules of an INT8 network here (they serve every engine): QuantizeLinear/DequantizeLinear pairs, symmetric signed INT8,
zero point 0, one scale a tensor for activations, one scale an output channel for weights, weights stored as INT8.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DependencyError, PackageError

WEIGHTED_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
#: Axis of the output channel in the weight of each operator.
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}


def require_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise DependencyError("The Python package 'onnx' is not installed.", "Install it with: pip install onnx") from error
    return onnx


@dataclass(frozen=True)
class NetworkShape:
    """Input and output of a network; spatial sizes are 0 where the graph leaves them open."""

    input_name: str
    output_name: str
    channels: int
    spatial: tuple[int, int, int]
    classes: int


def load_network(path: str | os.PathLike[str]) -> Any:
    """Read and check an ONNX file.

    Raises:
        PackageError: not an ONNX file, damaged, or with weights outside the file's own folder.
    """
    onnx = require_onnx()
    name = Path(path).name
    try:
        model = onnx.load(os.fspath(path))
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise PackageError(f"There is no network at {path}, or its external data is missing.", "Check the path.") from error
    except Exception as error:
        # protobuf and the checker raise types of their own, and the parser's message is not fit for a user.
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise PackageError(f"{name} is no valid ONNX network: {reason}.", "Export it again.") from error
    if not model.graph.node:
        raise PackageError(f"{name} is no valid ONNX network: it has no operators.", "Export it again.")
    return model


def network_shape(model: Any, name: str = "The network") -> NetworkShape:
    """Shape of the one 5-D input (N, C, A0, A1, A2) and the one output.

    Raises:
        PackageError: several inputs or outputs, or other than five axes.
    """
    initializers = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in initializers]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise PackageError(
            f"{name} has {len(inputs)} inputs and {len(model.graph.output)} outputs; it must have one of each.",
            "Export it with one input and one output.",
        )
    dims = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    out = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    if len(dims) != 5 or dims[1] < 1:
        raise PackageError(
            f"{name} takes an input of shape {dims}; it must be (N, C, A0, A1, A2) with a fixed C.", "Export a 3D network."
        )
    if len(out) != 5 or out[1] < 1:
        out = [d.dim_value for d in inferred(model).graph.output[0].type.tensor_type.shape.dim]
        if len(out) != 5 or out[1] < 1:
            raise PackageError(
                f"{name} gives an output of shape {out}; it must be (N, classes, A0, A1, A2).",
                "Export a 3D segmentation network.",
            )
    return NetworkShape(inputs[0].name, model.graph.output[0].name, dims[1], (dims[2], dims[3], dims[4]), out[1])


def fixed_shape(model: Any, patch: tuple[int, int, int], batch: int | None = 1) -> Any:
    """A copy whose input is (batch, C, *patch), with every intermediate shape inferred; batch None leaves it open."""
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    initializers = {i.name for i in copy.graph.initializer}
    tensor = next(i for i in copy.graph.input if i.name not in initializers)
    for dim, size in zip(tensor.type.tensor_type.shape.dim, (batch, None, *patch), strict=True):
        if size is not None:
            dim.dim_value = size
    if batch is None:
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    for output in copy.graph.output:
        for axis, dim in enumerate(output.type.tensor_type.shape.dim):
            if axis != 1:
                dim.dim_param = f"out{axis}"
    del copy.graph.value_info[:]
    return inferred(copy)


def inferred(model: Any) -> Any:
    onnx = require_onnx()
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except Exception as error:
        raise PackageError(
            f"The network's shapes do not fit together: {str(error).splitlines()[0]}.", "Export it again."
        ) from error


class Graph:
    """Look-ups in an ONNX graph: who makes a tensor, who reads it, which constants there are."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.initializers = {i.name: i for i in model.graph.initializer}
        self.shapes = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)
        }
        for initializer in model.graph.initializer:
            self.shapes[initializer.name] = list(initializer.dims)

    def array(self, name: str) -> Any:
        """The constant called ``name``, or None."""
        onnx = require_onnx()
        if name in self.initializers:
            return onnx.numpy_helper.to_array(self.initializers[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant":
            return onnx.numpy_helper.to_array(node.attribute[0].t)
        return None

    def is_constant(self, name: str) -> bool:
        """Whether a tensor comes from constants alone (through DequantizeLinear and the like)."""
        if name in self.initializers:
            return True
        node = self.producer.get(name)
        return node is not None and all(self.is_constant(i) for i in node.input if i)


def name_nodes(model: Any) -> None:
    """Give every node a name of its own: policies, reports and engines speak of layers by name."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product.

    Attributes:
        macs: multiply-accumulates for one patch.
        quantized: activations and weights both pass through Q/DQ.
        reason: why it is not quantized; empty if it is.
    """

    name: str
    op: str
    macs: int
    quantized: bool
    reason: str = ""


def weighted_layers(model: Any, reasons: dict[str, str] | None = None) -> list[Layer]:
    """All convolutions and matrix products with constant weights or two activations, in graph order.

    ``model`` must have fixed shapes (:func:`fixed_shape`), or the multiply-accumulates are 0.
    """
    graph = Graph(model)
    found = []
    for node in graph.nodes:
        if node.op_type not in WEIGHTED_OPS:
            continue
        quantized = all(_dequantized(graph, name) for name in node.input[:2])
        reason = "" if quantized else (reasons or {}).get(node.name, "no Q/DQ pair was placed before it")
        found.append(Layer(node.name, node.op_type, _macs(graph, node), quantized, reason))
    return found


def int8_share(layers: Iterable[Layer]) -> float:
    """Share of multiply-accumulates in quantized layers, 0 to 1."""
    layers = list(layers)
    return sum(layer.macs for layer in layers if layer.quantized) / max(1, sum(layer.macs for layer in layers))


def _dequantized(graph: Graph, name: str) -> bool:
    node = graph.producer.get(name)
    return node is not None and node.op_type == "DequantizeLinear"


def _macs(graph: Graph, node: Any) -> int:
    weight = graph.shapes.get(node.input[1]) or _dequantized_shape(graph, node.input[1])
    source, target = graph.shapes.get(node.input[0], []), graph.shapes.get(node.output[0], [])
    if not source:
        source = _dequantized_shape(graph, node.input[0])
    if not weight or not source or not target:
        return 0
    if node.op_type == "Conv":
        return int(np.prod(weight)) * int(np.prod(target[2:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(weight)) * int(np.prod(source[2:]))
    return int(np.prod(target)) * int(source[-1])


def _dequantized_shape(graph: Graph, name: str) -> list[int]:
    node = graph.producer.get(name)
    while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        if node.input[0] in graph.shapes:
            return graph.shapes[node.input[0]]
        node = graph.producer.get(node.input[0])
    return []


def check_int8(model: Any) -> list[str]:
    """What breaks the rules of an INT8 network; an empty list is a proof that none is broken."""
    onnx = require_onnx()
    graph = Graph(model)
    problems = []
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = graph.array(node.input[1])
        zero = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        on_weight = graph.is_constant(node.input[0])
        if scale is None:
            problems.append(f"{node.name}: its scale is not a constant")
            continue
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            problems.append(f"{node.name}: a scale is zero, negative or not finite")
        if zero is None or zero.dtype != np.int8:
            problems.append(f"{node.name}: its zero point is {'missing' if zero is None else zero.dtype}, not int8")
        elif zero.any():
            problems.append(f"{node.name}: its zero point is not 0")
        if not on_weight and scale.size != 1:
            problems.append(f"{node.name}: an activation has {scale.size} scales, not one")
        if on_weight:
            problems += _check_weight(graph, node, scale, onnx)
    return problems


def _check_weight(graph: Graph, node: Any, scale: Any, onnx: Any) -> list[str]:
    problems = []
    stored = graph.initializers.get(node.input[0])
    if node.op_type == "QuantizeLinear" or stored is None or stored.data_type != onnx.TensorProto.INT8:
        return [f"{node.name}: its weight is not stored as INT8"]
    for reader in graph.readers.get(node.output[0], []):
        axis = CHANNEL_AXIS.get(reader.op_type)
        if axis is None:
            continue
        given = next((a.i for a in node.attribute if a.name == "axis"), 1)
        # A weight with a single output channel has one scale, per channel and per tensor at once.
        if scale.size != stored.dims[axis] or (scale.ndim == 1 and scale.size > 1 and given != axis):
            problems.append(f"{node.name}: the weight of {reader.name} is not scaled per output channel")
    return problems


def as_unsigned(model: Any) -> Any:
    """The same INT8 network with activations as UINT8 and zero point 128.

    Every integer is the old one plus 128, so the network computes the same numbers. OpenVINO needs it: its low
    precision passes lose the scale of a *signed* quantized Concat (see Testing/test_engines.py).
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    renamed: dict[str, str] = {}
    for node in copy.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or graph.is_constant(node.input[0]):
            continue
        old = node.input[2]
        if old not in renamed:
            renamed[old] = f"{old}_unsigned"
            shape = graph.array(old).shape
            copy.graph.initializer.append(onnx.numpy_helper.from_array(np.full(shape, 128, np.uint8), renamed[old]))
        node.input[2] = renamed[old]
    del copy.graph.value_info[:]
    return copy


def without_quantization(model: Any, layers: set[str], fp32: Any = None) -> Any:
    """A copy in which the named layers take float activations and float weights.

    Args:
        fp32: the network before quantization, to take the layers' weights from. Without it their weights stay stored
            as INT8 behind a DequantizeLinear, and only the activations' Q/DQ is taken away.
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    originals = {node.name: node for node in fp32.graph.node} if fp32 is not None else {}
    weights = Graph(fp32) if fp32 is not None else None
    for node in copy.graph.node:
        if node.name not in layers:
            continue
        for position, name in enumerate(node.input):
            dequantize = graph.producer.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            if not graph.is_constant(name):
                node.input[position] = graph.producer[dequantize.input[0]].input[0]
            elif weights is not None and (array := weights.array(originals[node.name].input[position])) is not None:
                node.input[position] = f"{node.name}_input{position}_float"
                copy.graph.initializer.append(onnx.numpy_helper.from_array(array, node.input[position]))
    return pruned(copy)


def layers_with_int8_weights(model: Any) -> list[str]:
    """Convolutions and matrix products whose weights are stored as INT8, whatever they compute in."""
    graph = Graph(model)
    return [
        node.name
        for node in graph.nodes
        if node.op_type in WEIGHTED_OPS and any(_dequantized(graph, name) and graph.is_constant(name) for name in node.input[1:2])
    ]


def pruned(model: Any) -> Any:
    """Remove, in place, nodes and constants whose results nobody reads; returns the model."""
    while True:
        wanted = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
        kept = [node for node in model.graph.node if any(name in wanted for name in node.output)]
        if len(kept) == len(model.graph.node):
            break
        del model.graph.node[:]
        model.graph.node.extend(kept)
    constants = [i for i in model.graph.initializer if i.name in wanted]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    return model


def with_outputs(model: Any, names: Iterable[str]) -> Any:
    """A copy that also gives the named tensors out, as float32."""
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {o.name for o in copy.graph.output}
    for name in names:
        if name not in present:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copy


def activation_tensors(model: Any) -> dict[str, list[str]]:
    """Float tensors that pass through a QuantizeLinear, with the names of those nodes."""
    graph = Graph(model)
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and not graph.is_constant(node.input[0]):
            found.setdefault(node.input[0], []).append(node.name)
    return found


def set_activation_scales(model: Any, scales: dict[str, float]) -> None:
    """Write a scale for each named float tensor into the Q/DQ pairs that follow it, in place.

    Raises:
        PackageError: a quantized tensor for which there is no scale.
    """
    onnx = require_onnx()
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or graph.is_constant(node.input[0]):
            continue
        tensor = node.input[0]
        if tensor not in scales:
            raise PackageError(f"The tensor {tensor} was quantized but not calibrated.", "Please report this.")
        name = f"{tensor}_calibrated_scale"
        if name not in graph.initializers:
            made = onnx.numpy_helper.from_array(np.array(scales[tensor], np.float32), name)
            model.graph.initializer.append(made)
            graph.initializers[name] = made
        node.input[1] = name
        for reader in graph.readers.get(node.output[0], []):
            reader.input[1] = name
    pruned(model)
