"""What is known of an FP32 network on patches: the numbers of its tensors, and each patch run once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization import fp32_network
from MedQuantINT8Lib.quantization.activation_ranges import collect_histograms, collect_maxima
from MedQuantINT8Lib.quantization.equalization import equalized_network
from MedQuantINT8Lib.quantization.fp32_network import Fp32Network, ScaledTensors
from tiny import convolutions


def network(opset=19):
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in (("a", (4, 1, 3, 3, 3)), ("b", (3, 4, 3, 3, 3)))}
    return convolutions(weights, {"a": rng.normal(size=4), "b": np.zeros(3)}, opset=opset)


def patch(seed, shape):
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)


def inner(model):
    return next(node.input[0] for node in model.graph.node if node.name == "b")


def values(model, name, given):
    fixed = graph.with_outputs(graph.fixed_shape(model, given.shape[1:]), [name])
    return session(fixed.SerializeToString(), "fp32").run([name], {model.graph.input[0].name: given[None]})[0]


@pytest.fixture
def runs(monkeypatch):
    """The outputs of each run of a network, as they come."""
    made = fp32_network.float_session
    found = []

    class Counted:
        def __init__(self, run):
            self._run = run

        def run(self, names, inputs):
            found.append(names)
            return self._run.run(names, inputs)

    monkeypatch.setattr(fp32_network, "float_session", lambda *given: Counted(made(*given)))
    return found


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 10, 11), (13, 4, 6)])
@pytest.mark.parametrize("opset", [17, 19])
def test_statistics_are_those_of_the_tensors(shape, opset):
    model = network(opset)
    name, given = inner(model), patch(1, shape)
    exact, statistics = values(model, name, given)[0], Fp32Network(model, shape).statistics(given)
    found = statistics[name]
    assert np.allclose(found.maxima, np.abs(exact).max(axis=(1, 2, 3)), rtol=1e-5)
    assert np.allclose(found.means, exact.mean(axis=(1, 2, 3)), rtol=1e-4, atol=1e-6)
    of_input = statistics[model.graph.input[0].name]
    assert of_input.maximum == np.abs(given).max() and np.isclose(of_input.means[0], given.mean())


def test_maps_are_pooled_in_boxes_since_reducing_them_at_once_takes_as_long_as_the_network():
    measuring = fp32_network._Measuring(graph.fixed_shape(network(), (9, 10, 11)), ["a_relu"], {})
    pools = [node for node in measuring.model.graph.node if "Pool" in node.op_type]
    assert [node.op_type for node in pools] == ["MaxPool", "AveragePool"]
    assert all(list(node.attribute[0].ints) == [3, 5, 1] for node in pools)
    assert not any("Reduce" in node.op_type or "Global" in node.op_type for node in measuring.model.graph.node)


def normalized_network(width):
    """Three convolutions with normalizations between them, of a width that is no multiple of a vector."""
    rng = np.random.default_rng(3)
    model = convolutions(
        {
            "a": rng.normal(size=(width, 1, 3, 3, 3)),
            "b": rng.normal(size=(width, width, 3, 3, 3)),
            "c": rng.normal(size=(2, width, 1, 1, 1)),
        },
        {"a": np.zeros(width), "b": np.zeros(width), "c": np.zeros(2)},
    )
    for name in ("one", "zero"):
        values = np.full(width, float(name == "one"), np.float32) + (0.3 if name == "zero" else 0)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in ("a", "b"):
            before = node.output[0]
            node.output[0] = f"{before}_raw"
            nodes.append(
                helper.make_node(
                    "InstanceNormalization", [f"{before}_raw", "one", "zero"], [before], name=f"{node.name}_in"
                )
            )
    return graph.with_nodes(model, nodes)


def test_channels_that_are_filled_in_for_full_vectors_are_not_counted():
    model, shape, width = normalized_network(5), (8, 8, 8), 5
    known, given = Fp32Network(model, shape), patch(4, shape)
    assert any(tuple(initializer.dims[:2]) == (16, 16) for initializer in known._fixed.graph.initializer), (
        "nothing was filled in"
    )
    statistics = known.statistics(given)
    names = {node.input[0] for node in model.graph.node if node.op_type == "Conv"} - {model.graph.input[0].name}
    assert len(names) == 2
    for name in names:
        exact = values(model, name, given)[0]
        assert statistics[name].maxima.shape == (width,)
        assert np.allclose(statistics[name].maxima, np.abs(exact).max(axis=(1, 2, 3)), rtol=1e-4)
        assert np.allclose(statistics[name].means, exact.mean(axis=(1, 2, 3)), rtol=1e-3, atol=1e-5)
    counted = collect_histograms(model, sorted(names), [given], 1, shape, Task())
    assert all(histogram.counts.sum() == width * 8**3 for histogram in counted.values())
    scores = values(model, model.graph.output[0].name, given)
    assert np.allclose(known.scores(given), scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("room", [1 << 20, 0])
def test_a_tensor_that_is_no_map_is_measured_as_a_whole(monkeypatch, room):
    monkeypatch.setattr(fp32_network, "_MOST_VALUES", room)
    model, weight = network(), np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    last = model.graph.output[0].name
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    model.graph.node.append(helper.make_node("MatMul", [last, "weight"], ["product"], name="product"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, (1, 3, 8, 8, 5)))
    given = patch(2, (8, 8, 8))
    found = Fp32Network(model, (8, 8, 8)).statistics(given, [last])[last]
    exact = values(model, last, given)
    assert np.isclose(found.maximum, np.abs(exact).max(), rtol=1e-5) and found.maxima.shape == (1,)
    assert np.isclose(found.means[0], exact.mean(), rtol=1e-3, atol=1e-6)


def test_a_patch_is_run_once_for_ranges_means_and_scores(runs):
    model, shape = network(), (8, 8, 8)
    given = [patch(seed, shape) for seed in range(3)]
    known = Fp32Network(model, shape)
    known.keep_scores(given[:2])
    maxima = collect_maxima(known, [inner(model)], given, 3, Task())
    assert len(runs) == 3
    known.channel_maxima(given)
    known.input_means(given[:2])
    scores = [known.scores(one) for one in given[:2]]
    assert len(runs) == 3
    assert known.scores(given[2]).shape == scores[0].shape and len(runs) == 4
    exact = [values(model, model.graph.output[0].name, one) for one in given[:2]]
    assert all(np.allclose(one, other, atol=1e-4) for one, other in zip(scores, exact, strict=True))
    plain = collect_histograms(model, [inner(model)], given, 3, shape, Task())
    assert np.isclose(maxima[inner(model)].maximum, plain[inner(model)].maximum, rtol=1e-6)


def test_values_that_are_not_finite_are_an_error():
    given = patch(1, (8, 8, 8))
    given[0, 3, 3, 3] = np.nan
    with pytest.raises(InputError, match="not finite on the calibration scans"):
        Fp32Network(network(), (8, 8, 8)).statistics(given)


def test_a_network_of_scaled_channels_is_known_without_a_run(runs):
    rng, shape = np.random.default_rng(5), (8, 8, 8)
    uneven = rng.normal(size=(4, 1, 3, 3, 3)) * np.array([100, 1, 1, 0.1]).reshape(4, 1, 1, 1, 1)
    model = convolutions({"a": uneven, "b": rng.normal(size=(3, 4, 3, 3, 3))}, {"a": np.zeros(4), "b": np.zeros(3)})
    given = [patch(seed, shape) for seed in range(3)]
    plain = Fp32Network(model, shape)
    collect_maxima(plain, [inner(model)], given, 3, Task())
    equal = equalized_network(plain, given)
    assert equal is not None and len(runs) == 3
    found = collect_maxima(equal, [inner(model)], given, 3, Task())[inner(model)].maximum
    assert len(runs) == 3
    exact = max(np.abs(values(equal.model, inner(model), one)).max() for one in given)
    assert np.isclose(found, exact, rtol=1e-5)


def test_a_scaled_tensor_of_which_the_whole_alone_is_known_is_measured_anew(runs):
    model, shape, given = network(), (8, 8, 8), patch(1, (8, 8, 8))
    name = inner(model)
    plain = Fp32Network(model, shape)
    before = next(node.output[0] for node in model.graph.node if node.name == "a")
    divisors = {before: (before, np.array([2.0, 1.0, 1.0, 1.0]))}
    scaled = Fp32Network(model, shape, ScaledTensors(plain, divisors))
    assert scaled.statistics(given, [before]).keys() >= {before, name}
    assert any(outputs and before in outputs for outputs in runs)
