"""Weights in two INT8 halves: the form in a graph, what they keep of the weights, and that real engines compute all products in INT8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coarse_networks import SHAPE, WIDE, error, network, patch
from MedQuantINT8Lib.engines.base import BuildOptions
from MedQuantINT8Lib.engines.fidelity import LayerSearch, Networks, labels_of
from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.halves import halved_layers, with_halves
from MedQuantINT8Lib.models.layers import int8_share, weighted_layers, work_shares
from MedQuantINT8Lib.models.seven_bit_weights import with_seven_bit_weights
from MedQuantINT8Lib.models.spec import Output
from MedQuantINT8Lib.models.weight_halves import REST, layers_with_weight_halves, with_weight_halves
from MedQuantINT8Lib.progress import Task
from tiny import run


def with_both(layers="abc"):
    """FP32, and INT8 with these layers' inputs and weights in two halves."""
    fp32, int8 = network()
    return fp32, with_weight_halves(with_halves(int8, dict.fromkeys(layers, WIDE)), fp32, layers)


def test_both_halves_together_lose_next_to_nothing():
    fp32, both = with_both()
    expected = run(fp32, patch())
    inputs_only = run(with_halves(network()[1], dict.fromkeys("abc", WIDE)), patch())
    assert error(run(both, patch()), expected) < 2e-3 < 5e-3 < error(inputs_only, expected)


def test_the_form_is_what_its_docstring_says():
    fp32, int8 = network()
    model = with_weight_halves(int8, fp32, {"b", "no such layer"})
    onnx.checker.check_model(model, full_check=True)
    pairs = layers_with_weight_halves(graph.Graph(model))
    assert set(pairs) == {"b"} and qdq.check_int8(model) == []
    pair = pairs["b"]
    assert pair.rest.name == "b" + REST and list(pair.total.output) == ["b_out"]
    assert pair.rest.input[0] == pair.layer.input[0] and len(pair.rest.input) == 2, "one input, one bias"
    assert with_weight_halves(model, fp32, {"b"}).ByteSize() == model.ByteSize(), "what is halved stays so"


def test_the_rest_reads_the_high_half_of_an_input_in_halves():
    _, both = with_both("b")
    network_graph = graph.Graph(both)
    assert set(halved_layers(network_graph)) == {"b"}
    assert (
        layers_with_weight_halves(network_graph)["b"].rest.input[0] == halved_layers(network_graph)["b"].high.input[0]
    )


def test_a_bias_that_makes_up_for_rounding_is_exact_again():
    fp32, int8 = network()
    for node in int8.graph.node:
        if node.name == "b":
            bent = next(i for i in int8.graph.initializer if i.name == node.input[2])
            bent.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bent) + np.float32(3), bent.name))
    model = graph.Graph(with_weight_halves(int8, fp32, {"b"}))
    own = next(node for node in model.nodes if node.name == "b")
    original = next(node for node in fp32.graph.node if node.name == "b")
    assert np.array_equal(model.array(own.input[2]), graph.Graph(fp32).array(original.input[2]))


@pytest.mark.parametrize("layers", ["abc", "b"])
def test_a_layer_goes_back_to_float_as_a_whole(layers):
    fp32, both = with_both(layers)
    kept = qdq.compacted(both)
    assert set(layers_with_weight_halves(graph.Graph(kept))) == set(layers)
    assert qdq.layers_with_int8_weights(kept) == ["a", "b", "c"], "a layer of several products is one layer"
    whole = qdq.without_quantization(kept, set("abc"), fp32)
    assert np.array_equal(run(whole, patch()), run(fp32, patch())) and len(weighted_layers(whole)) == 3
    stored = qdq.without_quantization(kept, {"b"})
    float_layers = [layer.name for layer in weighted_layers(stored) if not layer.quantized]
    assert float_layers == ["b", "b" + REST], "its weights stay stored, both halves of them"


