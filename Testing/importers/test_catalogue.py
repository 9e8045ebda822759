"""The catalogue, and downloads from a server that breaks off, redirects, changes its files and lies about them."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import jsonschema
import pytest

import tiny
import web_server
from data_models import DATA
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import Cancelled, InputError
from MedQuantINT8Lib.importers import catalogue
from MedQuantINT8Lib.importers.download import Checksum, DownloadError, download
from MedQuantINT8Lib.models import installed
from MedQuantINT8Lib.models.spec_parser import parse_spec
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.resources import resource


@pytest.fixture
def server(monkeypatch):
    with web_server.running(monkeypatch) as running:
        yield running


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def fetch(server, target, path="/file", **options):
    events = []
    download(server.address + path, target, Task(events.append), wait=0.01, **options)
    return events


def test_broken_connections_are_taken_up_where_they_ended(server, tmp_path):
    server.cut = [300_000, 300_000]
    events = fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content
    assert [asked[1] for asked in server.asked] == [None, "bytes=300000-", "bytes=600000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert events[-1].done == events[-1].total == len(server.content) and any(
        e.seconds_left is not None for e in events
    )


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.cut = [300_000]
    server.fail = []
    task = Task(lambda event: task.cancel() if event.done > 200_000 else None)
    with pytest.raises(Cancelled):
        download(server.address + "/file", tmp_path / "file", task, wait=0.01)
    assert (tmp_path / "file.part").exists() and not (tmp_path / "file").exists()
    server.content, server.version, server.cut = b"another file" * 1000, '"2"', []
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_cancelled_download_goes_on_in_the_next_call(server, tmp_path):
    task = Task(lambda event: task.cancel() if event.done > 500_000 else None)
    with pytest.raises(Cancelled):
        download(server.address + "/file", tmp_path / "file", task)
    have = (tmp_path / "file.part").stat().st_size
    assert 0 < have < len(server.content)
    fetch(server, tmp_path / "file")
    assert server.asked[-1][1] == f"bytes={have}-" and (tmp_path / "file").read_bytes() == server.content


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server, tmp_path):
    server.fail = [503, 429]
    fetch(server, tmp_path / "file")
    assert len(server.asked) == 3
    server.fail = [404]
    with pytest.raises(DownloadError, match=r"404.*--from"):
        fetch(server, tmp_path / "other")
    assert len(server.asked) == 4 and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_no_server_is_said_with_the_way_out(tmp_path):
    with pytest.raises(DownloadError, match=r"cannot be reached.*proxy.*--from"):
        download("http://127.0.0.1:1/file", tmp_path / "file", Task(), wait=0.001)


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match="SHA256 differs"):
        fetch(server, tmp_path / "file", checksum=Checksum("sha256", "0" * 64))
    assert list(tmp_path.iterdir()) == []
    good = Checksum("sha1", hashlib.sha1(server.content).hexdigest())
    fetch(server, tmp_path / "file", checksum=good)


def test_redirects_are_followed_to_web_addresses_only(server, tmp_path):
    server.redirect = server.address + "/elsewhere"
    fetch(server, tmp_path / "file", "/moved")
    assert (tmp_path / "file").read_bytes() == server.content
    server.redirect = "ftp://127.0.0.1/file"
    with pytest.raises(DownloadError, match="not safe"):
        fetch(server, tmp_path / "other", "/moved")
    with pytest.raises(DownloadError, match="no web address"):
        download((tmp_path / "file").as_uri(), tmp_path / "other", Task())


def test_the_proxy_of_the_system_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    download("http://nowhere.invalid/file", tmp_path / "file", Task(), wait=0.01)
    assert server.asked[0][0] == "http://nowhere.invalid/file" and (tmp_path / "file").read_bytes() == server.content


def test_the_catalogue_fits_its_schema_and_its_descriptions_are_read():
    value = json.loads(resource("Models.json").read_text())
    jsonschema.validate(value, json.loads(resource("models.schema.json").read_text()))
    known = catalogue.entries()
    assert len(known) == len(value["models"])
    networks = {item.network for item in known.values()}
    assert {"U-Net", "nnU-Net", "SwinUNETR", "SegResNet", "UNesT", "VISTA3D"} <= networks
    for item in known.values():
        if item.form == "onnx":
            assert parse_spec(item.spec).name == item.name


@pytest.mark.data
def test_the_catalogue_is_up_to_date():
    from make_catalogue import catalogue as made

    assert json.loads(resource("Models.json").read_text()) == made(), "run: python tools/make_catalogue.py"


@pytest.fixture
def small_package(tmp_path):
    return tiny.package(tmp_path / "tiny")


def small_model(server, package, **changes):
    """A network of one layer as an entry of the catalogue, on the test's server."""
    server.content = package.onnx_path("fp32").read_bytes()
    item = catalogue.entry("brain_torchio_4mm")
    digest = Checksum("sha256", hashlib.sha256(server.content).hexdigest())
    return replace(
        item, name="small", url=server.address + "/small.onnx", checksum=digest, spec=package.spec.to_json(), **changes
    )


