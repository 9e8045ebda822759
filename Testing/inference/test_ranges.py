"""Scans that leave the calibrated ranges: counted as NumPy counts them, told to the user, at a price that is known."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines import float_session
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.evaluation.reports.report import _times
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.inference import pipeline
from MedQuantINT8Lib.inference import range_check as ranges
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, plan_for
from MedQuantINT8Lib.inference.windows import plan_windows
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.spec import Window
from MedQuantINT8Lib.progress import Task

PATCH = (32, 48, 48)


def test_shares_are_those_of_the_tensors(int8_package):
    limits = ranges.limits_of(int8_package)
    assert len(limits) > 5
    tight = {name: limit / 2 for name, limit in limits.items()}
    patch = np.random.default_rng(0).random((1, *PATCH)).astype(np.float32)
    probe = ranges.Probe(int8_package.onnx_path("fp32"), PATCH, tight)
    found = probe.shares(patch)
    model = graph.load_network(int8_package.onnx_path("fp32"))
    graph.name_nodes(model)
    fixed = graph.fixed_shape(model, PATCH)
    source = graph.network_shape(fixed).input_name
    names = [name for name in probe.tensors if name != source]
    values = dict(
        zip(
            names,
            session(graph.with_outputs(fixed, names).SerializeToString(), "fp32").run(names, {source: patch[None]}),
            strict=True,
        )
    )
    values[source] = patch[None]
    assert set(found) == set(probe.tensors) and max(found.values()) > 0
    for name, share in found.items():
        assert share == pytest.approx(float((np.abs(values[name]) > 1.001 * tight[name]).mean()), abs=1e-6), name


def checked(package, volume, **how):
    network_input = preprocess(volume, package.spec)
    plan = plan_for(network_input, package.spec, SegmentationOptions())
    return ranges.check_ranges(package, network_input, plan, **how)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(ranges, "_PROBES", {})


@pytest.fixture
def every(monkeypatch):
    """Runs of few windows are looked at as well."""
    monkeypatch.setattr(ranges, "EVERY", 4)


def test_a_scan_of_the_calibrations_kind_is_not_warned_about(int8_package, phantom, every):
    found = checked(int8_package, phantom[0])
    assert found.windows >= 1 and len(found.tensors) > 5 and found.warning == "" and found.worst[1] < ranges.WORST


def test_a_scan_that_leaves_the_ranges_is(int8_package, phantom, monkeypatch, every):
    real = ranges.limits_of
    monkeypatch.setattr(ranges, "limits_of", lambda package: {name: limit / 8 for name, limit in real(package).items()})
    found = checked(int8_package, phantom[0])
    name, share = found.worst
    assert share > ranges.WORST and name in found.warning and "compare with FP32" in found.warning
    value = found.to_json()
    assert value["worst"][0] == {"tensor": name, "share": share} and value["windows"] == found.windows


def test_a_run_of_few_windows_looks_at_the_input_alone(int8_package, phantom):
    found = checked(int8_package, phantom[0])
    assert found.windows == 0 and not found.tensors and found.input is not None
    assert found.to_json()["mean"] is None and found.warning == ""


def test_the_calibration_is_read_once_for_all_scans_of_a_package(int8_package, phantom, monkeypatch):
    first = checked(int8_package, phantom[0])
    monkeypatch.setattr(type(int8_package), "calibration", lambda package: pytest.fail("it was read again"))
    assert checked(int8_package, phantom[0]).input == first.input
    limits = ranges.limits_of(int8_package)
    limits.clear()
    assert ranges.limits_of(int8_package)


def test_another_thread_may_look_at_another_package_meanwhile(int8_package, phantom, monkeypatch, every):
    class Forgetful(dict):
        def __setitem__(self, key, value):
            self.clear()

    for kept in ("_CALIBRATED", "_PROBES"):
        monkeypatch.setattr(ranges, kept, Forgetful())
    assert checked(int8_package, phantom[0]).tensors


def test_how_many_windows_are_looked_at_follows_from_the_plan():
    def count(*shape):
        return ranges.windows_looked_at(plan_windows(shape, Window((16, 16, 16), overlap=0.0), (16, 16, 16)))

    assert count(16, 16, 16) == 0 and count(112, 112, 48) == 2 and count(400, 400, 400) == ranges.MOST


def test_equal_runs_give_equal_warnings_however_long_anything_takes(int8_package, phantom, monkeypatch, every):
    """The clock runs differently each time, and the probe is there or is not: what is found is the same."""
    real = ranges.limits_of
    monkeypatch.setattr(ranges, "limits_of", lambda package: {name: limit / 8 for name, limit in real(package).items()})
    found = []
    for speed in (1e-6, 1.0, 1e6):
        clock = iter(np.arange(10000) * speed)
        monkeypatch.setattr(ranges.time, "perf_counter", lambda clock=clock: float(next(clock)))
        found.append(checked(int8_package, phantom[0]))
        if speed == 1.0:
            ranges._PROBES.clear()
    assert len({f.warning for f in found}) == 1 and found[0].warning and len({f.windows for f in found}) == 1
    assert found[0].tensors == found[1].tensors == found[2].tensors


def test_beside_a_gpu_and_without_memory_no_tensor_is_looked_at_and_it_is_said(
    int8_package, phantom, monkeypatch, every
):
    assert checked(int8_package, phantom[0], tensors=False).windows == 0
    monkeypatch.setattr(ranges, "available_memory", lambda: 0)
    found = checked(int8_package, phantom[0])
    assert found.windows == 0 and found.to_json()["skipped"] == "there is not enough free memory"


def test_values_of_the_input_beyond_its_range_are_told(int8_package, phantom, monkeypatch):
    monkeypatch.setattr(ranges, "limits_of", lambda package: {(package.calibration() or {})["input"]: 0.2})
    network_input = preprocess(phantom[0], int8_package.spec)
    found = checked(int8_package, phantom[0])
    assert (
        found.input == pytest.approx(float((network_input.data[:, ::4, ::4, ::4] > 0.2002).mean()))
        and found.input > ranges.WORST
    )
    assert "% of the scan's values" in found.warning


def test_windows_at_the_border_and_volumes_smaller_than_one():
    rng = np.random.default_rng(0)
    for shape in ((5, 30, 9), (16, 16, 16), (40, 20, 33)):
        data = rng.random((2, *shape)).astype(np.float32)
        plan = plan_windows(shape, Window((16, 16, 16), overlap=0.5), (16, 16, 16))
        starts = ranges._starts(data, plan)
        assert starts == ranges._starts(data.copy(), plan)
        assert starts and all(ranges._patch(data, plan, start).shape == (2, 16, 16, 16) for start in starts)


def test_a_package_without_ranges_is_left_alone(fp32_package, phantom):
    assert checked(fp32_package, phantom[0]) is None


def test_a_run_says_it_and_can_be_told_not_to_look(int8_package, phantom, monkeypatch):
    choice = EngineChoice("openvino", "int8")
    real = ranges.limits_of
    monkeypatch.setattr(ranges, "limits_of", lambda package: {name: limit / 8 for name, limit in real(package).items()})
    monkeypatch.setattr(ranges, "EVERY", 8)
    run = pipeline.segment(int8_package, phantom[0], choice, SegmentationOptions(), Task())
    assert (
        run.ranges["windows"] >= 1 and run.result.notes[0] == run.ranges["warning"] != "" and run.seconds["ranges"] > 0
    )
    for options, precision in ((SegmentationOptions(check_ranges=False), "int8"), (SegmentationOptions(), "fp32")):
        run = pipeline.segment(int8_package, phantom[0], replace(choice, precision=precision), options, Task())
        assert run.ranges is None and not any("calibrated" in note for note in run.result.notes)


def test_the_report_and_the_command_show_it(int8_package, phantom_file, tmp_path, capsys):
    arguments = [
        "segment",
        str(int8_package.folder),
        str(phantom_file),
        "-o",
        str(tmp_path / "l.nii.gz"),
        "--precision",
        "int8",
        "--engine",
        "openvino",
        "--json",
    ]
    assert main(arguments) == 0
    run = json.loads(capsys.readouterr().out)
    found = run["ranges"]
    looked = {**run, "ranges": {**found, "worst": [{"tensor": "conv<1>", "share": 0.25}], "mean": 0.125}}
    assert _times([looked])["ranges"].rows[0][-3:] == ["12.500 %", "25.000 %", "conv<1>"]
    assert _times([{**run, "ranges": None}])["ranges"] is None
    assert found["input"] == pytest.approx(0, abs=0.01) and found["warning"] == ""
    assert main([*arguments, "--no-range-check"]) == 0
    assert json.loads(capsys.readouterr().out)["ranges"] is None


def test_without_a_runtime_for_fp32_only_the_input_is_looked_at(int8_package, phantom, monkeypatch, every):
    monkeypatch.setattr(float_session.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = checked(int8_package, phantom[0])
    assert found.windows == 0 and not found.tensors and found.input is not None
    assert found.skipped.startswith("The Python package 'onnxruntime' is not installed.")


def test_one_probe_serves_several_threads(int8_package):
    probe = ranges.Probe(int8_package.onnx_path("fp32"), PATCH, ranges.limits_of(int8_package))
    patches = [np.full((1, *PATCH), value, np.float32) for value in np.linspace(0, 40, 6)]
    alone = [probe.look(patch) for patch in patches]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(probe.look, patches))
    for (shares, scores), (expected_shares, expected) in zip(together, alone, strict=True):
        assert shares == expected_shares and np.array_equal(scores, expected)
