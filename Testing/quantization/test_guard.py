"""The accuracy guard: what goes back to float is FP32, what is compared is the same, and it never ends worse than it began."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from data_models import ROOT, specs
from MedQuantINT8Lib.cli import quantize
from MedQuantINT8Lib.engines.float_session import float_session
from MedQuantINT8Lib.errors import EngineError
from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.inference.structure_dice import PooledDice, StructureDice
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.engine_form import SYMMETRIC, EngineForm
from MedQuantINT8Lib.models.halves import halved_layers
from MedQuantINT8Lib.models.layers import weighted_layers
from MedQuantINT8Lib.models.spec import Label
from MedQuantINT8Lib.models.weight_halves import layers_with_weight_halves
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization import accuracy_guard as sensitivity
from MedQuantINT8Lib.quantization import guard_search, ladder
from MedQuantINT8Lib.quantization.accuracy_guard import Budget, Candidate, guard
from MedQuantINT8Lib.quantization.bias_correction import input_means, with_corrected_biases
from MedQuantINT8Lib.quantization.effort import EFFORTS
from MedQuantINT8Lib.quantization.guard_result import GuardResult
from MedQuantINT8Lib.quantization.measurer import Measurement, Measurer
from MedQuantINT8Lib.quantization.qdq_placement import place, require_quantizer
from MedQuantINT8Lib.quantization.quantize import OPSET, QuantizationPolicy, policy_reasons
from MedQuantINT8Lib.quantization.search_time import SearchTime
from MedQuantINT8Lib.resources import resource
from tiny import convolutions, quantized, random_weights, run

SPEC = replace(phantom_spec(), labels=(Label(1, "bright", 1),))
SHAPE = (8, 8, 8)


def patches(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, *SHAPE)).astype(np.float32) for _ in range(count)]


def constants(model, layer):
    """Weight and bias of a layer, as bytes."""
    found = graph.Graph(model)
    node = next(n for n in found.nodes if n.name == layer)
    return [found.array(name) for name in node.input[1:]]


@pytest.mark.parametrize("with_biases", [True, False])
def test_a_layer_that_goes_back_is_bit_for_bit_the_fp32_layer(with_biases):
    weights, biases = random_weights()
    fp32 = convolutions(weights, biases if with_biases else {})
    int8 = quantized(fp32)
    corrected = with_corrected_biases(fp32, int8, input_means(fp32, patches(), SHAPE))
    assert any("corrected_bias" in i.name for i in corrected.graph.initializer)
    for layer in weights:
        back = qdq.without_quantization(corrected, {layer}, fp32)
        onnx.checker.check_model(back)
        ours, theirs = constants(back, layer), constants(fp32, layer)
        assert len(ours) == len(theirs) and all(
            a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True)
        )
    whole = qdq.without_quantization(corrected, set(weights), fp32)
    assert np.array_equal(run(whole, patches()[0]), run(fp32, patches()[0]))
    assert not qdq.activation_tensors(whole) and not qdq.layers_with_int8_weights(whole)


def test_weights_that_stay_int8_keep_the_bias_that_makes_up_for_their_rounding():
    weights, biases = random_weights()
    fp32 = convolutions(weights, biases)
    corrected = with_corrected_biases(fp32, quantized(fp32), input_means(fp32, patches(), SHAPE))
    back = qdq.without_quantization(corrected, {"b"})
    assert np.array_equal(constants(back, "b")[-1], constants(corrected, "b")[-1])


NETWORKS = ("hippocampus_unet", "phantom_unet", *specs())


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_real_networks_go_back_bit_for_bit(name, data):
    """As ModelOpt places its pairs, biases corrected: each layer alone has FP32's constants, and all of them FP32's output."""
    own = {"hippocampus_unet": ROOT / "Testing" / "Networks", "phantom_unet": resource("demo.zip").parent}
    fp32 = graph.load_network(own.get(name, data / "networks") / f"{name}.onnx")
    if graph.opset_of(fp32) < OPSET:
        fp32 = graph.at_opset(fp32, OPSET, name)
    graph.name_nodes(fp32)
    shape = tuple(side or 32 for side in graph.network_shape(fp32).spatial)
    patch = np.random.default_rng(0).random((graph.network_shape(fp32).channels, *shape), np.float32)
    int8 = place(require_quantizer(), graph.fixed_shape(fp32, shape), patch, policy_reasons(fp32, QuantizationPolicy()))
    corrected = with_corrected_biases(fp32, int8, input_means(fp32, [patch], shape))
    layers = qdq.layers_with_int8_weights(corrected)
    assert layers
    for layer in layers:
        back = qdq.without_quantization(corrected, {layer}, fp32)
        ours, theirs = constants(back, layer), constants(fp32, layer)
        assert len(ours) == len(theirs), layer
        assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True)), layer
    whole = qdq.without_quantization(corrected, set(layers), fp32)
    assert not qdq.activation_tensors(whole) and not qdq.layers_with_int8_weights(whole)
    assert np.array_equal(run(whole, patch), run(graph.fixed_shape(fp32, shape), patch))


def test_int8_and_fp32_are_compared_on_the_same_patches(monkeypatch):
    """FP32's Dice to the labels differs much from patch to patch; INT8, which is FP32 here, loses nothing on any number of them."""
    weights, biases = random_weights()
    fp32 = convolutions(weights, biases)
    given = patches(6)
    references = [
        (run(fp32, patch).argmax(1)[0] if n < 2 else np.random.default_rng(n).integers(0, 2, SHAPE))
        for n, patch in enumerate(given)
    ]
    judge = sensitivity.Measurer(fp32, given, SPEC, references)
    few, all_of_them = judge.measure(fp32, 2), judge.measure(fp32)
    assert few.dice == few.dice_fp32 == pytest.approx(1.0) and all_of_them.dice == all_of_them.dice_fp32 < 0.9
    assert few.dice_lost == all_of_them.dice_lost == 0
    assert Budget(0, 0.0).excess(few) == 0


