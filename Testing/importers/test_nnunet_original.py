"""An import of nnU-Net is compared with nnU-Net's own preprocessor, sliding window and export before it is accepted."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import DependencyError, PackageError
from MedQuantINT8Lib.importers import nnunet
from MedQuantINT8Lib.importers.base import write
from MedQuantINT8Lib.models.package import IMPORT
from MedQuantINT8Lib.models.spec import Crop, SplineResampling
from MedQuantINT8Lib.progress import Task
from nnunet_folders import checkpoint, dataset, plans, threshold_network, write_folder

REGIONS = {"background": 0, "core": [2, 3], "whole": [1, 2, 3], "enhancing": [3], "ignore": 4}
Z, CT = "ZScoreNormalization", "CTNormalization"


def folder(
    tmp_path, channels=1, channel=0, t=0.2, rows=None, data=None, transpose=(0, 1, 2), reader="SimpleITKIO", **changes
):
    net, made = threshold_network(t, channels, channel, rows)
    planned = {
        "normalization_schemes": [Z] * channels,
        "use_mask_for_norm": [False] * channels,
        "patch_size": [16, 16, 16],
        **changes,
    }
    plan = plans(transpose, **planned, architecture=made)
    plan["image_reader_writer"] = reader
    described = {"labels": {"background": 0, "bright": 1}, **(data or {})}
    return write_folder(
        tmp_path, plan, dataset(channels, **described), {"fold_0/checkpoint_final.pth": checkpoint(net)}
    )


IMPORTS = {
    "two channels, filled mask": {"channels": 2, "channel": 1, "use_mask_for_norm": [True, True]},
    "PET and CT": {"channels": 2, "channel": 1, "normalization_schemes": [CT, Z]},
    "regions in another order than their classes": {
        "rows": [(10, -5), (10, 2), (10, -9)],
        "data": {"labels": REGIONS, "regions_class_order": [2, 1, 3]},
    },
    "transposed, reoriented by SimpleITK": {"transpose": (2, 0, 1), "reader": "SimpleITKIOWithReorient"},
    "reoriented by nibabel, slice by slice": {"reader": "NibabelIOWithReorient", "spacing": [9.0, 2.5, 2.6]},
}


SLOW = pytest.mark.slow
QUICK = "regions in another order than their classes"


@pytest.mark.parametrize("name", [name if name == QUICK else pytest.param(name, marks=SLOW) for name in IMPORTS])
def test_imports_agree_with_nnunet_in_input_scores_and_labels(tmp_path, name):
    package = write(nnunet.understand(folder(tmp_path, **IMPORTS[name]))[0], tmp_path / "package", Task())
    record = json.loads((package.folder / IMPORT).read_text())
    assert record["original"].startswith("nnU-Net 2") and record["compared"]
    assert max(scan["input_difference"] for scan in record["scans"]) < 1e-4
    assert max(scan["score_difference"] for scan in record["scans"]) < 0.005  # nnU-Net adds windows in 16 bits
    assert min(scan["label_agreement"] for scan in record["scans"]) > 0.999


WRONG = {
    "the network's input": lambda spec: dataclasses.replace(spec, normalization=()),
    "resampled linearly": lambda spec: dataclasses.replace(
        spec, geometry=dataclasses.replace(spec.geometry, spline=SplineResampling(1))
    ),
    "not cropped": lambda spec: dataclasses.replace(spec, crop=Crop()),
}


@pytest.mark.parametrize(
    "name", [name if name == "resampled linearly" else pytest.param(name, marks=SLOW) for name in WRONG]
)
def test_an_import_that_differs_is_refused(tmp_path, name):
    item = nnunet.understand(folder(tmp_path))[0]
    item.spec = WRONG[name](item.spec)
    with pytest.raises(PackageError, match="does not do what nnU-Net"):
        write(item, tmp_path / "package", Task())
    assert not (tmp_path / "package").exists()


def test_without_nnunet_the_import_says_that_it_was_not_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nnunetv2.inference.predict_from_raw_data", None)
    source = folder(tmp_path)
    with pytest.raises(DependencyError):
        nnunet.understand(source)[0].original()
    assert main(["import", "nnunet", str(source), "-o", str(tmp_path / "package"), "-q"]) == 0
    assert "not compared: nnunetv2 is not installed" in capsys.readouterr().out


@pytest.mark.slow
def test_plans_that_nnunet_itself_cannot_use_are_refused_in_words(tmp_path, capsys):
    changes = {"resampling_fn_seg_kwargs": {"is_seg": True, "magic": 1}}
    with pytest.raises(PackageError, match=r"nnU-Net itself fails with this network \(TypeError: .*magic"):
        write(nnunet.understand(folder(tmp_path, **changes))[0], tmp_path / "package", Task())
    by_hand = nnunet.understand(folder(tmp_path, **changes))[0]
    by_hand.by_hand = True
    write(by_hand, tmp_path / "package", Task())
    assert by_hand.check is not None and "nnU-Net itself fails" in by_hand.check.summary()


def test_nothing_is_printed_by_nnunet_itself(tmp_path, capsys):
    original = nnunet.understand(folder(tmp_path))[0].original()
    assert capsys.readouterr().out == ""
    assert original.order == [0, 1, 2] and np.all(original.predictor.allowed_mirroring_axes is None)
