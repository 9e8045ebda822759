"""Exact rewrites: other operators, the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphs import SIZE, network, weights
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq, rewrites


def outputs(model, precision="fp32"):
    value = graph.network_shape(model)
    x = np.random.default_rng(1).normal(size=(1, value.channels, *value.spatial)).astype(np.float32)
    return session(model.SerializeToString(), precision).run(None, {value.input_name: x})[0]


def convolution(source, name, output, kernel=3, **more):
    return helper.make_node(
        "Conv", [source, f"{name}_w", f"{name}_b"], [output], name=name, pads=[kernel // 2] * 6, **more
    )


def residual_chain(last_op=None):
    """Five channels through convolution, normalisation, activation and a residual sum."""
    nodes = [
        convolution("x", "first", "a"),
        helper.make_node("InstanceNormalization", ["a", "scale", "shift"], ["b"], name="norm"),
        helper.make_node("LeakyRelu", ["b"], ["c"], name="act", alpha=0.1),
        convolution("c", "second", "d"),
        helper.make_node("Add", ["c", "d"], ["e"], name="sum"),
        helper.make_node("PRelu", ["e", "slope"], ["f"], name="prelu"),
        last_op or helper.make_node("MaxPool", ["f"], ["g"], name="pool", kernel_shape=[3] * 3, pads=[1] * 6),
        convolution("g", "head", "y", kernel=1),
    ]
    constants = weights(
        first_w=(5, 1, 3, 3, 3), first_b=(5,), scale=(5,), shift=(5,), second_w=(5, 5, 3, 3, 3), second_b=(5,),
        slope=(5, 1, 1, 1), head_w=(3, 5, 1, 1, 1), head_b=(3,),
    )  # fmt: skip
    return network(nodes, constants)


def widths(model):
    found = graph.Graph(model)
    return {n.name: found.array(n.input[1]).shape[0] for n in found.nodes if n.op_type == "Conv"}


def test_widths_are_filled_up_and_no_number_changes():
    model = residual_chain()
    filled = rewrites.with_padded_channels(model, 16)
    assert widths(filled) == {"first": 16, "second": 16, "head": 3}
    assert np.array_equal(outputs(model), outputs(filled))
    assert widths(model)["first"] == 5


def test_widths_are_filled_up_only_where_asked():
    model = residual_chain()
    assert rewrites.with_padded_channels(model, 16, only_with="InstanceNormalization") is not model
    assert rewrites.with_padded_channels(model, 16, only_with="BatchNormalization") is model
    assert rewrites.with_padded_channels(model, 5) is model


def test_widths_that_something_else_sees_stay():
    """A reduction over channels would notice the filled ones."""
    nodes = [
        convolution("x", "first", "a"),
        helper.make_node("ReduceMean", ["a", "axes"], ["m"], name="mean", keepdims=1),
        helper.make_node("Mul", ["a", "m"], ["b"], name="product"),
        convolution("b", "head", "y", kernel=1),
    ]
    constants = {
        **weights(first_w=(5, 1, 3, 3, 3), first_b=(5,), head_w=(3, 5, 1, 1, 1), head_b=(3,)),
        "axes": np.array([1]),
    }
    model = network(nodes, constants)
    assert rewrites.with_padded_channels(model, 16) is model


def test_a_quantized_network_of_odd_widths_is_filled_up_exactly(fp32_package, int8_package):
    model = graph.fixed_shape(graph.load_network(int8_package.onnx_path("int8")), (32, 32, 32))
    before, filled = widths_int8(model), rewrites.with_padded_channels(model, 24)
    assert widths_int8(filled) != before and qdq.check_int8(filled) == []
    assert np.array_equal(outputs(model, "int8"), outputs(filled, "int8"))


def widths_int8(model):
    found = graph.Graph(model)
    return [found.array(found.producer[n.input[1]].input[0]).shape[0] for n in found.nodes if n.op_type == "Conv"]


@pytest.mark.parametrize("kernel", [(2, 2, 2), (1, 2, 2), (2, 1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolutions_become_pointwise_ones(kernel, bias):
    constants = weights(w=(4, 3, *kernel), b=(3,))
    if not bias:
        del constants["b"]
    node = helper.make_node(
        "ConvTranspose", ["x", "w", *(["b"] if bias else [])], ["y"], name="up", kernel_shape=kernel, strides=kernel
    )
    model = network([node], constants, channels=4, out_size=tuple(s * k for s, k in zip(SIZE, kernel, strict=True)))
    rewritten = rewrites.with_pointwise_deconvolutions(model)
    assert [n.op_type for n in rewritten.graph.node] == ["Conv", "Reshape", "Transpose", "Reshape"]
    assert rewritten.graph.node[0].name == "up"
    expected = outputs(model)
    assert np.abs(outputs(rewritten) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_transposed_convolutions_of_slices_become_pointwise_ones():
    nodes = [
        helper.make_node("Squeeze", ["x", "axis"], ["flat"]),
        helper.make_node("ConvTranspose", ["flat", "w"], ["wide"], name="up", kernel_shape=[3, 2], strides=[3, 2]),
        helper.make_node("Unsqueeze", ["wide", "axis"], ["y"]),
    ]
    constants = {**weights(w=(4, 3, 3, 2)), "axis": np.array([2])}
    model = network(nodes, constants, channels=4, size=(1, 6, 10), out_size=(1, 18, 20))
    rewritten = rewrites.with_pointwise_deconvolutions(model)
    assert "ConvTranspose" not in [n.op_type for n in rewritten.graph.node]
    assert np.abs(outputs(rewritten) - outputs(model)).max() <= 1e-5 * np.abs(outputs(model)).max()


@pytest.mark.parametrize(
    "changes", [{"strides": [1, 1, 1]}, {"pads": [0, 0, 0, 1, 0, 0]}, {"output_padding": [1, 0, 0]}, {"group": 2}]
)
def test_other_transposed_convolutions_are_left_alone(changes):
    group = changes.get("group", 1)
    given = {"kernel_shape": [2] * 3, "strides": [2] * 3, **changes}
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", **given)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, *["s"] * 3]) for n in "xy"]
    weight = numpy_helper.from_array(np.ones((4, 4 // group, 2, 2, 2), np.float32), "w")
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))
    assert rewrites.with_pointwise_deconvolutions(model) is model


def test_the_demo_network_survives_the_deconvolution_rewrite_in_both_precisions(fp32_package, int8_package):
    for package, precision in ((fp32_package, "fp32"), (int8_package, "int8")):
        model = graph.fixed_shape(graph.load_network(package.onnx_path(precision)), (32, 32, 32))
        rewritten = rewrites.with_pointwise_deconvolutions(model)
        assert "ConvTranspose" not in {n.op_type for n in rewritten.graph.node}
        expected, got = outputs(model, precision), outputs(rewritten, precision)
        # In INT8 a rounding step may fall to the other side for single voxels: one step of 127, not more.
        tolerance = 1e-5 if precision == "fp32" else 2e-2
        assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


def test_compacting_changes_names_only(int8_package, fp32_package):
    """The package's network is compact already; a copy with long names and repeated constants is made compact again."""
    model = graph.load_network(int8_package.onnx_path("int8"))
    found = graph.Graph(model)
    long = onnx.ModelProto()
    long.CopyFrom(model)
    for number, node in enumerate(n for n in long.graph.node if n.op_type == "QuantizeLinear"):
        name = f"a_very_long_name_for_the_zero_point_of_an_activation_{number}"
        long.graph.initializer.append(numpy_helper.from_array(found.array(node.input[2]), name))
        for reader in [
            node,
            *(n for n in long.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == node.output[0]),
        ]:
            reader.input[2] = name
    compact = qdq.compacted(long)
    assert compact.ByteSize() < long.ByteSize() and qdq.check_int8(compact) == []
    layers = [n.name for n in graph.load_network(fp32_package.onnx_path("fp32")).graph.node if "Conv" in n.op_type]
    assert [n.name for n in compact.graph.node if "Conv" in n.op_type] == layers
    shaped = [graph.fixed_shape(m, (32, 32, 32)) for m in (long, compact)]
    assert np.array_equal(outputs(shaped[0], "int8"), outputs(shaped[1], "int8"))


