"""Learned rounding: nearer to FP32 than rounding to nearest, and never further away than it began."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest

from MedQuantINT8Lib.errors import Cancelled, InputError
from MedQuantINT8Lib.imaging.patches import Sample
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.engine_form import SYMMETRIC, EngineForm
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization.effort import EFFORTS, LEARNING_AGAIN, Learning, check_effort
from MedQuantINT8Lib.quantization.fp32_network import Fp32Network
from MedQuantINT8Lib.quantization.label_borders import label_borders, largest_score
from MedQuantINT8Lib.quantization.layer_matrix import LayerMatrix
from MedQuantINT8Lib.quantization.rounding import RoundingOptions, RoundingReport, with_learned_rounding
from MedQuantINT8Lib.quantization.search_time import SearchTime
from MedQuantINT8Lib.quantization.stepwise import StepwiseRun, peak_bytes
from tiny import convolutions, quantized, random_weights, run

SHAPE = (8, 8, 8)
OPTIONS = RoundingOptions(least_samples=1500)


def patches(count=4, channels=1, seed=0):
    """Smooth patches: neighboring voxels are alike, as in scans."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, channels, 4, 4, 4)).repeat(2, 2).repeat(2, 3).repeat(2, 4)
    return list((coarse + 0.1 * rng.normal(size=coarse.shape)).astype(np.float32))


def networks(opset=19):
    weights, biases = random_weights((1, 6, 6, 3), side=3)
    weights = {n: w / np.sqrt(w[0].size) for n, w in weights.items()}
    # One large weight in each output channel: the steps of the others are coarse.
    for weight in weights.values():
        weight[:, 0, 1, 1, 1] *= 30
    fp32 = convolutions(weights, biases, opset=opset)
    return fp32, quantized(fp32, {"x": 0.03, "a_relu": 0.1, "b_relu": 0.5})


def error(fp32, other, given):
    pairs = [(run(fp32, patch), run(other, patch)) for patch in given]
    return np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((a**2).sum() for a, _ in pairs))


