"""Which exact rewrites pay in OpenVINO: each form of the same INT8 network on one 96^3 patch, in turn in one process."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(HERE.parent / "MedQuantINT8")]

from networks import PATCH, phantom_patch, quantized, torch_networks  # noqa: E402

ROUNDS = 5


def dilated_network() -> Any:
    """Fifteen channels, instance normalisation, GELU: the middle of brainchop's mindgrab."""
    from torch import nn

    layers: list[Any] = []
    for number in range(8):
        layers += [nn.Conv3d(15 if number else 1, 15, 3, padding=2 ** (number % 4), dilation=2 ** (number % 4))]
        layers += [nn.InstanceNorm3d(15, affine=True), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv3d(15, 14, 1))


def written_out(model: Any) -> Any:
    """InstanceNormalization as means, differences and products."""
    import onnx

    from MedQuantINT8Lib.models.onnx_graph import Graph, inferred
    from MedQuantINT8Lib.models.rewrites import attributes, copied

    copy, found = copied(model), Graph(model)
    helper, made = onnx.helper, []

    def constant(array: Any, name: str) -> str:
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    axes = constant(np.array([2, 3, 4], np.int64), "spatial_axes")
    for node in copy.graph.node:
        if node.op_type != "InstanceNormalization":
            made.append(node)
            continue
        n, x = node.name, node.input[0]
        scale, shift = (
            constant(found.array(i).reshape(1, -1, 1, 1, 1), f"{n}_{p}") for p, i in enumerate(node.input[1:3])
        )
        epsilon = constant(np.float32(attributes(node).get("epsilon", 1e-5)), f"{n}_epsilon")
        steps = [
            ("ReduceMean", [x, axes], "mean"), ("Sub", [x, f"{n}_mean"], "centred"), ("Mul", [f"{n}_centred"] * 2, "squares"),
            ("ReduceMean", [f"{n}_squares", axes], "variance"), ("Add", [f"{n}_variance", epsilon], "safe"),
            ("Sqrt", [f"{n}_safe"], "deviation"), ("Div", [scale, f"{n}_deviation"], "factor"),
            ("Mul", [f"{n}_centred", f"{n}_factor"], "scaled"),
        ]  # fmt: skip
        made += [helper.make_node(op, inputs, [f"{n}_{out}"], name=f"{n}_{out}") for op, inputs, out in steps]
        made.append(helper.make_node("Add", [f"{n}_scaled", shift], list(node.output), name=f"{n}_out"))
    del copy.graph.node[:]
    copy.graph.node.extend(made)
    return inferred(copy)


def with_quantized_deconvolutions(model: Any) -> Any:
    """Q/DQ before every transposed convolution, whose weights are INT8 already; the scale only serves timing."""
    import onnx

    from MedQuantINT8Lib.models.onnx_graph import inferred
    from MedQuantINT8Lib.models.rewrites import copied

    copy, made = copied(model), []
    for node in copy.graph.node:
        if node.op_type == "ConvTranspose":
            n, ends = node.name, []
            for suffix, array in (("scale", np.float32(0.05)), ("zero", np.uint8(128))):
                copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array(array), f"{n}_{suffix}"))
                ends.append(f"{n}_{suffix}")
            made.append(onnx.helper.make_node("QuantizeLinear", [node.input[0], *ends], [f"{n}_q"], name=f"{n}_q"))
            made.append(onnx.helper.make_node("DequantizeLinear", [f"{n}_q", *ends], [f"{n}_dq"], name=f"{n}_dq"))
            node.input[0] = f"{n}_dq"
        made.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(made)
    return inferred(copy)


def milliseconds(forms: dict[str, Any], batch: Any) -> dict[str, float]:
    from MedQuantINT8Lib.engines.openvino import silent_openvino

    core, runs = silent_openvino().Core(), {}
    for name, model in forms.items():
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        runs[name] = core.compile_model(
            core.read_model(model.SerializeToString()), "CPU", config
        ).create_infer_request()
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(ROUNDS + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run.infer({0: batch})
            if number:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: round(float(np.median(values)), 1) for name, values in times.items()}


def main() -> None:
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models import qdq
    from MedQuantINT8Lib.models.rewrites import with_padded_channels, with_pointwise_deconvolutions

    batch, rows = phantom_patch(), []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDQUANT_CACHE"] = f"{scratch}/engines"
        unet = quantized(torch_networks()["nnU-Net-like (DynUNet, InstanceNorm)"], "nnunet", Path(scratch))
        dilated = quantized(dilated_network(), "dilated", Path(scratch))
        u, d = (
            graph.fixed_shape(qdq.as_unsigned(graph.load_network(p.onnx_path("int8"))), PATCH) for p in (unet, dilated)
        )
        f = graph.fixed_shape(graph.load_network(dilated.onnx_path("fp32")), PATCH)
        q = with_quantized_deconvolutions(u)
        for network, forms in (
            ("nnU-Net-like", {"as it is": u, "InstanceNormalization written out": written_out(u)}),
            (
                "nnU-Net-like",
                {
                    "transposed convolutions in float": u,
                    "quantized": q,
                    "in float, as 1x1x1 and reshape": with_pointwise_deconvolutions(u),
                    "quantized, as 1x1x1 and reshape": with_pointwise_deconvolutions(q),
                },
            ),
            (
                "15 channels, INT8",
                {"as it is": d, "filled up to 16": with_padded_channels(d, 16, "InstanceNormalization")},
            ),
            (
                "15 channels, FP32",
                {"as it is": f, "filled up to 16": with_padded_channels(f, 16, "InstanceNormalization")},
            ),
        ):
            rows.append({"network": network, "ms": milliseconds(forms, batch)})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
