"""Constants that are no weights, in the fewest bytes: a part of packing weights of 4 bits (:mod:`.four_bit`).

Once weights have 4 bits, learned positions, tables of indices and biases are a good part of a file. :func:`pack_constants` writes each in
the smallest form that gives back its very bytes, by standard operators: whole numbers in as many bits as they need, and numbers that 16
bits hold (Cast); one value for an array that has no other (ConstantOfShape); rows of multiples of a scale as INT8 or INT4 (DequantizeLinear).
:func:`unpack_constants` gives the arrays back, so that engines see what they saw before. Positions and biases fit such a form once
:func:`round_constants` has rounded them, which belongs before the network is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tensor_names import FreshNames

Array = NDArray[Any]
#: Constants and nodes.
Packed = tuple[list[Any], list[Any]]

#: Bytes that another form has to save: the nodes that it takes count.
_LEAST_SAVED = 32
#: Values from which a table is rounded to 8 bits a value; smaller constants, such as biases, have 16.
_LARGE_TABLE = 4096
#: Values of a row that shares a scale, at least: of narrower tables each column has one.
_LEAST_ROW = 64
#: Largest magnitude of an array from which 16 bits lose nothing that counts: small values beside it have fewer digits.
_LEAST_HALF = 2.0**-10
#: Largest constant that is given back, in bytes: the file may be a stranger's.
_MOST_BYTES = 1 << 31
#: The largest multiple of a scale in a table, by its bits.
_MOST_STEPS = {8: 127, 4: 7}
#: How names of nodes begin that give a table of INT8 numbers: others of their kind belong to layers.
TABLE = "table"
#: Operators, with the input, whose constants may be rounded: what is added to activations or taken out of a table for that, and the
#: affine part of normalizations.
_ROUNDED = {
    "Add": (0, 1),
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gather": (0,),
    "GatherND": (0,),
    "Gemm": (2,),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}
_TABLE_READERS = ("Add", "Gather", "GatherND")


def round_constants(model: Any, *, table_bits: int = 8) -> None:
    """Round constants that are added to activations or normalize them, in place: tables to 8 bits, others to 16.

    A table has a scale for each row, or for each column where rows are short. Whole numbers stay as they are: they may be compared.

    Args:
        table_bits: 8, or 4 for tables that are added, such as learned positions; those that values are looked up in have 8.
    """
    import onnx

    _widen_halves(model)
    readers: dict[str, set[tuple[str, int]]] = {}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, set()).add((node.op_type, position))
    for constant in model.graph.initializer:
        by = readers.get(constant.name, set())
        if constant.data_type != onnx.TensorProto.FLOAT or not by:
            continue
        if not all(position in _ROUNDED.get(kind, ()) for kind, position in by):
            continue
        values = onnx.numpy_helper.to_array(constant)
        if not np.isfinite(values).all() or (values == np.rint(values)).all():
            continue
        is_table = values.size >= _LARGE_TABLE and all(kind in _TABLE_READERS for kind, _ in by)
        bits = table_bits if all(kind == "Add" for kind, _ in by) else 8
        rounded = _rows_of_steps(values, _MOST_STEPS[bits]) if is_table else rounded_to_half(values)
        constant.CopyFrom(onnx.numpy_helper.from_array(rounded, constant.name))


def rounded_to_half(values: Array) -> Array:
    """Return float32 values rounded to what 16 bits hold; as they are where the largest is too large for that, or next to nothing."""
    largest = float(np.abs(values).max(initial=0.0))
    if not _LEAST_HALF <= largest <= np.finfo(np.float16).max:
        return values
    return values.astype(np.float16).astype(np.float32)


def _rows_of_steps(values: Array, most: int) -> Array:
    """A table rounded to at most so many steps of a row's or column's scale, which has so few digits that each product is exact."""
    table, axis = _as_table(values)
    scale = np.abs(table).max(axis=1 - axis, keepdims=True).astype(np.float64) / most
    mantissa, exponent = np.frexp(scale)
    # Rounded up, so that the largest value is the most steps of it.
    scale = np.ldexp(np.ceil(mantissa * 2048) / 2048, exponent)
    steps = np.rint(table / np.where(scale > 0, scale, 1))
    # Adding 0 makes 0 of -0.
    return np.asarray((steps * scale + 0.0).astype(np.float32).reshape(values.shape))


def _as_table(values: Array) -> tuple[Array, int]:
    """The values as rows and columns, and the axis along which scales lie."""
    width = values.shape[-1] if values.ndim else 1
    table = values.reshape(-1, width)
    return table, 0 if width >= _LEAST_ROW else 1


def _widen_halves(model: Any) -> None:
    """Put constants of 16 bits behind a Cast in place of that Cast's output, in 32 bits."""
    import onnx

    constants = {constant.name: constant for constant in model.graph.initializer}
    casts = [
        number
        for number, node in enumerate(model.graph.node)
        if node.op_type == "Cast"
        and node.input[0] in constants
        and constants[node.input[0]].data_type == onnx.TensorProto.FLOAT16
        and _target(node) == onnx.TensorProto.FLOAT
    ]
    for number in reversed(casts):
        node = model.graph.node[number]
        values = onnx.numpy_helper.to_array(constants[node.input[0]]).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
        del model.graph.node[number]
    _drop_unread(model)