def nearest_four_bits(fp32, int8):
    """The INT8 network with weights rounded to 15 steps of an output channel."""
    copy = onnx.ModelProto()
    copy.CopyFrom(int8)
    found, exact = graph.Graph(copy), graph.Graph(fp32)
    for node in fp32.graph.node:
        if node.op_type == "Conv":
            weight = exact.array(node.input[1])
            scale = np.abs(weight).max((1, 2, 3, 4)) / 7
            own = next(n for n in copy.graph.node if n.name == node.name)
            names = found.producer[own.input[1]].input
            rounded = np.rint(weight / scale[:, None, None, None, None]).astype(np.int8)
            for name, array in zip(names[:2], (rounded, scale.astype(np.float32)), strict=True):
                found.initializers[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    return copy


@pytest.mark.parametrize("bits", [8, 4])
def test_it_beats_rounding_to_nearest_on_patches_that_it_has_not_seen(bits):
    fp32, int8 = networks()
    learned, report = with_learned_rounding(fp32, int8, patches(), replace(OPTIONS, weight_bits=bits))
    unseen = patches(3, seed=9)
    before = int8 if bits == 8 else nearest_four_bits(fp32, int8)
    assert error(fp32, learned, unseen) < (0.8 if bits == 8 else 0.4) * error(fp32, before, unseen)
    assert qdq.check_int8(learned) == [] and not report.left
    assert [layer.name for layer in report.layers] == ["a", "b", "c"]
    assert all(layer.after <= layer.before and layer.bits == bits for layer in report.layers)


def test_it_gives_the_same_weights_again():
    fp32, int8 = networks()
    first, second = (with_learned_rounding(fp32, int8, patches(), OPTIONS)[0] for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    other, _ = with_learned_rounding(fp32, int8, patches(), replace(OPTIONS, seed=1))
    assert other.SerializeToString() != first.SerializeToString()


def test_channels_that_cannot_be_bettered_stay_as_they_are():
    """Weights that INT8 holds exactly, on inputs that it holds exactly: whatever else is learned is further away."""
    weight = np.random.default_rng(0).integers(-127, 128, (3, 2, 1, 1, 1)).astype(np.float64)
    weight[:, 0] = 127
    fp32 = convolutions({"a": weight * 0.01}, {"a": np.zeros(3)})
    int8 = quantized(fp32, 0.05)
    given = [np.rint(np.clip(20 * p, -127, 127)).astype(np.float32) * np.float32(0.05) for p in patches(channels=2)]
    learned, report = with_learned_rounding(fp32, int8, given, OPTIONS)
    assert error(fp32, learned, given) <= error(fp32, int8, given) + 1e-6 and report.layers[0].after < 1e-8


def test_layers_in_float_and_shared_weights_are_left_and_said():
    fp32, _ = networks()
    int8 = quantized(fp32, 0.03, {"a", "c"})
    learned, report = with_learned_rounding(fp32, int8, patches(), OPTIONS)
    assert list(report.left) == ["b"] and "not stored as INT8" in report.left["b"]
    assert np.array_equal(graph.Graph(learned).array("b_weight"), graph.Graph(fp32).array("b_weight"))


def test_time_that_is_over_leaves_the_rest_as_it_is():
    fp32, int8 = networks()
    learned, report = with_learned_rounding(fp32, int8, patches(), replace(OPTIONS, seconds=-1))
    assert not report.layers and all("time" in why for why in report.left.values()) and len(report.left) == 3
    assert np.array_equal(run(learned, patches()[0]), run(int8, patches()[0]))


def test_it_reports_its_steps_and_can_be_canceled():
    fp32, int8 = networks()
    events = []

    def cancel_later(event):
        events.append(event)
        if event.done == 1:
            task.cancel()

    task = Task(cancel_later)
    with pytest.raises(Cancelled):
        with_learned_rounding(fp32, int8, patches(), OPTIONS, task)
    assert events[-1].total == 3 and "round" in events[-1].stage


def conv(op, weight, size, **attributes):
    """A network of one layer."""
    node = onnx.helper.make_node(op, ["x", "w"], ["y"], name="a", **attributes)
    channels = weight.shape[1] * attributes.get("group", 1) if op == "Conv" else weight.shape[0]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [node],
            "one",
            [onnx.helper.make_tensor_value_info("x", 1, [1, channels, *size])],
            [onnx.helper.make_tensor_value_info("y", 1, None)],
            [onnx.numpy_helper.from_array(weight.astype(np.float32), "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 19)],
        ir_version=9,
    )
    return model, node


@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("Conv", (4, 3, 3, 3, 3), {"pads": [1] * 6}),
        ("Conv", (4, 3, 3, 1, 2), {"strides": [2, 1, 2], "dilations": [2, 1, 1], "pads": [2, 0, 1, 1, 0, 0]}),
        ("Conv", (4, 3, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2, 2]}),
        ("Conv", (4, 3, 2, 2, 2), {"auto_pad": "SAME_LOWER"}),
        ("Conv", (6, 2, 3, 3, 3), {"group": 3, "pads": [1] * 6}),
        ("ConvTranspose", (3, 4, 2, 2, 2), {"strides": [2, 2, 2]}),
        ("ConvTranspose", (3, 4, 3, 3, 3), {"strides": [2, 2, 2], "pads": [1] * 6, "output_padding": [1, 1, 1]}),
    ],
)
def test_a_layer_is_the_product_of_its_matrix_with_its_columns(op, shape, attributes):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape).astype(np.float32)
    model, node = conv(op, weight, (6, 5, 7), **attributes)
    layer = LayerMatrix.of(graph.Graph(model), node, shape)
    source = rng.normal(size=(1, shape[0] if op == "ConvTranspose" else shape[1] * layer.groups, 6, 5, 7))
    source = source.astype(np.float32)
    output = run(model, source[0])
    chosen = rng.permutation(layer.outputs(output))[:50]
    columns, values = layer.sample(source, output, chosen)
    matrix = layer.matrix(weight)
    assert np.array_equal(layer.weight(matrix), weight)
    width = matrix.shape[1]
    rows = len(matrix) // layer.groups
    for group in range(layer.groups):
        own = slice(group * rows, (group + 1) * rows)
        product = columns[:, group * width : (group + 1) * width] @ matrix[own].T
        assert np.allclose(product, values[:, own], atol=1e-4)