def test_a_model_is_got_used_by_name_and_removed(server, models, small_package, monkeypatch, capsys):
    item = small_model(server, small_package)
    monkeypatch.setattr(catalogue, "entries", lambda: {"small": item})
    assert main(["models", "get", "small", "-q"]) == 2
    out, err = capsys.readouterr()
    assert "MIT" in out and "--accept-license" in err and server.asked == [] and not models.exists()
    assert main(["models", "get", "small", "-q", "--accept-license"]) == 0
    assert installed.resolve("small") == str(models / "small" / "package")
    assert [p.name for p in (models / ".downloads").iterdir()] == []
    assert main(["models", "list"]) == 0
    listed = capsys.readouterr().out
    assert "* small" in listed and "* demo" in listed
    assert main(["models", "remove", "small"]) == 0 and list(installed.installed_models()) == ["demo"]
    with pytest.raises(InputError, match="part of the program"):
        installed.remove("demo")
    assert main(["models", "remove", "small"]) == 2
    with pytest.raises(InputError):
        installed.remove("..")


def test_a_model_is_installed_without_a_network(server, models, small_package, tmp_path, capsys):
    item = small_model(server, small_package)
    shutil.copy(small_package.onnx_path("fp32"), tmp_path / "by_hand.onnx")
    made = catalogue.install(item, tmp_path / "by_hand.onnx", Task())
    assert made[0].spec.name == "tiny" and server.asked == [] and (tmp_path / "by_hand.onnx").exists()
    (tmp_path / "by_hand.onnx").write_bytes(b"another")
    with pytest.raises(DownloadError, match=r"by_hand\.onnx is not the file"):
        catalogue.install(item, tmp_path / "by_hand.onnx", Task())
    with pytest.raises(InputError, match="cannot be downloaded.*export them"):
        catalogue.install(replace(item, url=None), None, Task())
    with pytest.raises(InputError, match="nothing at"):
        catalogue.install(item, tmp_path / "none.onnx", Task())


def test_unknown_models_bring_up_near_ones(models, capsys):
    assert main(["models", "show", "totalsegmentator_organs"]) == 2
    assert "totalsegmentator_part1_organs" in capsys.readouterr().err
    assert main(["models", "show", "vista3d"]) == 0
    assert "not for commercial use" in capsys.readouterr().out
    assert main(["models", "list", "swin"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.data
def test_a_pretrained_network_is_installed_from_its_file(models, capsys):
    path = DATA / "networks" / "brain_torchio_4mm.onnx"
    assert main(["models", "get", "brain_torchio_4mm", "--from", str(path), "--accept-license", "-q"]) == 0
    assert installed.resolve_one("brain_torchio_4mm").endswith("package")
