"""What a command loads before it says anything: help is asked first, and answers at once. (The doctor: test_doctor.py.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from places import LIBRARY

#: Each of them takes longer to load than help may take.
HEAVY = (
    "numpy",
    "SimpleITK",
    "onnx",
    "onnxruntime",
    "openvino",
    "torch",
    "monai",
    "modelopt",
    "scipy",
    "jinja2",
    "tensorrt",
)

_RUN = """
import contextlib, io, json, sys
from MedQuantINT8Lib.cli.main import main
with contextlib.redirect_stdout(io.StringIO()) as said:
    try:
        code = main(sys.argv[1:])
    except SystemExit as stop:
        code = stop.code
print(json.dumps([code, len(said.getvalue()), sorted({name.split(".")[0] for name in sys.modules})]))
"""


def loaded_by(*arguments: str) -> set[str]:
    """The packages of a new Python process that ran a command."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
    )
    assert done.returncode == 0, done.stderr
    code, length, names = json.loads(done.stdout.splitlines()[-1])
    assert code in (0, None) and length > 100
    return set(names)


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["segment", "--help"]], ids=" ".join)
def test_help_loads_no_heavy_package(arguments):
    assert loaded_by(*arguments) & set(HEAVY) == set()