class Scripted:
    """A judge whose measurements are given: by how many layers of a network are still quantized."""

    patches, form = 6, SYMMETRIC

    def __init__(self, agreement):
        self.agreement = agreement

    def __call__(self, fp32, given, spec, references, form):
        return self

    def measure(self, candidate, patches=None, task=None, form=None):
        value = self.agreement[len(qdq.layers_with_int8_weights(candidate))]
        return Measurement(value, 1 - value if value is not None else 0.5)


@pytest.mark.parametrize(
    ("agreement", "left", "returned"),
    [
        ({3: 0.95, 2: 0.90, 1: 0.85, 0: 0.80}, 3, 0),
        ({3: 0.90, 2: 0.97, 1: 0.85, 0: 0.80}, 2, 1),
        ({3: 0.90, 2: 0.97, 1: 0.97, 0: 0.80}, 2, 1),
        ({3: 0.90, 2: 0.91, 1: 0.995, 0: 0.80}, 1, 2),
    ],
    ids=["it was best as it began", "the best on the way", "of equals the one with most INT8", "the first that holds"],
)
def test_it_ends_at_the_best_that_it_has_seen(monkeypatch, agreement, left, returned):
    monkeypatch.setattr(sensitivity, "Measurer", Scripted(agreement))
    weights, biases = random_weights()
    fp32 = convolutions(weights, biases)
    times = iter([3.0, 1.0])
    made, result = guard(Candidate(fp32, quantized(fp32)), patches(), SPEC, Budget(0.99), Task())
    sensitivity.time_layers(result, lambda model: next(times), Task())
    assert len(qdq.layers_with_int8_weights(made)) == left
    assert result.after.agreement == agreement[left] >= result.before.agreement
    assert len(result.returned) == returned and not result.halves
    assert result.milliseconds == ([3.0, 1.0] if returned else []), "before and after, where something was done"
    assert result.kept == (agreement[left] >= 0.99)
    assert result.cost_ms == (0.0 if returned else None), "times that fall from run to run are no negative costs"
    assert ("costs 0.0 ms" in "\n".join(quantize._guard_lines(result))) == bool(returned)


@pytest.mark.parametrize(
    ("plain", "other", "asked", "taken"),
    [(0.995, 1.0, False, False), (0.9, 0.995, True, True), (0.97, 0.9, True, False)],
)
def test_channels_are_equalized_before_a_layer_goes_back(monkeypatch, plain, other, asked, taken):
    fp32 = convolutions(*random_weights())
    first, second = quantized(fp32, 0.05), quantized(fp32, 0.06)
    calls = []

    class ByNetwork:
        patches, form = 6, SYMMETRIC

        def __init__(self, *_, form):
            pass

        def measure(self, candidate, patches=None, task=None, form=None):
            value = {id(first): plain, id(second): other}.get(id(candidate), 0.98)
            return Measurement(value, 1 - value)

    def equalize():
        calls.append("asked")
        return Candidate(fp32, second, equalized=True)

    monkeypatch.setattr(sensitivity, "Measurer", ByNetwork)
    made, result = guard(Candidate(fp32, first), patches(), SPEC, Budget(0.99), Task(), alternatives=[equalize])
    assert bool(calls) == asked and result.equalized == taken
    assert result.before.agreement == (other if taken else plain)
    assert (made is second) == taken and result.after.agreement >= result.before.agreement
    assert result.to_json()["channels_equalized"] == taken
    _, result = guard(Candidate(fp32, first), patches(), SPEC, Budget(0.99), Task(), alternatives=[lambda: None])
    assert not result.equalized


@pytest.mark.parametrize(("learned", "taken"), [(0.985, False), (0.995, True)])
def test_learned_weights_are_taken_only_where_no_layer_has_to_change(monkeypatch, learned, taken):
    """They make up for errors of activations, which a layer in halves or in float does not have."""
    fp32 = convolutions(*random_weights())
    first, second = quantized(fp32, 0.05), quantized(fp32, 0.06)

    class ByNetwork:
        patches, form = 6, SYMMETRIC

        def __init__(self, *_, form):
            pass

        def measure(self, candidate, patches=None, task=None, form=None):
            value = {id(first): 0.97, id(second): learned}.get(id(candidate), 0.999)
            return Measurement(value, 1 - value)

    monkeypatch.setattr(sensitivity, "Measurer", ByNetwork)
    plain = Candidate(fp32, first, source="plain")
    candidate = Candidate(fp32, second, source="learned", compensates=True)
    made, result = guard(plain, patches(), SPEC, Budget(0.99), Task(), alternatives=[lambda: candidate])
    assert result.source == ("learned" if taken else "plain") and result.kept
    assert (made is second) == taken == (not (result.halves or result.returned))
    # Where no layer may change, a thorough search takes the nearer one.
    budget = Budget(0.99, fallback=False)
    _, result = guard(plain, patches(), SPEC, budget, Task(), alternatives=[lambda: candidate], thorough=True)
    assert result.source == "learned"


def test_where_fp32_finds_nothing_nothing_is_claimed():
    weights, biases = random_weights()
    biases["c"] = np.array([1e6, 0.0])
    fp32 = convolutions(weights, biases)
    made, result = guard(Candidate(fp32, quantized(fp32)), patches(), SPEC, Budget(0.99), Task())
    assert result.agreement is None and not result.kept and not result.judged and not result.returned
    assert "finds no structure" in result.notes[0] and "scans that show the structures" in result.notes[0]
    assert result.to_json()["agreement"] is None and result.to_json()["nothing_found"]
    assert not any("budget does not hold" in line for line in quantize._guard_lines(result))
    assert len(qdq.layers_with_int8_weights(made)) == 3


