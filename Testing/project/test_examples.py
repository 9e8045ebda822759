"""The examples run as they are, in a process of their own, and do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.models.package import INT8, ModelPackage
from places import ROOT

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.slow


def run(folder, *command):
    environment = {**os.environ, "MEDQUANT_CACHE": str(folder / "cache"), "MEDQUANT_MODELS": str(folder / "models")}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_scan_is_segmented_without_slicer(tmp_path):
    pytest.importorskip("openvino")
    said = run(tmp_path, str(EXAMPLES / "segment_without_slicer.py"))
    assert re.search(r"OpenVINO.*: INT8, 100\.0 % of the work in INT8", said)
    assert float(re.search(r"^liver +([\d.]+) ml", said, re.M)[1]) > 500
    assert read_volume(tmp_path / "segmentation.seg.nrrd").data.max() == 11


def test_an_own_network_is_quantized(tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("modelopt")
    pytest.importorskip("onnxscript")
    said = run(tmp_path, str(EXAMPLES / "quantize_own_network.py"))
    dice = [float(value) for value in re.findall(r"Dice with FP32 ([\d.]+)", said)]
    assert len(dice) == 2 and min(dice) > 0.97
    assert int(re.search(r"INT8 share of the work: (\d+) %", said)[1]) >= 90
    with ModelPackage.load(tmp_path / "liver-and-spine.zip") as package:
        assert package.has(INT8) and package.spec.name == "liver-and-spine"


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    pytest.importorskip("openvino")
    notebook = json.loads((EXAMPLES / "fp32_beside_int8.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "clear the outputs before saving"
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # A cell's last expression is what a notebook shows: its PNG is written to see that there is one.
    cells[-2] = cells[-2].replace("\nPicture(", "\npicture = Picture(")
    cells.append("open('picture.png', 'wb').write(picture._repr_png_())")
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(cells), encoding="utf-8")
    said = run(tmp_path, str(script))
    assert float(re.search(r"^mean +([\d.]+)", said, re.M)[1]) > 0.98
    assert (tmp_path / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
