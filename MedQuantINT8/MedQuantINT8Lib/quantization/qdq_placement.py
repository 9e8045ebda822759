"""Where Q/DQ pairs stand: NVIDIA ModelOpt's ONNX quantizer, with its traps closed.

Traps of ModelOpt 0.47: random data where none is given (a real patch is always given here); shared scales across skip
connections (``passes=[]``); FP16 around the INT8 layers (``high_precision_dtype="fp32"``; an engine that wants FP16
casts in its own build); files written beside the input (a temporary folder); Q/DQ on pooling, addition and resizing,
which adds error and brings nothing where the neighbours are convolutions (only weighted operators are named); transposed
convolutions with scales that engines cannot use (excluded); convolutions of few channels left out (added here).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, PackageError
from ..models import onnx_graph as graph
from ..models.layers import is_dequantized, weighted_layers
from ..models.tensor_names import FreshNames, free_name, rename_tensors, tensor_names, use_plain_names

Patch = NDArray[np.float32]
_OPERATORS = ("Conv", "MatMul", "Gemm")


def require_quantizer() -> Any:
    """Return ModelOpt's ONNX quantizer.

    Raises:
        DependencyError: ModelOpt or something that it needs is not installed.
    """
    try:
        with _quiet():
            from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise DependencyError(
            f"NVIDIA ModelOpt cannot be used: {str(error).splitlines()[0]}.",
            "Install it with: pip install 'medquantint8[quantize]'",
        ) from error
    return quantize


def place(quantizer: Any, model: Any, patch: Patch, reasons: dict[str, str], *, few_channels: bool = True) -> Any:
    """``model`` with Q/DQ pairs before its weighted operators and weights stored as INT8.

    Args:
        model: FP32 network of fixed shape.
        patch: one real patch, (C, A0, A1, A2).
        reasons: layers to leave in high precision, by node name; layers that cannot be quantized are added to it.
        few_channels: quantize the convolutions that ModelOpt leaves out for their few channels.
    """
    onnx = graph.require_onnx()
    input_name = graph.network_shape(model).input_name
    # ModelOpt makes names out of those that it finds ("x_scale"), and takes a tensor that has such a name already for its own.
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    originals = use_plain_names(plain)
    with TemporaryDirectory(prefix="medquant-quantize-") as scratch:
        source, result = Path(scratch) / "network.onnx", Path(scratch) / "int8.onnx"
        onnx.save(plain, str(source))
        try:
            with _quiet(), _own_cores():
                quantizer(
                    str(source),
                    quantize_mode="int8",
                    calibration_method="max",
                    calibration_eps=["cpu"],
                    calibration_data_reader=_one_patch_reader(input_name, patch),
                    output_path=str(result),
                    op_types_to_quantize=list(_OPERATORS),
                    nodes_to_exclude=[f"^{re.escape(name)}$" for name in reasons],
                    passes=[],
                    high_precision_dtype="fp32",
                    dq_only=True,
                    log_level="ERROR",
                )
        except Exception as error:
            # ModelOpt checks with assert and lets onnxruntime's own types through.
            raise PackageError(
                f"ModelOpt cannot quantize this network: {str(error).splitlines()[0] if str(error) else type(error).__name__}.",
                "Keep the layers it names in high precision with --keep.",
            ) from error
        with_pairs = graph.load_network(result)
    _give_names_back(with_pairs, originals)
    _leave_others_in_float(with_pairs)
    left_out = {layer.name for layer in weighted_layers(with_pairs) if not layer.quantized} - set(reasons)
    if few_channels:
        left_out -= _quantize_convolutions(with_pairs, left_out)
    _store_transposed_weights(with_pairs)
    left_out -= _quantize_transposed_inputs(with_pairs, left_out)
    for name in left_out:
        reasons[name] = "ModelOpt leaves it out: too few channels, or no constant weight"
    _store_tables(with_pairs)
    return with_pairs


def _give_names_back(model: Any, originals: dict[str, str]) -> None:
    """The tensors' own names again, in place; what was made beside them makes way for them.

    Args:
        originals: the own name of each tensor, by the one that it was given.
    """
    names, own_names = tensor_names(model), set(originals.values())
    ends = {value.name for field in (model.graph.input, model.graph.output) for value in field}
    new_names = {new: old for new, old in originals.items() if new in names}
    in_use = names | own_names
    for name in sorted((names - set(originals) - ends) & own_names):
        new_names[name] = free_name(name, in_use)
    rename_tensors(model, new_names)


def _one_patch_reader(input_name: str, patch: Patch) -> Any:
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class OnePatch(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._left, None)

        def get_first(self) -> dict[str, NDArray[np.float32]]:
            return {input_name: patch[None]}

        def rewind(self) -> None:
            self._left = iter([self.get_first()])

    return OnePatch()


def _leave_others_in_float(model: Any) -> None:
    """Let skip connections, additions and the like read the float tensor, not its quantized copy, in place.

    Where their sum or concatenation is quantized in turn, it would else be rounded twice.
    """
    network = graph.Graph(model)
    for node in model.graph.node:
        if node.op_type in (*_OPERATORS, "QuantizeLinear", "DequantizeLinear"):
            continue
        for position, name in enumerate(node.input):
            dequantize = network.producer.get(name)
            if dequantize is not None and dequantize.op_type == "DequantizeLinear" and not network.is_constant(name):
                node.input[position] = network.producer[dequantize.input[0]].input[0]
    graph.pruned(model)


def _quantize_convolutions(model: Any, names: set[str]) -> set[str]:
    """Put Q/DQ before the named convolutions of constant weight, in place; returns which were done.

    The activations' scales are placeholders until calibration sets them.
    """
    onnx = graph.require_onnx()
    network, fresh = graph.Graph(model), FreshNames(model)
    names_done: set[str] = set()
    quantized: dict[str, str] = {
        node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"
    }
    for node in list(model.graph.node):
        if node.name not in names or node.op_type != "Conv" or node.input[1] not in network.initializers:
            continue
        source = node.input[0]
        producer = network.producer.get(source)
        if producer is None or producer.op_type != "DequantizeLinear":
            new_nodes = []
            if source not in quantized:
                placeholders = [fresh(f"{source}_scale"), fresh(f"{source}_zero")]
                for name, array in zip(placeholders, (np.float32(1), np.int8(0)), strict=True):
                    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(array), name))
                quantized[source] = fresh(f"{source}_quantized")
                new_nodes.append(
                    onnx.helper.make_node(
                        "QuantizeLinear",
                        [source, *placeholders],
                        [quantized[source]],
                        name=f"{source}_QuantizeLinear_added",
                    )
                )
            quantize = next(
                n for n in (*model.graph.node, *new_nodes) if n.op_type == "QuantizeLinear" and n.input[0] == source
            )
            dequantized = fresh(f"{node.name}_dequantized")
            new_nodes.append(
                onnx.helper.make_node(
                    "DequantizeLinear",
                    [quantized[source], *quantize.input[1:]],
                    [dequantized],
                    name=f"{node.name}_DequantizeLinear_added",
                )
            )
            node.input[0] = dequantized
            at = next(i for i, other in enumerate(model.graph.node) if other.name == node.name)
            for offset, extra in enumerate(new_nodes):
                model.graph.node.insert(at + offset, extra)
        names_done.add(node.name)
    _store_weights(model, names_done, axis=0)
    return names_done


def _store_transposed_weights(model: Any) -> None:
    """Store float weights of transposed convolutions as INT8 behind a DequantizeLinear, in place.

    They are computed in float by every engine, but a nnU-Net keeps 8 % of its weights there: in FP32 the file would
    miss a quarter of its size.
    """
    network = graph.Graph(model)
    names = {
        node.name
        for node in model.graph.node
        if node.op_type == "ConvTranspose"
        and node.input[1] in network.initializers
        and next((a.i for a in node.attribute if a.name == "group"), 1) == 1
    }
    _store_weights(model, names, axis=1)


def _quantize_transposed_inputs(model: Any, names: set[str]) -> set[str]:
    """Put a Q/DQ pair of its own before each of the named transposed convolutions whose weights are stored as INT8, in place; returns
    which were done.

    A pair is shared with no other operator: an engine may need another form of it (:func:`..models.qdq.as_unsigned`). The
    scales are placeholders until calibration sets them.
    """
    onnx = graph.require_onnx()
    network, fresh = graph.Graph(model), FreshNames(model)
    names_done: set[str] = set()
    for node in list(model.graph.node):
        if node.name not in names or node.op_type != "ConvTranspose" or not is_dequantized(network, node.input[1]):
            continue
        source = node.input[0]
        scale, zero, integers, values = (
            fresh(f"{node.name}_input_{part}") for part in ("scale", "zero", "int8", "values")
        )
        for name, array in ((scale, np.float32(1)), (zero, np.int8(0))):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(array), name))
        position = next(n for n, other in enumerate(model.graph.node) if other.output[0] == node.output[0])
        pair = (("QuantizeLinear", source, integers), ("DequantizeLinear", integers, values))
        for offset, (kind, name, output) in enumerate(pair):
            made = onnx.helper.make_node(kind, [name, scale, zero], [output], name=f"{node.name}_input_{kind}")
            model.graph.node.insert(position + offset, made)
        node.input[0] = values
        names_done.add(node.name)
    return names_done


#: Values from which a table is worth storing in 16 bits.
_LARGE_TABLE = 1 << 15


def _store_tables(model: Any) -> None:
    """Store large float constants that are no layer's weights, such as learned positions, in 16 bits, in place.

    A UNesT keeps 3 % of its weights in them. They are added, not multiplied, and 11 bits of mantissa are more than the
    activations around them have.
    """
    onnx = graph.require_onnx()
    network, fresh = graph.Graph(model), FreshNames(model)
    for initializer in list(model.graph.initializer):
        readers = network.readers.get(initializer.name, [])
        if initializer.data_type != onnx.TensorProto.FLOAT or any(
            n.op_type not in ("Add", "Sub", "Gather") for n in readers
        ):
            continue
        array = network.array(initializer.name)
        if array.size < _LARGE_TABLE or not readers or np.abs(array).max() > np.finfo(np.float16).max:
            continue
        name, half = initializer.name, fresh(f"{initializer.name}_half")
        initializer.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), half))
        cast = onnx.helper.make_node("Cast", [half], [name], name=f"{name}_Cast", to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)


def _store_weights(model: Any, names: set[str], axis: int) -> None:
    """Store the named layers' weights as INT8, one scale an output channel (``axis``), in place."""
    onnx = graph.require_onnx()
    network, fresh = graph.Graph(model), FreshNames(model)
    for node in list(model.graph.node):
        if node.name not in names or node.input[1] not in network.initializers:
            continue
        weight = network.array(node.input[1]).astype(np.float32)
        others = tuple(a for a in range(weight.ndim) if a != axis)
        amax = np.abs(weight).max(axis=others)
        scale = np.where(amax > 0, amax / 127, 1).astype(np.float32)
        stored = np.clip(np.rint(weight / np.expand_dims(scale, others)), -127, 127).astype(np.int8)
        name = f"{node.name}_weight"
        parts = [fresh(name + suffix) for suffix in ("_int8", "_scale", "_zero")]
        dequantized = fresh(f"{name}_dequantized")
        for part, array in zip(parts, (stored, scale, np.zeros(scale.shape, np.int8)), strict=True):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, part))
        model.graph.node.insert(
            0,
            onnx.helper.make_node(
                "DequantizeLinear",
                parts,
                [dequantized],
                name=name + "_DequantizeLinear",
                axis=axis,
            ),
        )
        node.input[1] = dequantized
    graph.pruned(model)


@contextlib.contextmanager
def _own_cores() -> Iterator[None]:
    """Let the ONNX Runtime sessions that ModelOpt makes compute on the cores that this process may use.

    A session that is not told how many takes all cores of the machine, and pins a thread to each of them whatever the process is bound to.
    """
    import onnxruntime

    original = onnxruntime.InferenceSession
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0

    class OwnCores(original):  # type: ignore[misc,valid-type]
        def __init__(self, model: Any, sess_options: Any = None, *args: Any, **named: Any) -> None:
            options = onnxruntime.SessionOptions() if sess_options is None else sess_options
            options.intra_op_num_threads = options.intra_op_num_threads or cores
            super().__init__(model, options, *args, **named)

    onnxruntime.InferenceSession = OwnCores
    try:
        yield
    finally:
        onnxruntime.InferenceSession = original


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ModelOpt's log (it reports a missing GPU as an error) and its banners off the user's screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(nothing),
        ):
            yield
    finally:
        logging.disable(before)