def test_labels_that_show_nothing_in_the_patches_are_told():
    weights, biases = random_weights()
    fp32 = convolutions(weights, biases)
    _, result = guard(
        Candidate(fp32, quantized(fp32, 0.02)),
        patches(),
        SPEC,
        Budget(0.0),
        Task(),
        references=[np.zeros(SHAPE, int)] * 3,
    )
    assert result.after.dice is None and result.dice_fp32 is None and result.notes == [sensitivity.NOTHING_LABELLED]
    assert result.to_json()["dice_to_labels"] is None


def test_a_structure_below_a_hundred_voxels_counts_where_there_is_no_other():
    pooled = PooledDice(True)
    mask = np.zeros((1, 8, 8, 8), int)
    mask[0, :2, :2, :2] = 1
    pooled.add(mask, mask)
    assert pooled.value == 1.0
    large = np.zeros((1, 8, 8, 8), int)
    large[0, 4:] = 2
    pooled.add(np.zeros_like(large), large)
    assert pooled.value == 0.0, "beside a large one, stray voxels do not count"


def test_an_engine_that_cannot_be_timed_loses_nothing(monkeypatch):
    monkeypatch.setattr(sensitivity, "Measurer", Scripted({3: 0.9, 2: 0.995, 1: 1.0, 0: 1.0}))
    weights, biases = random_weights()
    fp32 = convolutions(weights, biases)

    def broken(model):
        raise EngineError("no kernel for GridSample")

    _, result = guard(Candidate(fp32, quantized(fp32)), patches(), SPEC, Budget(0.99), Task())
    sensitivity.time_layers(result, broken, Task())
    assert result.kept and result.cost_ms is None and "GridSample" in result.notes[0]


def test_bias_correction_takes_networks_of_older_opsets():
    weights, biases = random_weights(side=3)
    means = [input_means(convolutions(weights, biases, opset=opset), patches(), SHAPE) for opset in (17, 19)]
    assert set(means[0]) == set(weights)
    assert all(np.allclose(means[0][name], means[1][name], rtol=1e-5) for name in weights)


def normalized(weights, biases):
    """Convolutions with an InstanceNormalization behind all but the last."""
    model = convolutions(weights, biases)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Conv" and node.output[0] != model.graph.output[0].name:
            before, width = node.output[0], len(weights[node.name])
            for name, value in (("scale", 1.0), ("shift", 0.1)):
                array = np.full(width, value, np.float32)
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{node.name}_{name}"))
            node.output[0] = f"{before}_raw"
            inputs = [f"{before}_raw", f"{node.name}_scale", f"{node.name}_shift"]
            nodes.append(onnx.helper.make_node("InstanceNormalization", inputs, [before], name=f"{node.name}_in"))
    return graph.with_nodes(model, nodes)


def test_biases_that_only_the_output_shows_are_measured_without_a_run(monkeypatch):
    """A mean that is normalized away is not corrected; the last bias shifts the output of the network that was measured before."""
    weights, biases = random_weights(side=3)
    fp32 = normalized(weights, biases)
    int8 = quantized(fp32)
    corrected = with_corrected_biases(fp32, int8, input_means(fp32, patches(), SHAPE))
    assert [i.name for i in corrected.graph.initializer if "corrected_bias" in i.name] == [
        f"{list(weights)[-1]}_corrected_bias"
    ]
    alone = Measurer(fp32, patches(), SPEC).measure(corrected)
    measurer = Measurer(fp32, patches(), SPEC)
    first = measurer.measure(int8)
    monkeypatch.setattr("MedQuantINT8Lib.quantization.measurer.float_session", None)
    second = measurer.measure(corrected)
    assert second.relative_error == pytest.approx(alone.relative_error, rel=1e-4) and second.agreement == pytest.approx(
        alone.agreement
    )
    assert second.relative_error != first.relative_error


def test_the_budget_can_be_set_on_the_worst_structure():
    lost = Measurement(0.99, 0.0, structures=(StructureDice("a", 1.0, 5.0, 5000), StructureDice("b", 0.95, 0.5, 500)))
    assert Budget(0.99).excess(lost) == 0
    assert Budget(0.99, worst_structure=0.97).excess(lost) == pytest.approx(0.02)
    assert Budget(0.0, worst_structure=0.97).excess(Measurement(None, 0.0)) == 0


def test_a_layer_goes_back_for_the_worst_structure_alone(monkeypatch):
    """The mean holds all the way; a structure does not, until two layers are in float."""

    class Judge(Scripted):
        def measure(self, model, patches=None, task=None, form=None):
            measurement = super().measure(model, patches)
            worst = {3: 0.5, 2: 0.8, 1: 0.98, 0: 1.0}[len(qdq.layers_with_int8_weights(model))]
            return replace(measurement, structures=(StructureDice("thalamus", worst, 6.0, 6000),))

    monkeypatch.setattr(sensitivity, "Measurer", Judge({3: 1.0, 2: 1.0, 1: 1.0, 0: 1.0}))
    weights, biases = random_weights()
    fp32 = convolutions(weights, biases)
    for least, layers in ((0.0, 0), (0.97, 2)):
        _, result = guard(
            Candidate(fp32, quantized(fp32)), patches(), SPEC, Budget(0.99, worst_structure=least), Task()
        )
        assert len(result.returned) == layers and result.kept
    assert result.to_json()["worst"] == {"name": "thalamus", "dice": 0.98}
    assert any("thalamus 0.9800" in line for line in quantize._guard_lines(result))


class ByForm:
    """A judge that tells a network by which layers are in INT8, and which of them in halves."""

    patches, form = 6, SYMMETRIC

    def __init__(self, agreement):
        self.agreement, self.measured = agreement, []

    def __call__(self, fp32, given, spec, references, form):
        return self

    def measure(self, candidate, patches=None, task=None, form=None):
        halves = set(halved_layers(graph.Graph(candidate)))
        value = self.agreement(set(qdq.layers_with_int8_weights(candidate)) - halves, halves)
        self.measured.append(patches)
        return Measurement(value, 1 - value)


