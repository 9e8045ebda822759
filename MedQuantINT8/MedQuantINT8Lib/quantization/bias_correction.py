"""Bias correction: what rounding the weights adds to a channel's mean is taken off its bias.

After M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721). A
rounded weight differs from the exact one by dW; on inputs of mean E[x] the channel's mean moves by sum(dW E[x]). The
means are measured on calibration patches. Borders, where padding lowers the mean, are not told apart. It is kept only
where it brings simulated INT8 nearer to FP32 (see :func:`.accuracy_guard.guard`): behind an InstanceNormalization it cannot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.float_session import float_session
from ..models import onnx_graph as graph
from ..models import rewrites
from ..models.onnx_graph import Graph
from ..models.tensor_names import FreshNames

Patch = NDArray[np.float32]


def input_means(fp32: Any, patches: Iterable[Patch], shape: tuple[int, int, int]) -> dict[str, NDArray[np.float64]]:
    """Mean of each input channel of every convolution of an FP32 network, by the convolution's name.

    Args:
        patches: (C, *shape) each.
    """
    fixed = graph.fixed_shape(fp32, shape)
    nodes = [node for node in fixed.graph.node if node.op_type == "Conv"]
    input_name = graph.network_shape(fixed).input_name
    wanted = sorted({node.input[0] for node in nodes} - {input_name})
    sums: dict[str, NDArray[np.float64]] = {}
    count = 0
    measuring, outputs = _with_means(fixed, wanted)
    run = float_session(measuring.SerializeToString(), "fp32")
    for patch in patches:
        # An empty list of outputs would mean all of them.
        values = run.run(outputs, {input_name: patch[None]}) if wanted else []
        patch_means = {input_name: patch.mean(axis=(1, 2, 3))}
        patch_means |= {name: v.reshape(v.shape[:2]).mean(axis=0) for name, v in zip(wanted, values, strict=True)}
        for name, mean in patch_means.items():
            sums[name] = sums.get(name, np.zeros(mean.size)) + mean
        count += 1
    return {node.name: sums[node.input[0]] / max(count, 1) for node in nodes}


def _with_means(model: Any, tensors: list[str]) -> tuple[Any, list[str]]:
    """The network with the tensors' channel means as further outputs, and their names: the tensors themselves would fill the memory."""
    onnx = graph.require_onnx()
    copy = rewrites.copied(model)
    fresh = FreshNames(copy)
    outputs = []
    for name in tensors:
        outputs.append(fresh(f"{name}_channel_mean"))
        # Whatever the number of spatial axes: those of networks that work slice by slice have two.
        copy.graph.node.append(onnx.helper.make_node("GlobalAveragePool", [name], [outputs[-1]]))
        copy.graph.output.append(onnx.helper.make_tensor_value_info(outputs[-1], onnx.TensorProto.FLOAT, None))
    return copy, outputs


def with_corrected_biases(fp32: Any, int8: Any, means: dict[str, NDArray[np.float64]]) -> Any:
    """A copy of the INT8 network whose convolutions' biases make up for the rounding of their weights."""
    onnx = graph.require_onnx()
    copy = rewrites.copied(int8)
    network, exact, fresh = Graph(copy), Graph(fp32), FreshNames(copy)
    originals = {node.name: node for node in fp32.graph.node}
    for node in copy.graph.node:
        if node.op_type != "Conv" or node.name not in means or rewrites.attributes(node).get("group", 1) != 1:
            continue
        dequantize = network.producer.get(node.input[1])
        weight = exact.array(originals[node.name].input[1])
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or weight is None:
            continue
        integers, scale = network.array(dequantize.input[0]), network.array(dequantize.input[1])
        rounded = integers.astype(np.float64) * scale.astype(np.float64).reshape(-1, *[1] * (integers.ndim - 1))
        shift = (rounded - weight).sum(axis=tuple(range(2, weight.ndim))) @ means[node.name]
        bias = network.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(weight.shape[0])
        name = fresh(f"{node.name}_corrected_bias")
        copy.graph.initializer.append(onnx.numpy_helper.from_array((bias - shift).astype(np.float32), name))
        if len(node.input) > 2:
            node.input[2] = name
        else:
            node.input.append(name)
    return graph.pruned(copy)
