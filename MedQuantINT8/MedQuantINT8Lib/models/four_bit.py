"""Weights of 4 bits in an INT8 network's file: packed by standard operators of ONNX, and taken apart when it is read.

A weight is q * m * s: q from -8 to 7 (INT4), m from 1 to 15 for each group of an output channel's weights (UINT4), s a scale an
output channel. In the file (opset 21) two DequantizeLinear nodes say so, m * s being the scales of q's blocks, and a Reshape,
and a Transpose where need be, give the layer its weight. q * m fits into INT8, so :func:`unpacked` gives a network with INT8
weights and the scale s, which computes the same: that is what engines are built of.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .packed_constants import TABLE, four_bit_tensor, pack_constants, unpack_constants
from .tensor_names import FreshNames, rename_tensors, tensor_names

Array = NDArray[Any]

#: The integers of a weight, and the largest factor of a group.
SMALLEST, LARGEST, LARGEST_FACTOR = -8, 7, 15
#: What INT4 and blocks of scales need.
OPSET, IR_VERSION = 21, 10
#: The most weights of a group, where more than one input channel has to share it: of long groups, and of fine ones.
_LONG, _FINE = 128, 32


def group_length(inputs: int, taps: int, *, fine: bool = False) -> int:
    """Return how many weights of an output channel share a factor: those of as many whole input channels as a group has room for.

    Args:
        inputs: weights of an output channel.
        taps: those of them that read the same input channel.
        fine: whether groups are of about 32 weights, of one input channel where it has 27; else they are of about 128.
    """
    most = _FINE if fine else _LONG
    channels = inputs // taps
    sharing = max((n for n in range(1, channels + 1) if channels % n == 0 and n * taps <= most), default=1)
    return sharing * taps if sharing * taps >= most // 4 else inputs


#: Operators whose meaning changed between the opsets of INT8 networks and :data:`OPSET`: they cannot be raised by the number alone.
CHANGED_OPERATORS = ("GridSample", "GroupNormalization", "DFT", "AffineGrid")
#: The key of its properties under which a packed network says by which form it is packed; without it, by the first. The second has tables
#: of 4 bits as well.
_FORM_NOTE, _FORMS = "weights_of_4_bits_form", ("1", "2")
#: Where a packed network notes the opset that it had, under this key of its properties.
_OPSET_NOTE = "opset_before_packing"
#: Axis of the output channels in a weight; that of Gemm depends on its attribute transB.
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}


def packed(model: Any) -> tuple[Any, list[str]]:
    """Return a copy of an INT8 network in which weights that fit into 4 bits are packed, and the names of their layers.

    Args:
        model: of an opset that can be raised to :data:`OPSET` by its number (no :data:`CHANGED_OPERATORS`), or is that high.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {constant.name: constant for constant in copy.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in copy.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    fresh = FreshNames(copy)
    shapes: dict[tuple[int, ...], str] = {}
    layers: list[str] = []
    new_nodes: list[Any] = []
    for node in copy.graph.node:
        layer = _layer_of(node, constants, readers)
        parts = None if layer is None else _parts(node, layer, constants)
        if layer is None or parts is None:
            new_nodes.append(node)
            continue
        new_nodes += _packed_nodes(copy, node, parts, constants, fresh, shapes)
        layers += [reader.name for reader in readers[node.output[0]]]
    if not layers:
        return copy, []
    _set_nodes(copy, new_nodes)
    pack_constants(copy)
    _shorten_names(copy)
    _raise_opset(copy)
    kinds = {c.name: c.data_type for c in copy.graph.initializer}
    # A node of the network's own may be called so as well, and have no input.
    tables = [name for node in copy.graph.node if node.name.startswith(TABLE) for name in node.input[:1]]
    if any(kinds.get(name) == onnx.TensorProto.INT4 for name in tables):
        copy.metadata_props.add(key=_FORM_NOTE, value=_FORMS[-1])
    return copy, layers


def _shorten_names(model: Any) -> None:
    """Name all tensors but the network's own inputs and outputs by number, in place, those first that are mentioned most."""
    fixed = {value.name for field in (model.graph.input, model.graph.output) for value in field}
    fixed |= {constant.values.name for constant in model.graph.sparse_initializer}
    mentions = Counter(name for node in model.graph.node for name in (*node.input, *node.output) if name not in fixed)
    mentions.update(constant.name for constant in model.graph.initializer if constant.name not in fixed)
    del mentions[""]
    # Names that are given anew are free; what bodies of loops and branches define is not.
    used_names = tensor_names(model) - set(mentions)
    free = (name for n in itertools.count() if (name := np.base_repr(n, 36).lower()) not in used_names)
    often = sorted(mentions, key=lambda name: (-mentions[name], name))
    rename_tensors(model, dict(zip(often, free, strict=False)))


def _set_nodes(model: Any, nodes: list[Any]) -> None:
    """Replace a graph's nodes, and drop the constants that no node reads any more."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    read = {name for node in copies for name in node.input} | {value.name for value in model.graph.output}
    unread = [n for n, constant in enumerate(model.graph.initializer) if constant.name not in read]
    for n in reversed(unread):
        del model.graph.initializer[n]


def _raise_opset(model: Any) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version < OPSET:
            note = model.metadata_props.add()
            note.key, note.value = _OPSET_NOTE, str(entry.version)
            entry.version = OPSET
    model.ir_version = max(model.ir_version, IR_VERSION)


def _layer_of(node: Any, constants: dict[str, Any], readers: dict[str, list[Any]]) -> Any:
    """Return the layer that reads an INT8 weight through this DequantizeLinear; None where it is none, or where layers of two kinds do."""
    import onnx

    if node.op_type != "DequantizeLinear" or node.input[0] not in constants or node.input[1] not in constants:
        return None
    weight, layers = constants[node.input[0]], readers.get(node.output[0], [])
    kinds = {(layer.op_type, _axis(layer)) for layer in layers}
    if weight.data_type != onnx.TensorProto.INT8 or len(weight.dims) < 2 or len(kinds) != 1:
        return None
    layer = layers[0]
    return layer if _axis(layer) is not None and all(node.output[0] == each.input[1] for each in layers) else None


def _axis(layer: Any) -> int | None:
    if layer.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in layer.attribute) else 1
    return _CHANNEL_AXIS.get(layer.op_type)


def _parts(node: Any, layer: Any, constants: dict[str, Any]) -> tuple[Array, Array, Array, int] | None:
    """Return the integers (output channels, inputs), the groups' factors (output channels, groups), the scale and the axis of the output
    channels of a weight that fits into 4 bits; None of another."""
    import onnx

    weight, scale = (onnx.numpy_helper.to_array(constants[name]) for name in node.input[:2])
    axis = _axis(layer)
    if axis is None or axis >= weight.ndim or scale.size != weight.shape[axis] or (axis and layer.op_type == "Conv"):
        return None
    rows = np.moveaxis(weight, axis, 0).astype(np.int16)
    rows = rows.reshape(rows.shape[0], -1)
    taps = math.prod(weight.shape[2:]) if layer.op_type in ("Conv", "ConvTranspose") else 1
    for fine in (False, True):
        groups = rows.reshape(-1, group_length(rows.shape[1], taps, fine=fine))
        factors = _factors(groups)
        if factors.all():
            integers = (groups // factors[:, None]).reshape(rows.shape)
            return integers, factors.reshape(len(rows), -1), scale.reshape(-1), axis
    return None


def _factors(groups: Array) -> Array:
    """Return the smallest factor of each group (rows) that leaves integers of 4 bits; 0 where there is none."""
    factors = np.zeros(len(groups), np.int16)
    for factor in range(LARGEST_FACTOR, 0, -1):
        quotient = groups // factor
        fits = (quotient * factor == groups).all(1) & (quotient.min(1) >= SMALLEST) & (quotient.max(1) <= LARGEST)
        factors = np.where(fits, factor, factors)
    return factors


def _packed_nodes(
    model: Any,
    node: Any,
    parts: tuple[Array, Array, Array, int],
    constants: dict[str, Any],
    fresh: FreshNames,
    shapes: dict[tuple[int, ...], str],
) -> list[Any]:
    """Return the nodes that give a weight.

    Args:
        shapes: the constants that hold shapes of weights so far; that of this one is added.
    """
    import onnx

    integers, factors, scale, axis = parts
    shape = list(constants[node.input[0]].dims)
    names = [fresh(name) for name in ("q", "m", "s")]
    moved = (shape[axis], *(size for n, size in enumerate(shape) if n != axis))
    model.graph.initializer.extend(
        [
            four_bit_tensor(names[0], integers),
            four_bit_tensor(names[1], factors, signed=False),
            onnx.numpy_helper.from_array(scale.astype(np.float32), names[2]),
        ]
    )
    if moved not in shapes:
        shapes[moved] = fresh("n")
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(moved, np.int64), shapes[moved]))
    make = onnx.helper.make_node
    scales, rows = fresh("ms"), fresh("r")
    last = fresh("t") if axis else node.output[0]
    nodes = [
        make("DequantizeLinear", [names[1], names[2]], [scales], axis=0),
        # Along axis 1, which is what holds without a word.
        make("DequantizeLinear", [names[0], scales], [rows], block_size=integers.shape[1] // factors.shape[1]),
        make("Reshape", [rows, shapes[moved]], [last]),
    ]
    if axis:
        order = list(range(1, len(shape)))
        order.insert(axis, 0)
        nodes.append(make("Transpose", [last], [node.output[0]], perm=order))
    return nodes


def is_packed(model: Any) -> bool:
    """Return whether a network holds weights that :func:`packed` packed."""
    import onnx

    return any(constant.data_type == onnx.TensorProto.UINT4 for constant in model.graph.initializer)


def unpacked(model: Any) -> Any:
    """Return the network with packed weights as INT8 behind one DequantizeLinear; a network without such weights as it is.

    Raises:
        ValueError: packed weights whose parts do not fit together, or of a form of a newer version.
    """
    import onnx

    if not is_packed(model):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _check_form(copy)
    unpack_constants(copy)
    constants = {constant.name: constant for constant in copy.graph.initializer}
    producers = {name: node for node in copy.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in copy.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    fresh, replaced, gone = FreshNames(copy), {}, set()
    for node in copy.graph.node:
        outer = producers.get(node.input[1]) if node.op_type == "DequantizeLinear" and len(node.input) == 2 else None
        if outer is None or node.input[0] not in constants or outer.op_type != "DequantizeLinear":
            continue
        chain = _chain(node, readers)
        replaced[id(chain[-1])] = _unpacked_node(copy, outer, node, chain, constants, fresh)
        gone |= {id(outer), id(node), *map(id, chain)}
    nodes = [replaced.get(id(node), node) for node in copy.graph.node if id(node) in replaced or id(node) not in gone]
    _set_nodes(copy, nodes)
    if is_packed(copy):
        raise ValueError("it holds weights of 4 bits in a form that is not known")
    _restore_opset(copy)
    return copy


def _check_form(model: Any) -> None:
    """Take away the note of the form that a network is packed by, in place; refuse one that is not known."""
    for number, entry in reversed(list(enumerate(model.metadata_props))):
        if entry.key == _FORM_NOTE:
            if entry.value not in _FORMS:
                raise ValueError(
                    f"its weights of 4 bits are packed by form {entry.value[:20]}, and this MedQuantINT8 knows {' and '.join(_FORMS)}: update it"
                )
            del model.metadata_props[number]


def _chain(node: Any, readers: dict[str, list[Any]]) -> list[Any]:
    """Return the Reshape behind the blocks' DequantizeLinear, and the Transpose behind that where there is one."""
    chain: list[Any] = []
    for kind in ("Reshape", "Transpose"):
        following = readers.get((chain[-1] if chain else node).output[0], [])
        if len(following) == 1 and following[0].op_type == kind:
            chain.append(following[0])
        elif kind == "Reshape":
            raise ValueError("weights of 4 bits are not followed by their shape")
    return chain


def _unpacked_node(
    model: Any, outer: Any, inner: Any, chain: list[Any], constants: dict[str, Any], fresh: FreshNames
) -> Any:
    import onnx

    names = (inner.input[0], *outer.input[:2], chain[0].input[1])
    if len(outer.input) != 2 or any(name not in constants for name in names):
        raise ValueError("a part of weights of 4 bits is missing, or is no constant")
    integers, factors = (
        _numbers(constants[name], kind)
        for name, kind in zip(names, (onnx.TensorProto.INT4, onnx.TensorProto.UINT4), strict=False)
    )
    scale, shape = (onnx.numpy_helper.to_array(constants[name]) for name in names[2:])
    order = next((list(a.ints) for node in chain[1:] for a in node.attribute if a.name == "perm"), None)
    block = next((a.i for a in inner.attribute if a.name == "block_size"), 0)
    rows = integers.shape[0] if integers.ndim == 2 else 0
    if (
        factors.ndim != 2
        or not rows
        or scale.shape != (rows,)
        or block < 1
        or factors.shape != (rows, integers.shape[1] // block)
        or integers.shape[1] % block
        or not factors.all()
        or shape.ndim != 1
        or (shape < 1).any()
        or shape[0] != rows
        or math.prod(shape.tolist()) != integers.size
        or (order is not None and sorted(order) != list(range(len(shape))))
    ):
        raise ValueError("the parts of weights of 4 bits do not fit together")
    weight = (integers * np.repeat(factors, block, 1)).astype(np.int8).reshape(shape)
    axis = 0
    if order is not None:
        weight, axis = np.ascontiguousarray(weight.transpose(order)), order.index(0)
    parts = [fresh(name) for name in ("w", "s", "z")]
    for name, array in zip(parts, (weight, scale.astype(np.float32), np.zeros(rows, np.int8)), strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.helper.make_node("DequantizeLinear", parts, [chain[-1].output[0]], axis=axis)


def _numbers(tensor: Any, kind: int) -> Array:
    import onnx

    if tensor.data_type != kind:
        raise ValueError(f"the constant {tensor.name!r} is not of 4 bits")
    return onnx.numpy_helper.to_array(tensor).astype(np.int16)


def _restore_opset(model: Any) -> None:
    """Give the network the opset back that it had: not every engine knows the newer one."""
    noted = [n for n, entry in enumerate(model.metadata_props) if entry.key == _OPSET_NOTE]
    for n in reversed(noted):
        value = model.metadata_props[n].value
        for entry in model.opset_import:
            if entry.domain in ("", "ai.onnx") and value.isdigit() and 0 < int(value) < entry.version:
                entry.version = int(value)
        del model.metadata_props[n]
