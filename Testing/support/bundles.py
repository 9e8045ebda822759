"""Small MONAI bundles in the forms of the model zoo's: same transforms and settings, narrower networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOAD = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
RAS = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}


def spacing(*pixdim: float) -> dict[str, Any]:
    return {"_target_": "Spacingd", "keys": "image", "pixdim": list(pixdim), "mode": "bilinear"}


def window(low: float, high: float) -> dict[str, Any]:
    limits = {"a_min": low, "a_max": high, "b_min": 0, "b_max": 1, "clip": True}
    return {"_target_": "ScaleIntensityRanged", "keys": "image", **limits}


def softmax_postprocessing(nearest: bool = False) -> dict[str, Any]:
    invert = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": nearest,
    }
    return {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            invert,
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
        ],
    }


def _loader(as_handler: bool = False) -> dict[str, Any]:
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    }
    return {"handlers": [loader]} if as_handler else {"checkpointloader": loader}


COMMON = {
    "imports": ["$import glob"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network": "$@network_def.to(@device)",
}
UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16], "strides": [2, 2],
        "num_res_units": 2, "norm": "batch"}  # fmt: skip
SWIN = {"_target_": "SwinUNETR", "spatial_dims": 3, "img_size": 96, "in_channels": 1, "out_channels": 14, "feature_size": 12,
        "use_checkpoint": False}  # fmt: skip
SEGRESNET = {"_target_": "SegResNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 105, "init_filters": 8,
             "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "dropout_prob": 0.2}  # fmt: skip

#: Name: (network_def, preprocessing, inferer, postprocessing, other entries, structures, patch of the test).
FORMS: dict[str, dict[str, Any]] = {
    "spleen": {
        **COMMON,
        "network_def": UNET,
        "preprocessing": [
            *LOAD,
            RAS,
            spacing(1.5, 1.5, 2.0),
            window(-57, 164),
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "sw_batch_size": 4, "overlap": 0.5},
        "postprocessing": softmax_postprocessing(),
        **_loader(),
    },
    "swin_unetr_btcv": {
        **COMMON,
        "network_def": SWIN,
        "preprocessing": [
            *LOAD,
            RAS,
            spacing(1.5, 1.5, 2.0),
            window(-175, 250),
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [64, 32, 32], "sw_batch_size": 4, "overlap": 0.5},
        "postprocessing": softmax_postprocessing(),
        **_loader(as_handler=True),
    },
    "wholebody": {
        **COMMON,
        "displayable_configs": {"highres": False, "sw_overlap": 0.25, "sw_batch_size": 1},
        "pixdim": "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
        "modelname": "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
        "network_def": SEGRESNET,
        "preprocessing": [
            *LOAD,
            RAS,
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@pixdim", "mode": "bilinear"},
            {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
            {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
        ],
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [32, 32, 32],
            "sw_batch_size": "@displayable_configs#sw_batch_size",
            "overlap": "@displayable_configs#sw_overlap",
            "padding_mode": "replicate",
            "mode": "gaussian",
        },
        "postprocessing": softmax_postprocessing(nearest=True),
        "checkpointloader": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/' + @modelname"},
    },
    "wholebrain_unest": {
        **COMMON,
        "network_def": {
            "_target_": "scripts.networks.unest_base_patch_4.UNesT",
            "in_channels": 1,
            "out_channels": 5,
            "width": 4,
        },
        "preprocessing": [
            *LOAD,
            {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": "True", "channel_wise": "True"},
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "sw_batch_size": 4, "overlap": 0.7},
        "postprocessing": softmax_postprocessing(),
        **_loader(as_handler=True),
    },
    "vista3d": {
        **COMMON,
        "image_key": "image",
        "everything_labels": "$list(set([i+1 for i in range(6)]) - set([2, 5]))",
        "input_channels": 1,
        "patch_size": [32, 32, 32],
        "resample_spacing": [3.0, 3.0, 3.0],
        "encoder_embed_dim": 16,
        "network_def": "$monai.networks.nets.vista3d132(in_channels=@input_channels, encoder_embed_dim=@encoder_embed_dim)",
        "preprocessing_transforms": [
            *LOAD,
            {"_target_": "EnsureTyped", "keys": "@image_key", "device": "@device", "track_meta": True},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": "@resample_spacing", "mode": "bilinear"},
            {"_target_": "monai.apps.vista3d.transforms.VistaPreTransformd", "keys": "@image_key"},
            window(-963.8, 1053.7),
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "CastToTyped", "keys": "@image_key", "dtype": "$torch.float32"},
        ],
        "preprocessing": {"_target_": "Compose", "transforms": "$@preprocessing_transforms"},
        "inferer": {"_target_": "scripts.inferer.Vista3dInferer", "roi_size": "@patch_size", "overlap": 0.3},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "ToDeviced", "keys": "pred", "device": "cpu", "_disabled_": True},
                {"_target_": "monai.apps.vista3d.transforms.VistaPostTransformd", "keys": "pred"},
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "nearest_interp": True},
                {"_target_": "Lambdad", "func": "$lambda x: torch.nan_to_num(x, nan=255)", "keys": "pred"},
                {"_target_": "SaveImaged", "keys": "pred"},
            ],
        },
        **_loader(),
    },
}
#: The network of the UNesT form is code of the bundle's own; this stands in its place.
SCRIPT = """
import torch
class UNesT(torch.nn.Module):
    def __init__(self, in_channels, out_channels, width):
        super().__init__()
        self.body = torch.nn.Conv3d(in_channels, width, 3, padding=1)
        self.head = torch.nn.Conv3d(width, out_channels, 1)
    def forward(self, x):
        return self.head(torch.relu(self.body(x)))
"""


def write_bundle(folder: Path, form: str, classes: int) -> Path:
    """Write a bundle without weights; returns its folder."""
    config = dict(FORMS[form])
    if isinstance(config["preprocessing"], list):
        config["preprocessing"] = {"_target_": "Compose", "transforms": config["preprocessing"]}
    names = {"0": "background", **{str(n): f"organ {n}" for n in range(1, classes)}}
    metadata = {
        "version": "0.2.0",
        "task": f"{form} segmentation",
        "copyright": "Copyright (c) nobody",
        "references": ["Somebody et al. 2026"],
        "network_data_format": {
            "inputs": {"image": {"modality": "CT", "num_channels": 1, "channel_def": {"0": "image"}}},
            "outputs": {"pred": {"num_channels": classes, "channel_def": names}},
        },
    }
    for name, value in (("inference.json", config), ("metadata.json", metadata)):
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "configs" / name).write_text(json.dumps(value, indent=1))
    (folder / "models").mkdir()
    (folder / "LICENSE").write_text("Apache License\n")
    if form == "wholebrain_unest":
        (folder / "scripts" / "networks").mkdir(parents=True)
        for path in (folder / "scripts" / "__init__.py", folder / "scripts" / "networks" / "__init__.py"):
            path.write_text("")
        (folder / "scripts" / "networks" / "unest_base_patch_4.py").write_text(SCRIPT)
    return folder
