"""Convolutions of concatenations: split where the parts' ranges are unlike, the same in FP32, and better in INT8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.layers import weighted_layers
from MedQuantINT8Lib.quantization.concat_split import with_split_concatenations
from MedQuantINT8Lib.quantization.equalization import channel_maxima
from tiny import quantized, run

SHAPE = (8, 8, 8)
INPUTS = {"a": 3, "b": 2, "c": 4}


def network(factors, bias=True):
    """Three convolutions of the input, of these ranges, concatenated, and one of the concatenation; small parts weigh as much."""
    random = np.random.default_rng(0)
    nodes, constants, weights = [], [], []
    for (name, width), factor in zip(INPUTS.items(), factors, strict=True):
        weight = random.uniform(0.5, 1.0, (width, 1, 1, 1, 1)) * random.choice([-1, 1], (width, 1, 1, 1, 1)) * factor
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"{name} weight"))
        nodes.append(helper.make_node("Conv", ["x", f"{name} weight"], [name], name=f"make {name}"))
        weights.append(random.normal(size=(2, width, 3, 3, 3)) / factor)
    constants.append(numpy_helper.from_array(np.concatenate(weights, axis=1).astype(np.float32), "weight"))
    constants.append(numpy_helper.from_array(np.array([1, -1], np.float32), "bias"))
    nodes.append(helper.make_node("Concat", list(INPUTS), ["whole"], name="concat", axis=1))
    inputs = ["whole", "weight", *(["bias"] if bias else [])]
    nodes.append(helper.make_node("Conv", inputs, ["y"], name="layer", kernel_shape=[3] * 3, pads=[1] * 6))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, *SHAPE]) for n, c in (("x", 1), ("y", 2))]
    made = helper.make_graph(nodes, "concat", ends[:1], ends[1:], constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def patch():
    return np.random.default_rng(1).normal(size=(1, *SHAPE)).astype(np.float32)


def split(model, **options):
    return with_split_concatenations(model, channel_maxima(model, [patch()], SHAPE), SHAPE, **options)


def error(output, expected):
    return float(np.linalg.norm(output - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("factors", "layers"),
    [((1000, 1, 1e-4), 3), ((1, 1000, 1), 2), ((1, 1, 500), 2), ((1000, 0, 900), 1), ((1, 2, 4), 1)],
)
def test_parts_of_unlike_ranges_are_layers_of_their_own_and_fp32_computes_the_same(factors, layers, bias):
    model = network([factor or 1 for factor in factors], bias=bias)
    if 0 in factors:
        zeros = next(i for i in model.graph.initializer if i.name == "b weight")
        zeros.CopyFrom(numpy_helper.from_array(np.zeros((2, 1, 1, 1, 1), np.float32), "b weight"))
    made = split(model)
    if layers == 1:
        assert made is None
        return
    onnx.checker.check_model(made, full_check=True)
    names = [layer.name for layer in weighted_layers(made) if layer.name.startswith("layer")]
    assert names == ["layer", *(f"layer/part{n}" for n in range(2, layers + 1))]
    assert error(run(made, patch()), run(model, patch())) < 1e-5

    def work(network):
        return sum(layer.macs for layer in weighted_layers(graph.inferred(network)))

    assert work(made) == work(model) > 0
    assert ("whole" in graph.Graph(made).producer) is False, "a concatenation that nobody reads is gone"


def test_int8_keeps_what_a_small_part_says():
    model = network((1000, 1, 1))
    made = split(model)

    def int8_error(network):
        maxima = channel_maxima(network, [patch()], SHAPE)
        scales = {name: float(values.max()) / 127 for name, values in maxima.items()} | {
            "x": float(np.abs(patch()).max()) / 127
        }
        return error(run(quantized(network, scales), patch()), run(model, patch()))

    assert int8_error(made) < 0.02 < 0.1 < int8_error(model)


def test_what_is_asked_for_as_a_whole_stays_whole():
    assert split(network((1000, 1, 1)), whole=["layer"]) is None
