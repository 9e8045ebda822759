"""Weights of 4 bits step by step: longer groups, finer ones, 8 bits in the layers that lose most, and float only where 8 bits are not enough."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.models import four_bit, qdq
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.engine_form import SYMMETRIC
from MedQuantINT8Lib.models.halves import halved_layers, with_halves
from MedQuantINT8Lib.models.spec import Label
from MedQuantINT8Lib.models.weight_halves import layers_with_weight_halves, with_weight_halves
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization.accuracy_guard import OTHER_ENGINES, Budget
from MedQuantINT8Lib.quantization.effort import LearnedNetwork, with_packed_weights
from MedQuantINT8Lib.quantization.four_bit_weights import FourBitWeights
from MedQuantINT8Lib.quantization.guard_result import GuardResult
from MedQuantINT8Lib.quantization.measurer import Measurement, Measurer
from MedQuantINT8Lib.quantization.rounding import LearnedLayer, RoundingOptions, RoundingReport, with_learned_rounding
from MedQuantINT8Lib.quantization.search_time import SearchTime
from tiny import convolutions, quantized, random_weights, run

SPEC = replace(phantom_spec(), labels=(Label(1, "bright", 1),))
SHAPE = (8, 8, 8)
LAYERS = ("a", "b", "c", "d")


def networks():
    weights, biases = random_weights((1, 8, 8, 8, 2), side=3)
    fp32 = convolutions({n: w / np.sqrt(w[0].size) for n, w in weights.items()}, biases)
    return fp32, quantized(fp32, 0.05)


def form_of(fp32, int8):
    return SimpleNamespace(fp32=fp32, int8=int8, histograms={}, network=SimpleNamespace(shape=SHAPE, model=fp32))


def stored(model, layer):
    """The integers of a layer's weights."""
    found = graph.Graph(model)
    node = next(node for node in found.nodes if node.name == layer)
    source = found.producer.get(node.input[1])
    return found.array(node.input[1]) if source is None else found.array(source.input[0])


def layers_of_four_bits(model):
    return set(with_packed_weights(model, "a network")[1])


