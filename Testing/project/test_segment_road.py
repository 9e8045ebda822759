"""Segmenting needs nothing of what makes INT8 networks: neither the importers nor quantization, nor what they need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny
from MedQuantINT8Lib.imaging.nifti_file import write_nifti
from MedQuantINT8Lib.inference.activation_sizes import activation_bytes
from MedQuantINT8Lib.models.package import ModelPackage
from places import LIBRARY

#: What the build road alone, and what writes pages, may load.
FOREIGN = ("MedQuantINT8Lib.importers", "MedQuantINT8Lib.quantization", "torch", "monai", "modelopt", "scipy", "jinja2")

_EVERY_MODULE = """
import importlib, pkgutil
for folder in ("models", "imaging", "engines", "inference", "worker"):
    package = importlib.import_module("MedQuantINT8Lib." + folder)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""
_SEGMENT = """
from MedQuantINT8Lib.cli.main import main
assert main(["segment", "tiny/package", "scan.nii.gz", "--engine", "onnxruntime", "--output", "labels.nii.gz", "--quiet"]) == 0
"""


def loaded_by(code: str, folder: Path, foreign: tuple[str, ...] = FOREIGN) -> list[str]:
    """Modules that begin with a name of ``foreign``, and that a new Python process has loaded after it ran ``code``."""
    last = f"\nimport json, sys\nprint(json.dumps([n for n in sys.modules if n.startswith({foreign!r})]))"
    environment = {
        **os.environ,
        "PYTHONPATH": str(LIBRARY),
        "MEDQUANT_MODELS": str(folder / "models"),
        "MEDQUANT_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code + last], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_module_of_the_segment_road_loads_the_build_road(tmp_path):
    assert loaded_by(_EVERY_MODULE, tmp_path) == []


def test_the_segment_command_loads_nothing_of_the_build_road(tmp_path):
    pytest.importorskip("onnxruntime")
    tiny.package(tmp_path / "tiny").close()
    write_nifti(tmp_path / "scan.nii.gz", np.random.default_rng(0).random((8, 8, 8), np.float32), np.eye(4))
    assert loaded_by(_SEGMENT, tmp_path) == []
    assert (tmp_path / "labels.nii.gz").stat().st_size > 0


def test_with_an_engine_that_is_there_the_segment_command_does_not_load_onnx(tmp_path):
    pytest.importorskip("openvino")
    tiny.package(tmp_path / "tiny").close()
    write_nifti(tmp_path / "scan.nii.gz", np.random.default_rng(0).random((8, 8, 8), np.float32), np.eye(4))
    command = _SEGMENT.replace('"onnxruntime"', '"openvino"').replace('"--quiet"', '"--force", "--quiet"')
    assert "onnx" in loaded_by(command, tmp_path, ("onnx",))
    assert loaded_by(command, tmp_path, ("onnx",)) == []
    # What is kept of the network's sizes is that of this network.
    (kept,) = json.loads((tmp_path / "cache" / "activations.json").read_text()).values()
    assert kept == activation_bytes(ModelPackage.load(tmp_path / "tiny/package"), "fp32", (8, 8, 8))
