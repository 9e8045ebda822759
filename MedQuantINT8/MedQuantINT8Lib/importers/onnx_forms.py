"""The steps that bring ONNX networks, as exporters write them, into the one form that this program runs; or refuse them, with the
reason.

The form: one float32 input (N, C, A0, A1, A2) with an open batch, one float32 output (N, classes, A0, A1, A2), standard
operators of one opset, no control flow, no random numbers, not quantized yet. Notes state what is changed, and
:mod:`.onnx_trial` compares the result with the original.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import PackageError
from ..models import onnx_graph as graph
from ..models.rewrites import attributes

#: ModelOpt raises older networks to this; doing it here keeps the layers' names the same in FP32 and INT8.
OPSET = 19
#: Engines know operators up to this one well; what is newer is brought down to it.
NEWEST_OPSET = 21
#: The file format that belongs to it.
_NEWEST_IR = 10
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
_QUANTIZED = {
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
    *("ConvInteger", "MatMulInteger"),
}
#: What may stand between a network's ArgMax and its output.
_AROUND_LABELS = ("Cast", "Squeeze", "Unsqueeze", "Identity")
_TO_LAST, _TO_FIRST = [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]


def check_standard(model: Any, name: str) -> Any:
    """Return the network with its own functions written out, if it is made of what this program understands.

    Raises:
        PackageError: control flow, foreign operators, random numbers, quantization or training, each by the node's name.
    """
    onnx = graph.require_onnx()
    if model.functions:
        with graph.damage(name):
            model = onnx.inliner.inline_local_functions(model)
    if model.graph.sparse_initializer:
        raise PackageError(f"{name} holds sparse weights, which engines do not take.", "Export it with dense ones.")
    if not graph.opset_of(model):
        raise PackageError(f"{name} does not say which opset it uses.", "Export it again.")
    for node in model.graph.node:
        _check_node(node, f"{name}: the node {node.name or node.output[0]!r} ({node.op_type})")
    standard = [o for o in model.opset_import if o.domain in ("", "ai.onnx")][:1]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.opset_import[:]
    copy.opset_import.append(onnx.helper.make_opsetid("", standard[0].version))
    return copy


def _check_node(node: Any, where: str) -> None:
    onnx = graph.require_onnx()
    if node.domain not in ("", "ai.onnx"):
        raise PackageError(
            f"{where} belongs to {node.domain}, not to ONNX's own operators.",
            "Export it with standard operators alone.",
        )
    if node.op_type in _CONTROL_FLOW or any(
        a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute
    ):
        raise PackageError(
            f"{where} is control flow: what the network computes depends on the scan.",
            "Export it without branches and loops.",
        )
    if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]):
        raise PackageError(
            f"{where} is chance: the same scan gives other scores each time.", "Export it in evaluation mode."
        )
    if node.op_type == "BatchNormalization" and attributes(node).get("training_mode", 0):
        raise PackageError(f"{where} is in training mode.", "Export it in evaluation mode.")
    if node.op_type in _QUANTIZED:
        raise PackageError(
            f"{where} shows that the network is quantized already.",
            "Import the floating point network it was made of: 'medquant quantize' makes the INT8 network.",
        )


def with_one_input(model: Any, name: str) -> Any:
    """Return the network without inputs that nothing reads, and without its weights among the inputs.

    Raises:
        PackageError: it has not exactly one input of five axes, or one that is not floating point.
    """
    onnx = graph.require_onnx()
    names_read = {i for node in model.graph.node for i in node.input} | {o.name for o in model.graph.output}
    inputs = graph.free_inputs(model)
    if len(inputs) > 1:
        inputs = [value for value in inputs if value.name in names_read]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise PackageError(
            f"{name} takes {len(inputs)} inputs ({names}); it must take one, the scan.", "Export it with one input."
        )
    del model.graph.input[:]
    model.graph.input.append(inputs[0])
    input_type = inputs[0].type
    if not input_type.HasField("tensor_type") or not input_type.tensor_type.HasField("shape"):
        raise PackageError(
            f"{name}: its input {inputs[0].name!r} has no shape.", "Export it with the shape (N, C, A0, A1, A2)."
        )
    if len(input_type.tensor_type.shape.dim) != 5:
        dims = [d.dim_value or d.dim_param or "open" for d in input_type.tensor_type.shape.dim]
        raise PackageError(
            f"{name} takes an input of {len(dims)} axes {dims}; it must be (N, C, A0, A1, A2).", "Export a 3D network."
        )
    floats = {onnx.TensorProto.FLOAT, *_other_floats()}
    if input_type.tensor_type.elem_type not in floats:
        type_names = onnx.TensorProto.DataType.keys()
        type_name = next(
            (k for k in type_names if onnx.TensorProto.DataType.Value(k) == input_type.tensor_type.elem_type),
            "no known type",
        ).lower()
        raise PackageError(
            f"{name} takes {type_name} voxels; the program gives it float32 ones, after the steps of 'normalization'.",
            "Export it with a float32 input.",
        )
    return model


def _other_floats() -> tuple[int, ...]:
    t = graph.require_onnx().TensorProto
    return (t.FLOAT16, t.DOUBLE, t.BFLOAT16)


def as_float32(model: Any, name: str) -> tuple[Any, list[str]]:
    """Return the network computing in float32 throughout, and notes on the change.

    Numbers of 16 bits are kept exactly; numbers of 64 bits are rounded.

    Raises:
        PackageError: a number that is too large for float32.
    """
    onnx = graph.require_onnx()
    float32, other_floats = onnx.TensorProto.FLOAT, _other_floats()
    counts: dict[str, int] = {}

    def convert(tensor: Any, where: str) -> Any:
        numbers = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            float32_numbers = numbers.astype(np.float32)
        if not np.array_equal(np.isfinite(float32_numbers), np.isfinite(numbers.astype(np.float64))):
            raise PackageError(f"{name}: {where} holds numbers too large for float32.", "Export it in float32.")
        kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        counts[kind] = counts.get(kind, 0) + int(numbers.size)
        return onnx.numpy_helper.from_array(float32_numbers, tensor.name)

    for tensor in model.graph.initializer:
        if tensor.data_type in other_floats:
            tensor.CopyFrom(convert(tensor, f"the constant {tensor.name!r}"))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in other_floats:
                attribute.t.CopyFrom(convert(attribute.t, f"the node {node.name or node.output[0]!r}"))
            if attribute.name in ("to", "dtype", "output_dtype", "stash_type") and attribute.i in other_floats:
                attribute.i = float32
                counts.setdefault("cast", 0)
    types = [*(v.type.tensor_type for v in (*model.graph.input, *model.graph.output))]
    for kind in types:
        if kind.elem_type in other_floats:
            counts.setdefault(onnx.TensorProto.DataType.Name(kind.elem_type).lower(), 0)
            kind.elem_type = float32
    if not counts:
        return model, []
    del model.graph.value_info[:]
    _remove_empty_casts(model)
    notes = []
    if halves := [kind for kind in counts if kind.endswith("16")]:
        notes.append(f"its {' and '.join(halves)} numbers are kept exactly, as float32, in which it computes here")
    if "double" in counts:
        notes.append("its float64 numbers are rounded to float32, in which it computes here")
    return model, notes or ["it computes in float32 throughout here"]


def _remove_empty_casts(model: Any) -> None:
    """Replace casts from float32 to float32 by Identity, in place: these remain of casts to the other types."""
    onnx = graph.require_onnx()
    float32 = onnx.TensorProto.FLOAT
    typed_model = graph.inferred(model)
    kinds = {
        v.name: v.type.tensor_type.elem_type
        for v in (*typed_model.graph.value_info, *typed_model.graph.input, *typed_model.graph.output)
    }
    kinds |= {i.name: i.data_type for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Cast" and attributes(node).get("to") == float32 and kinds.get(node.input[0]) == float32:
            node.op_type = "Identity"
            del node.attribute[:]


def at_known_opset(model: Any, name: str) -> Any:
    """Return the network at an opset that engines and ModelOpt know."""
    version = min(max(graph.opset_of(model), OPSET), NEWEST_OPSET)
    model = graph.at_opset(model, version, name)
    model.ir_version = min(max(model.ir_version, 8), _NEWEST_IR)
    return model


def channels_first(model: Any) -> tuple[Any, list[str]]:
    """Return the network taking and giving (N, C, A0, A1, A2), where its first and last steps are transpositions from and to channels last."""
    topology = graph.Graph(model)
    notes = []
    value = model.graph.input[0]
    readers = topology.readers.get(value.name, [])
    if readers and all(node.op_type == "Transpose" and attributes(node).get("perm") == _TO_FIRST for node in readers):
        _permute(value, _TO_FIRST)
        _replace_by_identity(readers)
        notes.append("it takes channels last: its first transposition was taken off")
    outputs_last = 0
    for output in model.graph.output:
        last = topology.producer.get(output.name)
        while last is not None and last.op_type == "Identity" and last not in readers:
            last = topology.producer.get(last.input[0])
        if last is not None and last.op_type == "Transpose" and attributes(last).get("perm") == _TO_LAST:
            if len(output.type.tensor_type.shape.dim) == 5:
                _permute(output, _TO_FIRST)
            _replace_by_identity([last])
            outputs_last += 1
    if outputs_last:
        notes.append("it gives channels last: its last transposition was taken off")
    if notes:
        del model.graph.value_info[:]
    return model, notes


def _replace_by_identity(nodes: list[Any]) -> None:
    for node in nodes:
        node.op_type = "Identity"
        del node.attribute[:]


def _permute(value: Any, order: list[int]) -> None:
    dims = value.type.tensor_type.shape.dim
    copies = [type(d)() for d in dims]
    for copy, d in zip(copies, dims, strict=True):
        copy.CopyFrom(d)
    del dims[:]
    dims.extend(copies[n] for n in order)


def with_scores(model: Any) -> Any:
    """A network that ends in the number of the best class gives the scores of all instead, so that windows can be blended.

    A Softmax in between goes as well: it is the description's part, and changes no label.
    """
    topology = graph.Graph(model)
    if len(model.graph.output) != 1:
        return model
    node = topology.producer.get(model.graph.output[0].name)
    while node is not None and node.op_type in _AROUND_LABELS:
        node = topology.producer.get(node.input[0])
    if node is None or node.op_type != "ArgMax":
        return model
    producer, axis = topology.producer.get(node.input[0]), attributes(node).get("axis", 0)
    channels_last = (
        producer is not None and producer.op_type == "Transpose" and attributes(producer).get("perm") == _TO_LAST
    )
    if axis not in ((4, -1) if channels_last else (1, -4)):
        return model
    scores = (
        producer.input[0] if producer is not None and producer.op_type in ("Softmax", "LogSoftmax") else node.input[0]
    )
    copy = graph.inferred(model)
    value_infos = [value for value in copy.graph.value_info if value.name == scores]
    onnx = graph.require_onnx()
    open_shape = ["N", *(f"scores{axis}" for axis in range(1, 5))]
    copy.graph.output[0].CopyFrom(
        value_infos[0]
        if value_infos
        else onnx.helper.make_tensor_value_info(scores, onnx.TensorProto.FLOAT, open_shape)
    )
    del copy.graph.value_info[:]
    return graph.pruned(copy)


Shapes = Callable[[Any], dict[str, list[int]]]


def with_one_output(model: Any, shapes: Shapes, name: str) -> tuple[Any, list[str]]:
    """Return the network with the one output that has the size of its input.

    Args:
        shapes: a function that gives the shapes of a network's outputs for the patch, by name; it is called where there are several.

    Raises:
        PackageError: there are none or several outputs of that size.
    """
    if len(model.graph.output) == 1:
        return model, []
    sizes = shapes(model)
    size = sizes.pop("")
    candidates = [key for key, dims in sizes.items() if len(dims) == 5 and dims[2:] == size]
    listing = ", ".join(f"{key} {tuple(dims)}" for key, dims in sizes.items())
    if len(candidates) != 1:
        raise PackageError(
            f"{name} has {len(sizes)} outputs ({listing}), of which {len(candidates) or 'none'} {'have' if candidates else 'has'} the size of the patch "
            f"{tuple(size)}: which one holds the class scores is not clear.",
            "Export it with the class scores as its one output.",
        )
    graph.remove(model.graph.output, [n for n, value in enumerate(model.graph.output) if value.name != candidates[0]])
    return graph.pruned(model), [f"of its outputs ({listing}) {candidates[0]!r} was taken, the one of the patch's size"]


def with_open_sizes(model: Any) -> Any:
    """Return the network with its batch open at both ends; every size that is open has a symbol of its own.

    Exporters leave sizes open by 0, by -1 or by nothing, and name two axes by one symbol that are not the same.
    """
    for prefix, tensor in (("size", model.graph.input[0]), ("out", model.graph.output[0])):
        for axis, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if axis == 0:
                dim.dim_param = "N"
            elif dim.dim_value <= 0:
                dim.dim_param = f"{prefix}{axis}"
    del model.graph.value_info[:]
    return model


def tidy(model: Any) -> Any:
    """Return the network without Identity nodes, notes of its exporter and unread parts, each node with a name of its own.

    An Identity between the input and an output stays: outputs have to be computed by a node.
    """
    topology = graph.Graph(model)
    outputs = {value.name for value in model.graph.output}
    sources: dict[str, str] = {}
    identities = []
    for number, node in enumerate(model.graph.node):
        for position, name in enumerate(node.input):
            if name in sources:
                node.input[position] = sources[name]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            sources[node.output[0]] = node.input[0]
            identities.append(number)
    graph.remove(model.graph.node, identities)
    _remove_identity_before_outputs(model, set(topology.initializers) | {model.graph.input[0].name})
    graph.strip_notes(model)
    graph.name_nodes(model)
    return graph.pruned(model)


def _remove_identity_before_outputs(model: Any, given_names: set[str]) -> None:
    """Remove an Identity before an output, in place, if a node computes its input: that node takes the output's name.

    Args:
        given_names: names of inputs and initializers, which no node computes.
    """
    outputs = {value.name for value in model.graph.output}
    for number in reversed(range(len(model.graph.node))):
        node = model.graph.node[number]
        if node.op_type != "Identity" or node.output[0] not in outputs or node.input[0] in given_names | outputs:
            continue
        old, new = node.input[0], node.output[0]
        graph.remove(model.graph.node, [number])
        for other in model.graph.node:
            for position, name in enumerate(other.input):
                if name == old:
                    other.input[position] = new
            for position, name in enumerate(other.output):
                if name == old:
                    other.output[position] = new