class Learner:
    """Learns nothing: gives weights that fit into 4 bits, in long groups or fine ones, and says of what inputs it was to learn them."""

    def __init__(self):
        self.calls = []

    def learned(self, fp32, int8, *, fine=False, fixed=frozenset()):
        copy = onnx.ModelProto()
        copy.CopyFrom(int8)
        found, names = graph.Graph(copy), []
        for node in copy.graph.node:
            source = found.producer.get(node.input[1]) if node.name in LAYERS else None
            if source is None or source.op_type != "DequantizeLinear" or node.name in fixed:
                continue
            shape = found.array(source.input[0]).shape
            rows = np.random.default_rng(len(names)).integers(-8, 8, (shape[0], int(np.prod(shape[1:]))))
            length = four_bit.group_length(rows.shape[1], 27, fine=fine)
            factors = (1 + np.arange(rows.size // length) % 15).reshape(shape[0], -1).repeat(length, 1)
            new = onnx.numpy_helper.from_array((rows * factors).astype(np.int8).reshape(shape), source.input[0])
            found.initializers[source.input[0]].CopyFrom(new)
            names.append(node.name)
        exact = [n.name for n in copy.graph.node if n.name in LAYERS and not is_quantized(found, n)]
        self.calls.append({"fine": fine, "fixed": set(fixed), "exact": exact})
        return LearnedNetwork(copy, RoundingReport([LearnedLayer(name, 4, 0.2, 0.1, 8, 100) for name in names]))


def is_quantized(found, node):
    source = found.producer.get(node.input[0])
    return source is not None and source.op_type == "DequantizeLinear"


class Scripted:
    """Measures by a rule: the agreement of the layers that have weights of 4 bits, and whether these are in long groups."""

    patches, form = 6, SYMMETRIC

    def __init__(self, rule):
        self.rule, self.measured = rule, 0

    def measure(self, candidate, patches=None, task=None, form=None):
        packed, layers = with_packed_weights(candidate, "a network")
        blocks = {a.i for node in packed.graph.node for a in node.attribute if a.name == "block_size"}
        self.measured += 1
        value = self.rule(set(layers), max(blocks, default=0) > 32)
        return Measurement(value, 0.5 if value is None else 1 - value)


def search(rule, found=None, **how):
    """What the search ends at, the guard's network, the learner and how often the guard was asked.

    Args:
        found: makes the guard's network of FP32 and plain INT8; by default the latter.
    """
    fp32, int8 = networks()
    model = int8 if found is None else found(fp32, int8)
    form, learner, asked = form_of(fp32, int8), Learner(), []
    measurer, budget, notes = Scripted(rule), how.pop("budget", Budget()), how.pop("notes", [])
    halves = how.pop("halves", {})

    def find():
        asked.append(1)
        measurement = measurer.measure(model)
        return model, GuardResult(budget, measurement, measurement, source=(form, None), notes=notes, halves=halves)

    four = FourBitWeights(learner, measurer, SPEC, budget, Task(), **how)
    end, result = four.search(form, find)
    return SimpleNamespace(model=end, result=result, eight=model, learner=learner, asked=len(asked))


def test_weights_of_long_groups_that_hold_need_no_guard():
    end = search(lambda layers, long: 0.995)
    assert layers_of_four_bits(end.model) == set(LAYERS) and end.asked == 0
    assert [call["fine"] for call in end.learner.calls] == [False]
    assert end.result.kept and end.result.source[1].layers and not end.result.returned and not end.result.halves


def test_finer_groups_come_next():
    end = search(lambda layers, long: 0.985 if long else 0.995)
    assert layers_of_four_bits(end.model) == set(LAYERS) and end.asked == 0
    assert [call["fine"] for call in end.learner.calls] == [False, True]


def test_finer_groups_are_not_learned_where_activations_lose():
    """Weights of 8 bits lose more than the learned ones of 4: the guard is asked, and what it has found gets 4 bits."""
    end = search(lambda layers, long: 0.985 if layers else 0.98)
    assert [call["fine"] for call in end.learner.calls] == [False, False] and end.asked == 1
    assert layers_of_four_bits(end.model) == set(LAYERS) and end.result.agreement == 0.985


def test_then_8_bits_in_the_layers_that_lose_most_and_no_layer_in_float():
    """With weights of 4 bits the layers b and d lose, c a little, which the budget has room for."""
    losses = {"a": 0.0, "b": 0.02, "c": 0.002, "d": 0.03}
    end = search(lambda layers, long: 0.995 - sum(losses[layer] for layer in layers))
    assert layers_of_four_bits(end.model) == {"a", "c"} and end.asked == 1
    for layer in ("b", "d"):
        assert np.array_equal(stored(end.model, layer), stored(end.eight, layer))
    assert set(qdq.layers_with_int8_weights(end.model)) == set(LAYERS), "weights of 8 bits, and not float"
    assert end.result.kept and not end.result.returned and end.result.agreement == pytest.approx(0.993)
    assert [layer.name for layer in end.result.source[1].layers] == ["a", "c"]


def test_where_no_layer_can_have_4_bits_the_guards_network_stays():
    end = search(lambda layers, long: 0.9 if layers else 0.992)
    assert not layers_of_four_bits(end.model) and end.model is end.eight and end.result.agreement == 0.992


def halves_and_float(fp32, int8):
    """Half of a's input, b's weights, and c in float."""
    model = qdq.without_quantization(int8, {"c"}, fp32)
    return with_weight_halves(with_halves(model, {"a": 0.05}), fp32, {"b"})


def test_weights_of_4_bits_come_before_weights_of_16():
    """Learned weights of 4 bits in b are as good as its halves, which the guard has taken for want of others."""
    whys = {"a": "quantized alone it loses", "b": "quantized alone it loses; its weights are halves"}
    rule = lambda layers, long: 0.9 if layers and layers == set(LAYERS) else 0.995  # noqa: E731
    end = search(rule, halves_and_float, halves=whys)
    network = graph.Graph(end.model)
    assert set(halved_layers(network)) == {"a"} and not layers_with_weight_halves(network)
    assert layers_of_four_bits(end.model) == {"a", "b", "d"} and end.result.halves == {"a": whys["a"]}
    onnx.checker.check_model(end.model, full_check=True)


def test_halves_and_float_are_only_what_8_bits_need():
    """The guard has taken a's input in halves, b's weights too, and c is in float: all of that stays, and d and a get 4 bits."""

    end = search(lambda layers, long: 0.9 if {"b", "c"} & layers else 0.995, halves_and_float)
    network = graph.Graph(end.model)
    assert set(halved_layers(network)) == {"a"} and set(layers_with_weight_halves(network)) == {"b"}
    assert layers_of_four_bits(end.model) >= {"a", "d"} and not {"b", "c"} & layers_of_four_bits(end.model)
    for layer in ("b", "c"):
        assert stored(end.model, layer).tobytes() == stored(end.eight, layer).tobytes()
    # The weights of a are learned for exact inputs, and b's are not touched.
    last = end.learner.calls[-1]
    assert last["fixed"] == {"b"} and set(last["exact"]) == {"a", "c"}
    onnx.checker.check_model(end.model, full_check=True)


def test_what_held_out_scans_show_is_not_ignored():
    """On the patches weights of 4 bits lose nothing; on held-out scans b does, so that it gets 8 bits."""
    asked = []

    def verify(model, source):
        asked.append(layers_of_four_bits(model))
        return 0.98 if "b" in asked[-1] else 0.993

    order = {"b": 0.001, "a": 0.0, "c": 0.0, "d": 0.0}
    end = search(lambda layers, long: 0.995 - sum(order[layer] for layer in layers), verify=verify)
    assert layers_of_four_bits(end.model) == {"a", "c", "d"} and len(asked) > 2


def test_where_8_bits_miss_the_budget_on_held_out_scans_4_bits_may_lose_a_little():
    """A tenth of the budget, and no more: the ranges of other scans are what is missing there, not bits of weights."""
    for lost, expected in ((0.0009, set(LAYERS)), (0.0011, {"a", "c", "d"})):
        held_out = lambda model, source, lost=lost: 0.97 - lost * ("b" in layers_of_four_bits(model))  # noqa: E731
        end = search(lambda layers, long: 0.995 - 0.0001 * ("b" in layers), verify=held_out)
        assert layers_of_four_bits(end.model) == expected


def test_where_8_bits_miss_the_budget_4_bits_may_lose_no_more():
    end = search(lambda layers, long: 0.98 - (0.01 if "d" in layers else 0.0))
    assert layers_of_four_bits(end.model) == {"a", "b", "c"} and end.result.agreement == 0.98 and not end.result.kept


@pytest.mark.parametrize(
    ("rule", "budget"),
    [(lambda layers, long: None, Budget()), (lambda layers, long: 0.5, Budget(fallback=False))],
    ids=["nothing to judge by", "only measured"],
)
def test_where_nothing_may_be_done_all_layers_get_4_bits(rule, budget):
    end = search(rule, budget=budget)
    assert (
        layers_of_four_bits(end.model) == set(LAYERS) and end.asked == 1 and end.result.agreement == rule(set(), True)
    )


def test_what_was_said_of_weights_of_8_bits_is_not_said_of_4():
    note = f"{OTHER_ENGINES[True]} compute this network with other activations: agreement 0.9 on the same patches"
    end = search(lambda layers, long: 0.98, notes=[note, "another"])
    assert end.result.notes == ["another"]


def test_when_the_time_is_over_only_what_has_to_be_learned_is():
    losses = {"a": 0.0, "b": 0.02, "c": 0.0, "d": 0.0}
    time = SearchTime(0.0)
    end = search(lambda layers, long: 0.995 - sum(losses[layer] for layer in layers), time=time)
    assert [call["fine"] for call in end.learner.calls] == [False, False] and time.shortened
    assert "b" not in layers_of_four_bits(end.model) and end.result.kept
    assert any("cost layer by layer" in note for note in end.result.notes)


@pytest.mark.parametrize("seconds", [500, 5000])
def test_learning_takes_nothing_of_the_guards_time(monkeypatch, seconds):
    """Nor does learning that takes longer than the search has."""
    now = [0.0]
    monkeypatch.setattr("MedQuantINT8Lib.quantization.search_time.time.monotonic", lambda: now[0])
    time, left = SearchTime(600.0, _start=0.0), []

    def rule(layers, long):
        # Measuring the first network of 4 bits stands for the minutes that it took.
        now[0] += seconds if layers and now[0] == 0 else 0
        left.append(time.left)
        return 0.985 if layers else 0.98

    end = search(rule, time=time)
    assert end.asked == 1 and left[-1] == 600


def test_really_learned_weights_hold_the_budget_and_are_stored_in_half():
    """Nothing scripted, on patches as smooth as scans; the second class is where a mean of the last features is below 0."""
    rng = np.random.default_rng(0)
    weights, biases = random_weights((1, 8, 8, 8, 2), side=3)
    weights["d"][0] = -weights["d"][1]
    fp32 = convolutions({n: w / np.sqrt(w[0].size) for n, w in weights.items()}, {n: 0 * b for n, b in biases.items()})
    given = [
        (coarse.repeat(2, 1).repeat(2, 2).repeat(2, 3) + 0.1 * rng.normal(size=(1, *SHAPE))).astype(np.float32)
        for coarse in rng.normal(size=(4, 1, 4, 4, 4))
    ]
    largest = {f"{n}_relu": 4.0 for n in "abc"} | {"x": 4.0}
    int8 = quantized(fp32, {name: largest[name] / 127 for name in qdq.activation_tensors(quantized(fp32))})

    class Learning:
        def learned(self, fp32, int8, *, fine=False, fixed=frozenset()):
            options = RoundingOptions(weight_bits=4, least_samples=1500, fine=fine, fixed=fixed)
            return LearnedNetwork(*with_learned_rounding(fp32.model, int8, given, options))

    budget = Budget(agreement=0.9)
    measurer = Measurer(fp32, given, SPEC)
    four = FourBitWeights(Learning(), measurer, SPEC, budget, Task())
    model, result = four.search(form_of(fp32, int8), lambda: pytest.fail("weights of 4 bits hold the budget"))
    assert result.kept and layers_of_four_bits(model) == set(LAYERS) and qdq.check_int8(model) == []
    packed, _ = four_bit.packed(qdq.compacted(model))
    read = four_bit.unpacked(packed)
    assert np.array_equal(run(read, given[0]), run(model, given[0]))
    assert packed.ByteSize() < 0.75 * qdq.compacted(model).ByteSize()
