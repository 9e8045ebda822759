"""Model packages: what loads, and what is refused as unsafe or broken."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import zipfile

import jsonschema
import pytest

from data_models import specs
from make_schemas import SCHEMAS
from MedQuantINT8Lib.errors import PackageError, StorageError
from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.models.package import FP32, MODEL_JSON, ModelPackage, write_package
from MedQuantINT8Lib.models.spec_parser import parse_spec
from MedQuantINT8Lib.resources import resource
from places import NETWORKS

SCHEMA = json.loads(resource("model.schema.json").read_text())


@pytest.fixture
def package(fp32_package, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(fp32_package.folder, tmp_path / "package")
    return tmp_path / "package"


def change(package, edit):
    value = json.loads((package / MODEL_JSON).read_text())
    edit(value)
    (package / MODEL_JSON).write_text(json.dumps(value))


def test_published_schemas_are_up_to_date():
    for name, make in SCHEMAS.items():
        assert json.loads(resource(name).read_text()) == make(), "run: python tools/make_schemas.py"


@pytest.mark.parametrize("spec", [phantom_spec(), *specs().values()], ids=lambda s: s.name)
def test_descriptions_survive_json_and_fit_the_schema(spec):
    value = json.loads(json.dumps(spec.to_json()))
    jsonschema.validate(value, SCHEMA)
    assert parse_spec(value) == spec


def test_a_package_goes_through_a_zip_unchanged(fp32_package, tmp_path):
    fp32_package.save(tmp_path / "model.zip")
    with ModelPackage.load(tmp_path / "model.zip") as loaded:
        assert loaded.spec == fp32_package.spec
        assert loaded.hashes == fp32_package.hashes
        folder = loaded.folder
    assert not folder.exists()


SPOILED = {
    "modality": lambda v: v.pop("modality"),
    "axis_order": lambda v: v["geometry"].update(axis_order="JIK"),
    "orientation": lambda v: v["geometry"].update(orientation="RAX"),
    "spacing": lambda v: v["geometry"].update(spacing=[1, 1, 0]),
    "patch_size": lambda v: v["window"].update(patch_size=[64, 64]),
    "overlap": lambda v: v["window"].update(overlap=1.0),
    "kind": lambda v: v["normalization"][0].update(kind="magic"),
    "low": lambda v: v["normalization"][0].pop("low"),
    "activation": lambda v: v["output"].update(activation="relu"),
    "labels": lambda v: v.update(labels=[]),
    "value": lambda v: v["labels"][0].update(value=0),
    "color": lambda v: v["labels"][0].update(color=[1, 2, 300]),
    "meaning": lambda v: v["labels"][0]["terminology"]["type"].pop("meaning"),
    "surprise": lambda v: v.update(surprise=1),
    "name": lambda v: v.update(name="../up"),
}


@pytest.mark.parametrize("field", SPOILED)
def test_a_bad_field_is_named_and_the_schema_refuses_it_too(field):
    value = copy.deepcopy(phantom_spec().to_json())
    SPOILED[field](value)
    with pytest.raises(PackageError, match=field):
        parse_spec(value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(json.dumps(value)), SCHEMA)


def places(value, path=()):
    """The paths of everything that a description holds."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.parametrize("wrong", [True, -2, 0.5, 300, "magic", " ", [], [0, 1, 2], {}], ids=repr)
def test_what_the_schema_refuses_the_parser_refuses(wrong):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    original = json.loads(json.dumps(next(iter(specs().values())).to_json()))
    refused = 0
    for path in places(original):
        value = copy.deepcopy(original)
        holder = functools.reduce(lambda part, key: part[key], path[:-1], value)
        holder[path[-1]] = wrong
        if not validator.is_valid(value):
            refused += 1
            with pytest.raises(PackageError):
                parse_spec(value)
                pytest.fail(f"{path} was accepted")
    assert refused > 20


def test_labels_must_cover_the_networks_channels():
    value = phantom_spec().to_json()
    del value["labels"][2]
    with pytest.raises(PackageError, match="no label for output channel 3"):
        parse_spec(value)


