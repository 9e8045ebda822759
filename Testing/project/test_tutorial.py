"""The tutorial on the command line, run as it stands: each command in its order, in one folder, with a very small network and very small scans.

Left out are the imports that need a published bundle, an nnU-Net folder, an Auto3DSeg model or TorchScript; each form has tests of its own.
"""

from __future__ import annotations

import json
import shlex

import numpy as np
import onnx
import pytest

import tiny
from dicom_files import write_series
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.evaluation.reports.viewer import viewer_module
from MedQuantINT8Lib.imaging.label_map_files import write_label_map
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.models.package import INT8, ModelPackage
from pages import commands, python_blocks
from places import ROOT

PYTHON = ROOT / "docs" / "python.md"
PAGE = ROOT / "docs" / "tutorial-own-network.md"
NEEDS_MORE = ("bundle", "nnunet", "auto3dseg", "torchscript")
#: Voxels of 1 are bright, which is what the network finds.
MATRIX = np.diag([-1.0, -1.0, 1.0, 1.0])


def bright_ball(seed):
    """A volume (K, J, I) of 0, and of 1 within a ball whose place the seed draws."""
    center = np.random.default_rng(seed).uniform(8, 16, 3)
    away = np.indices((24, 24, 24)).reshape(3, -1).T - center
    return (np.linalg.norm(away, axis=1) < 6).reshape(24, 24, 24).astype(np.int16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the tutorial's reader has: a network, scans and their labels, a DICOM folder, a labeled data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    weight = np.zeros((2, 1, 1, 1, 1))
    weight[1] = 1
    onnx.save(tiny.convolutions({"a": weight}, {"a": np.array([0, -0.5])}), str(tmp_path / "network.onnx"))
    for number in (1, 2, 3, 4):
        write_label_map(tmp_path / f"scan{number}.nii.gz", bright_ball(number), MATRIX, {})
        write_label_map(tmp_path / f"labels{number}.nii.gz", bright_ball(number), MATRIX, {})
    write_series(tmp_path / "dicom_folder", list(bright_ball(5)), [(0.0, 0.0, float(k)) for k in range(24)])
    task = tmp_path / "Task04_Hippocampus"
    pairs = []
    for number in (6, 7):
        for kind in ("imagesTr", "labelsTr"):
            (task / kind).mkdir(parents=True, exist_ok=True)
            write_label_map(task / kind / f"case{number}.nii.gz", bright_ball(number), MATRIX, {})
        pairs.append({"image": f"./imagesTr/case{number}.nii.gz", "label": f"./labelsTr/case{number}.nii.gz"})
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "bright"}, "training": pairs}
    (task / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(folder, capsys):
    pytest.importorskip("openvino")
    pytest.importorskip("modelopt")
    lines = [line for line in commands(PAGE) if line[1] not in NEEDS_MORE]
    assert [line[0] for line in lines][:3] == ["import", "import", "quantize"] and len(lines) == 9
    for arguments in lines:
        if "fold0" in arguments[1]:
            with ModelPackage.load(folder / "mymodel") as package:
                for fold in range(3):
                    package.save(folder / f"fold{fold}")
        if "--spec" in arguments:
            draft = folder / "mymodel.draft.json"
            value = json.loads(draft.read_text(encoding="utf-8"))
            value["name"], value["labels"][0]["name"] = "mymodel", "bright"
            draft.write_text(json.dumps(value), encoding="utf-8")
        code = main(arguments)
        assert code == 0, f"medquant {shlex.join(arguments)}: {capsys.readouterr().err}"
    with ModelPackage.load(folder / "mymodel") as package:
        assert package.has(INT8)
    for name in ("scan3.seg.nrrd", "scan3-mymodel.seg.nrrd"):
        assert np.array_equal(read_volume(folder / name).data[0], bright_ball(3)), name
    for name in ("report/report.html", "evaluation/evaluation.html", "differences/report.html"):
        page = (folder / name).read_text(encoding="utf-8")
        assert 1000 < len(page) < 25_000_000 and ("viewer-canvas" in page) == bool(viewer_module()), name


def test_the_python_code_for_scripts_runs_as_it_stands(folder, capsys):
    pytest.importorskip("openvino")
    tiny.package(folder).save(folder / "mymodel")
    (code,) = (block for block in python_blocks(PYTHON) if "pipeline" in block)
    exec(compile(code, str(PYTHON), "exec"), {})
    assert np.array_equal(read_volume(folder / "scan3.seg.nrrd").data[0], bright_ball(3))
    assert "OpenVINO" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.slicer
def test_the_python_code_for_slicers_console_runs_as_it_stands(folder):
    pytest.importorskip("openvino")
    pytest.importorskip("slicer")
    from MedQuantINT8Lib.slicer_module.scene import headless_scene, volume_node

    tiny.package(folder).save(folder / "mymodel")
    scan = volume_node(read_volume(folder / "scan3.nii.gz"), "scan3", headless_scene())
    names = {"getNode": {"scan3": scan}.__getitem__}
    (code,) = (block for block in python_blocks(PYTHON) if "showDifferences" in block)
    try:
        exec(compile(code, str(PYTHON), "exec"), names)
    finally:
        names["logic"].close()
    assert names["segmentation"].GetSegmentation().GetNumberOfSegments() == 1
    assert (folder / "comparison.html").stat().st_size > 1000