def test_all_products_count_as_work():
    layers = weighted_layers(graph.inferred(with_both("b")[1]))
    macs = {layer.name: layer.macs for layer in layers}
    assert [layer.half for layer in layers if layer.name.startswith("b")] == ["high", "low", "low"]
    assert work_shares(layers)["halves"] == pytest.approx(3 * macs["b"] / sum(macs.values()))
    assert macs["b" + REST] == macs["b"] > 0 and int8_share(layers) == 1.0


def test_weights_of_seven_bits_lose_no_more():
    fp32, both = with_both()
    expected = run(fp32, patch())
    seven = run(with_seven_bit_weights(qdq.compacted(both)), patch())
    without = run(with_seven_bit_weights(with_halves(network()[1], dict.fromkeys("abc", WIDE))), patch())
    assert error(seven, expected) < 3e-3 < 6e-3 < error(without, expected)


@pytest.mark.parametrize("op", ["ConvTranspose", "MatMul", "Gemm"])
def test_other_operators(op):
    random = np.random.default_rng(0)
    shape, target = {
        "ConvTranspose": ((1, 3, 4, 4, 4), (1, 6, 8, 8, 8)),
        "MatMul": ((1, 5, 3), (1, 5, 6)),
        "Gemm": ((1, 3), (1, 6)),
    }[op]
    weight = random.normal(size=(3, 6, 2, 2, 2) if op == "ConvTranspose" else (3, 6)).astype(np.float32)
    options = {"ConvTranspose": {"strides": [2] * 3, "kernel_shape": [2] * 3}, "Gemm": {"alpha": 0.5}}.get(op, {})
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", target))]

    def model(nodes, constants):
        stored = [numpy_helper.from_array(np.array(a), n) for n, a in constants.items()]
        made = helper.make_graph(nodes, op, ends[:1], ends[1:], stored)
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)

    bias = ["b"] if op != "MatMul" else []
    constants = {"b": random.normal(size=6).astype(np.float32)} if bias else {}
    fp32 = model([helper.make_node(op, ["x", "w", *bias], ["y"], name="layer", **options)], constants | {"w": weight})
    step = np.float32(np.abs(weight).max() / 127)
    stored = {"w": np.rint(weight / step).astype(np.int8), "ws": step, "wz": np.int8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node(op, ["d", "wd", *bias], ["y"], name="layer", **options),
    ]
    int8 = model(nodes, constants | stored | {"s": np.float32(0.05), "z": np.int8(0)})
    made = with_weight_halves(with_halves(int8, {"layer": 0.05}), fp32, {"layer"})
    onnx.checker.check_model(made, full_check=True)
    data = random.normal(size=shape).astype(np.float32)
    expected = run(fp32, data[0])
    assert error(run(made, data[0]), expected) < 3e-4
    assert set(layers_with_weight_halves(graph.Graph(qdq.compacted(made)))) == {"layer"}


@pytest.mark.parametrize("bits", [8, 7])
@pytest.mark.parametrize("layers", ["abc", "b"])
def test_openvino_computes_all_products_in_int8_and_right(tmp_path, layers, bits):
    path = tmp_path / "network.onnx"
    onnx.save(qdq.compacted(with_both(layers)[1]), str(path))
    backend, options = OpenVINOBackend(), BuildOptions("int8", SHAPE, weight_bits=bits)
    backend.build(path, tmp_path, options)
    engine = backend.load(tmp_path, options)
    output, description = engine.infer(patch()[None]).copy(), engine.describe()
    products = [layer for layer in description.layers if layer.macs]
    assert len(products) == 3 + 2 * len(layers) and all(layer.int8 for layer in products)
    assert error(output, run(qdq.network_for(path, "int8", (), bits), patch())) < 0.01
    engine.close()


def test_the_search_for_layers_at_fault_names_a_layer_once(tmp_path):
    fp32, both = with_both()
    for name, model in (("fp32", fp32), ("int8", qdq.compacted(both))):
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
    networks = Networks(tmp_path / "int8.onnx", tmp_path / "fp32.onnx", labels_of(Output()))
    search = LayerSearch(OpenVINOBackend(), networks, BuildOptions("int8", SHAPE), patch(), Task())
    assert search.quantized == ["a", "b", "c"] and search.find() == []
