"""What an engine cannot build is found before calibration; where INT8 is not worth it, auto takes FP32."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from MedQuantINT8Lib.engines import BuildOptions, choices
from MedQuantINT8Lib.engines.base import UnsupportedNetwork, form_of
from MedQuantINT8Lib.engines.int8_or_float import LEAST_SHARE, prepare_faster
from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
from MedQuantINT8Lib.engines.registry import choose_backend
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.inference.engine_choice import EngineChoice, with_fallback
from MedQuantINT8Lib.models.engine_form import SYMMETRIC
from MedQuantINT8Lib.models.package import CALIBRATION
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization import latency
from MedQuantINT8Lib.quantization import pipeline as build_road
from MedQuantINT8Lib.quantization.calibration import CalibrationOptions
from MedQuantINT8Lib.quantization.latency import engine_stopwatch
from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy
from tiny import TinyBackend, convolutions, package, quantized, random_weights

SHAPE = (8, 8, 8)


def resampling_network(size=8):
    """Two convolutions with a GridSample of volumes between them, which OpenVINO does not have."""
    weights, _ = random_weights((1, 4, 2))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")[::-1], -1)[None].astype(np.float32)
    model = convolutions(weights, {}, size, opset=20)
    model.graph.node[1].CopyFrom(
        helper.make_node("GridSample", ["a_out", "grid"], ["a_relu"], name="sample", mode="linear", align_corners=1)
    )
    model.graph.initializer.append(numpy_helper.from_array(grid, "grid"))
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def resampling(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "engines"))
    fp32 = resampling_network()
    with package(tmp_path, fp32, quantized(fp32)) as made:
        yield made


@pytest.fixture
def only_processor(monkeypatch):
    """The engines of a machine without a GPU."""
    from MedQuantINT8Lib.engines.onnxruntime import OnnxRuntimeBackend

    monkeypatch.setattr(latency, "usable_backends", lambda precision: [OpenVINOBackend(), OnnxRuntimeBackend()])


def test_openvino_names_the_operator_that_it_lacks_without_building(resampling, tmp_path):
    for step in (
        lambda: OpenVINOBackend().check(resampling.onnx_path("fp32"), BuildOptions("fp32", SHAPE)),
        lambda: OpenVINOBackend().build(resampling.onnx_path("int8"), tmp_path, BuildOptions("int8", SHAPE)),
    ):
        with pytest.raises(UnsupportedNetwork, match=r"GridSample is only supported for 4D .*\(node sample\)"):
            step()


def test_a_network_that_openvino_can_build_passes(fp32_package):
    OpenVINOBackend().check(fp32_package.onnx_path("fp32"), BuildOptions("fp32", fp32_package.spec.window.patch_size))


def test_quantizing_is_refused_before_a_scan_is_read(resampling, only_processor, tmp_path):
    def reader(path):
        raise InputError("a scan was read")

    def quantize(**options):
        build_road.quantize(
            resampling.folder,
            ["scan.nrrd"],
            tmp_path / "out",
            CalibrationOptions(),
            QuantizationPolicy(),
            Task(),
            reader=reader,
            **options,
        )

    with pytest.raises(UnsupportedNetwork) as caught:
        quantize()
    assert "OpenVINO" in str(caught.value) and "GridSample" in str(caught.value)
    assert "--without-engine" in caught.value.hint and "--engine " not in str(caught.value)
    with pytest.raises(InputError, match="a scan was read"):
        quantize(engine_required=False)
    assert not (tmp_path / "out").exists()


def test_an_engine_that_lacks_an_operator_gives_way_to_one_that_does_not(resampling, only_processor, monkeypatch):
    assert engine_stopwatch(resampling, required=False) is None
    monkeypatch.setattr(latency, "usable_backends", lambda precision: [OpenVINOBackend(), TinyBackend()])
    stopwatch = engine_stopwatch(resampling)
    assert stopwatch(quantized(resampling_network())) > 0
    assert stopwatch.form == form_of(TinyBackend()) == SYMMETRIC
    assert form_of(OpenVINOBackend()).zero_points and not form_of(OpenVINOBackend(signed_activations=True)).zero_points


def test_auto_runs_it_on_the_next_engine(resampling):
    def attempt(choice):
        backend = choose_backend(choice.name, choice.precision, "cpu")
        return prepare_faster(
            resampling, backend, BuildOptions("int8", SHAPE), [np.zeros((1, *SHAPE), np.float32)], Task()
        )

    prepared, notes = with_fallback(EngineChoice(precision="auto", device="cpu"), attempt)
    assert prepared.backend.name == "onnxruntime" and prepared.options.precision == "fp32"
    assert "GridSample" in notes[0]


@pytest.mark.parametrize(("share", "taken"), [(0.014, "fp32"), (LEAST_SHARE, "int8"), (None, "int8"), ("much", "int8")])
def test_auto_takes_fp32_where_nearly_all_went_back_to_float(tmp_path, monkeypatch, share, taken):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "engines"))
    with package(tmp_path) as made:
        (tmp_path / CALIBRATION).write_text(json.dumps({"quantization": {"int8_mac_share": share}}))
        known = made.with_files(tmp_path / "known", {CALIBRATION: tmp_path / CALIBRATION})
    with known:
        prepared = prepare_faster(known, TinyBackend(), BuildOptions("int8", SHAPE), [], Task())
        assert prepared.options.precision == taken
        assert ("1.4 % of its work" in prepared.note) == (taken == "fp32")
        assert choices.find(known, TinyBackend(), "auto") is None, "no clock decided"
