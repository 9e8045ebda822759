"""A result folder of nnU-Net v2 to one package a fold.

The network is built by nnU-Net's own ``dynamic-network-architectures`` from plans.json; weights are read as data.
Preprocessing follows nnU-Net: voxels as they lie in the file, crop to non-zero, normalisation, cubic resampling by
outer edges, slice by slice where voxels are anisotropic. Test-time mirroring is left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DependencyError, InputError, PackageError
from ..model_spec import NATIVE, Channel, Crop, Geometry, Label, ModelSpec, Normalization, Output, Window
from .base import Understood, single_output
from .checkpoints import load_weights, read_checkpoint, state_dict_of
from .colors import palette

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
_ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet")
#: What plans may name as a building block; anything else would be code from elsewhere.
_BLOCKS = {
    "Conv3d", "InstanceNorm3d", "BatchNorm3d", "GroupNorm", "Dropout3d", "LeakyReLU", "ReLU", "PReLU", "ELU", "GELU", "SiLU",
}  # fmt: skip


def understand(folder: Path, *, folds: list[int] | None = None, configuration: str | None = None) -> list[Understood]:
    """Read a result folder: plans.json, dataset.json and fold_N/checkpoint_final.pth; one result a fold.

    Args:
        folds: which; all that are there if None.
        configuration: such as "3d_fullres"; by default what the folder's name says.

    Raises:
        PackageError: a part that is missing, or a plan that is not understood.
        InputError: a fold that is not there.
    """
    if not (folder / "plans.json").exists() and len(inside := [p.parent for p in folder.rglob("plans.json")]) == 1:
        folder = inside[0]  # archives hold it as DATASET/TRAINER__PLANS__CONFIGURATION
    plans, dataset = _json(folder / "plans.json"), _json(folder / "dataset.json")
    name = configuration or folder.name.split("__")[-1]
    settings = _configuration(plans, name)
    spec, order = _spec(plans, dataset, settings)
    present = sorted(int(p.name[5:]) for p in folder.glob("fold_*") if p.name[5:].isdigit() and _checkpoint(p))
    wanted = present if folds is None else folds
    if absent := sorted(set(wanted) - set(present)):
        raise InputError(f"{folder.name} has no trained fold {absent[0]}.", f"It has: {', '.join(map(str, present)) or 'none'}.")
    if not wanted:
        raise PackageError(f"{folder.name} has no fold_N/{_CHECKPOINTS[0]}.", "Give the folder of a finished training.")
    channels, classes = len(spec.channels), spec.output_channels
    made = []
    for fold in wanted:
        path = _checkpoint(folder / f"fold_{fold}")
        assert path is not None
        network = partial(_network, settings, channels, classes, order, path)
        described = replace(spec, name=f"{spec.name}-fold{fold}")
        made.append(Understood(described, network, ["nnU-Net's test-time mirroring is not done"]))
    return made


def _checkpoint(folder: Path) -> Path | None:
    return next((folder / name for name in _CHECKPOINTS if (folder / name).is_file()), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PackageError(f"{path.parent.name} is no result folder of nnU-Net v2: {path.name} is missing.", "Check the path.") from error
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} is not valid JSON: {error}.", "Get the folder again.") from error
    if not isinstance(value, dict):
        raise PackageError(f"{path} holds no object.", "Get the folder again.")
    return value


def _configuration(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits."""
    configurations = plans.get("configurations", {})
    chain: list[dict[str, Any]] = []
    seen: set[str] = set()
    current: str | None = name
    while current is not None:
        if current not in configurations or current in seen:
            raise PackageError(f"plans.json has no configuration {current!r}.", f"It has: {', '.join(configurations)}. Choose with --configuration.")
        seen.add(current)
        chain.append(configurations[current])
        current = configurations[current].get("inherits_from")
    settings = {k: v for part in reversed(chain) for k, v in part.items()}
    if len(settings.get("patch_size", ())) != 3:
        raise PackageError(f"The configuration {name} is not 3D.", "Train or choose a 3D configuration, such as 3d_fullres.")
    if settings.get("previous_stage"):
        raise PackageError(f"The configuration {name} needs the result of {settings['previous_stage']} as input.", "Use 3d_fullres.")
    return settings


