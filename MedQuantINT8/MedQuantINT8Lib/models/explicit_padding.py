"""Dilated INT8 convolutions that read inputs with their padding in place, instead of padding them themselves.

A convolution whose activations have a zero point other than 0 has to make up for the padding, which is 0 before quantization and
the zero point after it. oneDNN's kernel for processors with AMX prepares that for each place at the border, and for a dilation of
2 it writes beyond its memory at some widths (3 x 3 x 3, 144 voxels): OpenVINO 2026.4 then ends the process, or not, as it happens,
with "free(): invalid pointer". Padded with the zero point beforehand, the same integers are multiplied and nothing has to be made up
for, which costs less the wider the dilation is: brain3_meshnet20 (dilations 1 to 16) takes 0.35 s for a window of 96^3 in place of 0.86 s
(two busy cores). Layers without dilation gain nothing by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .onnx_graph import Graph, copied_node, require_onnx, with_nodes
from .rewrites import attributes, copied
from .tensor_names import FreshNames


def with_explicit_padding(model: Any) -> Any:
    """Return a network that computes the same, whose dilated INT8 convolutions have no padding: a Pad of the quantized input before
    each of them adds it.

    Args:
        model: with Q/DQ pairs. Convolutions that are not dilated, not padded or in float stay as they are, and so do those whose
            activations have a zero point of 0.
    """
    onnx = require_onnx()
    copy = copied(model)
    graph, fresh = Graph(copy), FreshNames(copy)
    nodes: list[Any] = []
    made: dict[tuple[str, tuple[int, ...]], str] = {}
    for node in copy.graph.node:
        pads = _padding(node)
        dequantize = graph.producer.get(node.input[0]) if pads else None
        if not pads or dequantize is None or not _is_quantized(graph, dequantize):
            nodes.append(node)
            continue
        key = node.input[0], pads
        if key not in made:
            made[key] = fresh(f"{node.input[0]}_padded")
            nodes += _padded(onnx, copy, dequantize, pads, made[key], fresh)
        convolution = copied_node(node)
        convolution.input[0] = made[key]
        for attribute in convolution.attribute:
            if attribute.name == "pads":
                attribute.ints[:] = [0] * len(pads)
        nodes.append(convolution)
    return with_nodes(copy, nodes) if made else model


def _padding(node: Any) -> tuple[int, ...]:
    """The padding of a dilated convolution, as its attribute gives it; empty for any other node."""
    if node.op_type != "Conv":
        return ()
    values = attributes(node)
    pads = tuple(values.get("pads", ()))
    automatic = values.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    return pads if any(pads) and max(values.get("dilations", [1])) > 1 and not automatic else ()


def _is_quantized(graph: Graph, node: Any) -> bool:
    """Whether the node dequantizes an activation with one zero point, other than 0."""
    if node.op_type != "DequantizeLinear" or len(node.input) < 3:
        return False
    quantize, zero = graph.producer.get(node.input[0]), graph.array(node.input[2])
    if quantize is None or quantize.op_type != "QuantizeLinear" or graph.is_constant(quantize.input[0]):
        return False
    return zero is not None and zero.size == 1 and int(zero.item()) != 0


def _padded(
    onnx: Any, model: Any, dequantize: Any, pads: tuple[int, ...], name: str, fresh: FreshNames
) -> tuple[Any, Any]:
    """The nodes that pad the quantized tensor with its zero point and dequantize it, under the name of the result."""
    half = len(pads) // 2
    constants = {
        fresh(f"{name}_amounts"): np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64),
        fresh(f"{name}_zero"): Graph(model).array(dequantize.input[2]).reshape(()),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in constants.items())
    quantized = fresh(f"{name}_quantized")
    pad = onnx.helper.make_node("Pad", [dequantize.input[0], *constants], [quantized], name=fresh(f"{name}_Pad"))
    again = copied_node(dequantize)
    again.name, again.input[0], again.output[0] = fresh(f"{name}_DequantizeLinear"), quantized, name
    return pad, again
