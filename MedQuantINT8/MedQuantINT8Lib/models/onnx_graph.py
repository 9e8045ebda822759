"""Reading ONNX graphs: files, shapes, look-ups; what every other module that touches a graph needs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DependencyError, MedQuantError, PackageError
from .four_bit import unpacked
from .tensor_names import free_name


def require_onnx() -> Any:
    """Return the ``onnx`` package; raises :class:`DependencyError` where it is missing."""
    try:
        import onnx
    except ImportError as error:
        raise DependencyError(
            "The Python package 'onnx' is not installed.", "Install it with: pip install onnx"
        ) from error
    return onnx


def strip_notes(model: Any) -> None:
    """Take off, in place, what exporters note beside the graph: torch writes the stack of calls, with its user's paths."""
    parts = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info]
    for part in (*parts, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


@dataclass(frozen=True)
class NetworkShape:
    """Input and output of a network; spatial sizes are 0 where the graph leaves them open."""

    input_name: str
    output_name: str
    channels: int
    spatial: tuple[int, int, int]
    classes: int


def load_network(path: str | os.PathLike[str]) -> Any:
    """Read and check an ONNX file; weights of 4 bits that :mod:`.four_bit` packed are INT8 in what is returned.

    Raises:
        PackageError: not an ONNX file, damaged, or with weights outside the file's own folder.
    """
    onnx = require_onnx()
    name = Path(path).name
    if not Path(path).is_file():
        raise PackageError(f"There is no network at {path}.", "Check the path.")
    with damage(name):
        model = onnx.load(os.fspath(path))
        onnx.checker.check_model(model)
        _check_constants(model)
        model = unpacked(model)
    if not model.graph.node:
        raise PackageError(f"{name} is no valid ONNX network: it has no operators.", "Export it again.")
    return model


@contextmanager
def damage(name: str, advice: str = "Export it again.", problem: str = "is no valid ONNX network") -> Iterator[None]:
    """Attribute what goes wrong inside to the network called ``name``: its content is a stranger's, and may be of any kind.

    Args:
        problem: what follows from it, in words between the name and the reason.

    Raises:
        PackageError: in place of any exception that is not this project's own.
    """
    try:
        yield
    except MedQuantError:
        raise
    except Exception as error:
        # protobuf, the checker, ONNX Runtime and ModelOpt raise types of their own, and a graph that is not what it
        # says raises whatever the code that reads it stumbles over first.
        raise PackageError(f"{name} {problem}: {reason_of(error)}.", advice) from error


def reason_of(error: BaseException) -> str:
    """Return the first telling line of an exception's message, without control characters, short enough for one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, KeyError):
        text = f"it speaks of {text}, which is not there"
    return "".join(c if c.isprintable() else "?" for c in text)[:160].rstrip(".: ")


def _check_constants(model: Any) -> None:
    """Raise :class:`ValueError` for a constant that does not hold the numbers that it announces: the checker does not count them all."""
    onnx = require_onnx()
    helper = onnx.helper
    for tensor in model.graph.initializer:
        if any(size < 0 for size in tensor.dims):
            raise ValueError(f"the constant {tensor.name!r} has the shape {list(tensor.dims)}")
        if tensor.data_type == onnx.TensorProto.STRING or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(f"the constant {tensor.name!r} holds text, or lies in another file")
        count, bits = math.prod(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
        length = (count * _packed_bits(tensor.data_type) + 7) // 8 or count * bits // 8
        if tensor.raw_data and bits >= 8 and len(tensor.raw_data) != length:
            raise ValueError(
                f"the constant {tensor.name!r} announces {count} numbers and holds {len(tensor.raw_data)} bytes"
            )
        if count > (1 << 16):
            continue  # of its size, and there is nothing else to know
        onnx.numpy_helper.to_array(tensor)


#: Types of which several numbers share a byte, with their bits.
_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def _packed_bits(data_type: int) -> int:
    """Return the bits of one number of a type of which several share a byte; 0 for another type."""
    onnx = require_onnx()
    return _PACKED_BITS.get(onnx.TensorProto.DataType.Name(data_type), 0)


def opset_of(model: Any) -> int:
    """Return the version of ONNX's own operators that a network uses; 0 if it names none."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def at_opset(model: Any, version: int, name: str = "The network") -> Any:
    """Return the network with ONNX's own operators of another version.

    Raises:
        PackageError: the converter knows no way.
    """
    onnx = require_onnx()
    if opset_of(model) == version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:
        # The converter raises RuntimeError and its own ConvertError, whose messages are one C++ assertion.
        raise PackageError(
            f"{name} uses opset {opset_of(model)} and cannot be brought to {version}: {reason_of(error)}.",
            f"Export it with opset {version}.",
        ) from error


def free_inputs(model: Any) -> list[Any]:
    """Return the inputs that a caller gives: old networks list their weights among them."""
    constants = {i.name for i in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def dims_of(value: Any) -> list[int]:
    """Return the sizes of a tensor's axes; 0 where the graph leaves them open, as symbol, as nothing, as 0 or as -1."""
    return [max(0, d.dim_value) for d in value.type.tensor_type.shape.dim]


def network_shape(model: Any, name: str = "The network") -> NetworkShape:
    """Return the shape of the one 5-D input (N, C, A0, A1, A2) and the one output.

    Raises:
        PackageError: several inputs or outputs, or other than five axes.
    """
    inputs = free_inputs(model)
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise PackageError(
            f"{name} has {len(inputs)} inputs and {len(model.graph.output)} outputs; it must have one of each.",
            "Export it with one input and one output.",
        )
    dims, out = dims_of(inputs[0]), dims_of(model.graph.output[0])
    if len(dims) != 5 or dims[1] < 1:
        raise PackageError(
            f"{name} takes an input of {_describe_shape(dims)}; it must be (N, C, A0, A1, A2) with a fixed C.",
            "Export a 3D network.",
        )
    if len(out) != 5 or out[1] < 1:
        out = dims_of(inferred(model).graph.output[0])
        if len(out) != 5 or out[1] < 1:
            raise PackageError(
                f"{name} gives an output of {_describe_shape(out)}; it must be (N, classes, A0, A1, A2) with a known number of classes.",
                "Export a 3D segmentation network; 'medquant import onnx' finds out a number that the graph leaves open.",
            )
    return NetworkShape(inputs[0].name, model.graph.output[0].name, dims[1], (dims[2], dims[3], dims[4]), out[1])


def _describe_shape(dims: list[int]) -> str:
    """Return a shape in words: ONNX leaves sizes open by a symbol, by nothing or by 0."""
    return f"the shape ({', '.join(str(n) if n > 0 else 'open' for n in dims)})" if dims else "unknown shape"


def fixed_shape(model: Any, patch: tuple[int, int, int], batch: int | None = 1) -> Any:
    """Return a copy whose input is (batch, C, *patch), with every intermediate shape inferred; batch None leaves it open.

    Raises:
        PackageError: an input of another rank, or shapes that do not fit together.
    """
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inputs = free_inputs(copy)
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 5:
        raise PackageError(
            "The network does not take one input of five axes (N, C, A0, A1, A2).", "Export a 3D network."
        )
    tensor = inputs[0]
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
    infer(copy)
    return copy


#: Constants of more numbers than this say nothing about shapes.
_SHAPE_LENGTH = 1024


def inferred(model: Any) -> Any:
    """Return a copy with every shape that can be known; see :func:`infer`."""
    copy = require_onnx().ModelProto()
    copy.CopyFrom(model)
    infer(copy)
    return copy


def infer(model: Any) -> None:
    """Note, in place, every shape that can be known.

    Raises:
        PackageError: shapes do not fit together.
    """
    onnx = require_onnx()
    try:
        result = onnx.shape_inference.infer_shapes(_without_weights(model), strict_mode=False, data_prop=True)
    except Exception as error:
        raise PackageError(
            f"The network's shapes do not fit together: {str(error).splitlines()[0]}.", "Export it again."
        ) from error
    for field in ("value_info", "output"):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(getattr(result.graph, field))


def _without_weights(model: Any) -> Any:
    """Return a copy whose large constants are inputs of their shape: inference would put them into bytes and read them again twice over."""
    onnx = require_onnx()
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    declared = {i.name for i in model.graph.input}
    for constant in model.graph.initializer:
        if math.prod(constant.dims) <= _SHAPE_LENGTH:
            light.graph.initializer.append(constant)
        elif constant.name not in declared:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(constant.name, constant.data_type, list(constant.dims))
            )
    return light


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
        self._constant: dict[str, bool] = {}
        self.shapes = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)
        }
        for initializer in model.graph.initializer:
            self.shapes[initializer.name] = list(initializer.dims)

    def array(self, name: str) -> Any:
        """Return the constant called ``name``, or None."""
        onnx = require_onnx()
        if name in self.initializers:
            return onnx.numpy_helper.to_array(self.initializers[name])
        node = self.producer.get(name)
        return _constant_of(node) if node is not None and node.op_type == "Constant" else None

    def is_constant(self, name: str) -> bool:
        """Return whether a tensor comes from constants alone (through DequantizeLinear and the like)."""
        if name not in self._constant:
            node = self.producer.get(name)
            # Remembered: in graphs that compute shapes, roads to the same tensor double with every operator.
            self._constant[name] = name in self.initializers or (
                node is not None and all(self.is_constant(i) for i in node.input if i)
            )
        return self._constant[name]