def lost(costs, halved_costs):
    """Agreement where each layer costs by itself: in plain INT8, and in halves."""
    return lambda plain, halves: 1 - sum(costs[n] for n in plain) - sum(halved_costs[n] for n in halves)


@pytest.mark.parametrize(
    ("plain", "in_halves", "halves", "returned"),
    [
        ({"a": 0.001, "b": 0.03, "c": 0.02, "d": 0.004}, dict.fromkeys("abcd", 0.0), ["b", "c"], []),
        ({"a": 0.001, "b": 0.03, "c": 0.001, "d": 0.001}, dict.fromkeys("abcd", 0.0), ["b"], []),
        (dict.fromkeys("abcd", 0.01), dict.fromkeys("abcd", 0.002), ["a", "b", "c", "d"], []),
        ({"a": 0.001, "b": 0.03, "c": 0.02, "d": 0.004}, {"a": 0, "b": 0, "c": 0.015, "d": 0}, ["b"], ["c"]),
        (
            {"a": 0.001, "b": 0.03, "c": 0.02, "d": 0.004},
            {"a": 0.001, "b": 0.03, "c": 0.02, "d": 0.004},
            [],
            ["b", "c"],
        ),
    ],
    ids=["the two that need them", "one", "all", "float where weights cost", "none where halves help nothing"],
)
def test_each_layer_gets_the_cheapest_that_holds(monkeypatch, plain, in_halves, halves, returned):
    judge = ByForm(lost(plain, in_halves))
    monkeypatch.setattr(sensitivity, "Measurer", judge)
    fp32 = convolutions(*random_weights((1, 4, 4, 4, 2)))
    made, result = guard(Candidate(fp32, quantized(fp32)), patches(), SPEC, Budget(0.99), Task())
    assert result.kept and sorted(result.halves) == halves and list(result.returned) == returned
    assert set(halved_layers(graph.Graph(made))) == set(halves)
    assert set(qdq.layers_with_int8_weights(made)) == set("abcd") - set(returned)
    assert result.to_json()["halves"] == result.halves
    lines = "\n".join(quantize._guard_lines(result))
    assert (f"runs {len(halves)} layer(s) as two INT8 halves" in lines) == bool(halves)
    assert (f"put {len(returned)} layer(s) back" in lines) == bool(returned)
    assert len(judge.measured) < 20


@pytest.mark.parametrize(("helps", "returned"), [(True, []), (False, ["c"])])
def test_weights_are_learned_for_halves_before_a_layer_goes_back(monkeypatch, helps, returned):
    weights, biases = random_weights((1, 4, 4, 4, 2))
    fp32 = convolutions(weights, biases)
    int8 = quantized(fp32)
    doubled = quantized(convolutions({name: 2 * weight for name, weight in weights.items()}, biases))
    costs = lost({"a": 0.001, "b": 0.03, "c": 0.03, "d": 0.004}, {"a": 0, "b": 0, "c": 0.015, "d": 0})
    learned_costs = lost({"a": 0.001, "b": 0.03, "c": 0.03, "d": 0.004}, {"a": 0, "b": 0, "c": 0.002, "d": 0})

    class Judge(ByForm):
        def measure(self, candidate, patches=None, task=None, form=None):
            stored = {i.name: i for i in candidate.graph.initializer}
            self.agreement = learned_costs if helps and any("_taken" in name for name in stored) else costs
            return super().measure(candidate, patches)

    monkeypatch.setattr(sensitivity, "Measurer", Judge(costs))
    exact = Candidate(fp32, qdq.with_weights_of(int8, doubled), source="learned")
    start = Candidate(fp32, int8, source="plain", exact=lambda: exact)
    made, result = guard(start, patches(), SPEC, Budget(0.99), Task())
    assert result.kept and list(result.returned) == returned and result.source == ("learned" if helps else "plain")
    assert set(halved_layers(graph.Graph(made))) == ({"b", "c"} if helps else {"b"})


def test_an_input_of_too_wide_a_range_is_held_by_halves_without_a_layer_in_float():
    """Raw intensities whose few bright voxels leave the others two steps; ranges as calibration saw them."""
    weights, biases = random_weights((1, 8, 8, 2), 3)
    biases["a"][:] = 0
    fp32 = convolutions(weights, biases)
    given = patches(12)
    for patch in given:
        patch[0, 0, 0, 0] = 100
    ranges = {"x": 100.0, "a_relu": 3000.0, "b_relu": 30000.0}
    int8 = quantized(fp32, {name: value / 127 for name, value in ranges.items()})
    blind = guard(Candidate(fp32, int8, None, ranges), given, SPEC, Budget(0, fallback=False), Task())[1]
    made, result = guard(Candidate(fp32, int8, None, ranges), given, SPEC, Budget(0.98), Task())
    assert blind.agreement < 0.98 <= result.agreement and result.kept
    assert result.halves and not result.returned and qdq.check_int8(made) == []
    assert all(layer.quantized for layer in weighted_layers(made))
    assert made.ByteSize() < int8.ByteSize() + 3000, "weights are stored once"


