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

from ..models import onnx_graph as graph
from ..models import rewrites
from ..models.onnx_graph import Graph
from ..models.tensor_names import FreshNames
from .fp32_network import Fp32Network

Patch = NDArray[np.float32]


def input_means(fp32: Any, patches: Iterable[Patch], shape: tuple[int, int, int]) -> dict[str, NDArray[np.float64]]:
    """Return the mean of each input channel of every convolution of an FP32 network, by the convolution's name.

    Args:
        patches: (C, *shape) each.
    """
    return Fp32Network(fp32, shape).input_means(patches)


def output_shift(model: Any, other: Any) -> NDArray[np.float64] | None:
    """Return what the second network's output has more than the first's, (classes,), where only the bias of the last convolution differs.

    None where the output is none of a convolution's, or something else differs.
    """
    first, second = Graph(model), Graph(other)
    head = second.producer.get(other.graph.output[0].name)
    old = first.producer.get(model.graph.output[0].name)
    if head is None or old is None or head.op_type != "Conv" or len(first.nodes) != len(second.nodes):
        return None
    biases = [
        network.array(node.input[2]) if len(node.input) > 2 else np.zeros(1)
        for network, node in ((first, old), (second, head))
    ]
    of_biases = {*old.input[2:], *head.input[2:]}
    if (
        any(bias is None for bias in biases)
        or list(old.input[:2]) != list(head.input[:2])
        or list(old.attribute) != list(head.attribute)
    ):
        return None
    if any(a != b for a, b in zip(first.nodes, second.nodes, strict=True) if a.name != old.name):
        return None
    constants = [{n: i for n, i in network.initializers.items() if n not in of_biases} for network in (first, second)]
    if constants[0].keys() != constants[1].keys() or any(i != constants[1][n] for n, i in constants[0].items()):
        return None
    shift: NDArray[np.float64] = np.subtract(biases[1], biases[0], dtype=np.float64)
    return shift


def with_corrected_biases(fp32: Any, int8: Any, means: dict[str, NDArray[np.float64]]) -> Any:
    """A copy of the INT8 network whose convolutions' biases make up for the rounding of their weights; None where no bias counts.

    What an InstanceNormalization alone reads has its mean taken off anyway.
    """
    onnx = graph.require_onnx()
    copy = rewrites.copied(int8)
    network, exact, fresh = Graph(copy), Graph(fp32), FreshNames(copy)
    originals = {node.name: node for node in fp32.graph.node}
    outputs = {value.name for value in copy.graph.output}
    corrected = False
    for node in copy.graph.node:
        if node.op_type != "Conv" or node.name not in means or rewrites.attributes(node).get("group", 1) != 1:
            continue
        readers = network.readers.get(node.output[0], [])
        if (
            readers
            and node.output[0] not in outputs
            and all(reader.op_type == "InstanceNormalization" for reader in readers)
        ):
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
        corrected = True
    return graph.pruned(copy) if corrected else None
