"""Constants of an ONNX graph, and shapes that follow from shapes, computed beforehand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....models import onnx_graph as graph
from ....models import rewrites

#: Constants of more numbers than this are weights, not shapes.
_SMALL = 64


def folded(model: Any) -> Any:
    """Shape arithmetic and other nodes of constants alone as constants, so that what is left is work.

    Shapes that follow from shapes become known in turn, so it is done until nothing changes.
    """
    copy = rewrites.copied(model)
    before = None
    while before != (before := (len(copy.graph.node), sum(all(shape) for shape in graph.Graph(copy).shapes.values()))):
        _once(copy)
        graph.infer(copy)
    if _computed(copy):
        # Shapes may follow from what was computed.
        graph.infer(copy)
    return copy


def _once(model: Any) -> None:
    """One pass, in place, over what follows from small constants and known shapes."""
    onnx = graph.require_onnx()
    from onnx.reference import ReferenceEvaluator

    look = graph.Graph(model)
    initializers = {i.name: i for i in model.graph.initializer if math.prod(i.dims) <= _SMALL}
    done: list[int] = []
    for number, node in enumerate(model.graph.node):
        inputs = [name for name in node.input if name]
        shape = look.shapes.get(node.input[0], []) if node.op_type == "Shape" else []
        if shape and all(shape):
            values: Any = [np.array(shape, np.int64)[slice(*_ends(node))]]
        elif node.op_type not in ("DequantizeLinear", "QuantizeLinear", "Shape") and all(
            name in initializers for name in inputs
        ):
            outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
            body = onnx.helper.make_graph(
                [node], "constants", [], outputs, [initializers[name] for name in dict.fromkeys(inputs)]
            )
            values = ReferenceEvaluator(onnx.helper.make_model(body, opset_imports=model.opset_import)).run(None, {})
        else:
            continue
        done.append(number)
        for name, value in zip(node.output, values, strict=True):
            initializers[name] = onnx.numpy_helper.from_array(np.asarray(value), name)
            model.graph.initializer.append(initializers[name])
    graph.remove(model.graph.node, done)


def _computed(model: Any) -> bool:
    """Compute, in place and at once, what is left of constants alone, large ones among them (masks and tables of attention). Quantized weights stay
    as they are. Whether there was anything.
    """
    onnx = graph.require_onnx()
    from ...onnxruntime import session

    initializers = {i.name: i for i in model.graph.initializer}
    known, done = set(initializers), []
    for number, node in enumerate(model.graph.node):
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear") and all(
            name in known for name in node.input if name
        ):
            known.update(node.output)
            done.append(number)
    constant, others = [model.graph.node[n] for n in done], set(range(len(model.graph.node))) - set(done)
    tensors_read = {name for n in others for name in model.graph.node[n].input} | {o.name for o in model.graph.output}
    wanted = [name for node in constant for name in node.output if name in tensors_read]
    if not wanted:
        return False
    needed = {name for node in constant for name in node.input}
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in wanted]
    body = onnx.helper.make_graph(
        constant, "constants", [], outputs, [i for name, i in initializers.items() if name in needed]
    )
    small = graph.pruned(onnx.helper.make_model(body, opset_imports=model.opset_import, ir_version=model.ir_version))
    # "int8" computes as written, without the search for something faster, which would take longer than computing.
    values = session(small.SerializeToString(), "int8").run(None, {})
    for name, value in zip(wanted, values, strict=True):
        # Filled where it is: masks have a hundred million bytes.
        tensor = model.graph.initializer.add(
            name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape
        )
        tensor.raw_data = value.tobytes()
    graph.remove(model.graph.node, done)
    return True


def _ends(node: Any) -> tuple[int, int | None]:
    attributes = rewrites.attributes(node)
    return int(attributes.get("start", 0)), attributes.get("end")
