"""Two INT8 halves: the form that they have in a graph, what they keep of a tensor, and that real engines compute both in INT8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coarse_networks import SHAPE, SIZE, WIDE, error, network, patch
from MedQuantINT8Lib.engines.base import BuildOptions
from MedQuantINT8Lib.engines.fidelity import LayerSearch, Networks, labels_of
from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.halves import LOW, halved_layers, quantized_inputs, with_halves
from MedQuantINT8Lib.models.layers import int8_share, weighted_layers, work_shares
from MedQuantINT8Lib.models.seven_bit_weights import with_seven_bit_weights
from MedQuantINT8Lib.models.spec import Output
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization import qdq_placement as placement
from MedQuantINT8Lib.quantization.fold_networks import rescaled
from tiny import convolutions, quantized, random_weights, run


def halved(model, layers="abc"):
    return with_halves(model, dict.fromkeys(layers, WIDE))


def test_halves_lose_next_to_nothing_of_the_input():
    fp32, int8 = network()
    weights_only = run(qdq.without_quantization(int8, set("abc")), patch())
    plain, halves = run(int8, patch()), run(halved(int8), patch())
    assert error(plain, weights_only) > 0.05 and error(halves, weights_only) < 1e-3
    assert error(halves, run(fp32, patch())) < 0.02


def test_the_form_is_what_its_docstring_says():
    model = halved(network()[1], "b")
    onnx.checker.check_model(model, full_check=True)
    found = graph.Graph(model)
    halves = halved_layers(found)["b"]
    assert halves.source == "a_relu" and halves.low.name == "b" + LOW and list(halves.total.output) == ["b_out"]
    assert halves.high.input[1] == halves.low.input[1], "one weight"
    assert len(halves.high.input) == 3 and len(halves.low.input) == 2, "one bias"
    steps = [found.array(found.producer[node.input[0]].input[1]) for node in (halves.high, halves.low)]
    assert steps[0] / steps[1] == pytest.approx(254)
    rest = found.producer[found.producer[found.producer[halves.low.input[0]].input[0]].input[0]]
    assert rest.op_type == "Sub" and list(rest.input) == ["a_relu", halves.high.input[0]]
    assert qdq.check_int8(model) == []


def test_the_form_is_found_again_in_a_file_of_short_names_and_of_seven_bits():
    int8 = network()[1]
    kept = qdq.compacted(halved(int8, "ac"))
    assert set(halved_layers(graph.Graph(kept))) == {"a", "c"}
    assert set(halved_layers(graph.Graph(with_seven_bit_weights(kept)))) == {"a", "c"}
    assert set(halved_layers(graph.Graph(qdq.as_unsigned(kept)))) == {"a", "c"}
    assert qdq.layers_with_int8_weights(kept) == ["a", "b", "c"], "a layer in halves is one layer"
    assert kept.ByteSize() < qdq.compacted(int8).ByteSize() + 2000, "its weight is stored once"
    assert halved(kept, "ac").ByteSize() == kept.ByteSize(), "what is halved stays so"


def test_a_layer_in_halves_goes_back_to_float_as_a_whole():
    fp32, int8 = network()
    kept = qdq.compacted(halved(int8))
    whole = qdq.without_quantization(kept, set("abc"), fp32)
    assert np.array_equal(run(whole, patch()), run(fp32, patch())) and len(weighted_layers(whole)) == 3
    one = qdq.without_quantization(kept, {"b"})
    assert set(halved_layers(graph.Graph(one))) == {"a", "c"}
    assert [layer.name for layer in weighted_layers(one) if not layer.quantized] == ["b"]


def test_both_products_count_as_work():
    layers = weighted_layers(graph.inferred(halved(network()[1], "b")))
    macs = {layer.name: layer.macs for layer in layers}
    assert [(layer.name, layer.half) for layer in layers if layer.half] == [("b", "high"), ("b" + LOW, "low")]
    assert macs["b"] == macs["b" + LOW] > 0 and int8_share(layers) == 1.0
    shares = work_shares(layers)
    assert shares["halves"] == pytest.approx(2 * macs["b"] / sum(macs.values())) and shares["float"] == 0


def test_layers_of_one_input_share_its_halves():
    """One step serves both: the larger; a layer that takes the same tensor plainly keeps its own."""
    weight = np.random.default_rng(0).normal(size=(4, 2, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", f"w{n}"], [f"y{n}"], name=n, kernel_shape=[3] * 3, pads=[1] * 6) for n in "abc"
    ]
    nodes.append(helper.make_node("Sum", ["ya", "yb", "yc"], ["y"], name="sum"))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, *SHAPE]) for n, c in (("x", 2), ("y", 4))]
    constants = [numpy_helper.from_array(weight, f"w{n}") for n in "abc"]
    made = helper.make_graph(nodes, "three", ends[:1], ends[1:], constants)
    int8 = quantized(helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), 0.02)
    model = with_halves(int8, {"a": 0.1, "b": 0.2})
    onnx.checker.check_model(model, full_check=True)
    scales = sorted(
        float(graph.Graph(model).array(n.input[1])) for n in model.graph.node if n.op_type == "QuantizeLinear"
    )
    assert scales == pytest.approx([0.2 / 254, 0.02, 0.2]) and quantized_inputs(model) == dict.fromkeys("abc", "x")
    assert qdq.activation_scales(model)["x"] == pytest.approx(0.2)
    other = qdq.activation_scales(rescaled(with_halves(int8, {"a": 0.1}), {"x": 0.5}))
    assert other["x"] == pytest.approx(0.05), "held-out scans' ranges narrow both, each by its own"
    both = [
        float(graph.Graph(m).array(n.input[1]))
        for m in [rescaled(model, {"x": 0.5})]
        for n in m.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] == "x"
    ]
    assert sorted(both) == pytest.approx([0.01, 0.1])


@pytest.mark.parametrize("op", ["ConvTranspose", "MatMul", "Gemm"])
def test_other_operators_run_as_halves(op):
    random = np.random.default_rng(0)
    shape, target = {
        "ConvTranspose": ((1, 3, 4, 4, 4), (1, 6, 8, 8, 8)),
        "MatMul": ((1, 5, 3), (1, 5, 6)),
        "Gemm": ((1, 3), (1, 6)),
    }[op]
    weight = random.integers(-127, 128, (3, 6, 2, 2, 2) if op == "ConvTranspose" else (3, 6)).astype(np.int8)
    options = {"ConvTranspose": {"strides": [2] * 3, "kernel_shape": [2] * 3}, "Gemm": {"alpha": 0.5}}.get(op, {})
    bias = random.normal(size=6).astype(np.float32)
    constants = {
        "w": weight,
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        "s": np.float32(WIDE),
        "z": np.int8(0),
        "b": bias,
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node(op, ["d", "wd", *(["b"] if op != "MatMul" else [])], ["y"], name="layer", **options),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", target))]
    made = helper.make_graph(
        nodes, op, ends[:1], ends[1:], [numpy_helper.from_array(np.array(a), n) for n, a in constants.items()]
    )
    int8 = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    data = random.normal(size=shape).astype(np.float32)
    model = with_halves(int8, {"layer": WIDE})
    onnx.checker.check_model(model, full_check=True)
    exact = run(qdq.without_quantization(int8, {"layer"}), data[0])
    assert error(run(model, data[0]), exact) < 2e-3 < error(run(int8, data[0]), exact)
    assert set(halved_layers(graph.Graph(model))) == {"layer"}


@pytest.mark.parametrize("bits", [8, 7])
@pytest.mark.parametrize("layers", ["abc", "b"])
def test_openvino_computes_both_halves_in_int8_and_right(tmp_path, layers, bits):
    path = tmp_path / "network.onnx"
    onnx.save(qdq.compacted(halved(network()[1], layers)), str(path))
    backend, options = OpenVINOBackend(), BuildOptions("int8", SHAPE, weight_bits=bits)
    backend.build(path, tmp_path, options)
    engine = backend.load(tmp_path, options)
    output, description = engine.infer(patch()[None]).copy(), engine.describe()
    products = [layer for layer in description.layers if layer.macs]
    assert len(products) == 3 + len(layers) and all(layer.int8 for layer in products)
    expected = weighted_layers(graph.inferred(qdq.network_for(path, "int8", ())))
    assert sum(layer.macs for layer in products) == sum(layer.macs for layer in expected)
    assert error(output, run(qdq.network_for(path, "int8", (), bits), patch())) < 0.01
    engine.close()


def test_the_search_for_layers_at_fault_names_a_layer_in_halves_once(tmp_path):
    fp32, int8 = network()
    for name, model in (("fp32", fp32), ("int8", qdq.compacted(halved(int8)))):
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
    networks = Networks(tmp_path / "int8.onnx", tmp_path / "fp32.onnx", labels_of(Output()))
    search = LayerSearch(OpenVINOBackend(), networks, BuildOptions("int8", SHAPE), patch(), Task())
    assert search.quantized == ["a", "b", "c"] and search.find() == []


@pytest.mark.parametrize("with_biases", [True, False])
def test_weights_and_biases_are_taken_over_by_name(with_biases):
    weights, biases = random_weights((1, 8, 8, 2), 3)
    fp32, other = (convolutions({n: f * w for n, w in weights.items()}, biases, SIZE) for f in (1, 3))
    int8 = quantized(convolutions(weights, biases if with_biases else {}, SIZE), WIDE)
    source = qdq.without_quantization(quantized(other, WIDE), set("abc"))
    made = qdq.with_weights_of(int8, source)
    onnx.checker.check_model(made, full_check=True)
    assert qdq.check_int8(made) == [] and set(quantized_inputs(made)) == set("abc")
    assert np.array_equal(run(qdq.without_quantization(made, set("abc")), patch()), run(source, patch()))
    assert not np.array_equal(run(made, patch()), run(quantized(fp32, WIDE), patch()))


@pytest.mark.parametrize("halves", [False, True])
def test_openvino_computes_quantized_transposed_convolutions_in_int8(tmp_path, halves):
    """Their pairs stay signed beside those that become UINT8; also where a convolution reads the same tensor, and in halves."""
    random = np.random.default_rng(0)
    arrays = {
        "a weight": random.normal(size=(16, 1, 3, 3, 3)),
        "up weight": random.normal(size=(16, 16, 2, 2, 2)),
        "b weight": random.normal(size=(16, 16, 1, 1, 1)),
        "c weight": random.normal(size=(4, 32, 3, 3, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a weight"], ["a"], name="a", kernel_shape=[3] * 3, pads=[1] * 6),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("ConvTranspose", ["r", "up weight"], ["u"], name="up", strides=[2] * 3, kernel_shape=[2] * 3),
        helper.make_node("Conv", ["r", "b weight"], ["b"], name="b"),
        helper.make_node(
            "ConvTranspose", ["b", "up weight"], ["v"], name="up 2", strides=[2] * 3, kernel_shape=[2] * 3
        ),
        helper.make_node("Concat", ["u", "v"], ["w"], name="concat", axis=1),
        helper.make_node("Conv", ["w", "c weight"], ["y"], name="c", kernel_shape=[3] * 3, pads=[1] * 6),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, s, s, s]) for n, c, s in (("x", 1, 12), ("y", 4, 24))
    ]
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    made = helper.make_graph(nodes, "up", ends[:1], ends[1:], constants)
    fp32 = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    int8 = placed(fp32, {"a", "up", "b", "up 2", "c"})
    ranges = {"x": 4.0, "r": 20.0, "b": 90.0, "w": 400.0}
    qdq.set_activation_scales(int8, {name: ranges[name] / 127 for name in qdq.activation_tensors(int8)})
    if halves:
        int8 = with_halves(int8, {name: ranges[tensor] / 127 for name, tensor in quantized_inputs(int8).items()})
    onnx.checker.check_model(int8, full_check=True)
    assert qdq.check_int8(int8) == [] and int8_share(weighted_layers(graph.inferred(int8))) == 1.0
    path = tmp_path / "network.onnx"
    onnx.save(qdq.compacted(int8), str(path))
    backend, options = OpenVINOBackend(), BuildOptions("int8", SHAPE)
    backend.build(path, tmp_path, options)
    engine = backend.load(tmp_path, options)
    products = [layer for layer in engine.describe().layers if layer.macs]
    assert {layer.name for layer in products if not layer.int8} == set() and len(products) == 5 * (1 + halves)
    assert error(engine.infer(patch()[None]).copy(), run(qdq.network_for(path, "int8", ()), patch())) < 0.02
    engine.close()


def placed(model, names):
    """A copy with Q/DQ pairs before all of the named layers, transposed convolutions too, their scales open."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    placement._quantize_convolutions(copy, names)
    placement._store_transposed_weights(copy)
    placement._quantize_transposed_inputs(copy, names)
    return copy
