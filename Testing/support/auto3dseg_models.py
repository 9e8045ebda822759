"""Folders of Auto3DSeg models: a configuration and a small network with random weights."""

from __future__ import annotations

import torch
from monai.networks.nets import SegResNetDS

NETWORK = {"_target_": "SegResNetDS", "init_filters": 4, "blocks_down": [1, 1, 1], "norm": "INSTANCE", "in_channels": 1, "out_channels": 3,
           "dsdepth": 2}  # fmt: skip
CONFIG = {
    "network": NETWORK,
    "normalize_mode": "range",
    "intensity_bounds": [-250.0, 300.0],
    "resample": True,
    "resample_resolution": [3.0, 3.2, 3.5],
    "roi_size": [24, 24, 16],
    "modality": "ct",
    "crop_foreground": True,
    "orientation_ras": True,
    "sigmoid": False,
    "class_names": ["liver", "spleen"],
    "bundle_root": "/train/segresnet_0",
}
MRI = {"normalize_mode": "meanstd", "intensity_bounds": None}
REGIONS = {"sigmoid": True, "class_names": [], **MRI}


def model(tmp_path, name="organs-v1", network=None, **changes):
    """A folder with model.pt of a network with random weights."""
    described = {**NETWORK, **(network or {})}
    torch.manual_seed(1)
    module = SegResNetDS(**{k: v for k, v in described.items() if not k.startswith("_")}).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    folder = tmp_path / name
    folder.mkdir(parents=True)
    torch.save(
        {"state_dict": module.state_dict(), "config": {**CONFIG, "network": described, **changes}, "epoch": 3},
        folder / "model.pt",
    )
    return folder