@pytest.mark.parametrize(
    ("plain", "in_halves", "halves", "asked"),
    [
        ({"a": 0.001, "b": 0.4, "c": 0.002, "d": 0.001}, dict.fromkeys("abcd", 0.0), ["b"], 0),
        ({"a": 0.001, "b": 0.03, "c": 0.002, "d": 0.001}, dict.fromkeys("abcd", 0.0), ["b"], 1),
        (dict.fromkeys("abcd", 0.2), dict.fromkeys("abcd", 0.001), ["a", "b", "c", "d"], 1),
        ({"a": 0.03, "b": 0.03, "c": 0.003, "d": 0.003}, dict.fromkeys("abcd", 0.0), ["a", "b"], 0),
    ],
    ids=["one layer is hopeless", "none is", "all are, and learning might need no halves", "two together are"],
)
def test_minutes_of_learning_are_not_spent_on_an_input_that_8_bits_cannot_hold(
    monkeypatch, plain, in_halves, halves, asked
):
    monkeypatch.setattr(sensitivity, "Measurer", ByForm(lost(plain, in_halves)))
    fp32 = convolutions(*random_weights((1, 4, 4, 4, 2)))
    calls = []

    def learn():
        calls.append("asked")
        return Candidate(fp32, quantized(fp32, 0.06), compensates=True)

    _, result = guard(Candidate(fp32, quantized(fp32)), patches(), SPEC, Budget(0.99), Task(), learned=[learn])
    assert result.kept and sorted(result.halves) == halves and len(calls) == asked and not result.returned


@pytest.mark.parametrize(
    ("in_halves", "halves", "source"),
    [(0.0, ["b"], "plain"), (0.009, [], "learned")],
    ids=["halves leave a margin", "neither does"],
)
def test_a_cure_leaves_a_margin_where_it_can(monkeypatch, in_halves, halves, source):
    """Learned rounding that only just holds the budget is taken where halves do not hold it with a margin."""
    fp32 = convolutions(*random_weights((1, 4, 4, 4, 2)))
    first, second = quantized(fp32, 0.05), quantized(fp32, 0.06)
    judge = ByForm(lost({"a": 0.001, "b": 0.02, "c": 0.001, "d": 0.001}, dict.fromkeys("abcd", in_halves)))

    class Judge(ByForm):
        def measure(self, candidate, patches=None, task=None, form=None):
            return Measurement(0.9905, 0.01) if candidate is second else judge.measure(candidate, patches)

    monkeypatch.setattr(sensitivity, "Measurer", Judge(judge.agreement))
    candidate = Candidate(fp32, second, source="learned", compensates=True)
    plain = Candidate(fp32, first, source="plain")
    made, result = guard(plain, patches(), SPEC, Budget(0.99), Task(), learned=[lambda: candidate])
    assert result.kept and sorted(result.halves) == halves and result.source == source and not result.returned
    assert (made is second) == (source == "learned") and result.after.agreement == pytest.approx(
        0.997 if halves else 0.9905
    )


class ByWeights(ByForm):
    """The same where the cost of a layer whose weights are halves is another one; ``as_int8`` is the agreement with all layers in float and
    weights stored as INT8."""

    def __init__(self, agreement, refined_costs, as_int8):
        super().__init__(agreement)
        self.refined_costs, self.as_int8 = refined_costs, as_int8

    def measure(self, candidate, patches=None, task=None, form=None):
        network = graph.Graph(candidate)
        in_int8 = {layer.name for layer in weighted_layers(candidate) if layer.quantized}
        if not in_int8 and qdq.layers_with_int8_weights(candidate):
            return Measurement(self.as_int8, 1 - self.as_int8)
        refined, halves = set(layers_with_weight_halves(network)), set(halved_layers(network))
        others = (set(qdq.layers_with_int8_weights(candidate)) & in_int8) - refined
        value = self.agreement(others - halves, others & halves) - sum(self.refined_costs[n] for n in refined)
        return Measurement(value, 1 - value)


@pytest.mark.parametrize(
    ("room", "as_int8", "helps", "halves", "returned"),
    [
        (10.0, 1.0, True, ["b", "c"], []),
        (10.0, 1.0, False, ["b"], ["c"]),
        (0.0, 1.0, True, ["b", "c"], []),
        (0.0, 1.0, False, ["b"], ["c"]),
    ],
    ids=[
        "weights are halves where they cost",
        "float where that helps nothing",
        "the file grows before a layer goes back",
        "float where a larger file helps nothing",
    ],
)
def test_weights_become_halves_before_a_layer_goes_back(monkeypatch, room, as_int8, helps, halves, returned):
    plain = {"a": 0.001, "b": 0.03, "c": 0.02, "d": 0.001}
    in_halves = {"a": 0, "b": 0, "c": 0.02, "d": 0}
    refined_costs = dict.fromkeys("abcd", 0.0) if helps else plain | {"b": 0.0}
    judge = ByWeights(lost(plain, in_halves), refined_costs, as_int8)
    monkeypatch.setattr(sensitivity, "Measurer", judge)
    monkeypatch.setattr(ladder, "SIZE_LIMIT", room)
    fp32 = convolutions(*random_weights((1, 4, 4, 4, 2), 3))
    made, result = guard(Candidate(fp32, quantized(fp32)), patches(), SPEC, Budget(0.99), Task())
    assert result.kept and sorted(result.halves) == halves and list(result.returned) == returned
    weights = set(layers_with_weight_halves(graph.Graph(made)))
    assert weights == ({"c"} if "c" in halves else set()) and qdq.check_int8(made) == []
    assert all("weights are halves" in result.halves[name] for name in weights)
    assert all(layer.quantized for layer in weighted_layers(made)) == (not returned)


def ranged():
    """FP32 of two ReLUs, INT8 of what the first gives in the range that three patches need, and those patches."""
    fp32 = convolutions(*random_weights((1, 8, 8, 2), 3))
    given = patches(12)
    loaded = float_session(graph.with_outputs(fp32, ["a_relu"]).SerializeToString(), "fp32")
    reached = max(float(loaded.run(["a_relu"], {"x": patch[None]})[0].max()) for patch in given)
    return fp32, quantized(fp32, {"a_relu": reached / 127}, {"b"}), given


