"""How scans are read, as the user chose it, reaches every command that reads them, the processes that these start, and the worker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dicom_files import write_series
from MedQuantINT8Lib.cli import compare
from MedQuantINT8Lib.cli.common import reader_of
from MedQuantINT8Lib.cli.parsers import parser
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.volume_files import ReadOptions
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.worker import tasks as worker_tasks

COMMANDS = {
    "segment": ["M", "S", "--output", "o.nrrd"],
    "build": ["M", "--scan", "S"],
    "quantize": ["M", "--calibrate", "S"],
    "compare": ["M", "S"],
    "differences": ["M", "S"],
    "evaluate": ["M", "--data", "D"],
}
GIVEN = ["--allow-gaps", "--allow-tilt", "--nifti-form", "qform"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_scans_reads_them_as_it_is_told(command):
    args = parser().parse_args([command, *COMMANDS[command], *GIVEN])
    assert reader_of(args, Task()).options == ReadOptions(None, True, True, "qform")
    args = parser().parse_args([command, *COMMANDS[command]])
    assert reader_of(args, Task()).options == ReadOptions()


def test_the_processes_that_compare_starts_read_as_it_is_told(monkeypatch):
    asked = []
    monkeypatch.setattr(compare, "_run_command", lambda arguments, task: asked.append(arguments) or {})
    args = parser().parse_args(["compare", *COMMANDS["compare"], *GIVEN])
    compare._segment_in_own_process(args, SimpleNamespace(folder=Path("M")), "S", "fp32", Path("o.nrrd"), Task())
    assert [arguments[0] for arguments in asked] == ["build", "segment"]
    for arguments in asked:
        again = parser().parse_args(arguments)
        assert reader_of(again, Task()).options == ReadOptions(None, True, True, "qform")


def test_the_worker_reads_as_it_is_told():
    assert worker_tasks._reading(
        {"reading": {"series": "1.2", "allow_gaps": True, "allow_tilt": False, "nifti_form": "sform"}}
    ) == ReadOptions("1.2", True, False, "sform")
    assert worker_tasks._reading({}) == ReadOptions()


def test_what_was_mended_is_a_note_of_the_run(tmp_path, fp32_package, capsys):
    from MedQuantINT8Lib.cli.main import main

    slices = np.random.default_rng(0).integers(0, 200, (12, 24, 24)).astype(np.int16)
    kept = [k for k in range(12) if k not in (4, 5)]
    write_series(tmp_path / "s", slices[kept], [(0, 0, 3.0 * k) for k in kept])
    arguments = [
        "segment",
        str(fp32_package.folder),
        str(tmp_path / "s"),
        "-o",
        str(tmp_path / "o.nrrd"),
        "--engine",
        "onnxruntime",
        "--precision",
        "fp32",
        "-q",
    ]
    assert main(arguments) == InputError.exit_code
    assert "2 of 12 slices are missing" in capsys.readouterr().err and not (tmp_path / "o.nrrd").exists()
    assert main([*arguments, "--allow-gaps"]) == 0
    assert "note: " in (said := capsys.readouterr().out) and "interpolated (--allow-gaps)" in said
