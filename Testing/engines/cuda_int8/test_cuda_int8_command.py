"""``medquant segment --engine cuda_int8`` as a whole, on a GPU that is none: see gpu_computing.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

import gpu_computing
import kernels_on_processor
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines import cache
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.imaging.phantom import make_phantom
from MedQuantINT8Lib.imaging.volume import to_sitk
from MedQuantINT8Lib.inference import engine_choice
from MedQuantINT8Lib.inference.engine_choice import EngineChoice

SMALL = ["--patch", "32", "32", "32", "--quiet"]


@pytest.fixture
def driver(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    made = gpu_computing.install(monkeypatch)
    yield made
    assert made.holders == {0: 0, 1: 0} and made.current == 0


def scan_of(folder, spacing):
    """Some of a made body."""
    volume, _ = make_phantom(77, (176, 144, 128), spacing)
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid)[60:110, 50:95, 40:80], folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def segmented(package, scan, engine, *options):
    found = scan.with_name(f"{engine}.nii.gz")
    command = ["segment", str(package.folder), str(scan), "--output", str(found), "--engine", engine]
    assert main([*command, *SMALL, *options]) == 0
    return sitk.GetArrayFromImage(sitk.ReadImage(found))


@pytest.mark.slow
def test_a_scan_is_segmented_at_the_first_try_and_at_the_second(int8_package, driver, tmp_path):
    # Of other spacing than the network's: scores come down, to be resampled.
    scan = scan_of(tmp_path, 2.2)
    first = segmented(int8_package, scan, "cuda_int8")
    np.testing.assert_array_equal(first, segmented(int8_package, scan, "cuda_int8"))
    assert len(np.unique(first)) > 2 and (first == segmented(int8_package, scan, "onnxruntime")).mean() > 0.995


@pytest.mark.slow
@pytest.mark.skipif(kernels_on_processor.COMPILER is None, reason="needs a C++ compiler")
def test_a_scan_goes_up_and_its_labels_come_down(int8_package, driver, tmp_path, monkeypatch, capsys):
    """With kernels that compute: nothing else crosses the bus, and what the check of the GPU found is kept with the engine."""
    monkeypatch.setattr(cuda.Gpu, "kernels", lambda gpu, source, names: kernels_on_processor.kernels(source, names))
    scan = scan_of(tmp_path, 2.2)
    for _ in range(2):
        first = segmented(int8_package, scan, "cuda_int8", "--json")
        notes = json.loads(capsys.readouterr().out)["notes"]
        assert any("brought to network space on the GPU" in note for note in notes), notes
        assert any("resampled to the scan's grid, on the GPU" in note for note in notes), notes
    (entry,) = (entry for entry in cache.entries() if "gpu_road" in entry.record)
    assert entry.record["gpu_road"]["difference"] < 2e-4 and not entry.record["gpu_road"]["problem"]
    assert len(np.unique(first)) > 2 and (first == segmented(int8_package, scan, "onnxruntime")).mean() > 0.995


@pytest.mark.slow
@pytest.mark.skipif(kernels_on_processor.COMPILER is None, reason="needs a C++ compiler")
def test_windows_of_a_scan_are_spread_over_two_gpus(int8_package, driver, tmp_path, monkeypatch, capsys):
    """The labels are those of one GPU, and the engine's files are built once for GPUs of one kind."""
    monkeypatch.setattr(cuda.Gpu, "kernels", lambda gpu, source, names: kernels_on_processor.kernels(source, names))
    scan, found = scan_of(tmp_path, 2.2), {}
    for device in ("gpu:1", "gpu:all"):
        labels = segmented(int8_package, scan, "cuda_int8", "--json", "--device", device)
        report = json.loads(capsys.readouterr().out)
        found[device] = labels, report["engine"]["cached"], [note for note in report["notes"] if "spread" in note]
    assert len(np.unique(found["gpu:1"][0])) > 2
    assert [cached for _, cached, _ in found.values()] == [False, True]
    np.testing.assert_array_equal(found["gpu:all"][0], found["gpu:1"][0])
    (note,) = found["gpu:all"][2]
    assert note.startswith("windows were spread over gpu:0, gpu:1: ") and not found["gpu:1"][2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "gpu:0,7"], "There is no GPU number 7."),
        (["--device", "gpu:7"], "There is no GPU number 7."),
        (["--device", "gpu:0,1", "--engine", "openvino"], "runs on the processor alone, not on the device gpu:0,1"),
        (["--device", "gpu:0,0"], "names a GPU twice"),
    ],
)
def test_gpus_that_are_not_there_are_refused_before_any_work(int8_package, driver, tmp_path, capsys, options, words):
    # The scan is none: whoever read it would say so.
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"no scan")
    command = ["segment", str(int8_package.folder), str(scan), "--output", str(tmp_path / "labels.nii.gz"), *options]
    try:
        assert main([*command, *SMALL]) != 0
    except SystemExit as end:
        assert end.code
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and not (tmp_path / "labels.nii.gz").exists()


@pytest.mark.slow
def test_so_is_one_whose_labels_are_blended_on_the_gpu(int8_package, driver, tmp_path):
    # The window's kernels do nothing here; what is asked of the driver is right, or it fails.
    scan = scan_of(
        tmp_path, int8_package.spec.geometry.spacing[::-1]
    )  # I, J, K of a network in K, J, I: nothing is resampled
    for _ in range(2):
        driver.calls.clear()
        assert segmented(int8_package, scan, "cuda_int8").shape == (40, 45, 50)
        assert driver.calls.count("cuLaunchKernel") > 10


@pytest.mark.slow
def test_what_it_is_held_against_in_fp32_runs_on_another_engine(int8_package, driver, tmp_path, monkeypatch):
    scan, folder = scan_of(tmp_path, 2.2), tmp_path / "differences"
    assert (
        main(
            [
                "differences",
                str(int8_package.folder),
                str(scan),
                "--engine",
                "cuda_int8",
                "--output",
                str(folder),
                *SMALL,
            ]
        )
        == 0
    )
    found = json.loads((folder / "report.json").read_text())["runs"]
    assert found["int8"]["engine"]["name"] == "cuda_int8" and found["fp32"]["engine"]["name"] in (
        "openvino",
        "onnxruntime",
    )
    wanted = EngineChoice("cuda_int8", device="gpu:1")
    assert wanted.beside("fp32") == EngineChoice("auto", "fp32") and wanted.beside("int8") == EngineChoice(
        "cuda_int8", "int8", device="gpu:1"
    )
    assert EngineChoice("openvino", threads=3).beside("fp32") == EngineChoice("openvino", "fp32", 3)
    # No engine of this GPU computes in FP32; where one does, the GPU that was asked for is kept.
    assert EngineChoice(device="gpu").beside("fp32") == EngineChoice("auto", "fp32")
    monkeypatch.setattr(engine_choice, "unavailable_reason", lambda made: "")
    assert EngineChoice(device="gpu").beside("fp32") == EngineChoice("auto", "fp32", device="gpu")