def pack_constants(model: Any) -> None:
    """Write constants in fewer bytes, in place. What reads them reads the same numbers."""
    import onnx

    kinds = [getattr(onnx.TensorProto, kind) for kind in ("FLOAT", "INT64", "INT32", "BOOL")]
    fresh, outputs, new_nodes = FreshNames(model), {value.name for value in model.graph.output}, []
    for constant in list(model.graph.initializer):
        size = constant.ByteSize()
        if constant.name in outputs or size < _LEAST_SAVED or constant.data_type not in kinds:
            continue
        values = onnx.numpy_helper.to_array(constant)
        packed = next((p for form in _FORMS if (p := form(values, constant.name, fresh)) is not None), None)
        if packed is None or sum(part.ByteSize() for parts in packed for part in parts) > size - _LEAST_SAVED:
            continue
        model.graph.initializer.remove(constant)
        model.graph.initializer.extend(packed[0])
        new_nodes += packed[1]
    for node in reversed(new_nodes):
        model.graph.node.insert(0, node)


def _one_value(values: Array, name: str, fresh: FreshNames) -> Packed | None:
    """An array of one value."""
    import onnx

    if not values.size or values.tobytes() != np.full_like(values, values.flat[0]).tobytes():
        return None
    shape = onnx.numpy_helper.from_array(np.array(values.shape, np.int64), fresh("n"))
    value = onnx.numpy_helper.from_array(values.reshape(-1)[:1], "")
    return [shape], [onnx.helper.make_node("ConstantOfShape", [shape.name], [name], value=value)]


def _small_integers(values: Array, name: str, fresh: FreshNames) -> Packed | None:
    """Whole numbers in the fewest bits."""
    if values.dtype.kind != "i" or not values.size:
        return None
    least, largest = int(values.min()), int(values.max())
    for kind in (np.int8, np.uint8, np.int16, np.uint16):
        if np.iinfo(kind).min <= least and largest <= np.iinfo(kind).max:
            return _cast(values, values.astype(kind), name, fresh)
    return None


def _steps(values: Array, name: str, fresh: FreshNames, bits: int = 8) -> Packed | None:
    """A table of INT8 or INT4 multiples of the scales of its rows or columns."""
    import onnx

    if values.dtype != np.float32 or values.size < _LARGE_TABLE or not np.isfinite(values).all():
        return None
    table, axis = _as_table(values)
    most = _MOST_STEPS[bits]
    scale = (np.abs(table).max(axis=1 - axis).astype(np.float64) / most).astype(np.float32)
    steps = np.rint(table / np.expand_dims(np.where(scale > 0, scale, 1), 1 - axis))
    steps = np.clip(steps, -most, most).astype(np.int8)
    if _from_steps(steps, scale, axis).tobytes() != values.tobytes():
        return None
    parts = [onnx.numpy_helper.from_array(steps, fresh("t")) if bits == 8 else four_bit_tensor(fresh("t"), steps)]
    for key, array in (("s", scale), ("n", np.array(values.shape, np.int64))):
        parts.append(onnx.numpy_helper.from_array(array, fresh(key)))
    rows, make = fresh("r"), onnx.helper.make_node
    first = make("DequantizeLinear", [parts[0].name, parts[1].name], [rows], name=fresh(TABLE), axis=axis)
    return parts, [first, make("Reshape", [rows, parts[2].name], [name])]


def _short_steps(values: Array, name: str, fresh: FreshNames) -> Packed | None:
    """A table of INT4 multiples."""
    return _steps(values, name, fresh, bits=4)


def four_bit_tensor(name: str, values: Array, *, signed: bool = True) -> Any:
    """Return a constant of INT4, or of UINT4: two numbers a byte, the first in the lower half."""
    import onnx

    flat = values.astype(np.int16).reshape(-1) & 15
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.int16)])
    content = (flat[::2] | flat[1::2] << 4).astype(np.uint8).tobytes()
    kind = onnx.TensorProto.INT4 if signed else onnx.TensorProto.UINT4
    return onnx.TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=content)