def _spec(plans: dict[str, Any], dataset: dict[str, Any], settings: dict[str, Any]) -> tuple[ModelSpec, list[int]]:
    order = [int(n) for n in plans.get("transpose_forward", [0, 1, 2])]
    names = dataset.get("channel_names") or dataset.get("modality") or {"0": "image"}
    channels = tuple(Channel(str(names[key])) for key in sorted(names, key=int))
    normalization = _normalization(plans, settings, len(channels))
    patch = _untransposed(settings["patch_size"], order)
    strides = _untransposed(_total_strides(settings), order)
    labels, output = _labels(dataset)
    reader = str(plans.get("image_reader_writer", "SimpleITKIO"))
    geometry = Geometry(
        "KJI",
        "RAS" if reader == "NibabelIOWithReorient" else NATIVE,
        tuple(_untransposed(settings["spacing"], order)),  # type: ignore[arg-type]
        anchor="edges",
        interpolation="nnunet",
        tolerance=0.0,
    )
    name = re.sub(r"[^A-Za-z0-9._-]", "-", str(plans.get("dataset_name") or dataset.get("name") or "nnunet"))
    return (
        ModelSpec(
            name=name,
            version=str(dataset.get("release") or "1"),
            modality="CT" if channels[0].name.upper() == "CT" else channels[0].name,
            channels=channels,
            geometry=geometry,
            normalization=normalization,
            window=Window(tuple(patch), tuple(strides), 0.5, placement="nnunet"),  # type: ignore[arg-type]
            output=output,
            labels=labels,
            license=str(dataset.get("licence") or dataset.get("license") or "unknown: see the data set"),
            citation=str(dataset.get("reference") or "Isensee et al., nnU-Net, Nature Methods 2021"),
            title=str(dataset.get("name") or name),
            description=str(dataset.get("description") or ""),
            crop=Crop("nonzero"),
            normalize_in="input",
        ),
        order,
    )


def _untransposed(values: list[Any], order: list[int]) -> list[Any]:
    """Values along nnU-Net's transposed axes, along the file's K, J, I instead."""
    found = [values[0]] * 3
    for position, axis in enumerate(order):
        found[axis] = values[position]
    return found


def _normalization(plans: dict[str, Any], settings: dict[str, Any], channels: int) -> tuple[Normalization, ...]:
    schemes = settings.get("normalization_schemes", ["ZScoreNormalization"] * channels)
    masks = settings.get("use_mask_for_norm", [False] * channels)
    if len(set(schemes)) > 1 or len(set(masks)) > 1:
        raise PackageError(f"The channels are normalised differently ({', '.join(schemes)}).", "One scheme for all channels is supported.")
    scheme = schemes[0]
    if scheme == "CTNormalization":
        if channels > 1:
            raise PackageError("Several CT channels have statistics each, which is not supported.", "Use a network of one channel.")
        found = plans["foreground_intensity_properties_per_channel"]["0"]
        low, high = float(found["percentile_00_5"]), float(found["percentile_99_5"])
        return (Normalization("nnunet_ct", low, high, float(found["mean"]), max(float(found["std"]), 1e-8)),)
    simple = {
        "ZScoreNormalization": (Normalization("zscore", mask="nonzero" if masks[0] else "all"),),
        "NoNormalization": (),
        "RescaleTo01Normalization": (Normalization("minmax"),),
        "RGBTo01Normalization": (Normalization("window", low=0.0, high=255.0, clip=False),),
    }
    if scheme not in simple:
        raise PackageError(f"nnU-Net's normalisation {scheme} is not understood.", "Give a description with --spec.")
    return simple[scheme]


