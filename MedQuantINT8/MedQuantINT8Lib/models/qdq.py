"""Q/DQ graphs: the rules of an INT8 network, the proof that they hold, and changes that keep them.

Rules (they serve every engine): QuantizeLinear/DequantizeLinear pairs, symmetric signed INT8, zero point 0, one scale a
tensor for activations, one scale an output channel for weights, weights stored as INT8.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from typing import Any

import numpy as np

from ..errors import PackageError
from .halves import halved_layers, rejoin
from .layers import CHANNEL_AXIS, WEIGHTED_OPS, is_dequantized
from .one_sided import with_one_sided_ranges
from .onnx_graph import Graph, load_network, pruned, require_onnx
from .seven_bit_weights import with_seven_bit_weights
from .tensor_names import FreshNames, rename_tensors, use_plain_names
from .weight_halves import REST, drop_rests, layers_with_weight_halves


def check_int8(model: Any) -> list[str]:
    """Return what breaks the rules of an INT8 network; an empty list is a proof that none is broken."""
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
    weight = graph.initializers.get(node.input[0])
    if node.op_type == "QuantizeLinear" or weight is None or weight.data_type != onnx.TensorProto.INT8:
        return [f"{node.name}: its weight is not stored as INT8"]
    for reader in graph.readers.get(node.output[0], []):
        axis = CHANNEL_AXIS.get(reader.op_type)
        if axis is None:
            continue
        scale_axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        # A weight with a single output channel has one scale, per channel and per tensor at once.
        if scale.size != weight.dims[axis] or (scale.ndim == 1 and scale.size > 1 and scale_axis != axis):
            problems.append(f"{node.name}: the weight of {reader.name} is not scaled per output channel")
    return problems


def as_unsigned(model: Any) -> Any:
    """Return the same INT8 network with activations as UINT8 and zero point 128; those that are UINT8 already stay as they are.

    Every integer is the old one plus 128, so the network computes the same numbers. OpenVINO needs it: its low
    precision passes lose the scale of a *signed* quantized Concat (see Testing/engines/test_engines.py). Pairs that only transposed
    convolutions read stay signed: OpenVINO has INT8 kernels for these without a zero point alone.
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, fresh = Graph(copy), FreshNames(copy)
    renamed: dict[str, str] = {}
    signed = _read_by_transposed(graph)
    for node in copy.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or graph.is_constant(node.input[0]):
            continue
        if node.output[0] in signed or graph.array(node.input[2]).dtype == np.uint8:
            continue
        old = node.input[2]
        if old not in renamed:
            renamed[old] = fresh(f"{old}_unsigned")
            shape = graph.array(old).shape
            copy.graph.initializer.append(onnx.numpy_helper.from_array(np.full(shape, 128, np.uint8), renamed[old]))
        node.input[2] = renamed[old]
    del copy.graph.value_info[:]
    return copy


def _read_by_transposed(graph: Graph) -> set[str]:
    """Return the outputs of QuantizeLinear and DequantizeLinear nodes whose values only transposed convolutions multiply."""
    outputs: set[str] = set()
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        dequantized = [reader.output[0] for reader in graph.readers.get(node.output[0], [])]
        readers = [reader for name in dequantized for reader in graph.readers.get(name, [])]
        operators = {reader.op_type for reader in readers}
        # What a high half leaves is its input less the half itself.
        if "ConvTranspose" in operators and operators <= {"ConvTranspose", "Sub"}:
            outputs |= {node.output[0], *dequantized}
    return outputs


def network_for(
    path: str | os.PathLike[str],
    precision: str,
    high_precision: Collection[str],
    weight_bits: int = 8,
    zero_points: bool = False,
) -> Any:
    """Return a network as an engine is to build it: read, checked, and with the layers that stay in high precision put back to float.

    Its tensors have plain names: engines rewrite the network and make names of their own out of them.

    Args:
        weight_bits: 8, or 7 for an engine whose kernels overflow with more (:mod:`.seven_bit_weights`).
        zero_points: whether the engine's activations may have zero points (:func:`.one_sided.with_one_sided_ranges`).

    Raises:
        PackageError: not an ONNX file, damaged, or with weights outside the file's own folder.
    """
    model = load_network(path)
    use_plain_names(model)
    if precision != "int8":
        return model
    if high_precision:
        model = without_quantization(model, set(high_precision))
    return as_run(model, zero_points=zero_points, weight_bits=weight_bits)


def as_run(model: Any, *, zero_points: bool, weight_bits: int) -> Any:
    """Return an INT8 network with the activations and weights that an engine computes (:class:`.engine_form.EngineForm`)."""
    if zero_points:
        model = with_one_sided_ranges(model)
    return with_seven_bit_weights(model) if weight_bits == 7 else model