def test_unknown_schema_version_says_which_are_known(package):
    change(package, lambda v: v.update(schema_version="9.0"))
    with pytest.raises(PackageError, match=r"9\.0.*1\.0"):
        ModelPackage.load(package)


def test_changed_missing_and_foreign_files_are_refused(package):
    (package / FP32).write_bytes((package / FP32).read_bytes() + b" ")
    with pytest.raises(PackageError, match="SHA-256"):
        ModelPackage.load(package)
    (package / FP32).unlink()
    with pytest.raises(PackageError, match="missing"):
        ModelPackage.load(package)
    change(package, lambda v: v["files"].update({"../secret": "0" * 64}))
    with pytest.raises(PackageError, match="may not hold"):
        ModelPackage.load(package)


def test_a_link_out_of_the_package_is_refused(package, tmp_path):
    (package / FP32).rename(tmp_path / "elsewhere.onnx")
    (package / FP32).symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(PackageError, match="missing"):
        ModelPackage.load(package)


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/tmp/model.onnx", "a/../../model.onnx", "..\\model.onnx", "code.py", "weights.pkl"]
)
def test_a_zip_may_not_climb_out_or_hold_other_things(fp32_package, tmp_path, name):
    fp32_package.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip", "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(PackageError, match="leaves the package|may not hold"):
        ModelPackage.load(tmp_path / "model.zip")


def test_what_is_no_package_is_refused(tmp_path):
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "empty").mkdir()
    for path, problem in (
        (tmp_path / "none", "no model package"),
        (tmp_path / "cut.zip", "no zip"),
        (tmp_path / "empty", "no model.json"),
    ):
        with pytest.raises(PackageError, match=problem):
            ModelPackage.load(path)
    (tmp_path / "empty" / MODEL_JSON).write_text("{ not json")
    with pytest.raises(PackageError, match="not valid JSON"):
        ModelPackage.load(tmp_path / "empty")


def test_writing_keeps_what_was_there_when_it_fails(fp32_package, package, tmp_path):
    before = sorted(p.name for p in package.iterdir())
    with pytest.raises(PackageError):
        write_package(package, fp32_package.spec, {"code.py": resource("phantom_unet.onnx")})
    with pytest.raises(StorageError):
        write_package(package, fp32_package.spec, {FP32: tmp_path / "is not there"})
    assert sorted(p.name for p in package.iterdir()) == before
    ModelPackage.load(package)
    assert [p.name for p in tmp_path.iterdir()] == ["package"]


def test_a_folder_with_other_things_is_not_overwritten(fp32_package, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PackageError, match="other things"):
        write_package(tmp_path, fp32_package.spec, {FP32: resource("phantom_unet.onnx")})
    assert (tmp_path / "thesis.txt").exists()


def test_no_network_tells_whose_machine_it_was_made_on(fp32_package):
    """torch's exporter writes its stack of calls, with paths, into every node."""

    shipped = [
        resource("phantom_unet.onnx"),
        *NETWORKS.glob("*.onnx"),
        fp32_package.onnx_path("fp32"),
    ]
    for path in shipped:
        content = path.read_bytes()
        assert b"stack_trace" not in content and b'.py"' not in content, path


def test_the_schema_says_what_each_normalization_computes():
    described = json.loads(resource("model.schema.json").read_text(encoding="utf-8"))["properties"]["normalization"]
    for kind in described["items"]["properties"]["kind"]["enum"]:
        assert f"'{kind}'" in described["description"], kind


def test_structures_without_colors_can_be_told_apart():
    value = json.loads(json.dumps(phantom_spec().to_json()))
    value["labels"] = [{"value": n, "name": f"structure {n}", "channel": n} for n in (1, 2, 3)]
    value["labels"][2]["color"] = [1, 2, 3]
    colors = [label.color for label in parse_spec(value).labels]
    assert len(set(colors)) == 3 and colors[2] == (1, 2, 3)
