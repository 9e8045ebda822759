"""From FP32 to INT8: rules of the graph, sizes, policy, guard, calibration records."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from MedQuantINT8Lib.engines.int8_or_float import LEAST_SHARE
from MedQuantINT8Lib.errors import InputError, PackageError
from MedQuantINT8Lib.files import read_json, sha256_file, write_json
from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_spec
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference.range_check import limits_of
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.layers import int8_share, weighted_layers
from MedQuantINT8Lib.models.package import INT8, MODEL_JSON, ModelPackage
from MedQuantINT8Lib.models.task import TASK_JSON
from MedQuantINT8Lib.quantization import candidates
from MedQuantINT8Lib.quantization.accuracy_guard import Budget
from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
from MedQuantINT8Lib.quantization.input_halves import INPUT_MARGIN
from MedQuantINT8Lib.quantization.ladder import HALVES_MARGIN
from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, policy_reasons, quantize_package
from scans import PHANTOM_SIZE, PHANTOM_SPACING

#: Smaller than the demo network's windows: what is tested is how it is quantized, not what it finds.
PATCH = (32, 48, 48)


def sampler_for(package, options=CalibrationOptions(patches=2), seeds=(2001,)):
    sources = [lambda seed=seed: make_phantom(seed, PHANTOM_SIZE, PHANTOM_SPACING)[0] for seed in seeds]
    return PatchSampler(sources, package.spec, PATCH, options)


def test_the_result_keeps_the_rules_and_is_small(quantized_package):
    model = graph.load_network(quantized_package.onnx_path("int8"))
    assert qdq.check_int8(model) == []
    ratio = quantized_package.onnx_path("int8").stat().st_size / quantized_package.onnx_path("fp32").stat().st_size
    assert ratio <= 0.27
    layers = weighted_layers(graph.fixed_shape(model, (64, 64, 64)))
    # The transposed convolutions too: OpenVINO and CUDA INT8 run them in INT8.
    assert int8_share(layers) == 1.0 and any(layer.op == "ConvTranspose" for layer in layers)
    assert all(layer["quantized"] for layer in quantized_package.calibration()["quantization"]["layers"])


def test_transposed_convolutions_stay_in_float_by_request(fp32_package):
    model = graph.load_network(fp32_package.onnx_path("fp32"))
    names = {layer.name for layer in weighted_layers(model) if layer.op == "ConvTranspose"}
    reasons = policy_reasons(model, QuantizationPolicy(transposed=False))
    assert names and set(reasons) == names and all("by request" in reason for reason in reasons.values())
    assert policy_reasons(model, QuantizationPolicy()) == {}


def test_simulated_int8_agrees_with_fp32(quantized_package, phantom):
    from MedQuantINT8Lib.engines.onnxruntime import session

    data = preprocess(phantom[0], quantized_package.spec).data
    n0, n1, n2 = quantized_package.spec.window.patch_size
    data = data[None, :, :n0, :n1, :n2]
    outputs = [
        session(quantized_package.onnx_path(p).read_bytes(), p).run(None, {"image": data})[0] for p in ("fp32", "int8")
    ]
    assert np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(outputs[0]) < 0.2
    assert (outputs[0].argmax(1) != outputs[1].argmax(1)).mean() < 0.02


def test_calibration_json_records_where_the_scales_came_from(quantized_package):
    record = quantized_package.calibration()
    assert record["method"] == "max" and record["patches_used"] == 4
    assert len(record["volumes"]) == 2 and all(len(h) == 64 for h in record["volumes"].values())
    assert "20 to 200" in record["warnings"][0]
    assert {"nvidia-modelopt", "onnx", "onnxruntime"} <= set(record["versions"])
    model = graph.load_network(quantized_package.onnx_path("int8"))
    scales = {
        node.input[0]: float(graph.Graph(model).array(node.input[1]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert scales == {name: pytest.approx(t["scale"]) for name, t in record["tensors"].items()}
    assert all(t["scale"] * 127 == pytest.approx(t["seen_maximum"]) for t in record["tensors"].values())


def spoiled(package, edit):
    model = graph.load_network(package.onnx_path("int8"))
    found = graph.Graph(model)
    edit(model, found)
    return qdq.check_int8(model)


def test_the_graph_check_finds_each_broken_rule(int8_package):
    def replace(name, array):
        def edit(model, found):
            quantize = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
            weight = next(
                n for n in model.graph.node if n.op_type == "DequantizeLinear" and found.is_constant(n.input[0])
            )
            target = {
                "zero": quantize.input[2],
                "scale": quantize.input[1],
                "weight": weight.input[0],
                "weight scale": weight.input[1],
            }[name]
            found.initializers[target].CopyFrom(onnx.numpy_helper.from_array(array(found.array(target)), target))

        return edit

    assert any("not int8" in p for p in spoiled(int8_package, replace("zero", lambda a: a.astype(np.uint8))))
    assert any("is not 0" in p for p in spoiled(int8_package, replace("zero", lambda a: a + np.int8(3))))
    assert any(
        "scales, not one" in p for p in spoiled(int8_package, replace("scale", lambda a: np.ones(4, np.float32)))
    )
    assert any("zero, negative" in p for p in spoiled(int8_package, replace("scale", lambda a: a * 0)))
    assert any(
        "not stored as INT8" in p for p in spoiled(int8_package, replace("weight", lambda a: a.astype(np.int32)))
    )
    assert any(
        "per output channel" in p for p in spoiled(int8_package, replace("weight scale", lambda a: np.float32(1)))
    )


def test_the_policy_keeps_what_it_is_told(fp32_package, tmp_path):
    names = [
        layer.name
        for layer in weighted_layers(graph.load_network(fp32_package.onnx_path("fp32")))
        if layer.op == "Conv"
    ]
    policy = QuantizationPolicy(first=True, head=True, keep=(names[3],))
    _, report = quantize_package(
        fp32_package, sampler_for(fp32_package), tmp_path / "out", CalibrationOptions(patches=2), policy
    )
    left = {layer.name: layer.reason for layer in report.layers if not layer.quantized}
    assert "first" in left[names[0]] and "head" in left[names[-1]] and "request" in left[names[3]]
    assert not any("not worth it" in text for text in report.warnings)
    most = QuantizationPolicy(keep=tuple(names[:-1]), budget=Budget(0))
    made, report = quantize_package(
        fp32_package, sampler_for(fp32_package), tmp_path / "most", CalibrationOptions(patches=2), most
    )
    told = made.calibration()["quantization"]
    assert 0 < told["int8_mac_share"] < LEAST_SHARE
    assert "INT8 is not worth it for this network" in told["warnings"][-1] and "auto takes FP32" in told["warnings"][-1]
    with pytest.raises(PackageError, match="no layer 'nonsense'"):
        quantize_package(
            fp32_package,
            sampler_for(fp32_package),
            tmp_path / "none",
            CalibrationOptions(),
            QuantizationPolicy(keep=("nonsense",)),
        )
    assert not (tmp_path / "none").exists()


def test_the_guard_equalizes_channels_or_puts_the_worst_layer_back(fp32_package, tmp_path, monkeypatch):
    """One convolution is spoiled so that INT8 cannot carry it: a channel a thousand times as large as the others."""
    model = graph.load_network(fp32_package.onnx_path("fp32"))
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    found = graph.Graph(model)
    # Channel 0 of one layer's output times 1000, and the next layer's weight for it divided by 1000: FP32 does not notice.
    first, second = convolutions[1], convolutions[2]
    weight, bias, following = (found.array(n).copy() for n in (*first.input[1:3], second.input[1]))
    weight[0], bias[0], following[:, 0] = weight[0] * 1000, bias[0] * 1000, following[:, 0] / 1000
    for name, array in zip((*first.input[1:3], second.input[1]), (weight, bias, following), strict=True):
        found.initializers[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, str(tmp_path / "spoiled.onnx"))
    from MedQuantINT8Lib.importers.onnx import import_onnx

    package = import_onnx(tmp_path / "spoiled.onnx", phantom_spec(), tmp_path / "package")
    blind = quantize_package(
        package,
        sampler_for(package),
        tmp_path / "blind",
        CalibrationOptions(patches=2),
        QuantizationPolicy(budget=Budget(0)),
    )[1]
    cured, report = quantize_package(
        package,
        sampler_for(package),
        tmp_path / "cured",
        CalibrationOptions(patches=2),
        QuantizationPolicy(budget=Budget(0.95), effort="fast"),
    )
    assert report.guard.equalized and report.guard.before.agreement >= blind.guard.agreement
    assert report.guard.agreement >= 0.95 and qdq.check_int8(graph.load_network(cured.onnx_path("int8"))) == []
    rows = cured.calibration()["tensors"]
    assert limits_of(cured) == {name: row["limit"] for name, row in rows.items()}
    ratios = [row["limit"] / row["seen_maximum"] for row in rows.values()]
    margins = (1.0, HALVES_MARGIN, INPUT_MARGIN) if report.guard.halves else (1.0,)
    assert all(min(abs(ratio / margin - 1) for margin in margins) < 0.02 for ratio in ratios), "FP32's units"
    monkeypatch.setattr(candidates, "equalized_network", lambda *_: None)
    monkeypatch.setattr(candidates, "scaled_network", lambda *_: None)
    guarded, report = quantize_package(
        package,
        sampler_for(package),
        tmp_path / "guarded",
        CalibrationOptions(patches=2),
        QuantizationPolicy(budget=Budget(0.95), effort="fast"),
    )
    assert blind.guard.agreement < 0.95 <= report.guard.agreement
    assert second.name in (report.guard.halves | report.guard.returned)
    assert len(report.guard.returned) < len(report.layers)
    assert qdq.check_int8(graph.load_network(guarded.onnx_path("int8"))) == []
    spoiled = [layer for layer in report.layers if layer.name == second.name]
    assert spoiled[0].half == "high" or "the guard" in spoiled[0].reason


def test_the_guard_holds_the_dice_to_labels(fp32_package, tmp_path, monkeypatch):
    """With labels the budget counts what is lost to them; without a fallback the loss is only measured."""
    # Equalized channels would hold this budget without a layer in float.
    monkeypatch.setattr("MedQuantINT8Lib.quantization.candidates.equalized_network", lambda *_: None)
    monkeypatch.setattr("MedQuantINT8Lib.quantization.candidates.scaled_network", lambda *_: None)
    made = [make_phantom(seed, PHANTOM_SIZE, PHANTOM_SPACING) for seed in (2001, 2002)]
    options = CalibrationOptions(patches=4)
    labels = [lambda m=m: Volume(m[1], m[0].ijk_to_ras, "labels") for m in made]
    sampler = PatchSampler([lambda m=m: m[0] for m in made], fp32_package.spec, PATCH, options, labels=labels)
    for sample in sampler.first_samples(2):
        assert sample.labels is not None and sample.labels.shape == sample.patch.shape[1:]
    _, measured = quantize_package(
        fp32_package, sampler, tmp_path / "a", options, QuantizationPolicy(budget=Budget(0, 0.0, fallback=False))
    )
    assert measured.guard.dice_fp32 is not None and measured.guard.dice_fp32 > 0.7
    assert measured.guard.after.dice == measured.guard.before.dice and not measured.guard.returned
    timed = []
    write_json(tmp_path / TASK_JSON, {"files": {f"b/{MODEL_JSON}": "0" * 64}})

    def stopwatch(model):
        """An engine that fails natively ends the process: the network lies there by now, and the task around it knows."""
        assert read_json(tmp_path / TASK_JSON)["files"] == {f"b/{MODEL_JSON}": sha256_file(tmp_path / "b" / MODEL_JSON)}
        with ModelPackage.load(tmp_path / "b") as written:
            assert written.has(INT8) and written.calibration()["quantization"]["guard"]["milliseconds"] == []
        timed.append(model)
        return float(len(timed))

    strict = QuantizationPolicy(
        budget=Budget(0, measured.guard.dice_fp32 - measured.guard.after.dice - 1e-6), effort="fast"
    )
    package, report = quantize_package(fp32_package, sampler, tmp_path / "b", options, strict, stopwatch=stopwatch)
    assert package.calibration()["quantization"]["guard"]["milliseconds"] == [1.0, 2.0]
    assert read_json(tmp_path / TASK_JSON)["files"] == {f"b/{MODEL_JSON}": sha256_file(tmp_path / "b" / MODEL_JSON)}
    assert report.guard.kept and (report.guard.halves or report.guard.returned)
    assert report.guard.milliseconds == [1.0, 2.0]
    assert report.size_ratio <= 0.27


def test_labels_must_lie_on_their_scans(fp32_package, tmp_path):
    volume, labels = make_phantom(2001, PHANTOM_SIZE, PHANTOM_SPACING)
    wrong = Volume(labels[1:], volume.ijk_to_ras, "labels")
    with pytest.raises(InputError, match="1 label map"):
        PatchSampler([lambda: volume] * 2, fp32_package.spec, PATCH, CalibrationOptions(), labels=[lambda: wrong])
    sampler = PatchSampler([lambda: volume], fp32_package.spec, PATCH, CalibrationOptions(), labels=[lambda: wrong])
    with pytest.raises(InputError, match="label map of that scan"):
        quantize_package(fp32_package, sampler, tmp_path / "out", CalibrationOptions())


@pytest.mark.parametrize("method", ["entropy", "percentile", "mse"])
def test_every_method_makes_a_network_of_other_scales(fp32_package, quantized_package, tmp_path, method):
    options = CalibrationOptions(method=method, patches=1)
    package, report = quantize_package(
        fp32_package,
        sampler_for(fp32_package, options),
        tmp_path / method,
        options,
        QuantizationPolicy(budget=Budget(0)),
    )
    assert report.guard.relative_error < 0.3
    tensors = package.calibration()["tensors"].values()
    assert any(t["scale"] * 127 < 0.9 * t["seen_maximum"] for t in tensors)


def test_patches_are_drawn_as_asked_and_the_same_each_time(fp32_package):
    options = CalibrationOptions(patches=5, foreground=1.0, air=0.0, seed=3)
    sampler = sampler_for(fp32_package, options, seeds=(2001, 2002))
    first, second = list(sampler), list(sampler)
    assert len(first) == len(sampler) == 5
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(patch.shape == (1, *PATCH) for patch in first)
    air = list(
        sampler_for(fp32_package, CalibrationOptions(patches=5, foreground=0.0, air=1.0, seed=3), seeds=(2001, 2002))
    )
    assert np.mean([p.mean() for p in first]) > np.mean([p.mean() for p in air])
    assert len(sampler.volume_hashes) == 2


def test_calibration_without_data_or_sense_is_refused(fp32_package):
    with pytest.raises(InputError, match="at least one scan"):
        PatchSampler([], fp32_package.spec, PATCH, CalibrationOptions())
    for options in (
        CalibrationOptions(method="minmax"),
        CalibrationOptions(patches=0),
        CalibrationOptions(foreground=0.8, air=0.5),
        CalibrationOptions(percentile=3),
    ):
        with pytest.raises(InputError):
            options.check()


def test_an_interrupted_quantization_leaves_nothing(fp32_package, tmp_path):
    from MedQuantINT8Lib.errors import Cancelled
    from MedQuantINT8Lib.progress import Task

    task = Task(lambda event: task.cancel() if event.stage == "calibrating" else None)
    with pytest.raises(Cancelled):
        quantize_package(
            fp32_package, sampler_for(fp32_package), tmp_path / "out", CalibrationOptions(patches=2), task=task
        )
    assert list(tmp_path.iterdir()) == []
    assert ModelPackage.load(fp32_package.folder).spec.name == "phantom-unet"


@pytest.mark.slow
def test_transformers_have_their_linear_layers_in_int8_and_attention_in_float(tmp_path):
    from MedQuantINT8Lib.importers.export import export_network
    from MedQuantINT8Lib.importers.onnx import draft_for, import_onnx
    from MedQuantINT8Lib.models.layers import WEIGHTED_OPS
    from study_networks import SMALL

    build, patch = SMALL["unest"]
    export_network(build(), tmp_path / "network.onnx", patch, 2)
    package = import_onnx(tmp_path / "network.onnx", draft_for("small", 2, 3, patch), tmp_path / "package")
    random = np.random.default_rng(0)
    volume = Volume(random.normal(size=(2, 70, 40, 40)).astype(np.float32), np.eye(4))
    options = CalibrationOptions(patches=1)
    sampler = PatchSampler([lambda: volume], package.spec, patch, options)
    policy = QuantizationPolicy(budget=Budget(fallback=False))
    package, report = quantize_package(package, sampler, tmp_path / "int8", options, policy)
    in_float = [layer for layer in report.layers if not layer.quantized]
    assert {layer.op for layer in in_float} == {"MatMul"}
    # Two products in each of four transformer layers; the four linear layers of each are in INT8, but for the finest
    # hierarchy's, whose eight channels ModelOpt leaves out.
    assert sum("attention" in layer.reason for layer in in_float) == 8
    assert sum(layer.quantized for layer in report.layers if layer.op in ("MatMul", "Gemm")) == 12
    assert sum("too few channels" in layer.reason for layer in in_float) == 4
    model = graph.load_network(package.onnx_path("int8"))
    assert qdq.check_int8(model) == []
    # The finest hierarchy's positions, 64 blocks of 16 voxels of 8 channels, are too few to be worth 16 bits.
    assert not [n for n in model.graph.node if n.op_type == "Cast"]
    quantized_inputs = {
        n.op_type for n in model.graph.node if any(i.startswith("d") and i[1:].isdigit() for i in n.input)
    }
    assert quantized_inputs <= set(WEIGHTED_OPS)


def test_large_tables_are_stored_in_16_bits(tmp_path):
    from onnx import helper, numpy_helper

    from graphs import network
    from MedQuantINT8Lib.engines.onnxruntime import session
    from MedQuantINT8Lib.quantization.qdq_placement import _store_tables

    size = (32, 32, 40)
    table = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)
    model = network(
        [helper.make_node("Add", ["x", "t"], ["y"], name="add")], {"t": table}, channels=3, size=size, out_size=size
    )
    before, x = model.ByteSize(), np.zeros((1, 3, *size), np.float32)
    _store_tables(model)
    assert model.ByteSize() < 0.51 * before and numpy_helper.to_array(model.graph.initializer[0]).dtype == np.float16
    assert np.abs(session(model.SerializeToString(), "int8").run(None, {"x": x})[0] - table).max() < 3e-3
