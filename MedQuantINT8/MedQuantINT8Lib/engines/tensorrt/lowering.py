"""The lowering of a network before TensorRT sees it: FP16 around the INT8 layers, and exact rewrites.

TensorRT is given a strongly typed network: it computes in the types that stand in the graph. Everything that is not INT8 is
FP16 here (half the memory traffic, and tensor cores), except where 11 bits of mantissa or a range of 65504 are not enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...models import onnx_graph as graph
from ...models import qdq, rewrites

#: Operators that stay in FP32: sums over a whole volume, and what is the ratio of two of them.
KEPT_IN_FLOAT = ("ReduceMean", "ReduceSum", "ReduceL2", "Pow", "Sqrt", "Exp", "Softmax", "LayerNormalization")
#: Inputs that ONNX fixes as FP32 whatever the others are: position by operator.
_FLOAT_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
#: Begins the names of nodes that stay in FP32 whatever they are.
_FLOAT_PREFIX = "float_"
_LARGEST, _SMALLEST_SCALE = 65504.0, 2.0**-20


def lowered(model: Any, precision: str) -> Any:
    """The network for one precision: "fp32" as it is, "fp16" and "int8" with everything else in half precision."""
    if precision == "fp32":
        return rewrites.copied(model)
    model = rewrites.with_pointwise_deconvolutions(model)
    return with_half(with_norms_written_out(_with_float_deconvolutions(model)))


def _with_float_deconvolutions(model: Any) -> Any:
    """A copy whose transposed convolutions take float inputs: TensorRT has no INT8 for those that no pointwise convolution can stand for, so
    that a Q/DQ pair before them is an error and two kernels for nothing."""
    names = {node.name for node in model.graph.node if node.op_type == "ConvTranspose"}
    return qdq.without_quantization(model, names) if names else model


def with_norms_written_out(model: Any) -> Any:
    """A copy in which instance normalization (also of groups) is means, differences and a division.

    As one operator the compiler keeps its parts in FP32 in the GPU's memory: twice the bytes (docs/results/tensorrt.md). Written out,
    only the squares are FP32, which would leave FP16's range from 256 on, and the compiler computes them where it reads the values.
    """
    copy = rewrites.copied(model)
    opset = next(o.version for o in copy.opset_import if o.domain in ("", "ai.onnx"))
    arrays = {i.name: i for i in copy.graph.initializer}
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.inferred(copy).graph.value_info, *copy.graph.input)
    }
    nodes: list[Any] = []
    for node in copy.graph.node:
        known = (
            node.op_type == "InstanceNormalization"
            and node.input[0] in ranks
            and all(n in arrays for n in node.input[1:])
        )
        nodes += _written_out(node, arrays, copy.graph, ranks[node.input[0]], opset) if known else [node]
    return graph.with_nodes(copy, nodes)


def _written_out(node: Any, arrays: dict[str, Any], body: Any, rank: int, opset: int) -> list[Any]:
    onnx = graph.require_onnx()
    source, base = node.input[0], f"{node.name or node.output[0]}"
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    axes = list(range(2, rank))
    nodes: list[Any] = []

    def constant(name: str, values: Any) -> str:
        body.initializer.append(onnx.numpy_helper.from_array(values, f"{base}_{name}"))
        return f"{base}_{name}"

    def add(kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def mean(name: str, of: str) -> str:
        if opset >= 18:
            return add("ReduceMean", f"{base}_{name}", of, constant(f"{name}_axes", np.array(axes)), keepdims=1)
        return add("ReduceMean", f"{base}_{name}", of, axes=axes, keepdims=1)

    scale, shift = (
        onnx.numpy_helper.to_array(arrays[n]).reshape(-1, *[1] * len(axes)).astype(np.float32) for n in node.input[1:]
    )
    centered = add("Sub", f"{base}_centred", source, mean("mean", source))
    variance = mean("variance", add("Mul", f"{_FLOAT_PREFIX}{base}_square", centered, centered))
    safe = add("Add", f"{_FLOAT_PREFIX}{base}_safe", variance, constant("epsilon", np.array(epsilon, np.float32)))
    normal = add("Div", f"{base}_normal", centered, add("Sqrt", f"{base}_deviation", safe))
    scaled = add("Mul", f"{base}_scaled", normal, constant("scale", scale))
    add("Add", node.output[0], scaled, constant("shift", shift))
    nodes[-1].name = f"{base}_shifted"
    return nodes


def with_half(model: Any) -> Any:
    """A copy that computes in FP16, with FP32 at its input and output.

    Operators of :data:`KEPT_IN_FLOAT`, and those whose constants FP16 cannot hold, are wrapped in casts. Scales of Q/DQ nodes
    take the type of what they scale, as TensorRT asks; one that would lose more than a thousandth keeps its layer in FP32.
    """
    copy = rewrites.copied(model)
    return _Half(copy).run()


class _Half:
    def __init__(self, model: Any) -> None:
        self._onnx = graph.require_onnx()
        self._model = model
        body = graph.inferred(model).graph
        self._types = {v.name: v.type.tensor_type.elem_type for v in (*body.value_info, *body.input, *body.output)}
        self._types |= {i.name: i.data_type for i in body.initializer}
        self._arrays: dict[str, Any] = {i.name: i for i in model.graph.initializer}
        self._float_names = {node.name or node.output[0] for node in model.graph.node if self._stays(node)}
        self._casts: set[str] = set()
        self._nodes: list[Any] = []
        #: Tensors of the graph that are FP16 now.
        self._half: set[str] = set()

    def run(self) -> Any:
        body = self._model.graph
        floats = {i.name for i in body.initializer if i.data_type == self._onnx.TensorProto.FLOAT}
        first = next(i for i in body.input if i.name not in self._arrays)
        self._cast(first.name, f"{first.name}_half", half=True)
        renamed = {first.name: f"{first.name}_half"}
        self._half.add(renamed[first.name])
        for node in body.node:
            self._convert(node, renamed, floats)
        for output in body.output:
            if output.name in self._half:
                inner = f"{output.name}_half"
                for node in self._nodes:
                    node.output[:] = [inner if o == output.name else o for o in node.output]
                    node.input[:] = [inner if i == output.name else i for i in node.input]
                self._cast(inner, output.name, half=False)
        del body.node[:]
        body.node.extend(self._nodes)
        del body.value_info[:]
        return graph.pruned(self._model)

    def _stays(self, node: Any) -> bool:
        if node.op_type in KEPT_IN_FLOAT or node.name.startswith(_FLOAT_PREFIX):
            return True
        for name in node.input:
            if name in self._arrays and self._arrays[name].data_type == self._onnx.TensorProto.FLOAT:
                values = self._onnx.numpy_helper.to_array(self._arrays[name])
                if values.size and np.abs(values).max() > _LARGEST:
                    return True
                if (
                    node.op_type in ("QuantizeLinear", "DequantizeLinear")
                    and values.size
                    and values.min() < _SMALLEST_SCALE
                ):
                    return True
        return False

    def _convert(self, node: Any, renamed: dict[str, str], floats: set[str]) -> None:
        node = graph.copied_node(node)
        node.input[:] = [renamed.get(name, name) for name in node.input]
        stays = (node.name or node.output[0]) in self._float_names
        fixed = _FLOAT_INPUTS.get(node.op_type, ())
        if node.op_type == "Cast":
            to = next(a for a in node.attribute if a.name == "to")
            if to.i == self._onnx.TensorProto.FLOAT:
                to.i = self._onnx.TensorProto.FLOAT16
                self._half.update(node.output)
            self._nodes.append(node)
            return
        if node.op_type in ("Constant", "ConstantOfShape"):
            self._constant(node)
            self._nodes.append(node)
            return
        for position, name in enumerate(node.input):
            if not name or position in fixed:
                if position in fixed and name in self._half:
                    node.input[position] = self._as(name, half=False)
                continue
            if stays and name in self._half:
                node.input[position] = self._as(name, half=False)
            elif not stays and name in floats:
                node.input[position] = self._constant_half(name)
            elif not stays and self._is_float(name) and name not in self._half:
                node.input[position] = self._as(name, half=True)
        self._nodes.append(node)
        # What an operator that stays gives is FP32: its readers cast where they need to.
        if not stays and node.op_type != "QuantizeLinear":
            self._half.update(o for o in node.output if o and self._is_float(o))

    def _is_float(self, name: str) -> bool:
        return name in self._casts or name in self._half or self._types.get(name) == self._onnx.TensorProto.FLOAT

    def _constant(self, node: Any) -> None:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type == self._onnx.TensorProto.FLOAT:
                values = self._onnx.numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(self._onnx.numpy_helper.from_array(values))
                self._half.update(node.output)

    def _constant_half(self, name: str) -> str:
        half_name = f"{name}_half"
        if half_name not in self._arrays:
            values = self._onnx.numpy_helper.to_array(self._arrays[name]).astype(np.float16)
            self._arrays[half_name] = self._onnx.numpy_helper.from_array(values, half_name)
            self._model.graph.initializer.append(self._arrays[half_name])
        return half_name

    def _as(self, name: str, *, half: bool) -> str:
        cast_name = f"{name}_{'to_half' if half else 'to_float'}"
        if cast_name not in self._casts:
            self._casts.add(cast_name)
            self._cast(name, cast_name, half=half)
        if half:
            self._half.add(cast_name)
        return cast_name

    def _cast(self, source: str, target: str, *, half: bool) -> None:
        to = self._onnx.TensorProto.FLOAT16 if half else self._onnx.TensorProto.FLOAT
        self._nodes.append(self._onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to))
