"""Tasks, structures and regions as a user meets them: on the command line, and in the worker."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.cli.arguments import region
from MedQuantINT8Lib.imaging.volume import to_sitk
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.inference import pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.inference.task_model import load_model, require_int8
from MedQuantINT8Lib.models.installed import holds_int8
from MedQuantINT8Lib.models.package import FP32, INT8, ModelPackage, write_package
from MedQuantINT8Lib.models.task_package import TaskPackage, peek_task
from MedQuantINT8Lib.models.task_writing import write_task
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.worker.client import WorkerClient
from task_packages import spotted, three_parts

CHOICE = EngineChoice("onnxruntime", "fp32", 1, "cpu")
HOW = ("--engine", "onnxruntime", "--precision", "fp32", "--threads", "1")
ROI = (4.0, 19.0, 2.0, 17.0, 4.0, 11.0)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A task of three parts, in a folder with a space in its name."""
    return three_parts(tmp_path_factory.mktemp("my tasks"))


@pytest.fixture
def scan(tmp_path):
    volume = spotted()
    path = tmp_path / "my scan.nrrd"
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(path))
    return path


def expected(together, **options):
    with load_model(str(together)) as model:
        return pipeline.segment(model, spotted(), CHOICE, SegmentationOptions(**options), Task()).result.labels