def _half(values: Array, name: str, fresh: FreshNames) -> Packed | None:
    """Numbers that 16 bits hold."""
    if values.dtype != np.float32 or not np.abs(values).max(initial=0.0) <= np.finfo(np.float16).max:
        return None
    half = values.astype(np.float16)
    return _cast(values, half, name, fresh) if half.astype(np.float32).tobytes() == values.tobytes() else None


def _cast(values: Array, small: Array, name: str, fresh: FreshNames) -> Packed:
    import onnx

    part = onnx.numpy_helper.from_array(small, fresh("c"))
    kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    return [part], [onnx.helper.make_node("Cast", [part.name], [name], to=kind)]


#: The smallest first. Each gives the constants and nodes that stand for an array, or None where it does not fit.
_FORMS: tuple[Callable[[Array, str, FreshNames], Packed | None], ...] = (
    _one_value,
    _small_integers,
    _short_steps,
    _steps,
    _half,
)


def _from_steps(steps: Array, scale: Array, axis: int) -> Array:
    return np.asarray(steps.astype(np.float32) * np.expand_dims(scale, 1 - axis))


def unpack_constants(model: Any) -> None:
    """Give constants that :func:`pack_constants` packed their own form again, in place.

    Raises:
        ValueError: parts that do not fit together.
    """
    import onnx

    constants = {constant.name: constant for constant in model.graph.initializer}
    nodes = list(model.graph.node)
    shapes = {node.input[0]: n for n, node in enumerate(nodes) if node.op_type == "Reshape" and len(node.input) == 2}
    done: set[int] = set()
    for number, node in enumerate(nodes):
        if not node.input or node.input[0] not in constants:
            continue
        values, last = None, number
        if node.op_type == "Cast":
            values = _cast_back(node, constants)
        elif node.op_type == "ConstantOfShape":
            values = _filled(node, constants)
        elif node.op_type == "DequantizeLinear" and node.name.startswith(TABLE):
            last = shapes.get(node.output[0], number)
            values = _table(node, nodes[last], constants)
        if values is not None:
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, nodes[last].output[0]))
            done |= {number, last}
    for number in sorted(done, reverse=True):
        del model.graph.node[number]
    _drop_unread(model)


def _target(cast: Any) -> int:
    """The type that a Cast gives; its attributes may stand in any order."""
    return next((int(a.i) for a in cast.attribute if a.name == "to"), 0)


def _cast_back(node: Any, constants: dict[str, Any]) -> Array | None:
    import onnx

    kind = _target(node)
    if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return None
    values = onnx.numpy_helper.to_array(constants[node.input[0]])
    return np.asarray(values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)))


def _filled(node: Any, constants: dict[str, Any]) -> Array:
    import onnx

    shape = onnx.numpy_helper.to_array(constants[node.input[0]])
    value = next(
        (onnx.numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), np.zeros(1, np.float32)
    )
    if (
        shape.ndim != 1
        or (shape < 0).any()
        or value.size != 1
        or math.prod(shape.tolist()) * value.itemsize > _MOST_BYTES
    ):
        raise ValueError("the shape of a constant of one value cannot be right")
    return np.full(tuple(shape.tolist()), value.reshape(-1)[0], value.dtype)


def _table(node: Any, last: Any, constants: dict[str, Any]) -> Array:
    import onnx

    names = (*node.input, *last.input[1:])
    if last is node or len(node.input) != 2 or any(name not in constants for name in names):
        raise ValueError("a part of a table is missing, or is no constant")
    steps, scale, shape = (onnx.numpy_helper.to_array(constants[name]) for name in names)
    if constants[names[0]].data_type == onnx.TensorProto.INT4:
        steps = steps.astype(np.int8)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if (
        steps.dtype != np.int8
        or steps.ndim != 2
        or axis not in (0, 1)
        or scale.dtype != np.float32
        or scale.shape != (steps.shape[axis],)
        or shape.ndim != 1
        or (shape < 0).any()
        or math.prod(shape.tolist()) != steps.size
    ):
        raise ValueError("the parts of a table do not fit together")
    return _from_steps(steps, scale, axis).reshape(tuple(shape.tolist()))


def _drop_unread(model: Any) -> None:
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    # What bodies of loops and branches read is not looked for: a network with such bodies keeps all that it has.
    if any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute):
        return
    unread = [number for number, constant in enumerate(model.graph.initializer) if constant.name not in read]
    for number in reversed(unread):
        del model.graph.initializer[number]
