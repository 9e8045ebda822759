"""task.json: what may stand in it, and tasks of any content, which end in one error of this program's own."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import jsonschema
import pytest

from MedQuantINT8Lib.errors import InputError, PackageError
from MedQuantINT8Lib.models.installed import holds_int8, installed_models, resolve, resolve_one
from MedQuantINT8Lib.models.package import ModelPackage
from MedQuantINT8Lib.models.task import TASK_JSON, parse_task
from MedQuantINT8Lib.models.task_package import TaskPackage, describe, is_task, peek_task
from MedQuantINT8Lib.models.task_writing import merged_task, write_task
from MedQuantINT8Lib.resources import resource
from task_packages import three_parts

SCHEMA = json.loads(resource("task.schema.json").read_text())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return three_parts(tmp_path_factory.mktemp("three"))


@pytest.fixture
def task(original, tmp_path):
    """A copy of the task that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "task"))


def value_of(task: Path) -> dict:
    return json.loads((task / TASK_JSON).read_text())


FULL = {
    "find": [
        {
            "name": "body",
            "installed": "bodies",
            "labels": [{"value": 1, "name": "body"}],
            "structures": ["body"],
            "margin_mm": 10,
        },
        {
            "name": "organ",
            "packages": ["packages/dim"],
            "structures": ["grey"],
            "nothing_found": "whole_scan",
            "within": "body",
        },
    ],
    "merge_order": ["brightest", "bright", "dim"],
    "cleaning": [{"kind": "largest", "labels": [1]}],
    "citation": "A",
    "title": "B",
    "description": "C",
    "source_url": "D",
}


def test_a_task_survives_json_and_fits_the_schema(task):
    spec = parse_task(value_of(task) | FULL)
    jsonschema.validate(json.loads(json.dumps(spec.to_json())), SCHEMA)
    assert parse_task(spec.to_json()) == spec
    assert spec.find[1].within == "body" and spec.find[0].margin_mm == 10.0


BY_HAND = {
    "name": "../up",
    "structures": [],
    "parts": [],
    "channels": [],
    "extra": 1,
    "merge_order": [3],
    "find": [{"name": "x", "installed": "y", "margin_mm": -1}],
}


@pytest.mark.parametrize("field", BY_HAND)
def test_a_bad_field_is_named_and_the_schema_refuses_it_too(task, field):
    value = value_of(task) | {field: BY_HAND[field]}
    with pytest.raises(PackageError, match=field):
        parse_task(value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, SCHEMA)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"structures": [{"value": 1, "name": "a"}, {"value": 1, "name": "b"}]}, "use a value twice"),
        ({"structures": [{"value": 1, "name": "a"}, {"value": 2, "name": "a"}]}, "use a name twice"),
        ({"structures": [{"value": 70000, "name": "a"}]}, "above 65535"),
        ({"parts": [{"name": "a", "packages": ["p"]}, {"name": "a", "packages": ["q"]}]}, "'a' is used twice"),
        ({"parts": [{"name": "a"}]}, "needs 'packages' or 'installed'"),
        ({"parts": [{"name": "a", "packages": ["p"], "installed": "q"}]}, "and not both"),
        ({"parts": [{"name": "a", "packages": ["p", "p"]}]}, "names a package twice"),
        ({"parts": [{"name": "a", "packages": ["../p"]}]}, "a path inside the task"),
        ({"parts": [{"name": "a", "packages": ["/p"]}]}, "a path inside the task"),
        ({"parts": [{"name": "a", "packages": ["p"], "within": "b"}]}, "no step of 'find'"),
        (
            {"parts": [{"name": "a", "packages": ["p"], "labels": [{"value": 1, "name": "liver"}]}]},
            "'liver', which is none of",
        ),
        ({"find": [{"name": "f", "installed": "m", "within": "f"}]}, "no earlier step"),
        (
            {"find": [{"name": "f", "installed": "m", "labels": [{"value": 1, "name": "x"}], "structures": ["y"]}]},
            "not among its 'labels'",
        ),
        ({"merge_order": ["dim"]}, "must name every part once"),
        ({"cleaning": [{"labels": [99]}]}, "value 99"),
        ({"cleaning": [{"where": "network"}]}, "not in network space"),
        ({"schema_version": "9.0"}, "schema version '9.0'"),
        ({"schema": "medquant-model"}, "schema version"),
    ],
)
def test_what_does_not_go_together_is_refused(task, change, said):
    with pytest.raises(PackageError, match=said):
        parse_task(value_of(task) | change)


