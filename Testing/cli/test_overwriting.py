"""What is there already: replaced by the command that wrote it, by --force, or after a question; never otherwise. And names that mean two models."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.cli import overwriting
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.models import installed
from MedQuantINT8Lib.models.package import MODEL_JSON, ModelPackage, write_package
from MedQuantINT8Lib.resources import resource


@pytest.fixture(autouse=True)
def notes(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "ct.nii.gz"
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 200, (16, 16, 16)).astype(np.float32))
    image.SetSpacing((2.5, 2.5, 2.5))
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def medquant(capsys):
    def run(*arguments):
        code = main([*map(str, arguments), "--quiet"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def segment(medquant, fp32_package, scan):
    return lambda *more, model=fp32_package.folder: medquant(
        "segment", model, scan, "--engine", "onnxruntime", "--precision", "fp32", *more
    )


def work(command, *targets, text="new", force=False, json=False):
    args = argparse.Namespace(command=command, force=force, json=json)
    with overwriting.overwriting(args, targets):
        for target in targets:
            target.write_text(text)


def test_a_file_is_replaced_by_the_command_that_wrote_it_and_by_no_other(tmp_path, capsys):
    path = tmp_path / "report.json"
    work("compare", path)
    assert capsys.readouterr().err == ""
    work("compare", path, text="newer")
    assert capsys.readouterr().err == f"medquant: note: replaced {path}, which medquant compare had written before\n"
    with pytest.raises(InputError, match=r"report\.json is there already.*--force"):
        work("differences", path, text="lost")
    assert path.read_text() == "newer"
    work("differences", path, text="forced", force=True)
    assert path.read_text() == "forced" and "which was there already" in capsys.readouterr().err
    work("differences", path, text="again")
    assert path.read_text() == "again"


def test_what_was_changed_since_is_somebodys_work(tmp_path):
    path = tmp_path / "regions.csv"
    work("differences", path)
    path.write_text("with remarks")
    with pytest.raises(InputError, match="somebody changed it since"):
        work("differences", path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError):
        work("differences", path)
    assert path.read_text() == "with remarks"


def test_all_that_lies_in_a_folder_counts_links_too(tmp_path):
    folder = tmp_path / "package"
    (folder / "inner").mkdir(parents=True)
    args = argparse.Namespace(command="import", force=False, json=True)
    with overwriting.overwriting(args, [folder]):
        (folder / "model.json").write_text("{}")
    with overwriting.overwriting(args, [folder]):
        pass
    (folder / "inner" / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="link is there already"), overwriting.overwriting(args, [folder]):
        pytest.fail("the work began")


def test_a_question_is_asked_on_a_terminal_and_never_for_machines(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("mine")
    asked = []
    monkeypatch.setattr(overwriting, "ask", lambda question: asked.append(question) or len(asked) > 1)
    with pytest.raises(InputError):
        work("compare", path)
    assert path.read_text() == "mine" and asked[0].endswith("Replace it?")
    work("compare", path)
    assert path.read_text() == "new"
    path.write_text("mine")
    with pytest.raises(InputError):
        work("compare", path, json=True)
    assert len(asked) == 2


def test_a_failure_notes_only_what_was_written(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text("mine")
    args = argparse.Namespace(command="compare", force=True, json=False)
    with pytest.raises(RuntimeError), overwriting.overwriting(args, [first, second]):
        first.write_text("new")
        raise RuntimeError
    work("compare", first)
    with pytest.raises(InputError, match="second is there already"):
        work("compare", second)


def test_notes_are_bounded_name_no_file_and_may_be_missing_or_damaged(tmp_path, monkeypatch):
    path = tmp_path / "jane-doe.json"
    work("compare", path)
    notes = overwriting._notes()
    assert "jane" not in notes.read_text()
    notes.write_bytes(b"\xff\x00 nonsense\na b c d\n" + notes.read_bytes())
    work("compare", path)
    monkeypatch.setattr(overwriting, "_MOST_BYTES", 200)
    for _ in range(20):
        work("compare", path)
    assert notes.stat().st_size < 1000
    notes.unlink()
    notes.mkdir()
    with pytest.raises(InputError):
        work("compare", path)
    work("compare", path, force=True)


def test_a_segmentation_goes_beside_the_scan_under_a_free_name(segment, scan, tmp_path):
    for name in ("ct-phantom-unet.seg.nrrd", "ct-phantom-unet-2.seg.nrrd"):
        code, out, err = segment()
        assert code == 0 and err == "" and f"wrote {tmp_path / name}" in out
        assert sitk.ReadImage(str(tmp_path / name)).GetSize() == (16, 16, 16)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ct-phantom-unet-2.seg.nrrd",
        "ct-phantom-unet.seg.nrrd",
        "ct.nii.gz",
    ]


@pytest.mark.parametrize(
    ("scan", "model", "expected"),
    [
        ("a.b/CT 1.nii", "m", "CT 1-m.seg.nrrd"),
        ("x.seg.nrrd", "a/b:c\n", "x-a_b_c.seg.nrrd"),
        ("y" * 250 + ".nii.gz", "肝" * 250, "y" * 120 + "-" + "肝" * 26 + ".seg.nrrd"),
        ("x.nii.gz", "..", "x-model.seg.nrrd"),
    ],
)
def test_the_name_of_a_segmentation_says_what_it_is(scan, model, expected, tmp_path):
    assert overwriting.segmentation_beside(tmp_path / scan, model) == (tmp_path / scan).with_name(expected)


def test_a_folder_of_slices_gets_its_segmentation_beside_it(tmp_path, monkeypatch):
    (tmp_path / "1.2.840" / "inner").mkdir(parents=True)
    assert overwriting.segmentation_beside(tmp_path / "1.2.840", "m") == tmp_path / "1.2.840-m.seg.nrrd"
    monkeypatch.chdir(tmp_path / "1.2.840" / "inner")
    assert overwriting.segmentation_beside(".", "m") == tmp_path / "1.2.840" / "inner-m.seg.nrrd"
    assert overwriting.segmentation_beside("..", "m") == tmp_path / "1.2.840-m.seg.nrrd"


def test_segment_replaces_its_own_file_only(segment, tmp_path):
    out = tmp_path / "out.nii.gz"
    assert segment("-o", out)[0] == 0
    code, _, err = segment("-o", out, "--json")
    assert code == 0 and "replaced" in err
    out.write_bytes(b"corrected by hand")
    code, text, err = segment("-o", out)
    assert (
        code == 2
        and text == ""
        and err.count("\n") == 1
        and "--force" in err
        and out.read_bytes() == b"corrected by hand"
    )
    assert segment("-o", out, "--force")[0] == 0 and sitk.ReadImage(str(out)).GetSize() == (16, 16, 16)


def test_the_data_file_of_a_header_is_looked_at_as_well(segment, tmp_path):
    (tmp_path / "out.zraw").write_text("voxels of another image")
    code, _, err = segment("-o", tmp_path / "out.mhd")
    assert code == 2 and "out.zraw is there already" in err and not (tmp_path / "out.mhd").exists()


@pytest.fixture
def plain_package(tmp_path):
    """A package that nobody looks into: what is there already is told before a network is run."""
    network = resource("phantom_unet.onnx")
    write_package(tmp_path / "plain", phantom_spec(), {"model.onnx": network})
    return ModelPackage.load(tmp_path / "plain")


@pytest.fixture
def calibrated_package(tmp_path):
    network = resource("phantom_unet.onnx")
    write_package(tmp_path / "calibrated", phantom_spec(), {"model.onnx": network, "model.int8.onnx": network})
    return ModelPackage.load(tmp_path / "calibrated")


@pytest.fixture
def quick_import(monkeypatch):
    """Without running the network."""

    def write(imported, target, task, **_):
        write_package(target, imported.spec, {"model.onnx": imported.network})
        return ModelPackage.load(target)

    monkeypatch.setattr("MedQuantINT8Lib.importers.base.write", write)


def imported(medquant, target, *more):
    spec = target.parent / "spec.json"
    spec.write_text(json.dumps(phantom_spec().to_json()))
    return medquant("import", "onnx", resource("phantom_unet.onnx"), "--spec", spec, "-o", target, *more)


@pytest.mark.parametrize("name", ["model", "model.zip"])
def test_import_replaces_its_own_package_but_not_one_of_another_name(medquant, quick_import, name, tmp_path):
    target = tmp_path / name
    assert imported(medquant, target)[0] == 0
    code, _, err = imported(medquant, target)
    assert code == 0 and "which medquant import had written before" in err
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    write_package(target, replace(phantom_spec(), name="another"), {"model.onnx": resource("phantom_unet.onnx")})
    code, _, err = imported(medquant, target)
    assert code == 2 and "there already" in err
    with ModelPackage.load(target) as package:
        assert package.spec.name == "another"
    assert imported(medquant, target, "--force")[0] == 0
    with ModelPackage.load(target) as package:
        assert package.spec.name == phantom_spec().name


def test_import_takes_nothing_from_a_package_that_is_no_part_of_it(medquant, plain_package, quick_import):
    target = plain_package.folder
    (target / "notes.txt").write_text("mine")
    assert imported(medquant, target)[0] == 2 and (target / "notes.txt").read_text() == "mine"
    (target / "notes.txt").unlink()
    code, _, err = imported(medquant, target)
    assert code == 0 and "a package of the same name" in err


def test_a_draft_is_replaced_by_force_alone(medquant, tmp_path, monkeypatch):
    monkeypatch.setattr("MedQuantINT8Lib.child_process.run_in_child", lambda *_: phantom_spec())
    draft = tmp_path / "m.draft.json"
    draft.write_text("mine")
    assert (
        medquant("import", "onnx", resource("phantom_unet.onnx"), "-o", tmp_path / "m")[0] == 2
        and draft.read_text() == "mine"
    )
    assert medquant("import", "onnx", resource("phantom_unet.onnx"), "-o", tmp_path / "m", "--force")[0] == 0
    assert json.loads(draft.read_text())["window"]


def test_quantize_keeps_what_is_no_part_of_a_package_and_the_demo_as_it_is(
    medquant, calibrated_package, plain_package, scan, tmp_path
):
    calibrate = ("--calibrate", scan, "--patches", "1")
    code, _, err = medquant("quantize", "demo", *calibrate)
    assert code == 2 and "--output" in err
    mine = tmp_path / "mine"
    plain_package.save(mine)
    (mine / "notes.txt").write_text("mine")
    code, _, err = medquant("quantize", mine, *calibrate)
    assert code == 2 and "notes.txt is there already" in err and (mine / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    calibrated_package.save(other)
    for model in (plain_package.folder, other):
        code, _, err = medquant("quantize", model, *calibrate, "-o", other)
        assert code == 2 and "there already" in err
    assert (other / MODEL_JSON).read_bytes() == (calibrated_package.folder / MODEL_JSON).read_bytes()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("compare MODEL SCAN --report FOLDER", "report.html"), ("differences MODEL SCAN --output FOLDER", "differences.seg.nrrd"),
        ("selftest --output FOLDER", "selftest.json"), ("demo --output FOLDER", "model.zip"), ("reproduce --table sizes --output FOLDER", "sizes.md"),
        ("models get brain_torchio_4mm --accept-license", "brain_torchio_4mm/package/model.json"),
    ],
)  # fmt: skip
def test_every_command_that_writes_asks_first(command, name, medquant, calibrated_package, scan, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    monkeypatch.setenv("MEDQUANT_MODELS", str(folder))
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    words = {"MODEL": calibrated_package.folder, "SCAN": scan, "FOLDER": folder}
    code, _, err = medquant(*(words.get(word, word) for word in command.split()))
    assert code == 2 and f"{folder / name} is there already" in err and (folder / name).read_text() == "mine"
    assert [p for p in folder.rglob("*") if p.is_file()] == [folder / name]


def test_every_command_with_an_output_has_force():
    from MedQuantINT8Lib.cli.parsers import commands_of, parser

    for name, made in commands_of(parser()):
        options = made._option_string_actions
        assert ("--force" in options) == (bool({"--output", "--report"} & set(options)) or name == "models"), name


def test_an_installed_model_is_found_beside_a_folder_of_its_name(tmp_path, monkeypatch, fp32_package, medquant, scan):
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    for fold in ("fold_0", "fold_1"):
        fp32_package.save(tmp_path / "models" / "two" / fold)
    monkeypatch.chdir(tmp_path)
    both = ",".join(str(tmp_path / "models" / "two" / fold) for fold in ("fold_0", "fold_1"))
    demo = str(resource("demo.zip"))
    for name in ("demo", "two"):
        Path(name).mkdir()
    assert installed.resolve("demo") == demo and installed.resolve("two") == both and not installed.both_meant("demo")
    assert installed.resolve("demo,two") == f"{demo},{both}" and installed.resolve("elsewhere") == "elsewhere"
    with pytest.raises(InputError, match="several packages"):
        installed.resolve_one("two")
    Path("demo").rmdir()
    fp32_package.save("demo")
    assert installed.resolve("demo") == "demo"
    note = installed.both_meant("two,demo")
    assert str(tmp_path / "demo") in note and demo in note
    code, _, err = medquant(
        "segment", "demo", scan, "--engine", "onnxruntime", "--precision", "fp32", "-o", tmp_path / "x.nii.gz"
    )
    assert code == 0 and str(tmp_path / "demo") in err and demo in err
