"""The command line as a user meets it: whole roads, one-line errors, exit codes, nothing lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_labels, phantom_spec
from MedQuantINT8Lib.imaging.volume import Volume, to_sitk
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.models.package import ModelPackage
from MedQuantINT8Lib.resources import resource
from places import LIBRARY


@pytest.fixture(scope="session")
def scan(tmp_path_factory, phantom):
    path = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
    sitk.WriteImage(to_sitk(phantom[0].data[0], phantom[0].grid), str(path))
    return path


def test_segment_writes_what_slicer_reads_and_tells_what_ran(medquant, int8_package, scan, tmp_path):
    code, out, err = medquant("segment", int8_package.folder, scan, "-o", tmp_path / "out.seg.nrrd", "--json")
    assert code == 0 and err == ""
    value = json.loads(out)
    assert value["engine"]["description"]["verdict"] == "INT8"
    assert value["engine"]["fidelity"]["trusted"]
    assert {"reading", "preprocessing", "network", "blending", "writing", "total"} <= set(value["seconds"])
    assert any("resampled" in note for note in value["notes"])
    back = read_volume(tmp_path / "out.seg.nrrd")
    assert back.grid == read_volume(scan).grid
    assert sum(s["ml"] > 10 for s in value["structures"]) == len(phantom_labels())
    header = (tmp_path / "out.seg.nrrd").read_bytes()[:20000].decode("latin1")
    assert "Segment0_Name:=liver" in header and "SCT^10200004^Liver" in header


@pytest.mark.slow
def test_engines_agree_on_the_label_map(medquant, int8_package, scan, tmp_path):
    found = {}
    for engine, precision in (
        ("openvino", "int8"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("onnxruntime", "fp32"),
    ):
        path = tmp_path / f"{engine}-{precision}.nii.gz"
        assert (
            medquant("segment", int8_package.folder, scan, "-o", path, "--engine", engine, "--precision", precision)[0]
            == 0
        )
        found[engine, precision] = read_volume(path).data
    assert (found["openvino", "fp32"] != found["onnxruntime", "fp32"]).mean() < 1e-4
    assert (found["openvino", "int8"] != found["onnxruntime", "int8"]).mean() < 5e-3
    assert (found["openvino", "int8"] != found["openvino", "fp32"]).mean() < 2e-2


@pytest.mark.slow
def test_import_quantize_build_compare_from_files(medquant, scan, tmp_path, phantom):
    spec = tmp_path / "spec.json"
    described = phantom_spec()
    described = replace(described, window=replace(described.window, overlap=0.25))
    spec.write_text(json.dumps(described.to_json()))
    package = tmp_path / "model"
    assert medquant("import", "onnx", resource("phantom_unet.onnx"), "--spec", spec, "-o", package)[0] == 0
    other = tmp_path / "other.nrrd"
    volume = make_phantom(2010, (96, 88, 80), 4.0)[0]
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(other))
    code, out, _ = medquant(
        "quantize", package, "--calibrate", other, "--patches", "2", "--agreement", "0", "-o", tmp_path / "int8.zip"
    )
    assert code == 0 and "warning: calibrated on 1 volume" in out
    assert not ModelPackage.load(package).has("model.int8.onnx")
    code, out, _ = medquant("build", tmp_path / "int8.zip", "--scan", scan, "--json")
    assert code == 0 and json.loads(out)["description"]["verdict"] == "INT8"
    labels = tmp_path / "labels.nii.gz"
    sitk.WriteImage(to_sitk(phantom[1], phantom[0].grid), str(labels))
    code, out, _ = medquant("compare", tmp_path / "int8.zip", scan, "--labels", labels, "--report", tmp_path / "report")
    assert code == 0 and "INT8 share of work" in out and "against labels: mean Dice" in out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    jsonschema.validate(report, json.loads(resource("report.schema.json").read_text()))
    assert {r["precision"] for r in report["runs"]} == {"fp32", "int8"} and all(
        r["peak_memory_bytes"] > 1e7 for r in report["runs"]
    )
    assert report["sizes"]["ratio"] < 0.27
    page = re.sub(r"<script.*?</script>", "", (tmp_path / "report" / "report.html").read_text(), flags=re.DOTALL)
    assert (
        "What really ran in INT8" in page
        and "data:image/png;base64" in page
        and "http" not in page.split("</style>")[1].split("Machine and versions")[0]
    )


def test_a_draft_description_is_written_to_be_edited(medquant, tmp_path):
    code, out, _ = medquant("import", "onnx", resource("phantom_unet.onnx"), "-o", tmp_path / "mine")
    assert code == 0 and "mine.draft.json" in out
    assert json.loads((tmp_path / "mine.draft.json").read_text())["window"]["patch_size"] == [64, 80, 96]
    code, _, err = medquant("import", "onnx", resource("phantom_unet.onnx"), "-o", tmp_path / "mine")
    assert code == 2 and "there already" in err


def test_doctor_and_cache_answer_people_and_machines(medquant):
    code, out, _ = medquant("doctor")
    assert code == 0 and "engines" in out and "OpenVINO" in out
    value = json.loads(medquant("doctor", "--json")[1])
    assert value["engines"]["openvino"]["available"] and value["quantizer"]["available"]
    assert medquant("cache", "list")[0] == 0
    assert "engines" in json.loads(medquant("cache", "list", "--json")[1])


def test_every_command_has_help(capsys):
    for command in ("doctor", "demo", "import", "quantize", "build", "segment", "compare", "cache"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0 and "usage: medquant" in capsys.readouterr().out


def bad_scan(tmp_path, array, name="bad.nrrd", matrix=None):
    volume = Volume(array, np.diag([4.0, 4, 4, 1]) if matrix is None else matrix)
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(tmp_path / name))
    return tmp_path / name


def test_bad_scans_end_with_one_line_exit_code_2_and_no_file(medquant, int8_package, tmp_path):
    good = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    holes = good.copy()
    holes[3, 4, 5] = np.nan
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "text.nrrd").write_text("hello")
    scans = {
        tmp_path / "missing.nii": "no scan",
        tmp_path / "empty.nii": "empty",
        tmp_path / "text.nrrd": "cannot be read",
        bad_scan(tmp_path, holes, "nan.nrrd"): "NaN",
        bad_scan(tmp_path, np.ones((9, 9, 9), np.int16), "flat.nrrd"): "everywhere",
        bad_scan(tmp_path, good[:1], "slice.nrrd"): "single slice",
    }
    for path, problem in scans.items():
        code, out, err = medquant("segment", int8_package.folder, path, "-o", tmp_path / "out.seg.nrrd")
        assert code == 2 and out == "" and err.startswith("medquant: ") and err.count("\n") == 1
        assert problem in err and path.name in err
    two = ",".join([str(bad_scan(tmp_path, good))] * 2)
    code, _, err = medquant("segment", int8_package.folder, two, "-o", tmp_path / "out.seg.nrrd")
    assert code == 2 and "2 channel(s), but the network needs 1" in err
    assert not list(tmp_path.glob("out*"))


def test_a_volume_smaller_than_the_patch_is_segmented(medquant, int8_package, tmp_path):
    small = bad_scan(tmp_path, np.random.default_rng(0).normal(0, 200, (5, 9, 2)).astype(np.float32))
    assert medquant("segment", int8_package.folder, small, "-o", tmp_path / "out.nrrd")[0] == 0
    assert read_volume(tmp_path / "out.nrrd").data.shape == (1, 5, 9, 2)


def test_bad_outputs_are_refused_before_any_work(medquant, int8_package, scan, tmp_path):
    code, _, err = medquant("segment", int8_package.folder, scan, "-o", tmp_path / "out.txt")
    assert code == 2 and "no type" in err
    (tmp_path / "file").write_text("x")
    code, _, err = medquant("segment", int8_package.folder, scan, "-o", tmp_path / "file" / "out.nrrd")
    assert code == 5 and "Cannot write" in err
    code, _, err = medquant("segment", int8_package.folder, scan, "-o", "/proc/out.nrrd")
    assert code == 5
    (tmp_path / "kept.seg.nrrd").write_text("old result")
    code, _, _ = medquant("segment", int8_package.folder, tmp_path / "missing.nii", "-o", tmp_path / "kept.seg.nrrd")
    assert code == 2 and (tmp_path / "kept.seg.nrrd").read_text() == "old result"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "kept.seg.nrrd"]


def test_a_full_disk_is_said_in_words(medquant, int8_package, scan, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("MedQuantINT8Lib.imaging.segmentation_files.write_label_map", full)
    code, _, err = medquant("segment", int8_package.folder, scan, "-o", tmp_path / "out.nrrd")
    assert code == 5 and "no space left" in err and list(tmp_path.iterdir()) == []


def test_bad_networks_and_packages_are_refused(medquant, tmp_path):
    import onnx

    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(phantom_spec().to_json()))
    (tmp_path / "text.onnx").write_text("this is no network")
    (tmp_path / "cut.onnx").write_bytes(resource("phantom_unet.onnx").read_bytes()[:5000])
    model = onnx.load(str(resource("phantom_unet.onnx")))
    for axis in (2, 3, 4):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    onnx.save(model, str(tmp_path / "open.onnx"))
    for name in ("text.onnx", "cut.onnx", "missing.onnx"):
        code, _, err = medquant("import", "onnx", tmp_path / name, "--spec", spec, "-o", tmp_path / "package")
        assert code == 3 and err.count("\n") == 1 and name in err
    code, _, err = medquant("import", "onnx", tmp_path / "open.onnx", "-o", tmp_path / "package")
    assert code == 3 and "dynamic spatial shapes" in err and "--patch" in err
    code, _, err = medquant("quantize", tmp_path / "nothing", "--calibrate", tmp_path / "scan.nii")
    assert code == 3
    code, _, err = medquant(
        "quantize", tmp_path / "nothing", "--calibrate", tmp_path / "scan.nii", "--method", "minmax"
    )
    assert code == 2 and "minmax" in err
    assert not (tmp_path / "package").exists()


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY)}
    return subprocess.Popen(
        [sys.executable, "-m", "MedQuantINT8Lib.cli.main", *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.2, 2.5])
def test_an_interrupt_leaves_nothing_behind(fp32_package, scan, tmp_path, monkeypatch, seconds):
    """Ctrl-C during quantize and during build plus segment: exit code 130, no file, a valid cache."""
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "engines"))
    for arguments in (
        ("quantize", fp32_package.folder, "--calibrate", scan, "--patches", "500", "-o", tmp_path / "out"),
        (
            "segment",
            fp32_package.folder,
            scan,
            "--precision",
            "fp32",
            "--overlap",
            "0.95",
            "-o",
            tmp_path / "out.seg.nrrd",
        ),
    ):
        process = start(*arguments)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (130, -signal.SIGINT), err
        assert [p.name for p in tmp_path.iterdir() if p.name != "engines"] == []
    from MedQuantINT8Lib.engines import cache

    assert [p.name for p in (tmp_path / "engines").rglob(".*")] == []
    assert all(entry.bytes > 0 for entry in cache.entries())


def test_importing_the_library_is_light():
    """No torch, no engine, no ONNX at import; the segment road never loads torch, MONAI, ModelOpt or onnxruntime."""
    heavy = "{'torch', 'monai', 'modelopt', 'onnx', 'onnxruntime', 'openvino', 'SimpleITK', 'slicer', 'vtk'} & set(sys.modules)"
    code = f"import sys, MedQuantINT8Lib, MedQuantINT8Lib.cli.main; print(sorted({heavy}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_segmenting_with_a_cached_engine_loads_one_runtime_only(medquant, int8_package, scan, tmp_path):
    assert medquant("segment", int8_package.folder, scan, "-o", tmp_path / "first.nrrd")[0] == 0
    code = (
        "import sys; from MedQuantINT8Lib.cli.main import main; "
        f"code = main(['segment', {str(int8_package.folder)!r}, {str(scan)!r}, '-o', {str(tmp_path / 'out.nrrd')!r}, '--quiet']); "
        "print(code, sorted({'torch', 'monai', 'modelopt', 'onnxruntime', 'slicer'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.slow
def test_the_self_test_says_pass_or_fail_by_row(tmp_path, capsys):
    from MedQuantINT8Lib.cli.main import main

    assert main(["selftest", "--engine", "openvino", "--output", str(tmp_path), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert text.count("PASS") == 2 and "demo" in text and "% INT8" in text
    value = json.loads((tmp_path / "selftest.json").read_text())
    assert value["passed"] and {row["precision"] for row in value["rows"]} == {"int8", "fp32"}
    assert "passed" in (tmp_path / "selftest.html").read_text()
    assert main(["selftest", "--networks", "nonsense", "--output", str(tmp_path), "--quiet"]) == 2


@pytest.mark.slow
def test_a_self_test_that_fails_has_an_exit_code_and_a_reason(tmp_path, capsys, monkeypatch):
    from MedQuantINT8Lib.cli.main import main
    from MedQuantINT8Lib.evaluation import selftest

    monkeypatch.setitem(selftest.TOLERANCE, "fp32", 0.0)
    assert main(["selftest", "--engine", "openvino", "--output", str(tmp_path), "--quiet"]) == 4
    out = capsys.readouterr()
    assert "FAIL" in out.out and "differs from ONNX Runtime" in out.out and "self-test failed" in out.err
    assert not selftest._fault("fp32", {"relative_error": 0.0})
    good = {"verdict": "INT8", "int8_share": 1.0, "fidelity": {"trusted": True}, "fallback_layers": []}
    assert selftest._fault("int8", good) == ""
    for change, word in (
        ({"verdict": "mixed", "int8_share": 0.5}, "50 %"),
        ({"fidelity": None}, "simulation"),
        ({"fallback_layers": ["a"]}, "1 layer"),
    ):
        assert word in selftest._fault("int8", {**good, **change})