def test_a_zip_is_the_task(task, tmp_path):
    with TaskPackage.load(task) as package:
        package.save(tmp_path / "task.zip")
        spec = package.spec
    assert is_task(tmp_path / "task.zip") and is_task(task) and is_task(task / TASK_JSON)
    assert peek_task(tmp_path / "task.zip") == describe(tmp_path / "task.zip") == spec
    with TaskPackage.load(tmp_path / "task.zip") as package:
        folder = package.folder
        assert package.spec == spec
        ModelPackage.load(folder / "packages" / "dim").close()
    assert not folder.exists()


def test_a_zip_of_the_folder_is_the_task(task, tmp_path):
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "task")
    with TaskPackage.load(tmp_path / "packed.zip") as package:
        assert package.spec == peek_task(task)


def spoil_digest(task: Path) -> None:
    path = task / "packages" / "dim" / "model.json"
    path.write_text(path.read_text().replace('"version": "1"', '"version": "2"'))


def foreign_file(task: Path) -> None:
    value = value_of(task)
    value["files"]["run.py"] = "0" * 64
    (task / TASK_JSON).write_text(json.dumps(value))


def linked_package(task: Path) -> None:
    elsewhere = task.parent / "elsewhere"
    (task / "packages" / "dim").rename(elsewhere)
    (task / "packages" / "dim").symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_digest, "SHA-256"),
        (foreign_file, "'files' must list"),
        (linked_package, "is missing"),
        (lambda task: (task / "packages" / "dim" / "model.json").unlink(), "is missing"),
        (lambda task: (task / TASK_JSON).write_text("{"), "not valid JSON"),
        (lambda task: (task / TASK_JSON).write_text("[" * 100000), "not valid JSON"),
        (lambda task: (task / TASK_JSON).write_text("7"), "must be an object"),
        (lambda task: (task / TASK_JSON).unlink(), "is no task"),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
)
def test_a_spoiled_task_is_one_error(task, spoil, said):
    spoil(task)
    with pytest.raises(PackageError, match=said) as error:
        TaskPackage.load(task)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["../up.txt", "run.py", "packages/dim/run.py", "packages/other/model.json", "/root.txt"]
)
def test_a_zip_with_anything_else_is_refused(task, tmp_path, name):
    with TaskPackage.load(task) as package:
        package.save(tmp_path / "task.zip")
    with zipfile.ZipFile(tmp_path / "task.zip", "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(PackageError):
        TaskPackage.load(tmp_path / "task.zip")
    assert not (tmp_path / "up.txt").exists()


def test_a_damaged_network_is_found_when_it_is_loaded(task):
    from MedQuantINT8Lib.inference.task_model import load_model

    (task / "packages" / "dim" / "model.onnx").write_bytes(b"x")
    with load_model(str(task)) as model, pytest.raises(PackageError, match="damaged"):
        model.ensemble(model.spec.parts[0])


# ---- made of packages, installed


def test_packages_become_a_task_by_the_names_of_their_labels(task, tmp_path):
    parts = {"a": [task / "packages" / "dim"], "b": [task / "packages" / "bright", task / "packages" / "bright"]}
    spec, packages = merged_task("both", parts, title="Both")
    assert [(s.value, s.name) for s in spec.structures] == [(1, "shadow"), (2, "grey"), (3, "light"), (4, "white")]
    assert spec.parts[1].packages == ("packages/b-0", "packages/b-1") and spec.title == "Both"
    written = write_task(tmp_path / "both.zip", spec, packages)
    with written:
        assert written.spec == spec
    with pytest.raises(PackageError, match="has no part"):
        merged_task("none", {})


def test_a_folder_with_other_things_is_not_replaced(task, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    spec, packages = merged_task("both", {"a": [task / "packages" / "dim"]})
    with pytest.raises(PackageError, match="other things"):
        write_task(tmp_path / "mine", spec, packages)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_an_installed_task_is_named_as_a_model_is(task, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    shutil.copytree(task / "packages" / "dim", tmp_path / "models" / "dim" / "package")
    shutil.copytree(task, tmp_path / "models" / "together")
    assert installed_models()["together"] == [tmp_path / "models" / "together"]
    assert resolve("together") == str(tmp_path / "models" / "together")
    assert holds_int8(installed_models()["together"])
    with pytest.raises(InputError, match="is a task of several networks"):
        resolve_one("together")


def test_a_task_of_a_task_is_refused(task, tmp_path, monkeypatch):
    from MedQuantINT8Lib.inference.task_model import load_model

    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    shutil.copytree(task, tmp_path / "models" / "together")
    value = value_of(task) | {"parts": [{"name": "all", "installed": "together"}], "files": {}}
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / TASK_JSON).write_text(json.dumps(value))
    with load_model(str(tmp_path / "outer")) as model, pytest.raises(PackageError, match="which is a task itself"):
        model.ensemble(model.spec.parts[0])
