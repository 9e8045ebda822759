"""What ``medquant import`` does beside understanding a network: another process, the next command, packages that are there already."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from MedQuantINT8Lib.child_process import can_cross, run_in_child
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import Cancelled, InputError, MedQuantError, PackageError
from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.models.package import CALIBRATION, FP32, INT8, ModelPackage
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.resources import resource
from MedQuantINT8Lib.system import library_environment


def add(a, b, *, task):
    with task.stage("adding", 1):
        print("strangers print what they like")
        task.step()
    return a + b, os.getpid()


def wait_for_ever(marker, *, task):
    Path(marker).write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


def fill_memory(*, task):
    kept = []
    while True:
        kept.append(bytearray(b"x" * (16 << 20)))


def fail(kind, *, task):
    if kind == "own":
        raise InputError("The scan is blue.", "Paint it.")
    if kind == "crash":
        os.abort()
    raise ZeroDivisionError("by nothing\nat all")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A zombie of a process that nobody waited for yet does nothing any more.
    return "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def wait_until(true) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def test_a_function_runs_in_another_process_and_tells_how_far_it_is():
    events = []
    result, pid = run_in_child(partial(add, 2, 3), Task(events.append), "The sum")
    assert result == 5 and pid != os.getpid() and [e.stage for e in events if e.total] == ["adding", "adding"]
    assert can_cross(partial(add, 2)) and not can_cross(lambda: 2)


def test_its_errors_are_this_programs_own_and_one_line():
    with pytest.raises(InputError, match="blue") as caught:
        run_in_child(partial(fail, "own"), Task(), "The trial")
    assert caught.value.hint == "Paint it."
    with pytest.raises(PackageError, match="ZeroDivisionError: by nothing") as caught:
        run_in_child(partial(fail, "other"), Task(), "The trial")
    assert "\n" not in str(caught.value)
    with pytest.raises(PackageError, match="The trial ended by itself, by signal 6"):
        run_in_child(partial(fail, "crash"), Task(), "The trial")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of another process without a package")
def test_it_may_not_take_all_memory():
    with pytest.raises(MedQuantError, match="are allowed"):
        run_in_child(fill_memory, Task(), "The export", memory_bytes=200 << 20)


def test_a_cancel_ends_it_although_it_never_asks(tmp_path):
    task, marker = Task(), tmp_path / "pid"

    def cancel():
        wait_until(lambda: marker.exists() and marker.read_text())
        task.cancel()

    threading.Thread(target=cancel).start()
    with pytest.raises(Cancelled):
        run_in_child(partial(wait_for_ever, str(marker)), task, "The export")
    assert gone(int(marker.read_text()))


SLOW = """
import os, pathlib, time, torch
class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 2, 1)
    def forward(self, x):
        pathlib.Path({marker!r}).write_text(str(os.getpid()))
        time.sleep(600)
        return self.conv(x)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_slow_export_and_leaves_nothing(tmp_path, how):
    marker, spec = tmp_path / "pid", phantom_spec().to_json()
    spec["labels"] = spec["labels"][:1]
    spec["window"].update(patch_size=[16, 16, 16], multiples=[1, 1, 1])
    (tmp_path / "slow.py").write_text(SLOW.format(marker=str(marker)))
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    before = sorted(p.name for p in tmp_path.iterdir())
    words = [
        "import",
        "python",
        "slow.py",
        "--class",
        "Slow",
        "--trust-code",
        "--spec",
        "spec.json",
        "-o",
        "package",
        "-q",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "MedQuantINT8Lib.cli.main", *words],
        cwd=tmp_path,
        env=library_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (marker.exists() and marker.read_text()) or process.poll() is not None)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    wait_until(lambda: gone(int(marker.read_text())))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "pid"])


# A package that is there already


@pytest.fixture
def quantized(tmp_path, monkeypatch):
    """The command that made a package, and the package, which was given an INT8 network since."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps(phantom_spec().to_json()))
    words = ["import", "onnx", str(resource("phantom_unet.onnx")), "--spec", "spec.json", "-o", "package", "-q"]
    assert main(words) == 0
    (tmp_path / "calibration.json").write_text("{}")
    with ModelPackage.load("package") as package:
        shutil.copy(package.folder / FP32, tmp_path / "int8.onnx")
        package.with_files("package", {INT8: tmp_path / "int8.onnx", CALIBRATION: tmp_path / "calibration.json"})
    return words


@pytest.mark.slow
def test_the_same_import_keeps_the_int8_network(quantized, capsys):
    value = phantom_spec().to_json()
    Path("spec.json").write_text(json.dumps({**value, "title": "another title"}))
    assert main(quantized) == 0
    assert "INT8 network that was there is kept" in capsys.readouterr().out
    package = ModelPackage.load("package")
    assert package.has(INT8) and package.has(CALIBRATION) and package.spec.title == "another title"


@pytest.mark.slow
def test_another_import_loses_it_only_by_force(quantized, capsys):
    value = phantom_spec().to_json()
    value["geometry"]["spacing"] = [5.0, 5.0, 5.0]
    Path("spec.json").write_text(json.dumps(value))
    assert main(quantized) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "another description" in error and "--force" in error
    assert ModelPackage.load("package").has(INT8)
    assert main([*quantized, "--force"]) == 0
    assert not ModelPackage.load("package").has(INT8)


# A description that is given replaces what need not be understood then


def description(patch, channels=1, **changes):
    from MedQuantINT8Lib.importers.onnx import draft_for

    return {**draft_for("mine", channels, 2, patch).to_json(), **changes}


@pytest.mark.slow
def test_a_description_replaces_what_plans_say_and_nobody_understands(tmp_path, monkeypatch, capsys):
    import numpy as np

    from MedQuantINT8Lib.engines.onnxruntime import session
    from nnunet_folders import checkpoint, dataset, plans, threshold_network, write_folder

    monkeypatch.chdir(tmp_path)
    module, architecture = threshold_network(0.5)
    plan = plans(architecture=architecture, normalization_schemes=["MyNormalization"], patch_size=[16, 16, 16])
    folder = write_folder(
        tmp_path, plan, dataset(labels={"nothing": 1}), {"fold_0/checkpoint_final.pth": checkpoint(module)}
    )
    words = ["import", "nnunet", str(folder), "-o", "package", "-q"]
    assert main(words) == 3 and not Path("package").exists()
    Path("spec.json").write_text(json.dumps(description((16, 16, 16))))
    capsys.readouterr()
    assert main([*words, "--spec", "spec.json"]) == 0, capsys.readouterr().err
    assert "described by hand, in place of: " in capsys.readouterr().out
    x = np.random.default_rng(0).random((1, 1, 16, 16, 16)).astype(np.float32)
    run = session((Path("package") / FP32).read_bytes(), "fp32")
    got = run.run(None, {run.get_inputs()[0].name: x})[0]
    assert np.allclose(got[:, 1], 10 * x[:, 0] - 5, atol=1e-3) and ModelPackage.load("package").spec.name == "mine"


def test_a_description_replaces_what_auto3dseg_says_and_nobody_understands(tmp_path):
    from auto3dseg_models import model
    from MedQuantINT8Lib.importers import auto3dseg
    from MedQuantINT8Lib.models.spec_parser import parse_spec

    folder = model(tmp_path, normalize_mode="magic")
    with pytest.raises(PackageError, match="magic"):
        auto3dseg.understand(folder)
    spec = parse_spec(description((24, 24, 16)))
    found = auto3dseg.understand(folder, spec=spec)
    assert found.spec == spec and found.by_hand and "magic" in found.notes[0]
    assert sum(p.numel() for p in found.network().parameters()) > 0
