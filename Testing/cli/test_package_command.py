"""Packages for others: written with a model card, got from a file or the web, and used without an import."""

from __future__ import annotations

import hashlib
import json
import zipfile

import numpy as np
import pytest

import tiny
import web_server
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines import cache
from MedQuantINT8Lib.files import sha256_file
from MedQuantINT8Lib.importers import catalogue
from MedQuantINT8Lib.importers.download import DownloadError
from MedQuantINT8Lib.models import installed
from MedQuantINT8Lib.models.package import ModelPackage
from MedQuantINT8Lib.progress import Task


@pytest.fixture
def server(monkeypatch):
    with web_server.running(monkeypatch) as running:
        yield running


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def published(tmp_path, capsys, monkeypatch):
    """A zip with an INT8 network and a card."""
    # Other tests compare engines of the same network, and a card tells of all that lie in the cache.
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "engines"))
    tiny.package(tmp_path / "own")
    target = tmp_path / "for others" / "tiny.zip"
    arguments = ["--card", "--training-data", "three scans | of <nobody>"]
    assert main(["package", str(tmp_path / "own" / "package"), "-o", str(target), *arguments]) == 0
    assert "README.md" in capsys.readouterr().out
    return target


def card_of(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read("README.md").decode()


def test_a_package_carries_a_card_with_what_it_knows_and_what_it_does_not(published):
    card = card_of(published)
    assert "- Training data: three scans | of &lt;nobody>" in card
    assert "- Origin: not stated" in card and "How it was calibrated is not recorded" in card
    assert "No engine of this INT8 network was compared" in card
    with ModelPackage.load(published) as package:
        assert package.has("model.int8.onnx") and package.has("README.md")


def test_the_demo_s_card_tells_its_calibration_and_the_engines_that_were_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "engines"))
    with ModelPackage.load(installed.resolve_one("demo")) as demo:
        digest, calibration = sha256_file(demo.onnx_path("int8")), demo.calibration()
    fidelity = {"relative_error": 0.0125, "label_disagreement": 0.0004, "trusted": True}
    for model, device in ((digest, "this one"), ("0" * 64, "another network's")):
        key = {"model": model, "engine": "openvino", "engine_version": "1", "device": device}
        cache.make(key, lambda folder: {"fidelity": fidelity, "int8_mac_share": 0.98})
    assert main(["package", "demo", "-o", str(tmp_path / "d.zip"), "--card", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["int8"] is True
    card = card_of(tmp_path / "d.zip")
    quantization = calibration["quantization"]
    assert f"- Calibrated on: {len(calibration['volumes'])} scans, {calibration['patches_used']} patches" in card
    assert f"{100 * quantization['int8_mac_share']:.1f} % of the multiply-accumulates" in card
    for layer in quantization["layers"]:
        assert (f"  - {layer['name']} (" in card) == (not layer["quantized"])
    assert "this one | 98.0 % | 0.0125 | 0.040 %" in card and "another network's" not in card


def test_a_package_is_got_from_a_file_after_its_license_and_used_by_name(published, models, capsys):
    assert main(["models", "get", str(published)]) == 2
    out, err = capsys.readouterr()
    assert "license" in out and "--accept-license" in err and not models.exists()
    assert main(["models", "get", str(published), "--accept-license"]) == 0
    assert "medquant segment tiny" in capsys.readouterr().out
    assert installed.resolve("tiny") == str(models / "tiny" / "package")
    assert main(["models", "show", "tiny", "--classes", "--json"]) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    with ModelPackage.load(models / "tiny" / "package") as package:
        assert [(row["value"], row["name"]) for row in classes] == [(x.value, x.name) for x in package.spec.labels]


def test_a_package_is_got_from_the_web_with_its_digest(published, models, server, capsys):
    server.content = published.read_bytes()
    get = ["models", "get", server.address + "/tiny.zip", "--accept-license", "-q"]
    assert main([*get, "--sha256", "0" * 64]) == DownloadError.exit_code
    assert "SHA256 differs" in capsys.readouterr().err and "tiny" not in installed.installed_models()
    assert main([*get, "--sha256", hashlib.sha256(server.content).hexdigest()]) == 0
    assert "tiny" in installed.installed_models() and not list((models / ".downloads").iterdir())
    server.content = b"no zip at all"
    assert main(["models", "get", server.address + "/other.zip", "--accept-license", "-q"]) == 3
    assert not list((models / ".downloads").iterdir())


def test_the_catalog_may_name_a_package_which_needs_no_import(published, models, server):
    from dataclasses import replace

    server.content = published.read_bytes()
    item = replace(
        catalogue.entry("vista3d"), name="small", form="package", url=server.address + "/tiny.zip", by_hand=""
    )
    packages = catalogue.install(item, None, Task())
    assert packages[0].has("model.int8.onnx") and list(installed.installed_models()) == ["demo", "small"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["package", "demo", "-o", "folder"], "no .zip"),
        (["package", "demo", "-o", "x.zip", "--training-data", "x"], "--card"),
        (["package", "demo", "-o", "x.zip", "--license-file", "missing"], "no file missing"),
        (["models", "list", "--classes"], "--classes is for: medquant models show"),
        (["models", "show", "demo", "--from", "x"], "--from is for: medquant models get"),
        (["models", "show", "vista3d", "--classes"], "not installed"),
        (["models", "get", "vista3d", "--sha256", "0"], "from the web"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, words, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (2, 3)
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_nobody_s_package_takes_the_demo_s_name(models, tmp_path, capsys):
    assert main(["package", "demo", "-o", str(tmp_path / "d.zip")]) == 0
    assert main(["models", "get", str(tmp_path / "d.zip"), "--accept-license"]) == 3
    assert "calls itself demo" in capsys.readouterr().err


def test_the_license_goes_with_the_package_and_its_text_is_not_changed(models, tmp_path):
    text = np.random.default_rng(0).bytes(64).hex()
    (tmp_path / "license.txt").write_text(text)
    arguments = ["-o", str(tmp_path / "d.zip"), "--license-file", str(tmp_path / "license.txt")]
    assert main(["package", "demo", *arguments]) == 0
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        assert archive.read("LICENSE").decode() == text
