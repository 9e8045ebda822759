"""Dilated INT8 convolutions get their padding from a Pad before them: the same integers, and kernels that do not end the process."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from data_models import ROOT
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.explicit_padding import with_explicit_padding
from tiny import run

SHAPE = (9, 10, 11)
PADS = (1, 2, 3, 2, 1, 0)


def network(dilation=2, pads=PADS, zero_point=100, layers=1, channels=2, shape=SHAPE):
    """Convolutions of 3 x 3 x 3 that read the same quantized tensor, their sum the output."""
    rng = np.random.default_rng(0)
    constants = {"scale": np.float32(0.02), "zero": np.uint8(zero_point), "weight_scale": np.float32(0.01)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantize"),
    ]
    for layer in range(layers):
        constants[f"w{layer}"] = rng.integers(-127, 128, (channels, channels, 3, 3, 3)).astype(np.int8)
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{layer}", "weight_scale"], [f"wd{layer}"], name=f"weight {layer}"),
            helper.make_node(
                "Conv", ["d", f"wd{layer}"], [f"y{layer}"], f"conv {layer}", dilations=[dilation] * 3, pads=list(pads)
            ),
        ]
    nodes.append(helper.make_node("Sum", [f"y{layer}" for layer in range(layers)], ["y"], name="sum"))
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, *shape]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, "a", "b", "c"]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    opset = [helper.make_opsetid("", 19)]
    return helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], initializers), opset_imports=opset, ir_version=9
    )


def operators(model, kind):
    return [node for node in model.graph.node if node.op_type == kind]


@pytest.mark.parametrize("zero_point", [100, 255])
def test_the_same_numbers_come_out_to_the_last_bit(zero_point):
    model = network(zero_point=zero_point)
    padded = with_explicit_padding(model)
    onnx.checker.check_model(padded, full_check=True)
    (pad,), (convolution,) = operators(padded, "Pad"), operators(padded, "Conv")
    assert list(graph.Graph(padded).array(pad.input[1])) == [0, 0, 1, 2, 3, 0, 0, 2, 1, 0]
    assert graph.Graph(padded).array(pad.input[2]) == np.uint8(zero_point)
    assert not any(graph.require_onnx().helper.get_attribute_value(convolution.attribute[1]))
    patch = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)
    assert np.array_equal(run(padded, patch), run(model, patch))
    assert [a.ints[0] for a in operators(model, "Conv")[0].attribute if a.name == "pads"] == [1], "the given one stays"


@pytest.mark.parametrize(
    "options",
    [{"dilation": 1}, {"pads": (0,) * 6}, {"zero_point": 0}],
    ids=["no dilation", "no padding", "no zero point"],
)
def test_others_stay_as_they_are(options):
    model = network(**options)
    assert with_explicit_padding(model) is model


def test_a_convolution_in_float_stays_as_it_is():
    model = network()
    operators(model, "Conv")[0].input[0] = "x"
    assert with_explicit_padding(model) is model


def test_layers_that_read_the_same_tensor_share_its_padding():
    model = network(layers=3)
    padded = with_explicit_padding(model)
    assert len(operators(padded, "Pad")) == 1 and len(operators(padded, "Conv")) == 3
    patch = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)
    assert np.array_equal(run(padded, patch), run(model, patch))


def test_openvino_builds_and_runs_the_width_that_ended_the_process(tmp_path):
    """16 channels, a dilation of 2 and 144 voxels: in a process of its own, as OpenVINO 2026.4 ended it on processors with AMX."""
    pytest.importorskip("openvino")
    model = network(pads=(2,) * 6, channels=16, shape=(5, 12, 144))
    onnx.save(model, tmp_path / "network.onnx")
    # Whole steps of the scale: engines round what lies between two steps by their own arithmetic.
    patch = np.random.default_rng(1).integers(-90, 90, (16, 5, 12, 144)).astype(np.float32) * np.float32(0.02)
    np.save(tmp_path / "patch.npy", patch)
    program = f"""
        import sys, numpy as np
        from pathlib import Path
        sys.path.insert(0, {str(ROOT / "MedQuantINT8")!r})
        from MedQuantINT8Lib.engines.base import BuildOptions
        from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
        folder, backend, options = Path({str(tmp_path)!r}), OpenVINOBackend(), BuildOptions("int8", (5, 12, 144))
        for _ in range(3):
            backend.build(folder / "network.onnx", folder, options)
        engine = backend.load(folder, options)
        assert engine.describe().int8_mac_share == 1.0
        np.save(folder / "scores.npy", engine.infer(np.load(folder / "patch.npy")[None]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.allclose(np.load(tmp_path / "scores.npy"), run(model, patch), atol=1e-3)
