"""Layers whose input is two INT8 halves are simulated as one product, with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from MedQuantINT8Lib.models.engine_form import SYMMETRIC, EngineForm
from MedQuantINT8Lib.models.halves import with_halves
from MedQuantINT8Lib.models.single_products import with_single_products
from MedQuantINT8Lib.models.weight_halves import with_weight_halves
from tiny import convolutions, quantized, random_weights, run

PATCH = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)


def convolutions_in(model):
    return sum(node.op_type == "Conv" for node in model.graph.node)


@pytest.mark.parametrize("form", [SYMMETRIC, EngineForm(zero_points=True), EngineForm(weight_bits=7)])
@pytest.mark.parametrize(("inputs", "weights"), [("abc", ""), ("abc", "abc"), ("b", "b"), ("ab", "bc")], ids="-".join)
def test_they_are_the_same_network(form, inputs, weights):
    fp32 = convolutions(*random_weights((1, 8, 8, 2), 3))
    int8 = quantized(fp32, {"x": 0.04, "a_relu": 0.4, "b_relu": 3.0})
    halved = with_halves(int8, {name: {"a": 0.04, "b": 0.4, "c": 3.0}[name] for name in inputs})
    several = form.of(with_weight_halves(halved, fp32, set(weights)))
    before = several.SerializeToString()
    single = with_single_products(several)
    onnx.checker.check_model(single, full_check=True)
    assert convolutions_in(several) - convolutions_in(single) == len(inputs)
    expected = run(several, PATCH)
    # Another order of a sum lets a value of the low half fall to the other side of a rounding border here and there.
    assert np.linalg.norm(run(single, PATCH) - expected) < 1e-4 * np.linalg.norm(expected)
    assert several.SerializeToString() == before


def test_a_network_of_plain_layers_is_itself():
    int8 = quantized(convolutions(*random_weights()))
    assert with_single_products(int8) is int8