def normalized_chain(**changes):
    nodes = [
        helper.make_node("Conv", ["x", "first_w"], ["a"], name="first", pads=[1] * 6),
        helper.make_node(
            "BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"], name="norm", epsilon=1e-3
        ),
        helper.make_node("ConvTranspose", ["b", "up_w", "up_b"], ["c"], name="up", pads=[1] * 6),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["y"], name="last"),
    ]
    constants = weights(first_w=(5, 1, 3, 3, 3), scale=(5,), shift=(5,), mean=(5,), up_w=(5, 5, 3, 3, 3), up_b=(5,))
    constants["variance"] = np.linspace(0.5, 2, 5).astype(np.float32)
    return network([*nodes, *changes.get("more", [])], constants, classes=5)


def test_batch_normalisation_becomes_part_of_the_weights():
    model = normalized_chain()
    folded = rewrites.with_folded_normalization(model)
    assert [n.op_type for n in folded.graph.node] == ["Conv", "ConvTranspose"]
    expected = outputs(model)
    assert np.abs(outputs(folded) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_convolution_that_something_else_reads_keeps_its_normalisation():
    model = normalized_chain()
    model.graph.node.insert(3, helper.make_node("Add", ["a", "c"], ["unused"], name="reader"))
    folded = rewrites.with_folded_normalization(model)
    kinds = [n.op_type for n in folded.graph.node]
    assert kinds.count("BatchNormalization") == 2


def test_bias_correction_takes_off_what_rounding_the_weights_adds():
    """Weights that all round upwards, on inputs that are all positive: the worst that can happen to a mean."""
    from MedQuantINT8Lib.quantization.bias_correction import input_means, with_corrected_biases
    from MedQuantINT8Lib.quantization.qdq_placement import _store_weights

    weight = np.full((3, 2, 3, 3, 3), 0.2537, np.float32)
    weight[:, 0, 0, 0, 0] = 1.0
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 6)
    model = network([node], {"w": weight}, channels=2)
    int8 = onnx.ModelProto()
    int8.CopyFrom(model)
    _store_weights(int8, {"conv"}, axis=0)
    patch = np.random.default_rng(0).uniform(1, 2, (2, *SIZE)).astype(np.float32)
    corrected = with_corrected_biases(model, int8, input_means(model, [patch], SIZE))
    run = {n: session(m.SerializeToString(), "int8").run(None, {"x": patch[None]})[0] for n, m in
           (("exact", model), ("rounded", int8), ("corrected", corrected))}  # fmt: skip
    inside = (0, slice(None), slice(1, -1), slice(1, -1), slice(1, -1))
    before, after = (
        np.abs((run[n] - run["exact"])[inside].mean(axis=(1, 2, 3))).max() for n in ("rounded", "corrected")
    )
    assert before > 0.05 and after < 0.05 * before


