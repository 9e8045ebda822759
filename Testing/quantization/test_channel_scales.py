"""Scales for each channel behind an ELU or a GELU: FP32 stays the same to the last bit, INT8 comes nearer, and engines run it in INT8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from data_models import specs
from MedQuantINT8Lib.engines.base import BuildOptions
from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_spec
from MedQuantINT8Lib.importers.onnx import import_onnx
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.quantization.accuracy_guard import Budget
from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
from MedQuantINT8Lib.quantization.channel_scales import channel_ranges, with_channel_scales
from MedQuantINT8Lib.quantization.fp32_network import Fp32Network
from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, quantize_package
from scans import PHANTOM_SIZE, PHANTOM_SPACING
from tiny import quantized, run

SHAPE = (8, 8, 8)
WIDTH = 8
UNEVEN = np.logspace(-1.5, 1.5, WIDTH)


def patches(count=2, channels=1, shape=SHAPE):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(channels, *shape)).astype(np.float32) for _ in range(count)]


def network(sizes=UNEVEN, opset=20, curve="Elu", skip=False, outputs=2, sides=SHAPE):
    """Three convolutions with a curve between them; the channels of both tensors between have these sizes."""
    rng = np.random.default_rng(0)
    shapes = {"a": (WIDTH, 1, 3, 3, 3), "b": (WIDTH, WIDTH, 3, 3, 3), "c": (outputs, WIDTH, 1, 1, 1)}
    weights = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    for maker, reader in ("ab", "bc"):
        weights[maker] *= np.asarray(sizes).reshape(-1, 1, 1, 1, 1)
        weights[reader] /= np.asarray(sizes).reshape(1, -1, 1, 1, 1)
    nodes, source = [], "x"
    for name in "abc":
        side = shapes[name][2]
        target = "y" if name == "c" else f"{name}_out"
        nodes.append(helper.make_node("Conv", [source, f"{name}_w"], [target], name=name, pads=[side // 2] * 6))
        if name != "c":
            source = f"{name}_curve"
            nodes.append(helper.make_node(curve, [target], [source], name=source))
        if name == "b" and skip:
            nodes.append(helper.make_node("Add", ["a_curve", "b_curve"], ["sum"], name="skip"))
            source = "sum"
    constants = [numpy_helper.from_array(w.astype(np.float32), f"{n}_w") for n, w in weights.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, *sides]) for n, c in (("x", 1), ("y", outputs))]
    made = helper.make_graph(nodes, "curves", ends[:1], ends[1:], constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def scaled(model):
    return with_channel_scales(model, channel_ranges(Fp32Network(model, SHAPE), patches()))[0]


def in_int8(model):
    scales = {name: r.maximum.max() / 127 for name, r in channel_ranges(Fp32Network(model, SHAPE), patches()).items()}
    return quantized(model, {"x": float(max(np.abs(p).max() for p in patches())) / 127, **scales})


def error(output, expected):
    return float(np.linalg.norm(output - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("curve", ["Elu", "Gelu", "Softplus"])
def test_fp32_is_the_same_to_the_last_bit_and_int8_is_nearer(curve):
    model = network(curve=curve)
    other = scaled(model)
    onnx.checker.check_model(other, full_check=True)
    exact = run(model, patches()[0])
    assert np.array_equal(exact, run(other, patches()[0]))
    assert error(run(in_int8(other), patches()[0]), exact) < 0.5 * error(run(in_int8(model), patches()[0]), exact)


def test_factors_are_powers_of_two_that_even_channels_out():
    model = network()
    other = graph.Graph(scaled(model))
    multiplications = [node for node in other.nodes if node.op_type == "Mul"]
    assert [node.input[0] for node in multiplications] == ["a_curve", "b_curve"]
    for node in multiplications:
        factors = other.array(node.input[1]).reshape(-1)
        assert np.array_equal(np.exp2(np.rint(np.log2(factors))), factors) and len(set(factors)) > 2
    before, after = (channel_ranges(Fp32Network(m, SHAPE), patches()) for m in (model, scaled(model)))
    spread = [r.maximum.max() / r.maximum.min() for r in (before["b_curve"], after["b_curve_scaled"])]
    assert spread[1] < 0.3 * spread[0]


def test_even_channels_stay_as_they_are():
    assert scaled(network(np.ones(WIDTH))) is None


def test_what_others_read_keeps_its_values():
    model = network(skip=True)
    other = scaled(model)
    assert next(list(node.input) for node in other.graph.node if node.name == "skip") == ["a_curve", "b_curve"]
    assert [node.input[0] for node in other.graph.node if node.op_type == "Mul"] == ["a_curve", "sum"]
    assert np.array_equal(run(model, patches()[0]), run(other, patches()[0]))


def test_a_convolution_in_groups_stays_as_it_is():
    model = network()
    for node in model.graph.node:
        if node.name == "b":
            node.attribute.append(helper.make_attribute("group", WIDTH))
            weight = next(i for i in model.graph.initializer if i.name == "b_w")
            array = numpy_helper.to_array(weight)[:, :1].copy()
            weight.CopyFrom(numpy_helper.from_array(array, "b_w"))
    other = scaled(model)
    assert [n.input[0] for n in other.graph.node if n.op_type == "Mul"] == ["b_curve"]


def test_openvino_computes_the_multiplication_within_its_convolutions(tmp_path):
    kinds = []
    for number, model in enumerate((network(opset=19), scaled(network(opset=19)))):
        int8, folder = in_int8(model), tmp_path / str(number)
        folder.mkdir()
        onnx.save(qdq.compacted(int8), str(folder / "network.onnx"))
        backend, options = OpenVINOBackend(), BuildOptions("int8", SHAPE)
        backend.build(folder / "network.onnx", folder, options)
        engine = backend.load(folder, options)
        layers = engine.describe().layers
        assert all(layer.int8 for layer in layers if layer.macs)
        assert error(engine.infer(patches()[0][None]), run(int8, patches()[0])) < 0.02
        kinds.append([layer.kind for layer in layers])
        engine.close()
    assert kinds[0] == kinds[1], "no step more"


def test_quantize_takes_scaled_channels_and_records_ranges_of_fp32s_own_tensors(tmp_path):
    """A network of uneven channels behind an ELU, to whose tensors a run looks for values beyond INT8's range."""
    spec, small = phantom_spec(), (16, 16, 16)
    model = network(outputs=len(spec.labels) + 1, sides=("D", "H", "W"))
    onnx.save(model, str(tmp_path / "uneven.onnx"))
    package = import_onnx(tmp_path / "uneven.onnx", spec, tmp_path / "package")
    options = CalibrationOptions(patches=2)
    sources = [lambda: make_phantom(2001, PHANTOM_SIZE, PHANTOM_SPACING)[0]]
    policy = QuantizationPolicy(budget=Budget(0.999), effort="fast")
    sampler = PatchSampler(sources, spec, small, options)
    made, report = quantize_package(package, sampler, tmp_path / "int8", options, policy)
    assert report.guard.equalized and qdq.check_int8(graph.load_network(made.onnx_path("int8"))) == []
    rows = made.calibration()["tensors"]
    assert set(rows) == {"x", "a_curve", "b_curve"}
    assert all(row["limit"] >= 0.98 * row["seen_maximum"] > 0 for row in rows.values()), "FP32's units"


@pytest.mark.data
@pytest.mark.parametrize("name", [n for n in specs() if "mesh" in n or "mindgrab" in n])
def test_real_networks_compute_the_same_to_the_last_bit(name, data):
    fp32 = graph.load_network(data / "networks" / f"{name}.onnx")
    graph.name_nodes(fp32)
    shape = (16, 16, 16)
    given = patches(1, 1, shape)
    other = with_channel_scales(fp32, channel_ranges(Fp32Network(fp32, shape), given))[0]
    assert other is not None
    fixed = [graph.fixed_shape(model, shape) for model in (fp32, other)]
    assert np.array_equal(*(run(model, given[0]) for model in fixed))
