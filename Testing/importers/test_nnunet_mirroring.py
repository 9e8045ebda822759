"""nnU-Net's test-time mirroring: the axes of a training, and the same label map as nnU-Net's predictor with mirroring."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

import nnunet_folders
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.imaging.volume import Volume, to_sitk
from MedQuantINT8Lib.importers import base, nnunet
from MedQuantINT8Lib.importers.import_check import ImportCheck
from MedQuantINT8Lib.models.spec import Mirroring
from MedQuantINT8Lib.progress import Task
from nnunet_folders import checkpoint, dataset, plans, random_network, write_folder


def folder(root, axes, transpose=(0, 1, 2), flat=False, seed=0):
    """A result folder of a random network that allows mirroring along ``axes`` of nnU-Net's own."""
    net, made = random_network(seed, axes=2 if flat else 3)
    configuration = "2d" if flat else "3d_fullres"
    plan = plans(
        transpose, architecture=made, normalization_schemes=["ZScoreNormalization"], resampling_fn_data="no_resampling_hack",
        resampling_fn_probabilities="no_resampling_hack", resampling_fn_data_kwargs={}, resampling_fn_probabilities_kwargs={},
    )  # fmt: skip
    changes = (
        {"patch_size": [12, 8], "spacing": [4.0, 4.0]} if flat else {"patch_size": [[8, 12, 16][n] for n in transpose]}
    )
    plan["configurations"] = {configuration: {**plan["configurations"]["3d_fullres"], **changes}}
    saved = checkpoint(net, init_args={"configuration": configuration}, inference_allowed_mirroring_axes=axes)
    name = nnunet_folders.MODEL.replace("3d_fullres", configuration)
    return write_folder(root, plan, dataset(), {"fold_0/checkpoint_final.pth": saved}, name)


def scan(path):
    values = np.random.default_rng(3).normal(0, 100, (17, 19, 23)).astype(np.float32)
    volume = Volume(values, np.diag([-4.0, -4.0, 5.0, 1.0]), "noise")
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(path))
    return path


#: Axes of nnU-Net's, the order of its axes, whether it works slice by slice, and which axes (K, J, I) these are.
CASES = {
    "all": ((0, 1, 2), (0, 1, 2), False, (0, 1, 2)),
    "one of a transposed network": ((1,), (2, 0, 1), False, (0,)),
    "two of a transposed network": ((0, 2), (1, 2, 0), False, (0, 1)),
    "slices across J": ((0,), (1, 0, 2), True, (0,)),
}


QUICK = "two of a transposed network"


@pytest.mark.parametrize(
    "case", [case if case == QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_mirrored_labels_are_those_of_nnunets_predictor(case, tmp_path, capsys, monkeypatch):
    axes, transpose, flat, expected_axes = CASES[case]
    source, file = folder(tmp_path, axes, transpose, flat), scan(tmp_path / "case_0000.nii.gz")
    model = nnunet.understand(source)[0]
    assert model.spec.mirroring == Mirroring(expected_axes)
    # What an import is compared with runs without mirroring, and is tested elsewhere.
    monkeypatch.setattr(base, "_compare_with_original", lambda *_: ImportCheck.not_compared("a test"))
    base.write(model, tmp_path / "package", Task())
    output = tmp_path / "labels.nii.gz"
    run = ["segment", str(tmp_path / "package"), str(file), "-o", str(output), "--force", "-q"]
    how = ["--engine", "onnxruntime", "--precision", "fp32", "--batch", "4"]
    maps = {}
    for option in ("--mirroring", "--no-mirroring"):
        assert main([*run, *how, option]) == 0
        assert ("mirrored forms" in capsys.readouterr().out) == (option == "--mirroring")
        maps[option] = sitk.GetArrayFromImage(sitk.ReadImage(str(output)))
    theirs = nnunet_folders.by_nnunet(source, [file], mirroring=True)
    # Not all: of noise classes score nearly the same, and nnU-Net adds windows up in 16 bits.
    assert np.mean(maps["--mirroring"] == theirs) > 0.99 and np.mean(maps["--no-mirroring"] == theirs) < 0.9
    assert len(np.unique(theirs)) > 1


def test_axes_that_the_training_forbids_are_refused_before_any_work(tmp_path, capsys):
    source = folder(tmp_path, (1,))
    base.write(nnunet.understand(source)[0], tmp_path / "package", Task())
    file = scan(tmp_path / "scan.nii.gz")
    for given, message in (
        (["--mirror-axes", "0,1"], "does not allow mirroring along axis 0; it allows the axes 1"),
        (["--mirror-axes", "3"], "give axes from 0 to 2"),
        (["--mirror-axes", "1", "--no-mirroring"], "not allowed with argument"),
    ):
        try:
            code = main(["segment", str(tmp_path / "package"), str(file), "-q", *given])
        except SystemExit as stopped:
            code = stopped.code
        assert code and message in capsys.readouterr().err
    forbidden = folder(tmp_path / "none", None)
    assert nnunet.understand(forbidden)[0].spec.mirroring == Mirroring()
    with pytest.raises(PackageError, match="names the axis 2 of a network with 2"):
        nnunet.understand(folder(tmp_path / "flat", (0, 2), flat=True))