def _constant_of(node: Any) -> Any:
    """Return the numbers of a Constant node, which has seven ways of holding them; None for text and sparse ones."""
    import numpy as np

    onnx = require_onnx()
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for attribute in node.attribute:
        if attribute.name == "value":
            return onnx.numpy_helper.to_array(attribute.t)
        if attribute.name in kinds:
            return np.array(onnx.helper.get_attribute_value(attribute), kinds[attribute.name])
    return None


def name_nodes(model: Any) -> None:
    """Give every node a name of its own: policies, reports and engines speak of layers by name.

    Names that are unique already stay, whatever stands before them.
    """
    names = [node.name for node in model.graph.node]
    used_names = set(names)
    earlier_names: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in earlier_names:
            node.name = free_name(f"{node.op_type}_{index}", used_names)
        earlier_names.add(node.name)


def pruned(model: Any) -> Any:
    """Remove, in place, nodes and constants whose results nobody reads; returns the model."""
    while True:
        read_names = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
        unread = [
            number
            for number, node in enumerate(model.graph.node)
            if not any(name in read_names for name in node.output)
        ]
        if not unread:
            break
        remove(model.graph.node, unread)
    remove(
        model.graph.initializer,
        [number for number, constant in enumerate(model.graph.initializer) if constant.name not in read_names],
    )
    return model


def copied_node(node: Any) -> Any:
    """Return a copy of a node, which no graph holds."""
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


def with_nodes(model: Any, nodes: Iterable[Any]) -> Any:
    """Put nodes, which may be some of its own, in place of a model's, and prune it as :func:`pruned` does; returns the model."""
    # Copied first: a graph's nodes go when it is emptied.
    copies = [copied_node(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return pruned(model)


def remove(field: Any, numbers: list[int]) -> None:
    """Take entries, by number in rising order, out of a repeated field. To put what is left into it anew would copy all of that, weights too."""
    for number in reversed(numbers):
        del field[number]


def with_outputs(model: Any, names: Iterable[str]) -> Any:
    """Return a copy that also gives the named tensors out, as float32."""
    onnx = require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {o.name for o in copy.graph.output}
    for name in names:
        if name not in present:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copy