def without_quantization(model: Any, layers: set[str], fp32: Any = None) -> Any:
    """Return a copy in which the named layers take float activations and float weights.

    Layers that run as two INT8 halves (:mod:`.halves`) are one product again; they go by their own name, not by that of a half. So do those
    whose weights are two halves (:mod:`.weight_halves`): the rest goes with its layer.

    Args:
        fp32: the network before quantization, to take the layers' weights from. Without it their weights stay stored
            as INT8 behind a DequantizeLinear, and only the activations' Q/DQ is taken away.
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rejoin(copy, layers)
    if fp32 is not None:
        drop_rests(copy, layers)
    layers = layers | {name + REST for name in layers}
    graph, fresh = Graph(copy), FreshNames(copy)
    originals = {node.name: node for node in fp32.graph.node} if fp32 is not None else {}
    weights = Graph(fp32) if fp32 is not None else None
    for node in copy.graph.node:
        if node.name not in layers:
            continue
        for position, name in enumerate(node.input):
            dequantize = graph.producer.get(name)
            if dequantize is not None and dequantize.op_type == "DequantizeLinear" and not graph.is_constant(name):
                node.input[position] = graph.producer[dequantize.input[0]].input[0]
        if weights is None or node.name not in originals:
            continue
        # The bias as well as the weights: a corrected bias makes up for the rounding of weights that are exact again.
        original_inputs = originals[node.name].input
        del node.input[len(original_inputs) :]
        for position, name in enumerate(original_inputs):
            if not name:
                node.input[position] = ""
            elif (array := weights.array(name)) is not None:
                node.input[position] = fresh(f"{node.name}_input{position}_float")
                copy.graph.initializer.append(onnx.numpy_helper.from_array(array, node.input[position]))
    return pruned(copy)


def with_weights_of(model: Any, other: Any, layers: Collection[str] | None = None) -> Any:
    """Return a copy of an INT8 network whose layers have the stored weights and biases of the layers of the same name in another.

    Args:
        layers: the names of those that have; by default all.
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, source, fresh = Graph(copy), Graph(other), FreshNames(copy)
    theirs = {node.name: node for node in source.nodes if node.op_type in WEIGHTED_OPS}

    def constant(name: str, array: Any) -> str:
        new_name = fresh(name)
        copy.graph.initializer.append(onnx.numpy_helper.from_array(array, new_name))
        return new_name

    for node in graph.nodes:
        twin = theirs.get(node.name)
        if twin is None or node.op_type != twin.op_type or (layers is not None and node.name not in layers):
            continue
        if not all(
            is_dequantized(g, n.input[1]) and g.is_constant(n.input[1]) for g, n in ((graph, node), (source, twin))
        ):
            continue
        own, new = graph.producer[node.input[1]], source.producer[twin.input[1]]
        own.input[:] = [constant(f"{node.name}_{n}_taken", source.array(name)) for n, name in enumerate(new.input)]
        del own.attribute[:]
        own.attribute.extend(new.attribute)
        if len(twin.input) > 2 and twin.input[2] and (bias := source.array(twin.input[2])) is not None:
            del node.input[2:]
            node.input.append(constant(f"{node.name}_bias_taken", bias))
    return pruned(copy)


def layers_with_int8_weights(model: Any) -> list[str]:
    """Return the names of convolutions and matrix products whose weights are stored as INT8, whatever they compute in.

    A layer whose input or weights are two INT8 halves is named once.
    """
    graph = Graph(model)
    second = {halves.low.name for halves in halved_layers(graph).values()}
    second |= {halves.rest.name for halves in layers_with_weight_halves(graph).values()}
    return [
        node.name
        for node in graph.nodes
        if node.op_type in WEIGHTED_OPS
        and node.name not in second
        and any(is_dequantized(graph, name) and graph.is_constant(name) for name in node.input[1:2])
    ]


def activation_tensors(model: Any) -> dict[str, list[str]]:
    """Return the float tensors that pass through a QuantizeLinear, with the names of those nodes."""
    graph = Graph(model)
    tensors: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and not graph.is_constant(node.input[0]):
            tensors.setdefault(node.input[0], []).append(node.name)
    return tensors


def activation_scales(model: Any) -> dict[str, float]:
    """Return the largest scale that each float tensor is quantized with: that of the high half where a layer takes it in halves."""
    graph = Graph(model)
    scales: dict[str, float] = {}
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and not graph.is_constant(node.input[0]):
            scale = float(graph.array(node.input[1]))
            scales[node.input[0]] = max(scale, scales.get(node.input[0], 0.0))
    return scales


