"""Some windows of an INT8 run are run in FP32 as well: a scan on which INT8 loses is told, one on which it does not is not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference import network_run, pipeline
from MedQuantINT8Lib.inference import range_check as ranges
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.second_look import Expected, SecondLooker
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.inference.windows import plan_windows
from MedQuantINT8Lib.models.package import CALIBRATION, FP32, INT8, ModelPackage, write_package
from MedQuantINT8Lib.models.spec import Label, Window
from MedQuantINT8Lib.progress import Task
from tiny import convolutions, quantized
from tiny import package as tiny_package

SIZE, CHOICE = 24, EngineChoice("onnxruntime", "int8")
HELD_OUT = {"agreement": 0.991, "scans": [{"windows": [0.99, 0.992, 0.988, 0.994]}]}


def scan(peak):
    """A ball whose values rise to ``peak``, in noise of 0 to 1."""
    k, j, i = np.ogrid[:SIZE, :SIZE, :SIZE]
    ball = np.clip(1 - ((k - 12) ** 2 + (j - 12) ** 2 + (i - 12) ** 2) / 100, 0, 1)
    noise = np.random.default_rng(0).random((SIZE,) * 3)
    return Volume((peak * ball + noise).astype(np.float32), np.diag([10.0, 10, 10, 1]), f"scan {peak}")


@pytest.fixture
def package(tmp_path):
    """Three classes by brightness, below 2, to 6 and above; INT8 holds values up to 8: brighter ones are cut off, which costs nothing
    up to there and the scores of all that is brighter beyond."""
    weight = np.zeros((3, 1, 1, 1, 1))
    weight[1:, 0, 0, 0, 0] = 1, 2
    fp32 = convolutions({"a": weight}, {"a": np.array([0, -2.0, -8.0])})
    spec = replace(
        tiny_package(tmp_path / "one").spec,
        labels=(Label(1, "middle", 1), Label(2, "bright", 2)),
        window=Window((8, 8, 8), overlap=0.0),
    )
    spec = replace(spec, geometry=replace(spec.geometry, spacing=(10.0, 10.0, 10.0)))
    files = {FP32: tmp_path / FP32, INT8: tmp_path / INT8, CALIBRATION: tmp_path / CALIBRATION}
    onnx.save(fp32, str(files[FP32]))
    onnx.save(quantized(fp32, 5.9 / 127), str(files[INT8]))
    files[CALIBRATION].write_text(
        json.dumps({"input": "x", "tensors": {"x": {"scale": 5.9 / 127}}, "quantization": {"held_out": HELD_OUT}})
    )
    write_package(tmp_path / "package", spec, files)
    return ModelPackage.load(tmp_path / "package")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(ranges, "_PROBES", {})


def run(package, volume, **options):
    return pipeline.segment(package, volume, CHOICE, SegmentationOptions(**options), Task())


def test_how_many_windows_follows_from_the_share():
    plan = plan_windows((64, 64, 64), Window((16, 16, 16), overlap=0.0), (16, 16, 16))
    assert plan.count == 64
    found = [ranges.windows_looked_at(plan, share) for share in (None, 0.0, 0.001, 0.05, 0.5, 1.0)]
    assert found == [1, 0, 1, 4, 32, 64]


def test_a_scan_on_which_int8_loses_is_told_with_the_structure(package):
    lost = run(package, scan(12.0), check_share=1.0)
    look = lost.ranges["second_look"]
    assert look["windows"] == 27 and look["worst"] == {"name": "bright", "dice": 0.0} and look["expected"] == 0.991
    assert look["warning"] and lost.result.notes[0] == look["warning"]
    assert "worst: bright 0.0000" in look["warning"] and "0.9910 was measured when it was quantized" in look["warning"]
    assert not (lost.result.labels == 2).any(), "INT8 has really lost it"


def test_a_scan_on_which_int8_loses_nothing_is_not(package):
    fine = run(package, scan(4.5), check_share=1.0)
    look = fine.ranges["second_look"]
    assert look["agreement"] > 0.99 and look["warning"] == "" and not fine.result.notes
    assert 0 < fine.ranges["share_of_time"] < 1


def test_what_is_found_is_the_agreement_of_the_windows(package):
    """All windows of a scan, which do not overlap, have the agreement of the two segmentations."""
    from MedQuantINT8Lib.evaluation.agreement import agreement, mean_dice

    volume = scan(7.0)
    int8 = run(package, volume, check_share=1.0)
    fp32 = pipeline.segment(package, volume, replace(CHOICE, precision="fp32"), SegmentationOptions(), Task())
    expected = mean_dice(agreement(int8.result.labels, fp32.result.labels, package.spec.labels))
    assert int8.ranges["second_look"]["agreement"] == pytest.approx(expected)


def test_a_scan_on_which_fp32_finds_nothing_is_no_cause_for_a_warning(package):
    look = run(package, scan(0.5), check_share=0.1).ranges["second_look"]
    assert look["agreement"] is None and look["warning"] == "" and look["windows"] == 3


def test_by_default_few_windows_and_none_beside_a_gpu(package, monkeypatch):
    assert run(package, scan(12.0)).ranges["second_look"] is None, "27 windows are fewer than 50"
    monkeypatch.setattr(ranges, "EVERY", 9)
    assert run(package, scan(12.0)).ranges["second_look"]["windows"] == 3
    monkeypatch.setattr(network_run, "needs_gpu", lambda backend: True)
    monkeypatch.setattr(network_run, "with_batch", lambda options, *_: options)
    assert run(package, scan(12.0)).ranges["second_look"] is None
    assert run(package, scan(12.0), check_share=0.1).ranges["second_look"]["windows"] == 3, "unless it is asked for"


def test_what_does_not_go_together_is_refused_before_work(package):
    for options in ({"check_share": 1.5}, {"check_share": -0.1}, {"check_share": 0.1, "check_ranges": False}):
        with pytest.raises(InputError):
            run(package, None, **options)
    assert run(package, scan(4.5), check_share=0.0).ranges["second_look"] is None


def test_where_it_cannot_be_done_it_is_said(package, monkeypatch):
    monkeypatch.setattr(ranges, "available_memory", lambda: 0)
    found = run(package, scan(4.5), check_share=0.1)
    assert found.ranges["second_look"] is None
    assert found.result.notes[-1] == "no window was run in FP32 as well: there is not enough free memory"


def test_what_is_expected_comes_from_the_package(package, fp32_package):
    found = Expected.of(package)
    assert found.agreement == 0.991 and found.deviation == pytest.approx(np.std([0.99, 0.992, 0.988, 0.994], ddof=1))
    assert found.least(1) == pytest.approx(0.981) and Expected(0.95, 0.02).least(4) == pytest.approx(0.93)
    assert Expected(0.95, 0.4).least(1) == pytest.approx(0.92)
    assert Expected.of(fp32_package) == Expected()


def test_one_window_after_the_other_is_pooled(package):
    looker = SecondLooker(package, lambda batch: np.stack([batch[:, 0] * 0, batch[:, 0] - 2, 2 * batch[:, 0] - 8], 1))
    rng = np.random.default_rng(0)
    for _ in range(3):
        patch = rng.uniform(0, 9, (1, 8, 8, 8)).astype(np.float32)
        looker.add(patch, np.stack([patch * 0, patch - 2, 2 * patch - 8], 1))
    found = looker.result()
    assert found.agreement == 1.0 and found.windows == found.shown == 3 and found.warning == ""


def test_the_command_takes_the_share_and_says_what_was_seen(package, tmp_path, capsys):
    from MedQuantINT8Lib.imaging.segmentation_files import write_segmentation

    volume = scan(12.0)
    write_segmentation(tmp_path / "scan.nii.gz", np.rint(10 * volume.data[0]).astype(np.int16), volume.ijk_to_ras, ())
    command = ["segment", str(package.folder), str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "o.nii.gz")]
    command += ["--engine", "onnxruntime", "--precision", "int8", "--check-share", "0.1", "--quiet"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "second look in FP32: 3 window(s), agreement" in text and "compare with FP32" in text
    assert main([*command, "--force", "--no-range-check"]) != 0
    assert "Leave out --check-share or --no-range-check" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command[:-2], "2"])
