"""nnU-Net v2 result folders: the same label map as nnU-Net's own predictor."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from conftest import orthogonal
from MedQuantINT8Lib import runs
from MedQuantINT8Lib.cli import main
from MedQuantINT8Lib.errors import InputError, PackageError
from MedQuantINT8Lib.evaluation import dice
from MedQuantINT8Lib.importers import nnunet
from MedQuantINT8Lib.importers.base import write
from MedQuantINT8Lib.phantom import make_phantom
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.segmenter import SegmentationOptions
from MedQuantINT8Lib.volume import Grid, Volume, resample, to_sitk

MODEL = "Dataset001_Phantom/nnUNetTrainer__nnUNetPlans__3d_fullres"
LABELS = {"background": 0, "body": 1, "bright": 2}
SPACING, PATCH = [5.0, 4.0, 4.0], [24, 32, 32]


def architecture(name="PlainConvUNet"):
    blocks = "n_blocks_per_stage" if name.startswith("Residual") else "n_conv_per_stage"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [8, 16, 32],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            blocks: [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans(transpose=(0, 1, 2), **changes):
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    order = list(transpose)
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [PATCH[axis] for axis in order],
        "spacing": [SPACING[axis] for axis in order],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**kwargs, "order": 1},
        "batch_dice": True,
        "architecture": architecture(),
        **changes,
    }
    return {
        "dataset_name": "Dataset001_Phantom",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": configuration["spacing"],
        "original_median_shape_after_transp": [60, 70, 70],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": order,
        "transpose_backward": [order.index(axis) for axis in range(3)],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"max": 400.0, "mean": 60.0, "median": 50.0, "min": -900.0, "percentile_00_5": -850.0, "percentile_99_5": 380.0, "std": 250.0}
        },
    }  # fmt: skip


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

    folder = root / MODEL
    made = architecture(name)
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans(transpose, architecture=made)))
    dataset = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 2, "file_ending": ".nii.gz", "licence": "CC0"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for fold in folds:
        torch.manual_seed(fold)
        module = get_network_from_plans(
            made["network_class_name"], made["arch_kwargs"], made["_kw_requires_import"], 1, 3, deep_supervision=False
        )
        train(module, transpose, seeds=(10 * fold + 1, 10 * fold + 2))
        (folder / f"fold_{fold}").mkdir()
        checkpoint = {
            "network_weights": module.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
            "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.75)]},
            "_best_ema": np.float64(0.8),
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


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
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    sitk.WriteImage(to_sitk(volume.data[0].astype(np.float32), volume.grid), str(tmp_path / "case.nii.gz"))
    predictor = nnUNetPredictor(0.5, True, False, False, torch.device("cpu"), False, False, False)
    predictor.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
    image, properties = SimpleITKIO().read_images([str(tmp_path / "case.nii.gz")])
    return predictor.predict_single_npy_array(image, properties, None, None, False)


def by_us(packages, volume):
    from MedQuantINT8Lib.ensemble import Ensemble

    choice = runs.EngineChoice("onnxruntime", "fp32")
    return runs.segment(Ensemble(packages), volume, choice, SegmentationOptions(), Task()).result.labels


def mean_agreement(ours, theirs):
    assert all((theirs == v).sum() > 5000 for v in (1, 2))
    values = [dice(ours == v, theirs == v) for v in (1, 2)]
    return float(np.mean(values))


GRIDS = {
    "the network's own": (orthogonal((4.0, 4.0, 5.0)), (80, 72, 44)),
    "finer": (orthogonal((3.0, 3.0, 3.5)), (100, 96, 64)),
    "oblique and flipped": (orthogonal((3.5, 3.0, 4.0), (10, -15, 20), flips="ij"), (90, 96, 56)),
    "thick slices": (orthogonal((2.5, 2.5, 9.0)), (120, 110, 26)),
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
    arguments = ["segment", both, str(tmp_path / "scan.nrrd"), "-o", str(out), "-q", "--precision", "fp32", "--engine", "onnxruntime"]
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


def test_plans_of_before_2_4_are_read():
    old = plans()["configurations"]["3d_fullres"]
    del old["architecture"]
    old |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [2] * 5,
        "n_conv_per_stage_decoder": [2] * 4,
        "conv_kernel_sizes": [[3, 3, 3]] * 5,
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    }
    name, arguments, _ = nnunet._architecture(old)
    assert name == "PlainConvUNet" and arguments["features_per_stage"] == [32, 64, 128, 256, 320]
    assert nnunet._total_strides(old) == [8, 16, 16]


def test_labels_regions_and_normalisations():
    labels, output = nnunet._labels(
        {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, "regions_class_order": [1, 2]}
    )
    assert [(label.name, label.value, label.channel) for label in labels] == [("whole", 1, 0), ("core", 2, 1)]
    assert output.activation == "sigmoid"
    for scheme, kind in (("ZScoreNormalization", "zscore"), ("RescaleTo01Normalization", "minmax")):
        assert nnunet._normalization({}, {"normalization_schemes": [scheme], "use_mask_for_norm": [True]}, 1)[0].kind == kind
    with pytest.raises(PackageError, match="MyNormalization"):
        nnunet._normalization({}, {"normalization_schemes": ["MyNormalization"]}, 1)
    with pytest.raises(PackageError, match="differently"):
        nnunet._normalization({}, {"normalization_schemes": ["NoNormalization", "ZScoreNormalization"]}, 2)


def test_what_is_missing_or_unknown_is_named(folder, tmp_path):
    with pytest.raises(PackageError, match=r"plans\.json is missing"):
        nnunet.understand(tmp_path)
    with pytest.raises(InputError, match="no trained fold 3"):
        nnunet.understand(folder, folds=[3])
    with pytest.raises(PackageError, match="no configuration '2d'"):
        nnunet.understand(folder, configuration="2d")
    copy = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    shutil.copytree(folder, copy)
    value = plans()
    value["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["conv_op"] = "os.system"
    (copy / "plans.json").write_text(json.dumps(value))
    with pytest.raises(PackageError, match=r"os\.system"):
        nnunet.understand(copy)[0].network()
    value["configurations"]["3d_fullres"] |= {"previous_stage": "3d_lowres"}
    (copy / "plans.json").write_text(json.dumps(value))
    with pytest.raises(PackageError, match="3d_lowres"):
        nnunet.understand(copy)