def test_what_is_measured_is_the_form_that_the_engine_computes():
    """Behind a ReLU an engine with zero points has twice the steps; the other kind's figure is reported beside it."""
    fp32, int8, given = ranged()
    budget = Budget(0, fallback=False)
    both = {
        zero_points: guard(
            Candidate(fp32, int8), given, SPEC, budget, Task(), thorough=True, form=EngineForm(zero_points)
        )[1]
        for zero_points in (False, True)
    }
    assert both[True].relative_error < 0.8 * both[False].relative_error
    for zero_points, result in both.items():
        other = both[not zero_points]
        assert result.other_form == EngineForm(not zero_points)
        assert result.in_other_form.relative_error == pytest.approx(other.relative_error)
        written = result.to_json()
        assert written["form"]["zero_points"] == zero_points and written["agreement"] == result.agreement
        assert written["other_form"]["agreement"] == other.agreement
        line = next(line for line in quantize._guard_lines(result) if "measured with" in line)
        assert line.index(result.form.title) < line.index(other.form.title) and f"{other.agreement:.4f}" in line
    # A budget that only one of both holds, told where the network is made for that one.
    between = (both[True].agreement + both[False].agreement) / 2
    _, told = guard(Candidate(fp32, int8), given, SPEC, Budget(between), Task(), form=EngineForm(True))
    assert told.kept and any(
        "symmetric activations" in note and f"{both[False].agreement:.4f}" in note for note in told.notes
    )


def test_a_network_without_bounded_activations_has_one_form():
    fp32, _, given = ranged()
    single = quantized(fp32, 0.05, {"a"})
    result = guard(Candidate(fp32, single), given, SPEC, Budget(0.0), Task(), form=EngineForm(True))[1]
    assert result.other_form is None and result.to_json()["other_form"] is None


def test_seven_bits_of_weights_are_measured_where_they_run():
    fp32, int8, given = ranged()
    budget = Budget(0, fallback=False)
    eight, seven = (
        guard(Candidate(fp32, int8), given, SPEC, budget, Task(), form=EngineForm(weight_bits=bits))[1]
        for bits in (8, 7)
    )
    assert seven.relative_error > eight.relative_error and "7 bits" in seven.form.title
    # Engines of another kind compute 8 bits.
    told = guard(Candidate(fp32, int8), given, SPEC, Budget(0), Task(), form=EngineForm(True, 7))[1]
    assert told.form.weight_bits == 7 and told.other_form == SYMMETRIC


@pytest.mark.parametrize(
    ("held_out", "halves", "asked"),
    [
        ([0.995], ["a"], 1),
        ([0.985, 0.991], ["a", "b"], 2),
        ([0.9902, 0.991], ["a"], 2),
        ([0.985, 0.986, 0.987], ["a", "b", "c"], 3),
        ([0.985, 0.98, 0.98], ["a"], 3),
        ([None], ["a"], 1),
    ],
    ids=[
        "it holds there too",
        "it holds at the second search",
        "it all but missed",
        "the best of all",
        "the first was the best",
        "unknown",
    ],
)
def test_what_misses_the_budget_on_held_out_scans_is_searched_again(monkeypatch, held_out, halves, asked):
    """Patches show agreement enough with one layer in halves; scans that calibration did not see may not."""
    plain = {"a": 0.02, "b": 0.004, "c": 0.0015, "d": 0.0001}
    monkeypatch.setattr(sensitivity, "Measurer", ByForm(lost(plain, dict.fromkeys("abcd", 0.0))))
    fp32 = convolutions(*random_weights((1, 4, 4, 4, 2)))
    figures = iter(held_out)
    verified = []

    def verify(model, source):
        verified.append((set(halved_layers(graph.Graph(model))), source))
        return next(figures)

    candidate = Candidate(fp32, quantized(fp32), source="plain")
    made, result = guard(candidate, patches(), SPEC, Budget(0.99), Task(), verify=verify)
    assert set(halved_layers(graph.Graph(made))) == set(halves) and sorted(result.halves) == halves
    assert len(verified) == asked and all(source == "plain" for _, source in verified)
    assert result.kept and not result.returned


def test_a_second_search_measures_no_layer_by_itself_again(monkeypatch):
    judge = ByForm(lost(dict.fromkeys("abcd", 0.004), dict.fromkeys("abcd", 0.0)))
    monkeypatch.setattr(sensitivity, "Measurer", judge)
    fp32, figures = convolutions(*random_weights((1, 4, 4, 4, 2))), iter((0.98, 0.98))
    candidate = Candidate(fp32, quantized(fp32))
    _, result = guard(candidate, patches(), SPEC, Budget(0.99), Task(), verify=lambda *_: next(figures))
    assert next(figures, None) is None and result.kept
    assert judge.measured.count(1) == 4, "each layer once, on one patch"


def test_a_budget_of_nothing_is_searched_once(monkeypatch):
    monkeypatch.setattr(sensitivity, "Measurer", ByForm(lost(dict.fromkeys("abcd", 0.0), {})))
    fp32, asked = convolutions(*random_weights((1, 4, 4, 4, 2))), []
    verify = lambda model, _: asked.append(model) or 0.999  # noqa: E731
    guard(Candidate(fp32, quantized(fp32)), patches(), SPEC, Budget(1.0), Task(), verify=verify)
    assert len(asked) == 1


def test_a_second_search_reports_nothing_of_what_the_first_found(monkeypatch):
    monkeypatch.setattr(sensitivity, "Measurer", ByForm(lost(dict.fromkeys("abcd", 0.0), {})))
    fp32 = convolutions(*random_weights((1, 4, 4, 4, 2)))
    first, sources = quantized(fp32), []

    def searched(search, *_, **__):
        if sources:
            return search.start
        search.result.halves, search.result.returned, search.result.source = {"a": "why"}, {"b": "why"}, "learned"
        return first

    def verify(model, source):
        sources.append(source)
        return 0.98 if model is first else 0.995

    monkeypatch.setattr(sensitivity, "_searched", searched)
    candidate = Candidate(fp32, quantized(fp32), source="plain")
    made, result = guard(candidate, patches(), SPEC, Budget(0.99), Task(), verify=verify)
    assert made is candidate.int8 and sources == ["learned", "plain"]
    assert (result.halves, result.returned, result.source) == ({}, {}, "plain")