def test_products_of_tensors_with_five_axes_are_sampled_as_rows():
    """Attention networks multiply (1, A0, A1, A2, channels): its second axis is no channel, and the borders' places do not apply."""
    rng = np.random.default_rng(0)
    make, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    weight = rng.normal(size=(3, 4)).astype(np.float32)

    def network(nodes, constants):
        ends = [onnx.helper.make_tensor_value_info(n, 1, [1, c, *SHAPE]) for n, c in (("x", 3), ("y", 4))]
        graph_of = onnx.helper.make_graph(nodes, "n", ends[:1], ends[1:], constants)
        return onnx.helper.make_model(graph_of, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)

    before, after = (
        make("Transpose", ["x"], ["last"], perm=[0, 2, 3, 4, 1]),
        make("Transpose", ["p"], ["y"], perm=[0, 4, 1, 2, 3]),
    )
    fp32 = network([before, make("MatMul", ["last", "w"], ["p"], name="product"), after], [array(weight, "w")])
    scale = (np.abs(weight).max(0) / 127).astype(np.float32)
    stored = [
        array(np.rint(weight / scale).astype(np.int8), "q"),
        array(scale, "s"),
        array(np.zeros(4, np.int8), "z"),
    ]
    dequantize = make("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1)
    int8 = network([before, dequantize, make("MatMul", ["last", "d"], ["p"], name="product"), after], stored)
    given = patches(channels=3)
    learned, report = with_learned_rounding(fp32, int8, given, replace(OPTIONS, weight_bits=4))
    assert not report.left and report.layers[0].after <= report.layers[0].before
    assert error(fp32, learned, given) < 0.2


def test_a_network_run_piece_by_piece_computes_the_same():
    fp32, int8 = networks()
    for model, precision in ((fp32, "fp32"), (int8, "int8")):
        given = patches(2)
        stepwise = StepwiseRun(graph.fixed_shape(model, SHAPE), precision, given)
        for name in ("a_relu", "b_out", "y"):
            values = stepwise.tensor(name)
        for value, patch in zip(values, given, strict=True):
            assert np.allclose(value, run(model, patch), atol=1e-5)
    assert peak_bytes(graph.fixed_shape(fp32, SHAPE)) == 4 * 2 * 6 * 8**3


@pytest.mark.parametrize(
    ("effort", "bits", "words"), [("slow", 8, "slow"), ("normal", 5, "5 bits"), ("fast", 4, "learned rounding")]
)
def test_what_does_not_go_together_is_refused(effort, bits, words):
    with pytest.raises(InputError, match=words):
        check_effort(effort, bits)


@pytest.mark.slow
def test_a_package_with_four_bits_is_half_of_int8_and_agrees_with_fp32(fp32_package, tmp_path):
    """From scans to the file and the engine: what was asked for, and what was done, stands in the package."""
    from MedQuantINT8Lib.engines import BuildOptions, backend
    from MedQuantINT8Lib.imaging.phantom import make_phantom
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
    from MedQuantINT8Lib.quantization.guard_result import Budget
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, quantize_package
    from scans import PHANTOM_SIZE, PHANTOM_SPACING

    options = CalibrationOptions(patches=4)
    sources = [lambda seed=seed: make_phantom(seed, PHANTOM_SIZE, PHANTOM_SPACING)[0] for seed in (2001, 2002)]
    sampler = PatchSampler(sources, fp32_package.spec, (32, 48, 48), options)
    made, report = quantize_package(
        # Of two scans each is held out with the ranges of one: what that loses takes no bits of weights to mend.
        fp32_package,
        sampler,
        tmp_path / "package",
        options,
        QuantizationPolicy(weight_bits=4, budget=Budget(agreement=0.95)),
    )
    assert report.guard.kept and not report.guard.returned and report.size_ratio < 0.16
    assert len(report.four_bit_layers) > 5 and report.rounding.layers
    record = made.calibration()["quantization"]
    assert (record["effort"], record["weight_bits"]) == ("normal", 4)
    assert record["learned_rounding"]["layers"][0]["after"] <= record["learned_rounding"]["layers"][0]["before"]
    assert record["int8_bytes"] == made.onnx_path("int8").stat().st_size
    for engine in ("openvino", "onnxruntime"):
        wanted = BuildOptions("int8", (32, 48, 48))
        backend(engine).build(made.onnx_path("int8"), tmp_path, wanted)
        loaded = backend(engine).load(tmp_path, wanted)
        patch = next(iter(sampler))[None]
        exact = run(graph.fixed_shape(graph.load_network(fp32_package.onnx_path("fp32")), (32, 48, 48)), patch[0])
        assert (loaded.infer(patch).argmax(1) != exact.argmax(1)).mean() < 0.02
        loaded.close()


@pytest.mark.parametrize(
    ("drawn", "bits", "apart", "expected"),
    [
        (9, 8, True, [6, 7, 8]),
        (20, 8, True, [6, 7, 8, 9]),
        (6, 8, True, []),
        (4, 8, True, []),
        (4, 4, True, [0, 1, 2, 3]),
        (4, 8, False, [0, 1, 2, 3]),
        (7, 8, False, [6, 0, 1, 2]),
    ],
)
def test_weights_are_not_learned_on_the_patches_that_they_are_judged_by(drawn, bits, apart, expected, monkeypatch):
    """Six patches are compared. Of whole volumes (not apart) and with 4 bits, which need learning, they are learned on if there are no others."""
    given = [np.full((1, *SHAPE), number, np.float32) for number in range(drawn)]

    class Sampler:
        def first_samples(self, count):
            return [Sample(patch, None) for patch in given[:count]]

    def learn(fp32, int8, patches, *_, **how):
        return int8, RoundingReport(left={f"patch {int(patch.flat[0])}": "" for patch in patches})

    monkeypatch.setattr("MedQuantINT8Lib.quantization.effort.with_learned_rounding", learn)
    learning = Learning(Sampler(), EFFORTS["normal"], bits, 6, lambda scores: scores, Task(), apart=apart)
    assert learning.possible == bool(expected) and learning.lacks_patches == (not expected)
    if expected:
        fp32, int8 = networks()
        assert list(learning.learned(Fp32Network(fp32, SHAPE), int8).report.left) == [
            f"patch {number}" for number in expected
        ]


def test_weights_are_learned_for_the_activations_of_the_engine_that_runs_them():
    """Behind a ReLU zero points halve the steps: weights that make up for these errors are others than those for symmetric ones."""
    fp32, int8 = networks()
    form = EngineForm(zero_points=True)
    learned = {
        known: with_learned_rounding(fp32, int8, patches(), OPTIONS, form=known)[0] for known in (SYMMETRIC, form)
    }
    assert learned[form].SerializeToString() != learned[SYMMETRIC].SerializeToString()
    for model in learned.values():
        assert qdq.check_int8(model) == [], "the package's network stays symmetric"
    unseen = patches(3, seed=9)
    assert error(fp32, form.of(learned[form]), unseen) < 0.8 * error(fp32, form.of(int8), unseen)


def test_all_networks_together_have_a_bound_on_learning(monkeypatch):
    """The second network gets what the first has left, and the third nothing. Weights of 4 bits have no bound: left at 8 bits, they
    would not be what was asked for."""
    allowed = []

    def learn(fp32, int8, given, options, task, **_):
        allowed.append(options.seconds)
        return int8, RoundingReport(seconds=250.0)

    class Sampler:
        def first_samples(self, count):
            return [Sample(np.zeros((1, *SHAPE), np.float32), "whole") for _ in range(count)]

    monkeypatch.setattr("MedQuantINT8Lib.quantization.effort.with_learned_rounding", learn)
    fp32, int8 = networks()
    for bits, expected in ((8, [300.0, 230.0, 0.0]), (4, [math.inf] * 3)):
        allowed.clear()
        learning = Learning(Sampler(), EFFORTS["best"], bits, 6, lambda scores: scores, Task(), apart=True)
        for _ in range(3):
            learning.learned(Fp32Network(fp32, SHAPE), int8)
        assert allowed == expected and learning.out_of_time == (bits == 8)
    time = SearchTime(1000)
    learning = Learning(Sampler(), EFFORTS["best"], 8, 6, lambda scores: scores, Task(), apart=True, time=time)
    learning.learned(Fp32Network(fp32, SHAPE), int8)
    assert not learning.out_of_time and not time.left_out
    time.limit(200)
    assert learning.out_of_time and time.left_out == [LEARNING_AGAIN], "the next one would take 250 s, too"
    allowed.clear()
    learning.learned(Fp32Network(fp32, SHAPE), int8)
    assert 199 < allowed[0] <= 200, "learning ends with the search"


def test_what_fp32_computes_is_run_once_for_all_networks_that_are_learned(monkeypatch):
    """Where the labels meet is the same for the network, its form with equalized channels, and weights for exact inputs."""
    given, places = [np.full((1, *SHAPE), number, np.float32) for number in range(2)], []

    class Sampler:
        def first_samples(self, count):
            return [Sample(patch, None) for patch in given]

    def learn(fp32, int8, given, options, task, *, borders, form):
        places.append([borders(patch) for patch in given])
        return int8, RoundingReport()

    monkeypatch.setattr("MedQuantINT8Lib.quantization.effort.with_learned_rounding", learn)
    fp32, int8 = networks()
    network = Fp32Network(fp32, SHAPE)
    learning = Learning(Sampler(), EFFORTS["normal"], 8, 0, lambda scores: scores.argmax(1), Task(), apart=False)
    learning.learned(network, int8)
    monkeypatch.setattr(network, "scores", None)
    learning.learned(network, int8)
    first, second = places
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert np.array_equal(first[1], label_borders(run(fp32, given[1]), largest_score))


def test_a_network_without_time_stays_rounded_to_nearest():
    fp32, int8 = networks()
    learned, report = with_learned_rounding(fp32, int8, patches(), replace(OPTIONS, seconds=0.0))
    assert not report.layers and set(report.left) == {"a", "b", "c"}
    assert error(int8, learned, patches()) == 0