def test_constants_are_found_in_graphs_whose_roads_double():
    """SwinUNETR's exported shape computations: without a memory, sixty doublings would outlast everybody."""
    onnx = graph.require_onnx()
    nodes = [onnx.helper.make_node("Add", [f"t{n}", f"t{n}"], [f"t{n + 1}"]) for n in range(60)]
    nodes.append(onnx.helper.make_node("Add", ["x", "t60"], ["y"]))
    value = onnx.numpy_helper.from_array(np.ones(1, np.float32), "t0")
    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes, "doubling", [shape], [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])], [value]
        )
    )
    found = graph.Graph(model)
    assert found.is_constant("t60") and not found.is_constant("y") and not found.is_constant("x")


def test_shapes_are_inferred_without_the_weights_and_nothing_is_lost(monkeypatch):
    nodes = [
        convolution("x", "first", "a"),
        helper.make_node("Shape", ["a"], ["size"]),
        helper.make_node("Slice", ["size", "zero", "two"], ["front"]),
        helper.make_node("Concat", ["front", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["a", "flat"], ["b"]),
        helper.make_node("MatMul", ["b", "large"], ["c"]),
        helper.make_node("Reshape", ["c", "back"], ["d"]),
        convolution("d", "head", "y", kernel=1),
    ]
    voxels = int(np.prod(SIZE))
    constants = weights(
        first_w=(16, 1, 3, 3, 3), first_b=(16,), head_w=(3, 16, 1, 1, 1), head_b=(3,), large=(voxels, voxels)
    )
    constants |= {"zero": np.array([0]), "two": np.array([2]), "rest": np.array([-1]), "back": np.array([1, 16, *SIZE])}
    model = network(nodes, constants)
    del model.graph.value_info[:]
    expected = graph.Graph(onnx.shape_inference.infer_shapes(model, data_prop=True)).shapes
    whole, seen = onnx.shape_inference.infer_shapes, []

    def inferred(light, **options):
        seen.append(light.ByteSize())
        return whole(light, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", inferred)
    found = graph.inferred(model)
    assert graph.Graph(found).shapes == expected and expected["b"] == [1, 16, voxels]
    assert seen[0] < 0.02 * model.ByteSize()
    del found.graph.value_info[:]
    assert found == model