def test_a_task_is_run_by_its_folder_its_zip_and_its_installed_name(medquant, together, scan, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    with TaskPackage.load(together) as package:
        package.save(tmp_path / "my task.zip")
    code, _, err = medquant("models", "get", tmp_path / "my task.zip", "--accept-license", "-q")
    assert code == 0, err
    labels = expected(together)
    for n, model in enumerate((together, together / "task.json", tmp_path / "my task.zip", "together")):
        output = tmp_path / f"{n}.nii.gz"
        code, out, err = medquant("segment", model, scan, "-o", output, "--json", *HOW)
        assert code == 0, err
        np.testing.assert_array_equal(read_volume(output).data[0], labels)
        value = json.loads(out)
        assert [part["name"] for part in value["parts"]] == ["dim", "bright", "brightest"]
        assert [s["name"] for s in value["structures"]] == ["white", "light", "grey", "shadow", "glow"]
    code, out, _ = medquant("models", "list", "together")
    assert code == 0 and "* together" in out
    code, out, _ = medquant("models", "show", "together")
    assert code == 0 and "runs      brightest: packages/brightest" in out
    assert medquant("models", "remove", "together")[0] == 0


def test_structures_and_a_region(medquant, together, scan, tmp_path):
    output = tmp_path / "out.seg.nrrd"
    low, high = [-ROI[1], -ROI[3], ROI[4]], [-ROI[0], -ROI[2], ROI[5]]
    center, size = (
        [(a + b) / 2 for a, b in zip(low, high, strict=True)],
        [b - a for a, b in zip(low, high, strict=True)],
    )
    box = f"LPS:center={','.join(map(str, center))},size={','.join(map(str, size))}"
    code, out, err = medquant(
        "segment", together, scan, "-o", output, "--json", "--structures", "glow, grey", "--roi", box, *HOW
    )
    assert code == 0, err
    value = json.loads(out)
    assert [part["name"] for part in value["parts"]] == ["dim", "brightest"]
    assert value["boxes"][0]["name"] == "region of interest" and value["boxes"][0]["start"] == [4, 2, 4]
    assert [s["name"] for s in value["structures"]] == ["grey", "glow"]
    np.testing.assert_array_equal(
        read_volume(output).data[0] > 0, expected(together, structures=("grey", "glow"), roi=ROI) > 0
    )


def test_what_cannot_be_is_one_line_and_nothing_is_written(medquant, together, scan, tmp_path):
    output = tmp_path / "out.nii.gz"
    for words, said in (
        (["--structures", "liver"], "together does not know 'liver'"),
        (["--structures", " , "], "names nothing"),
        (["--roi", "RAS:900,910,0,5,0,5"], "holds no voxel of"),
        (["--mirroring"], "No network of together allows mirroring"),
    ):
        code, _, err = medquant("segment", together, scan, "-o", output, *words, *HOW)
        assert code == 2 and said in err and err.count("\n") == 1, err
    shutil.copytree(together, tmp_path / "broken")
    (tmp_path / "broken" / "packages" / "bright" / "model.onnx").write_bytes(b"x")
    code, _, err = medquant("segment", tmp_path / "broken", scan, "-o", output, *HOW)
    assert code == 3 and "damaged" in err and err.count("\n") == 1
    code, _, err = medquant("compare", together, scan)
    assert code == 2 and "is a task of several networks" in err, err
    code, _, err = medquant("segment", "total", scan, "-o", output)
    assert code == 2 and "The model total is not installed. Get it with: medquant models get total" in err
    assert not output.exists()


@pytest.mark.parametrize(
    "text",
    ["1,2,3,4,5,6", "XYZ:1,2,3,4,5,6", "RAS:1,2,3,4,5", "RAS:2,1,3,4,5,6", "RAS:a,2,3,4,5,6", "LPS:center=1,2,3", "RAS:nan,2,3,4,5,6",
     "RAS:size=1,2,3,center=1,2,3", "RAS:center=1,2,3,size=4,-5,6"],
)  # fmt: skip
def test_a_box_that_is_none_is_refused_with_what_it_may_be(text):
    import argparse

    with pytest.raises(argparse.ArgumentTypeError, match="is no box"):
        region(text)


def test_differences_of_a_task_between_its_precisions(medquant, together, scan, tmp_path):
    pytest.importorskip("jinja2", reason="writes a page")
    code, out, err = medquant(
        "differences",
        together,
        scan,
        "-o",
        tmp_path / "out",
        "--json",
        "--engine",
        "onnxruntime",
        "--structures",
        "glow",
    )
    assert code == 0, err
    value = json.loads(out)
    assert [s["name"] for s in value["structures"]] == ["glow"]
    assert [run["parts"][0]["name"] for run in value["runs"].values()] == ["brightest", "brightest"]


def test_many_scans_with_a_task(medquant, together, scan, tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("a.nrrd", "b.nrrd"):
        shutil.copy(scan, tmp_path / "scans" / name)
    arguments = ("segment", together, tmp_path / "scans", "-o", tmp_path / "out", "--type", "nii.gz")
    code, _, err = medquant(*arguments, "--structures", "glow,grey", "--roi", "RAS:4,19,2,17,4,11", "-q", *HOW)
    assert code == 0, err
    for name in ("a", "b"):
        labels = read_volume(tmp_path / "out" / f"{name}.nii.gz").data[0]
        np.testing.assert_array_equal(labels, expected(together, structures=("grey", "glow"), roi=ROI))
    # Other structures are another run.
    code, _, err = medquant(*arguments, "--structures", "grey", "-q", *HOW)
    assert code == 2 and "structures" in err


def test_the_worker_takes_a_task_with_every_choice(together, tmp_path):
    copy = shutil.copytree(together, tmp_path / "copy")
    options = SegmentationOptions(check_ranges=False)
    with WorkerClient() as client:
        result = client.segment(str(copy), spotted(), CHOICE, options, Task())
        np.testing.assert_array_equal(result.labels, expected(together))
        assert [part["name"] for part in result.report["parts"]] == ["dim", "bright", "brightest"]
        # The engines of all three are kept.
        assert client.ping()["engines"] == 3
        chosen = replace(options, structures=("grey", "glow"), roi=ROI)
        result = client.segment(str(copy), spotted(), CHOICE, chosen, Task())
        np.testing.assert_array_equal(result.labels, expected(together, structures=("grey", "glow"), roi=ROI))
        assert result.report["boxes"][0]["name"] == "region of interest"
        # A task that was changed is read anew.
        value = json.loads((copy / "task.json").read_text())
        (copy / "task.json").write_text(json.dumps({**value, "merge_order": ["brightest", "bright", "dim"]}))
        result = client.segment(str(copy), spotted(), CHOICE, options, Task())
        assert not np.array_equal(result.labels, expected(together))


def test_the_engine_of_every_network_is_built(medquant, together):
    code, out, err = medquant("build", together, "--json", *HOW)
    assert code == 0, err
    built = json.loads(out)["networks"]
    assert [network["network"] for network in built] == ["dim", "bright", "brightest"]
    assert len({network["folder"] for network in built}) == 3
    code, out, err = medquant("build", together / "packages/dim", *HOW)
    assert code == 0 and out.startswith("found "), err


def without_int8(together, target, installed=None):
    """The task with networks in FP32 alone; ``installed`` is the part that is an installed model."""
    spec = peek_task(together)
    places = {}
    for path in spec.package_paths:
        with ModelPackage.load(together / path) as package:
            write_package(target.parent / "fp32" / path, package.spec, {FP32: package.folder / FP32})
            places[path] = target.parent / "fp32" / path
    if installed:
        parts = [
            replace(part, packages=(), installed=installed) if part.name == installed else part for part in spec.parts
        ]
        spec = replace(spec, parts=tuple(parts))
        places.pop(f"packages/{installed}")
    write_task(target, spec, places)
    return target


def test_every_network_of_a_task_is_quantized(medquant, together, scan, tmp_path, monkeypatch):
    """What is done for each package is tested elsewhere; here that each gets it, and that the task is whole again."""
    from MedQuantINT8Lib.cli import quantize

    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    task = without_int8(together, tmp_path / "task", installed="bright")
    shutil.copytree(tmp_path / "fp32" / "packages" / "bright", tmp_path / "models" / "bright" / "package")
    asked = []

    def one(args, progress, choices, model, target, scans=None):
        name = Path(model).name
        asked.append(name if name != "package" else Path(model).parent.name)
        with ModelPackage.load(model) as package:
            package.with_files(target, {INT8: together / "packages" / package.spec.name / INT8}).close()
        return {"package": target}, [f"wrote {target}: quantized"]

    monkeypatch.setattr(quantize, "_quantize", one)
    assert not holds_int8([task])
    code, _, err = medquant("quantize", task, "--calibrate", scan, "--output", tmp_path / "other")
    assert code == 2 and "in place" in err
    code, _, err = medquant("quantize", task, "--calibrate", scan, "--labels", scan)
    assert code == 2 and "single network" in err and asked == []
    code, out, err = medquant("quantize", task, "--calibrate", scan)
    assert code == 0, err
    assert asked == ["dim", "brightest", "bright"] and holds_int8([task])
    assert f"wrote {task}/packages/dim: quantized" in out
    with load_model(str(task)) as model:
        require_int8(model)
    # Into another place, the task itself staying as it is.
    task = without_int8(together, tmp_path / "second" / "task")
    code, _, err = medquant("quantize", task, "--calibrate", scan, "--output", tmp_path / "int8.zip")
    assert code == 0, err
    assert not holds_int8([task])
    with load_model(str(tmp_path / "int8.zip")) as model:
        require_int8(model)


@pytest.mark.slow
def test_a_task_is_really_quantized(medquant, together, scan, tmp_path):
    pytest.importorskip("modelopt", reason="needs ModelOpt, which quantizes")
    task = without_int8(together, tmp_path / "task")
    arguments = ("quantize", task, "--calibrate", scan, "--without-engine", "--agreement", "0", "-q", "--patches", "2")
    code, _, err = medquant(*arguments)
    assert code == 0, err
    code, _, err = medquant(
        "segment", task, scan, "-o", tmp_path / "o.nii.gz", "--engine", "onnxruntime", "--precision", "int8"
    )
    assert code == 0, err
