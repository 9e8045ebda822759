"""Exporters choose the names of tensors freely: whatever they are, the INT8 network computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq, tensor_names
from MedQuantINT8Lib.quantization.bias_correction import input_means, with_corrected_biases
from MedQuantINT8Lib.quantization.qdq_placement import place
from tiny import convolutions, quantized, random_weights, run

PATCH = np.random.default_rng(5).normal(size=(1, 8, 8, 8)).astype(np.float32)
#: The names that are made on the way to an INT8 network, here worn by other tensors of the network itself.
COLLISIONS = {
    "short names in the order of the nodes": {
        "a relu": "q0",
        "b relu": "d0",
        "a out": "q1",
        "b out": "d1",
        "a weight": "s0",
        "b weight": "w1",
        "c weight": "w0",
        "a bias": "z0",
    },
    "short names the other way about": {
        "a relu": "d1",
        "b relu": "q0",
        "a weight": "w5",
        "b weight": "w1",
        "c weight": "w3",
        "b bias": "s3",
        "c bias": "s1",
    },
    "scales": {
        "a bias": "x_scale",
        "b bias": "x_zero",
        "c bias": "a_relu_scale",
        "a out": "x_quantized",
        "b out": "x_calibrated_scale",
    },
    "parts of weights": {
        "a bias": "a_weight_scale",
        "b bias": "a_weight_int8",
        "c bias": "a_weight_zero",
        "a out": "a_weight_dequantized",
        "b out": "b_dequantized",
    },
    "biases and floats": {
        "a bias": "b_corrected_bias",
        "b out": "c_input1_float",
        "c bias": "b_input2_float",
        "a out": "a_corrected_bias",
    },
    "plain": {"a relu": "tensor1", "b relu": "tensor0", "x": "tensor2", "y": "tensor3", "a weight": "tensor9"},
    "means": {"a relu": "channel_mean_axes", "b bias": "a_relu_channel_mean"},
    "unsigned": {"a out": "x_zero_unsigned", "b out": "z0_unsigned"},
}
SCALES = {"x": 0.03, "a relu": 0.05, "b relu": 0.11}


def road(names, tmp_path):
    """From FP32 to what an engine builds, over every step that makes names."""
    weights, biases = random_weights()
    fp32 = convolutions(weights, biases, names=names)
    int8 = quantized(fp32, {names.get(n, n.replace(" ", "_")): scale for n, scale in SCALES.items()})
    means = input_means(fp32, [PATCH], (8, 8, 8))
    corrected = with_corrected_biases(fp32, int8, means)
    mixed = qdq.without_quantization(corrected, {"b"}, fp32)
    answers = []
    for step in (int8, corrected, mixed):
        small = qdq.compacted(step)
        onnx.checker.check_model(small)
        assert qdq.check_int8(small) == []
        onnx.save(small, str(tmp_path / "network.onnx"))
        built = qdq.network_for(tmp_path / "network.onnx", "int8", ())
        answers += [run(model, PATCH) for model in (step, small, built, qdq.as_unsigned(built))]
    return answers


@pytest.mark.parametrize("names", COLLISIONS.values(), ids=list(COLLISIONS))
def test_int8_is_the_same_under_any_names(names, tmp_path):
    for ours, plain in zip(road(names, tmp_path), road({}, tmp_path), strict=True):
        assert np.array_equal(ours, plain)


def test_equal_constants_are_one_and_short_names_meet_none_of_the_networks():
    weights, biases = random_weights()
    biases["b"] = biases["a"].copy()
    small = qdq.compacted(quantized(convolutions(weights, biases, names={"a bias": "q0", "b bias": "s0"})))
    names = [i.name for i in small.graph.initializer]
    assert len(names) == len(set(names)) and len({i.SerializeToString() for i in small.graph.initializer}) == len(names)
    made = [name for node in small.graph.node for name in node.output]
    assert len(made) == len(set(made)) and not set(made) & set(names)


def test_nodes_keep_their_names_and_get_such_as_no_other_has():
    weights, biases = random_weights()
    model = convolutions(weights, biases)
    for node, name in zip(model.graph.node, ["", "Conv_0", "Conv_0", "", "Relu_3"], strict=True):
        node.name = name
    graph.name_nodes(model)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == 5 and names[1] == "Conv_0" and names[4] == "Relu_3"


def test_inputs_that_are_left_out_stay_so():
    from MedQuantINT8Lib.quantization.qdq_placement import _give_names_back

    weights, biases = random_weights()
    model = convolutions(weights, biases)
    model.graph.node[1].op_type = "Clip"
    model.graph.node[1].input.extend(["", "a_bias"])
    assert "" not in tensor_names.tensor_names(model)
    originals = tensor_names.use_plain_names(model)
    assert list(model.graph.node[1].input)[1] == ""
    _give_names_back(model, originals)
    assert list(model.graph.node[1].input) == ["a_out", "", "a_bias"]


def test_bodies_of_branches_read_what_was_renamed():
    from onnx import TensorProto, helper, numpy_helper

    def branch(name, operator):
        inside = helper.make_node(operator, ["a_relu", "half"], [f"{name}_given"], name=name)
        return helper.make_graph(
            [inside], name, [], [helper.make_tensor_value_info(f"{name}_given", TensorProto.FLOAT, None)]
        )

    weights, biases = random_weights()
    model = convolutions(weights, biases)
    for name, value in (("half", np.float32(0.5)), ("yes", np.array(True))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    chosen = helper.make_node(
        "If", ["yes"], ["chosen"], name="if", then_branch=branch("times", "Mul"), else_branch=branch("plus", "Add")
    )
    model.graph.node.insert(2, chosen)
    model.graph.node[3].input[0] = "chosen"
    expected = run(model, PATCH)
    assert {"times_given", "plus_given"} <= tensor_names.tensor_names(model)
    tensor_names.use_plain_names(model)
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(run(model, PATCH), expected)
    assert not {"a_relu", "half", "chosen"} & tensor_names.tensor_names(
        model
    ) and "times_given" in tensor_names.tensor_names(model)


@pytest.mark.slow
def test_modelopt_is_not_led_astray_by_names(tmp_path):
    from MedQuantINT8Lib.quantization.qdq_placement import require_quantizer

    weights, biases = random_weights((1, 16, 16, 2), 3)
    answers = []
    for names in (
        {},
        {
            "a bias": "x_scale",
            "b bias": "x_zero_point",
            "a out": "x_QuantizeLinear_Output",
            "b relu": "a_weight_quantized",
            "c bias": "a_weight_scale",
        },
    ):
        fp32 = graph.fixed_shape(convolutions(weights, biases, names=names), (8, 8, 8))
        placed = place(require_quantizer(), fp32, PATCH, {})
        wanted = {names.get(n, n.replace(" ", "_")) for n in SCALES}
        assert set(qdq.activation_tensors(placed)) == wanted
        qdq.set_activation_scales(placed, {names.get(n, n.replace(" ", "_")): s for n, s in SCALES.items()})
        answers.append(run(qdq.compacted(placed), PATCH))
    assert np.array_equal(*answers)


def test_modelopt_computes_on_the_cores_of_this_process(monkeypatch):
    """A session of ONNX Runtime that is told nothing takes all cores of the machine, whatever the process is bound to."""
    import shutil

    import onnxruntime

    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    original, threads = onnxruntime.InferenceSession, []

    def quantizer(source, output_path, **_):
        for options in ((), (onnxruntime.SessionOptions(),)):
            session = onnxruntime.InferenceSession(source, *options, providers=["CPUExecutionProvider"])
            threads.append(session.get_session_options().intra_op_num_threads)
        shutil.copy(source, output_path)

    model = graph.fixed_shape(convolutions(*random_weights()), (8, 8, 8))
    place(quantizer, model, np.zeros((1, 8, 8, 8), np.float32), {})
    assert threads == [1, 1] and onnxruntime.InferenceSession is original