@pytest.mark.parametrize(
    ("classes", "act_range", "form"),
    [(60, 1.0, EngineForm(zero_points=True)), (30, 8.0, SYMMETRIC)],
    ids=["many classes", "ranges far too wide"],
)
def test_a_network_of_many_classes_holds_the_budget_without_a_layer_in_float(classes, act_range, form):
    """Scores of random weights lie close together, and each of many small structures counts: plain INT8 misses the budget."""
    weights, biases = random_weights((1, 12, 12, classes), 3)
    fp32 = convolutions({name: weight / np.sqrt(weight[0].size) for name, weight in weights.items()}, biases)
    spec = replace(SPEC, labels=tuple(Label(n, f"structure {n}", n) for n in range(1, classes)))
    given = patches(3)
    ranges = {name: act_range * value for name, value in (("x", 4.0), ("a_relu", 4.0), ("b_relu", 5.0))}
    int8 = quantized(fp32, {name: value / 127 for name, value in ranges.items()})
    made, result = guard(Candidate(fp32, int8, None, ranges), given, spec, Budget(0.99), Task(), form=form)
    assert result.before.agreement < 0.99 and result.kept and not result.returned
    assert qdq.check_int8(made) == [] and all(layer.quantized for layer in weighted_layers(made))


@pytest.mark.parametrize(
    ("held_out", "refined"),
    [([0.995], {"b"}), ([0.985, 0.995], {"b", "c"})],
    ids=["a small file that holds the budget is enough", "held-out scans ask for more"],
)
def test_a_file_grows_for_the_margin_only_where_held_out_scans_miss_the_budget(monkeypatch, held_out, refined):
    """Halves of weights in one layer fit a small file and hold 0.99; the margin takes those of another one."""
    plain = dict.fromkeys("abcd", 0.05)
    in_halves = {"a": 0.0, "b": 0.02, "c": 0.009, "d": 0.0}
    judge = ByWeights(lost(plain, in_halves), dict.fromkeys("abcd", 0.0), 1.0)
    monkeypatch.setattr(sensitivity, "Measurer", judge)
    fp32 = convolutions(*random_weights((1, 4, 4, 4, 2), 3))
    small = ladder.Point(Measurement(0.0, 1.0), tuple("abcd"), ("b",))
    monkeypatch.setattr(ladder.Ladder, "_limits", property(lambda self: (self.size(small), float("inf"))))
    figures = iter(held_out)
    candidate = Candidate(fp32, quantized(fp32))
    made, result = guard(candidate, patches(), SPEC, Budget(0.99), Task(), verify=lambda *_: next(figures))
    assert result.kept and not result.returned
    assert set(layers_with_weight_halves(graph.Graph(made))) == refined


#: A network's layers, each a letter; and the time of a search that is over as it begins.
NAMES = "abcdefgh"
OVER = 0.0


def eight_layers():
    return convolutions(*random_weights((1, *[4] * 7, 2)))


def searched(monkeypatch, costs, in_halves, seconds, **options):
    judge = ByForm(lost(costs, in_halves))
    monkeypatch.setattr(sensitivity, "Measurer", judge)
    fp32 = eight_layers()
    time = SearchTime(seconds)
    made, result = guard(Candidate(fp32, quantized(fp32)), patches(), SPEC, Budget(0.99), Task(), time=time, **options)
    assert time.shortened == any("the time that this effort gives" in note for note in result.notes)
    return made, result


@pytest.mark.parametrize(("seconds", "halves"), [(1e6, ["a"]), (OVER, list(NAMES))], ids=["in time", "over"])
def test_layers_in_halves_are_not_searched_any_further(monkeypatch, seconds, halves):
    costs = dict.fromkeys(NAMES, 0.0002) | {"a": 0.03}
    made, result = searched(monkeypatch, costs, dict.fromkeys(NAMES, 0.0), seconds)
    assert result.kept and not result.returned and sorted(result.halves) == halves
    assert set(halved_layers(graph.Graph(made))) == set(halves)


@pytest.mark.parametrize(("seconds", "returned"), [(1e6, 6), (OVER, 7)], ids=["in time", "over"])
def test_layers_go_back_in_larger_steps_until_the_budget_holds(monkeypatch, seconds, returned):
    """One layer, three and seven instead of one after the other: where halves help nothing, the budget holds all the same."""
    costs = dict.fromkeys(NAMES, 0.0035)
    made, result = searched(monkeypatch, costs, costs, seconds)
    assert result.kept and len(result.returned) == len(set(result.returned))
    assert set(qdq.layers_with_int8_weights(made)) == set(NAMES) - set(result.returned)
    assert len(result.returned) == returned


def test_no_other_way_is_asked_and_no_second_search_is_made(monkeypatch):
    asked = []
    options = {
        "alternatives": [lambda: asked.append("equalized")],
        "learned": [lambda: asked.append("learned")],
        "verify": lambda *_: asked.append("held out") or 0.98,
    }
    costs, free = dict.fromkeys(NAMES, 0.01), dict.fromkeys(NAMES, 0.0)
    _, result = searched(monkeypatch, costs, free, OVER, thorough=True, **options)
    assert result.kept and asked == ["held out"]
    asked.clear()
    searched(monkeypatch, costs, free, 1e6, thorough=True, **options)
    assert asked[:3] == ["equalized", "learned", "held out"] and asked.count("held out") > 1