def set_activation_scales(model: Any, scales: dict[str, float]) -> None:
    """Write a scale for each named float tensor into the Q/DQ pairs that follow it, in place.

    Raises:
        PackageError: a quantized tensor for which there is no scale.
    """
    onnx = require_onnx()
    graph, fresh = Graph(model), FreshNames(model)
    scale_names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or graph.is_constant(node.input[0]):
            continue
        tensor = node.input[0]
        if tensor not in scales:
            raise PackageError(f"The tensor {tensor} was quantized but not calibrated.", "Please report this.")
        if tensor not in scale_names:
            scale_names[tensor] = fresh(f"{tensor}_calibrated_scale")
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(np.array(scales[tensor], np.float32), scale_names[tensor])
            )
        node.input[1] = scale_names[tensor]
        for reader in graph.readers.get(node.output[0], []):
            reader.input[1] = scale_names[tensor]
    pruned(model)


def compacted(model: Any) -> Any:
    """Return a copy whose equal constants are one, and in which only layers and the tensors between them keep their names.

    In networks of few hundred kilobytes names and zero points weigh as much as the weights saved; a SwinUNETR repeats its
    table of relative positions in every layer.
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    rename_tensors(copy, _merged_constants(copy))
    fresh = FreshNames(copy)
    outputs = {value.name for value in copy.graph.output}
    initializers = {initializer.name for initializer in copy.graph.initializer}
    short: dict[str, str] = {}
    for number, node in enumerate(n for n in copy.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")):
        letter = "q" if node.op_type == "QuantizeLinear" else "d"
        if node.output[0] not in outputs:
            short[node.output[0]] = fresh(f"{letter}{number}")
        for suffix, name in zip(("w", "s", "z"), node.input, strict=False):
            if name in initializers and name not in short and name not in outputs:
                short[name] = fresh(f"{suffix}{number}")
    for number, halves in enumerate(halved_layers(Graph(copy)).values()):
        short |= {halves.high.output[0]: fresh(f"h{number}"), halves.low.output[0]: fresh(f"l{number}")}
        short.setdefault(halves.rest, fresh(f"r{number}"))
    for number, pair in enumerate(layers_with_weight_halves(Graph(copy)).values()):
        short |= {pair.product: fresh(f"p{number}"), pair.rest.output[0]: fresh(f"e{number}")}
    for number, node in enumerate(n for n in copy.graph.node if n.op_type in WEIGHTED_OPS):
        for name in node.input[2:]:
            if name in initializers and name not in outputs:
                short.setdefault(name, fresh(f"b{number}"))
        _remove_defaults(node)
    # Given once, not followed from name to name: a network may hold a tensor of its own that is called "q0".
    rename_tensors(copy, short)
    for node in copy.graph.node:
        if node.op_type not in WEIGHTED_OPS:
            node.name = ""
    return pruned(copy)


def _remove_defaults(node: Any) -> None:
    """Remove attributes of a convolution that say what holds without them, in place."""
    if node.op_type not in CHANNEL_AXIS:
        return
    for number, attribute in reversed(list(enumerate(node.attribute))):
        if (attribute.name == "group" and attribute.i == 1) or (
            attribute.name in ("strides", "dilations") and set(attribute.ints) == {1}
        ):
            del node.attribute[number]


def _merged_constants(model: Any) -> dict[str, str]:
    """Return the names of constants that repeat an earlier one, with that one's name; Constant nodes move to the front."""
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    others = [node for node in model.graph.node if node.op_type != "Constant"]
    outputs = {value.name for value in model.graph.output}
    for node in constants:
        if node.output[0] not in outputs and node.output[0] != (
            original := first.setdefault(_content(node), node.output[0])
        ):
            renamed[node.output[0]] = original
    for initializer in model.graph.initializer:
        original = first.setdefault(_content(initializer), initializer.name)
        if original != initializer.name and initializer.name not in outputs:
            renamed[initializer.name] = original
    del model.graph.node[:]
    model.graph.node.extend([node for node in constants if node.output[0] not in renamed])
    model.graph.node.extend(others)
    kept_initializers = [i for i in model.graph.initializer if i.name not in renamed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept_initializers)
    return renamed


def _content(constant: Any) -> bytes:
    """Return a digest of what a constant holds, without its name."""
    copy = type(constant)()
    copy.CopyFrom(constant)
    copy.name = ""
    if hasattr(copy, "output"):
        del copy.output[:]
    return hashlib.sha256(type(constant).__name__.encode() + copy.SerializeToString(deterministic=True)).digest()
