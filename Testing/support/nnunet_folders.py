"""Result folders of nnU-Net v2, made small: plans, dataset.json and checkpoints as nnU-Net 2.8 writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"
MODEL = f"Dataset001_Phantom/{NAME}"
LABELS = {"background": 0, "body": 1, "bright": 2}
SPACING, PATCH = [5.0, 4.0, 4.0], [24, 32, 32]
PROPERTIES = {
    "max": 400.0,
    "mean": 60.0,
    "median": 50.0,
    "min": -900.0,
    "percentile_00_5": -850.0,
    "percentile_99_5": 380.0,
    "std": 250.0,
}


def architecture(name: str = "PlainConvUNet") -> dict[str, Any]:
    """A network of three levels."""
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


def plans(transpose: tuple[int, ...] = (0, 1, 2), **changes: Any) -> dict[str, Any]:
    """plans.json with one configuration, whose fields ``changes`` replaces."""
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
            str(n): {**PROPERTIES, "mean": 60.0 + 10 * n, "std": 250.0 + 30 * n}
            for n in range(len(configuration["normalization_schemes"]))
        },
    }


def dataset(channels: int = 1, **changes: Any) -> dict[str, Any]:
    """dataset.json of a data set of CT scans."""
    names = {str(n): "CT" if n == 0 else f"channel {n}" for n in range(channels)}
    return {
        "channel_names": names,
        "labels": LABELS,
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "licence": "CC0",
        **changes,
    }


def threshold_network(
    t: float = 0.5, channels: int = 1, channel: int = 0, rows: list[tuple[float, float]] | None = None
) -> Any:
    """A network of two levels, and its plans' architecture, whose output c is gain * (one channel's voxel) + bias.

    Args:
        rows: (gain, bias) of each output; by default background 0 and foreground 10 * (voxel - t).
    """
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    rows = rows or [(0.0, 0.0), (10.0, -10.0 * t)]
    made = architecture()
    made["arch_kwargs"] |= {
        "n_stages": 2, "features_per_stage": [2, 2], "kernel_sizes": [[1, 1, 1]] * 2, "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "norm_op": None, "norm_op_kwargs": None,
    }  # fmt: skip
    net = get_network_from_plans(
        made["network_class_name"],
        made["arch_kwargs"],
        made["_kw_requires_import"],
        channels,
        len(rows),
        deep_supervision=False,
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        first, second = net.encoder.stages[0][0].convs[0].conv, net.decoder.stages[0].convs[0].conv
        # Through a LeakyReLU of slope 0.01, x is what is left of its positive part less its negative part, over 1.01.
        first.weight[0, channel], first.weight[1, channel] = 1, -1
        second.weight[0, 2], second.weight[0, 3] = 1 / 1.01, -1 / 1.01
        second.weight[1] = -second.weight[0]
        for c, (gain, bias) in enumerate(rows):
            net.decoder.seg_layers[0].weight[c, 0] = gain / 1.01
            net.decoder.seg_layers[0].weight[c, 1] = -gain / 1.01
            net.decoder.seg_layers[0].bias[c] = bias
    return net.eval(), made


def checkpoint(module: Any, **changes: Any) -> dict[str, Any]:
    """What nnU-Net's trainer saves, less the optimizer's state."""
    return {
        "network_weights": module.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.75)]},
        "_best_ema": np.float64(0.8),
        **changes,
    }


def write_folder(
    root: Path, plan: dict[str, Any], data: dict[str, Any], folds: dict[str, Any], name: str = MODEL
) -> Path:
    """A result folder.

    Args:
        folds: checkpoints by their place in it, such as "fold_0/checkpoint_final.pth".
    """
    import torch

    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(data))
    for place, value in folds.items():
        (folder / place).parent.mkdir(exist_ok=True)
        torch.save(value, folder / place)
    return folder


def by_nnunet(
    folder: Path,
    files: list[Path],
    folds: tuple[int | str, ...] = (0,),
    name: str = "checkpoint_final.pth",
    *,
    mirroring: bool = False,
    previous: Path | None = None,
) -> Any:
    """The label map (K, J, I) of nnU-Net's own predictor, on the processor.

    Args:
        previous: the file with the previous stage's labels, for a cascade.
    """
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(0.5, True, mirroring, False, torch.device("cpu"), False, False, False)
    predictor.initialize_from_trained_model_folder(str(folder), folds, name)
    reader = predictor.plans_manager.image_reader_writer_class()
    image, properties = reader.read_images([str(file) for file in files])
    labels = None if previous is None else reader.read_seg(str(previous))[0]
    return predictor.predict_single_npy_array(image, properties, labels, None, False)


def random_network(seed: int, channels: int = 1, outputs: int = 3, axes: int = 3) -> tuple[Any, dict[str, Any]]:
    """A network of two levels with random weights, biases among them, and its plans' architecture."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    made = architecture()
    made["arch_kwargs"] |= {
        "n_stages": 2, "features_per_stage": [6, 8], "kernel_sizes": [[3] * axes] * 2, "strides": [[1] * axes, [2] * axes],
        "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
    }  # fmt: skip
    torch.manual_seed(seed)
    net = get_network_from_plans(
        made["network_class_name"],
        made["arch_kwargs"],
        made["_kw_requires_import"],
        channels,
        outputs,
        deep_supervision=False,
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
        # No class wins everywhere.
        for layer in net.decoder.seg_layers:
            layer.weight -= layer.weight.mean(1, keepdim=True)
            layer.bias.zero_()
    return net.eval(), made
