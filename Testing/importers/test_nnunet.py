"""nnU-Net v2 result folders: the same label map as nnU-Net's own predictor."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import nnunet_folders
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.evaluation.agreement import dice
from MedQuantINT8Lib.imaging.phantom import make_phantom
from MedQuantINT8Lib.imaging.volume import Grid, Volume, resample, to_sitk
from MedQuantINT8Lib.importers import nnunet
from MedQuantINT8Lib.importers.base import write
from MedQuantINT8Lib.inference import pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.progress import Task
from nnunet_folders import PATCH, SPACING, architecture, checkpoint, dataset, plans, write_folder
from scans import orthogonal


def train(module, order, seeds=(1, 2), steps=40):
    """A few seconds on made scans: enough for large structures with surfaces, which random weights do not give."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    random = np.random.default_rng(0)
    pairs = []
    for seed in seeds:
        volume, _ = make_phantom(seed, (80, 80, 56), 4.5)
        truth = np.digitize(volume.data[0], (-300, 75))
        image = (np.clip(volume.data[0].astype(np.float32), -850, 380) - 60) / 250
        pairs.append((image.transpose(order), truth.transpose(order)))
    patch = [PATCH[axis] for axis in order]
    module.train()
    for step in range(steps):
        image, truth = pairs[step % len(pairs)]
        starts = [int(random.integers(0, n - p + 1)) for n, p in zip(image.shape, patch, strict=True)]
        index = tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))
        x = torch.from_numpy(np.ascontiguousarray(image[index]))[None, None]
        y = torch.from_numpy(np.ascontiguousarray(truth[index]).astype(np.int64))[None]
        loss = torch.nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def result_folder(root, name="PlainConvUNet", transpose=(0, 1, 2), folds=(0,)):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    made = architecture(name)
    trained = {}
    for fold in folds:
        torch.manual_seed(fold)
        module = get_network_from_plans(
            made["network_class_name"], made["arch_kwargs"], made["_kw_requires_import"], 1, 3, deep_supervision=False
        )
        train(module, transpose, seeds=(10 * fold + 1, 10 * fold + 2))
        trained[f"fold_{fold}/checkpoint_final.pth"] = checkpoint(module)
    return write_folder(root, plans(transpose, architecture=made), dataset(), trained)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return result_folder(tmp_path_factory.mktemp("nnunet"), folds=(0, 1))


def scan(matrix, size):
    """A phantom on another grid, with the phantom's centre in the middle."""
    volume, _ = make_phantom(7, (128, 112, 96), 3.0)
    centre = volume.ijk_to_ras @ np.array([64, 56, 48, 1.0])
    placed = matrix.copy()
    placed[:3, 3] = centre[:3] - matrix[:3, :3] @ (np.array(size) / 2)
    target = Grid(size, placed)
    return Volume(resample(volume.data[0], volume.grid, target, "linear"), placed, "scan")


def by_nnunet(folder, volume, folds, tmp_path):
    """The label map (K, J, I) of nnU-Net's predictor, without mirroring."""
    file = tmp_path / "case_0000.nii.gz"
    sitk.WriteImage(to_sitk(volume.data[0].astype(np.float32), volume.grid), str(file))
    return nnunet_folders.by_nnunet(folder, [file], folds)


def by_us(packages, volume):
    from MedQuantINT8Lib.inference.ensemble import Ensemble

    choice = EngineChoice("onnxruntime", "fp32")
    return pipeline.segment(Ensemble(packages), volume, choice, SegmentationOptions(), Task()).result.labels


def mean_agreement(ours, theirs):
    assert all((theirs == v).sum() > 5000 for v in (1, 2))
    values = [dice(ours == v, theirs == v) for v in (1, 2)]
    return float(np.mean(values))


#: Small parts of the trunk: eighteen windows each.
GRIDS = {
    "the network's own": (orthogonal((4.0, 4.0, 5.0)), (64, 56, 32)),
    "finer": (orthogonal((3.0, 3.0, 3.5)), (80, 72, 48)),
    "oblique and flipped": (orthogonal((3.5, 3.0, 4.0), (10, -15, 20), flips="ij"), (70, 72, 42)),
    "thick slices": (orthogonal((2.5, 2.5, 9.0)), (96, 88, 18)),
}


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_the_label_map_is_nnunets(folder, tmp_path, grid):
    volume = scan(*GRIDS[grid])
    package = write(nnunet.understand(folder, folds=[0])[0], tmp_path / "package", Task())
    ours, theirs = by_us([package], volume), by_nnunet(folder, volume, (0,), tmp_path)
    assert mean_agreement(ours, theirs) >= 0.999


@pytest.mark.slow
def test_folds_become_packages_that_are_averaged(folder, tmp_path, capsys):
    volume = scan(*GRIDS["finer"])
    assert main(["import", "nnunet", str(folder), "-o", str(tmp_path / "model"), "-q"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model-fold0", "model-fold1"]
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(tmp_path / "scan.nrrd"))
    both = f"{tmp_path / 'model-fold0'},{tmp_path / 'model-fold1'}"
    out = tmp_path / "out.nrrd"
    arguments = [
        "segment",
        both,
        str(tmp_path / "scan.nrrd"),
        "-o",
        str(out),
        "-q",
        "--precision",
        "fp32",
        "--engine",
        "onnxruntime",
    ]
    assert main(arguments) == 0
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(out)))
    assert mean_agreement(ours, by_nnunet(folder, volume, (0, 1), tmp_path)) >= 0.999
    assert mean_agreement(ours, by_nnunet(folder, volume, (0,), tmp_path)) < 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("name", "transpose"), [("ResidualEncoderUNet", (0, 1, 2)), ("PlainConvUNet", (1, 2, 0))])
def test_residual_encoders_and_transposed_plans(tmp_path, name, transpose):
    folder = result_folder(tmp_path / "trained", name, transpose)
    volume = scan(*GRIDS["finer"])
    package = write(nnunet.understand(folder)[0], tmp_path / "package", Task())
    assert package.spec.window.patch_size == tuple(PATCH) and package.spec.geometry.spacing == tuple(SPACING)
    assert mean_agreement(by_us([package], volume), by_nnunet(folder, volume, (0,), tmp_path)) >= 0.999