def _labels(dataset: dict[str, Any]) -> tuple[tuple[Label, ...], Output]:
    given = {k: v for k, v in dataset.get("labels", {}).items() if k not in ("background", "ignore") and v != 0}
    if not given:
        raise PackageError("dataset.json names no labels.", "Get the folder again.")
    colors = palette(len(given))
    if any(isinstance(v, list) for v in given.values()):
        values = dataset.get("regions_class_order") or []
        if len(values) != len(given):
            raise PackageError("dataset.json has regions but no regions_class_order that fits them.", "Get the folder again.")
        regions = tuple(Label(int(v), str(n), c, colors[c]) for c, (n, v) in enumerate(zip(given, values, strict=True)))
        return regions, Output("sigmoid")
    rows = sorted(given.items(), key=lambda item: int(item[1]))
    return tuple(Label(int(v), str(n), int(v), colors[i]) for i, (n, v) in enumerate(rows)), Output()


def _architecture(settings: dict[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """Class, arguments and which of them name classes; plans older than 2.4 hold it in other words."""
    if architecture := settings.get("architecture"):
        return (
            str(architecture["network_class_name"]).rsplit(".", 1)[-1],
            dict(architecture["arch_kwargs"]),
            list(architecture.get("_kw_requires_import", ())),
        )
    kernels = settings["conv_kernel_sizes"]
    stages = len(kernels)
    base, most = int(settings["UNet_base_num_features"]), int(settings["unet_max_num_features"])
    residual = "Residual" in str(settings.get("UNet_class_name"))
    return (
        "ResidualEncoderUNet" if residual else "PlainConvUNet",
        {
            "n_stages": stages,
            "features_per_stage": [min(base * 2**n, most) for n in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": kernels,
            "strides": settings["pool_op_kernel_sizes"],
            "n_blocks_per_stage" if residual else "n_conv_per_stage": settings["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        ["conv_op", "norm_op", "dropout_op", "nonlin"],
    )


def _total_strides(settings: dict[str, Any]) -> list[int]:
    strides = [s if isinstance(s, list) else [s] * 3 for s in _architecture(settings)[1]["strides"]]
    total = [1, 1, 1]
    for stride in strides:
        total = [t * int(s) for t, s in zip(total, stride, strict=True)]
    return total


def _network(settings: dict[str, Any], channels: int, classes: int, order: list[int], weights: Path) -> Any:
    try:
        from dynamic_network_architectures.architectures import unet
        from torch import Tensor, nn
    except ImportError as error:
        raise DependencyError(
            f"nnU-Net's networks cannot be made: {error}.", "Install them with: pip install 'medquantint8[import]'"
        ) from error
    name, arguments, imported = _architecture(settings)
    if name not in _ARCHITECTURES:
        raise PackageError(f"nnU-Net's network {name} is not understood.", f"Known are: {', '.join(_ARCHITECTURES)}.")
    for key in imported:
        if arguments.get(key) is not None:
            block = str(arguments[key]).rsplit(".", 1)[-1]
            if not str(arguments[key]).startswith("torch.nn") or block not in _BLOCKS:
                raise PackageError(f"plans.json builds the network of {arguments[key]}, which is not known.", "Check the plans.")
            arguments[key] = getattr(nn, block)
    module = getattr(unet, name)(input_channels=channels, num_classes=classes, deep_supervision=False, **arguments)
    load_weights(module, state_dict_of(read_checkpoint(weights), str(weights)))
    network = single_output(module, name)
    if order == [0, 1, 2]:
        return network
    back = [order.index(axis) for axis in range(3)]

    class Transposed(nn.Module):
        """Takes the file's axes and gives nnU-Net its transposed ones."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            y = self.network(x.permute(0, 1, *(2 + axis for axis in order)))
            return y.permute(0, 1, *(2 + axis for axis in back))

    return Transposed()