@pytest.mark.parametrize(("measured", "order"), [(0, "ahbgcfde"), (3, "hbacdefg"), (8, "hbacdefg")])
def test_layers_are_measured_from_the_ends_of_the_network_while_there_is_time(monkeypatch, measured, order):
    """Those that were not come last, and what is said of them is that they were not."""
    costs = dict.fromkeys(NAMES, 0.001) | {"h": 0.02, "b": 0.01}
    time = SearchTime(1e6)

    class Judge(ByForm):
        def measure(self, candidate, patches=None, task=None, form=None):
            if len(self.measured) + 1 == measured:
                time.limit(0)
            return super().measure(candidate, patches)

    fp32, judge = eight_layers(), Judge(lost(costs, costs))
    if not measured:
        time.limit(0)
    goal = ladder.Goal(Budget(0.99).excess, 0.2, time)
    searching = ladder.Ladder(ladder.Base(fp32, quantized(fp32)), judge, goal, Task())
    known = "".join(searching.alone)
    assert len(known) == measured and set(known) == set("ahbgcfde"[:measured])
    expected = order if measured != 3 else "hba" + "gcfde"
    assert "".join(searching.order) == expected and searching.layers == 8
    assert time.left_out == ([ladder.LAYERS_ALONE] if measured < 8 else [])
    result = GuardResult(Budget(), Measurement(0.9, 0.1), Measurement(0.9, 0.1))
    guard_search._note(result, searching, ladder.Point(Measurement(1.0, 0.0), tuple(NAMES)))
    assert sum("want of time" in why for why in result.halves.values()) == 8 - measured


@pytest.mark.parametrize(
    ("few", "everything", "taken", "runs"),
    [
        ((0.96, 0.2, 0.95, 0.3), (0.95, 0.2, 0.99, 0.1), "plain", [2, 2, None]),
        ((0.95, 0.3, 0.96, 0.2), (0.99, 0.1, 0.95, 0.2), "corrected", [2, 2, None]),
        ((0.96, 0.3, 0.95, 0.2), (0.95, 0.3, 0.96, 0.2), "corrected", [2, 2, None, None]),
        ((0.96, 0.3, 0.95, 0.2), (0.96, 0.3, 0.95, 0.2), "plain", [2, 2, None, None]),
    ],
    ids=["behind in error", "ahead in both", "two voices, ahead in the end", "two voices, behind in the end"],
)
def test_biases_that_are_behind_on_a_few_patches_are_not_measured_on_the_others(few, everything, taken, runs):
    measured = []

    class Judge:
        patches = 6

        def measure(self, candidate, patches=None, task=None, form=None):
            measured.append(patches)
            values, at = few if patches else everything, 2 * (candidate == "corrected")
            return Measurement(values[at], values[at + 1])

    candidate = Candidate(None, "plain", "corrected")
    network, measurement, helps = guard_search._better_biases(Judge(), candidate, Task())
    assert network == taken and helps == (taken == "corrected") and measured == runs
    at = 2 * helps
    assert (measurement.agreement, measurement.relative_error) == everything[at : at + 2]


def test_a_network_that_runs_slowly_has_more_time_than_one_of_the_usual_size():
    """Four minutes in all on two cores for the study's U-Net, whose run takes 1.3 s there; what comes after the search is taken off."""
    effort = EFFORTS["normal"]
    of_unet = effort.seconds_after_calibration(40, 1.3, 50)
    assert 100 < of_unet < effort.seconds_in_all - 40 - 50 * 1.3
    assert 40 + of_unet + 50 * 1.3 < 240
    slow = effort.seconds_after_calibration(40, 10, 50)
    assert 200 < slow < (effort.least_runs - 50) * 10
    assert effort.seconds_after_calibration(1000, 0.1, 50) > 100, "many patches take nothing off the search"
    assert EFFORTS["best"].seconds_after_calibration(40, 10, 50) == np.inf
    time = SearchTime(600)
    time.limit(100)
    time.limit(200)
    assert 99 < time.left <= 100 and not time.is_over("anything") and not time.shortened
    time.limit(-5)
    assert time.left == 0 and time.is_over("other ways") and time.is_over("other ways")
    assert time.left_out == ["other ways"]


def test_nothing_is_said_of_a_search_that_needed_no_time(monkeypatch):
    costs = dict.fromkeys(NAMES, 0.0)
    _, result = searched(monkeypatch, costs, costs, OVER)
    assert result.kept and not result.notes


def test_each_effort_ends_within_fifteen_minutes():
    """What follows the search is measured in docs/results/resisting.md; a search has the most of the time."""
    seconds = [EFFORTS[name].search_seconds for name in ("fast", "normal", "best")]
    assert seconds == sorted(seconds) and seconds[0] > 0 and seconds[-1] <= 0.8 * 900
    assert np.all([effort.seconds <= effort.search_seconds for effort in EFFORTS.values() if effort.learns])


def test_a_network_that_was_measured_on_a_few_patches_runs_on_the_others_alone(monkeypatch):
    """What was measured counts as it is: the result is that of a run on all patches."""
    weights, biases = random_weights()
    fp32 = convolutions(weights, biases)
    networks, runs = (
        [quantized(fp32), with_corrected_biases(fp32, quantized(fp32), input_means(fp32, patches(), SHAPE))],
        [],
    )

    def loading(model, precision):
        loaded = float_session(model, precision)

        class Counted:
            def run(self, *arguments):
                runs.append(precision)
                return loaded.run(*arguments)

        return Counted()

    whole = [Measurer(fp32, patches(), SPEC).measure(network) for network in networks]
    monkeypatch.setattr("MedQuantINT8Lib.quantization.measurer.float_session", loading)
    measurer = Measurer(fp32, patches(), SPEC)
    runs.clear()
    few = [measurer.measure(network, 1) for network in networks]
    assert few != whole
    assert [measurer.measure(network) for network in networks] == whole and len(runs) == 2 * 3
    assert [measurer.measure(network, 1) for network in networks] == few and len(runs) == 2 * 3
