"""Activations that are bounded below take all steps of UINT8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from MedQuantINT8Lib.engines.base import BuildOptions
from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.halves import with_halves
from MedQuantINT8Lib.models.one_sided import least_value, with_one_sided_ranges
from tiny import convolutions, quantized, random_weights, run

SHAPE = (8, 8, 8)


def patch(seed=0):
    return np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)


def network(*nodes, constants=()):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4, 4]) for n in "xy"]
    body = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return graph.Graph(helper.make_model(body, opset_imports=[helper.make_opsetid("", 19)]))


@pytest.mark.parametrize(
    ("nodes", "least"),
    [
        ([("Relu", {})], 0.0),
        ([("Elu", {"alpha": 0.5})], -0.5),
        ([("LeakyRelu", {})], None),
        ([("Relu", {}), ("MaxPool", {"kernel_shape": [2, 2, 2]})], 0.0),
        ([("Elu", {}), ("AveragePool", {"kernel_shape": [2, 2, 2]})], -1.0),
        ([("Sigmoid", {}), ("Neg", {})], None),
        ([("Tanh", {}), ("Identity", {})], -1.0),
    ],
)
def test_the_graph_shows_how_low_values_go(nodes, least):
    names = ["x", *(f"t{n}" for n in range(len(nodes) - 1)), "y"]
    made = [helper.make_node(kind, [names[n]], [names[n + 1]], **a) for n, (kind, a) in enumerate(nodes)]
    assert least_value(network(*made), "y", {}) == least and least_value(network(*made), "x", {}) is None


@pytest.mark.parametrize(("mode", "least"), [("linear", -1.0), ("nearest", -1.0), ("cubic", None)])
def test_concatenations_and_resizing(mode, least):
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2, 2], np.float32), "scales")
    up = helper.make_node("Resize", ["b", "", "scales"], ["u"], mode=mode)
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Elu", ["x"], ["b"])]
    whole = helper.make_node("Concat", ["a", "u"], ["y"], axis=1)
    open_part = helper.make_node("Concat", ["a", "x"], ["z"], axis=1)
    made = network(*nodes, up, whole, open_part, constants=[scales])
    assert least_value(made, "y", {}) == least and least_value(made, "z", {}) is None


def networks():
    """FP32 with a ReLU between its convolutions, and INT8 whose ranges are just wide enough."""
    weights, biases = random_weights((1, 8, 8, 2), 3)
    fp32 = convolutions(weights, biases)
    reached = {"x": float(np.abs(patch()).max())}
    for name in ("a_relu", "b_relu"):
        part = onnx.ModelProto()
        part.CopyFrom(fp32)
        part.graph.output[0].name = name
        part.graph.output[0].type.tensor_type.ClearField("shape")
        reached[name] = float(run(graph.pruned(part), patch()).max())
    return fp32, quantized(fp32, {name: value / 127 for name, value in reached.items()})


def error(model, fp32):
    expected = run(fp32, patch())
    return np.linalg.norm(run(model, patch()) - expected) / np.linalg.norm(expected)


def test_the_steps_of_what_has_no_negative_values_are_half_as_wide():
    fp32, int8 = networks()
    made = with_one_sided_ranges(int8)
    onnx.checker.check_model(made, full_check=True)
    before, after = qdq.activation_scales(int8), qdq.activation_scales(made)
    assert after["x"] == before["x"] and set(after) == set(before)
    assert all(after[name] == pytest.approx(before[name] * 127 / 255) for name in ("a_relu", "b_relu"))
    assert error(made, fp32) < 0.8 * error(int8, fp32)
    both = qdq.as_unsigned(made)
    zeros = {n.name: both_zero(both, n) for n in both.graph.node if n.op_type == "QuantizeLinear"}
    assert sorted(zeros.values()) == [0, 0, 128], "the input has zero point 128, the others none"
    assert np.allclose(run(both, patch()), run(made, patch()), atol=1e-6)


def both_zero(model, node):
    return int(graph.Graph(model).array(node.input[2]))


def test_halves_stay_as_they_are():
    _, int8 = networks()
    halves = with_halves(int8, dict.fromkeys("abc", 0.1))
    assert np.array_equal(run(with_one_sided_ranges(halves), patch()), run(halves, patch()))


def test_openvino_runs_them_in_int8_and_is_nearer_to_fp32(tmp_path):
    fp32, int8 = networks()
    path = tmp_path / "network.onnx"
    onnx.save(int8, str(path))
    backend, options = OpenVINOBackend(), BuildOptions("int8", SHAPE, zero_points=OpenVINOBackend().zero_points)
    backend.build(path, tmp_path, options)
    engine = backend.load(tmp_path, options)
    assert all(layer.int8 for layer in engine.describe().layers if layer.macs)
    expected, got = run(fp32, patch()), engine.infer(patch()[None]).copy()
    engine.close()
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.8 * error(int8, fp32)


@pytest.mark.parametrize(("factors", "least"), [((1.0, 4.0), -4.0), ((1.0, -1.0), None)])
def test_a_scale_for_each_channel_moves_the_bound(factors, least):
    scales = numpy_helper.from_array(np.array(factors, np.float32).reshape(1, 2, 1, 1, 1), "scales")
    nodes = [helper.make_node("Elu", ["x"], ["a"]), helper.make_node("Mul", ["a", "scales"], ["y"])]
    assert least_value(network(*nodes, constants=[scales]), "y", {}) == least
