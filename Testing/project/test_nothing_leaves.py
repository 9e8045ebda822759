"""Every command, watched from outside by its system calls: none asks for an address, connects to one, or leaves a note for later."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib import telemetry
from MedQuantINT8Lib.cli.parsers import parser
from MedQuantINT8Lib.resources import resource

#: A family of addresses that leave the machine; processes of one command may talk through AF_UNIX.
_OUTWARD = re.compile(r"connect\(\d+, \{sa_family=AF_INET6?.*|send(?:to|msg|mmsg)\(.*sa_family=AF_INET6?.*")
_FP32 = ("--engine", "onnxruntime", "--precision", "fp32")
#: Arguments after the command; SCAN and the like stand for what the fixture makes.
COMMANDS = {
    "doctor": [()],
    "models": [()],
    "package": [("demo", "--output", "OUT.zip", "--card")],
    "networks": [()],
    "cache": [("list",), ("clear",)],
    "import": [("onnx", "NETWORK", "--spec", "SPEC", "--output", "OUT")],
    "build": [("demo",)],
    "segment": [
        ("demo", "SCAN", "--output", "OUT.nii.gz", *_FP32),
        ("demo", "SCAN", "--output", "OUT.nii.gz", "--precision", "int8"),
    ],
    "quantize": [("demo", "--calibrate", "SCAN", "--patches", "2", "--no-fallback", "--output", "OUT")],
    "compare": [("demo", "SCAN", "--report", "OUT")],
    "differences": [("demo", "SCAN", "--output", "OUT")],
    "evaluate": [("demo", "--data", "SET", "--output", "OUT")],
    "selftest": [("--engine", "openvino", "--output", "OUT")],
    "demo": [("--output", "OUT")],
    "reproduce": [("--table", "networks", "--networks", "unet", "--output", "OUT")],
}
#: The demo does all that quantize, build, segment and compare do; what takes minutes under the watcher is left to ``make test-all``.
LONG = {"demo", "reproduce"}
QUICK = {"doctor", "models", "package", "networks", "cache"}


def cases():
    for command, several in COMMANDS.items():
        marks = [pytest.mark.long] if command in LONG else [] if command in QUICK else [pytest.mark.slow]
        for number, arguments in enumerate(several):
            yield pytest.param(command, arguments, id=f"{command}-{number}", marks=marks)


def test_every_command_is_among_them():
    subparsers = next(action for action in parser()._actions if action.dest == "command")
    assert set(subparsers.choices) == set(COMMANDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("made")
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 100, (24, 24, 24)).astype(np.int16))
    image.SetSpacing((4.0, 4.0, 4.0))
    sitk.WriteImage(image, str(folder / "scan.nii.gz"))
    labels = sitk.GetImageFromArray(np.ones((24, 24, 24), np.uint8))
    labels.CopyInformation(image)
    sitk.WriteImage(labels, str(folder / "labels.nii.gz"))
    (folder / "set.json").write_text(
        json.dumps({"name": "set", "cases": [{"name": "a", "image": "scan.nii.gz", "label": "labels.nii.gz"}]})
    )
    shutil.unpack_archive(resource("demo.zip"), folder / "demo", "zip")
    model = json.loads((folder / "demo" / "model.json").read_text())
    (folder / "spec.json").write_text(json.dumps({k: v for k, v in model.items() if k != "files"}))
    return {
        "SCAN": str(folder / "scan.nii.gz"),
        "SET": str(folder / "set.json"),
        "NETWORK": str(folder / "demo" / "model.onnx"),
        "SPEC": str(folder / "spec.json"),
    }


@pytest.mark.parametrize(("command", "arguments"), cases())
def test_no_command_asks_for_or_connects_to_an_address(made, tmp_path, command, arguments):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    out = {
        "OUT": str(tmp_path / "out"),
        "OUT.nii.gz": str(tmp_path / "out.nii.gz"),
        "OUT.zip": str(tmp_path / "out.zip"),
    }
    given = [{**made, **out}.get(argument, argument) for argument in arguments]
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in (*telemetry.SILENT, "MEDQUANT_CACHE", "CI")} | {
        "HOME": str(home)
    }
    watched = [
        strace,
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-s",
        "100",
        "-e",
        "trace=connect,sendto,sendmsg,sendmmsg",
        "-o",
        str(trace),
    ]
    done = subprocess.run(
        [*watched, sys.executable, "-m", "MedQuantINT8Lib.cli.main", command, *given, "-q"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not _OUTWARD.findall(trace.read_text(errors="replace"))
    foreign = [
        p
        for p in home.rglob("*")
        if p.is_file() and not re.search("medquant|fontconfig|mesa|matplotlib", str(p.relative_to(home)))
    ]
    assert not foreign, f"left for later: {foreign}"


def test_in_the_slicer_application_nothing_is_set_for_others(monkeypatch):
    from types import SimpleNamespace

    for name in telemetry.SILENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "slicer", SimpleNamespace(app=object()))
    telemetry.silence()
    assert not set(telemetry.SILENT) & set(os.environ)
    assert telemetry.silent({"A": "b"}) == {"A": "b", **telemetry.SILENT}
    monkeypatch.setitem(sys.modules, "slicer", SimpleNamespace())
    telemetry.silence()
    assert set(telemetry.SILENT) <= set(os.environ)


def test_the_watcher_sees_what_leaves(tmp_path):
    """A test that cannot fail proves nothing: a process that does connect is seen."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    code = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 9))"
    subprocess.run(
        [
            strace,
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-e",
            "trace=connect,sendto",
            "-o",
            str(trace),
            sys.executable,
            "-c",
            code,
        ],
        check=True,
    )
    assert _OUTWARD.findall(trace.read_text())
