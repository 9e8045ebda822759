"""High biases absorbed into the next layers, as M. Nagel et al. (arXiv 1906.04721) do after equalization; for methods.py.

Where a channel lies above 0 before a curve that leaves it as it is there, what it never falls below can be taken off its bias, and the layers
that read it add it to theirs. That is exact where these do not fill up with zeros at the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: Curves that leave a channel as it is where it lies above 0.
_IDENTITY_ABOVE_0 = ("Relu", "LeakyRelu", "PRelu", "Elu")


def absorbed(networks: Any, deviations: float | None) -> Any:
    """High biases go into the next layers' biases, as far as the channel never falls below 0, or by so many deviations below its mean."""
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models import rewrites
    from MedQuantINT8Lib.quantization.fp32_network import Fp32Network

    network = graph.Graph(networks.fp32)
    places = {}
    for node in network.nodes:
        maker = network.producer.get(node.input[0]) if node.op_type in _IDENTITY_ABOVE_0 else None
        readers = network.readers.get(node.output[0], [])
        if maker is None or maker.op_type != "Conv" or network.array(maker.input[1]) is None:
            continue
        alone = len(network.readers[maker.output[0]]) == 1
        if alone and readers and all(_plain(network, reader) for reader in readers):
            places[maker.output[0]] = maker, readers
    low = _lowest(networks, list(places))
    values = {
        name: np.maximum(0, least if deviations is None else mean - deviations * deviation)
        for name, (least, mean, deviation) in low.items()
    }
    networks.about["absorbed"] = [
        sum(len(least) for least, _, _ in low.values()),
        *(
            int(sum((v > 0).sum() for v in parts))
            for parts in (
                [least for least, _, _ in low.values()],
                [mean - 3 * deviation for _, mean, deviation in low.values()],
            )
        ),
    ]
    if not any(value.any() for value in values.values()):
        return None
    copy = rewrites.copied(networks.fp32)
    nodes = {node.name: node for node in copy.graph.node}
    shifts: dict[str, np.ndarray] = {}
    for name, (maker, readers) in places.items():
        shifts[maker.name] = shifts.get(maker.name, 0.0) - values[name]
        for reader in readers:
            weight = network.array(reader.input[1]).astype(np.float64)
            shifts[reader.name] = shifts.get(reader.name, 0.0) + weight.sum(axis=(2, 3, 4)) @ values[name]
    for name, shift in shifts.items():
        _add_to_bias(copy, network, nodes[name], shift)
    fp32 = graph.pruned(copy)
    if deviations is None:
        networks.about["absorbed_fp32"] = _agreement(networks, fp32)
    return networks.form(Fp32Network(fp32, networks.setting.patch)).int8


def _plain(network: Any, node: Any) -> bool:
    from MedQuantINT8Lib.models import rewrites

    return (
        node.op_type == "Conv"
        and network.array(node.input[1]) is not None
        and rewrites.attributes(node).get("group", 1) == 1
    )


def _add_to_bias(model: Any, network: Any, node: Any, shift: np.ndarray) -> None:
    from MedQuantINT8Lib.models.onnx_graph import require_onnx

    bias = network.array(node.input[2]) if len(node.input) > 2 and node.input[2] else 0.0
    name = f"{node.name}_bias_absorbed"
    model.graph.initializer.append(require_onnx().numpy_helper.from_array((bias + shift).astype(np.float32), name))
    del node.input[2:]
    node.input.append(name)


def _lowest(networks: Any, tensors: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The least value, the mean and the deviation of each channel of the tensors over the calibration patches."""
    from MedQuantINT8Lib.engines.float_session import float_session
    from MedQuantINT8Lib.models import onnx_graph as graph

    if not tensors:
        return {}
    fixed = graph.fixed_shape(networks.fp32, networks.setting.patch)
    run = float_session(graph.with_outputs(fixed, list(tensors)).SerializeToString(), "fp32")
    input_name = graph.network_shape(fixed).input_name
    parts: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    for patch in networks.patches:
        for name, array in zip(tensors, run.run(list(tensors), {input_name: patch[None]}), strict=True):
            axes = (0, *range(2, array.ndim))
            parts[name].append(
                np.stack([array.min(axes), array.mean(axes), (array.astype(np.float64) ** 2).mean(axes)])
            )
    found = {}
    for name, values in parts.items():
        least, mean, square = np.min(values, 0)[0], np.mean(values, 0)[1], np.mean(values, 0)[2]
        found[name] = least, mean, np.sqrt(np.maximum(square - mean**2, 0))
    return found


def _agreement(networks: Any, fp32: Any) -> float | None:
    from MedQuantINT8Lib.quantization.measurer import Measurer

    setting = networks.setting
    return Measurer(networks.fp32, setting.windows, setting.spec, voxel_ml=1e-3).measure(fp32).agreement
