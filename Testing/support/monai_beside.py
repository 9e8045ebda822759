"""MONAI's own inference with a bundle, and ours without export, beside each other: what tests of bundles compare."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.importers import monai_bundle
from MedQuantINT8Lib.importers.base import ImportedModel
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment

LOAD = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
SPACE = {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.5], "mode": "bilinear"}
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}
WINDOW = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 2, "overlap": 0.5}
#: A network of 1x1x1 convolutions without activations: its scores are weighted sums of the channels.
LINEAR = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [2, 2], "strides": [1], "kernel_size": 1,
          "up_kernel_size": 1, "num_res_units": 0, "act": ["leakyrelu", {"negative_slope": 1.0}], "norm": None, "adn_ordering": "A"}  # fmt: skip


def invert(nearest: bool = False, **changes: Any) -> dict[str, Any]:
    return {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": nearest,
        **changes,
    }


def write(folder: Path, *, post: list[Any], pre: list[Any] | None = None, network: Any = None, weights: str = "models/model.pt",
          pred: dict[str, Any] | None = None, **entries: Any) -> Path:  # fmt: skip
    """A bundle with seeded weights in ``weights``; ``entries`` of the configuration are added or replaced."""
    definition = network or LINEAR
    config = {
        "bundle_root": ".", "output_dir": "$@bundle_root + '/eval'", "device": "$torch.device('cpu')", "network_def": definition,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": pre or [*LOAD, SPACE]},
        "inferer": WINDOW, "postprocessing": {"_target_": "Compose", "transforms": post},
        "checkpointloader": {
            "_target_": "CheckpointLoader", "load_path": f"$@bundle_root + '/{weights}'", "load_dict": {"model": "@network"},
        },
        **entries,
    }  # fmt: skip
    channels = definition.get("out_channels", 3) if isinstance(definition, dict) else 3
    inputs = definition.get("in_channels", 1) if isinstance(definition, dict) else 1
    said = pred or {
        "num_channels": channels,
        "channel_def": {str(n): "background" if n == 0 else f"organ {n}" for n in range(channels)},
    }
    metadata = {"name": "made", "version": "0.1", "network_data_format": {
        "inputs": {"image": {"modality": "MR", "num_channels": inputs}}, "outputs": {"pred": said}}}  # fmt: skip
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    if isinstance(definition, dict):
        save_weights(definition, folder / weights)
    return folder


def save_weights(definition: dict[str, Any], path: Path, seed: int = 0) -> None:
    from monai.networks import nets

    torch.manual_seed(seed)
    module = getattr(nets, definition["_target_"])(**{k: v for k, v in definition.items() if not k.startswith("_")})
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # Smooth noise about 0 then lies on both sides of every border.
            parameter.copy_(torch.zeros_like(parameter) if name.endswith("bias") else torch.randn_like(parameter))
    torch.save(module.state_dict(), path)


def scan(path: Path, size: tuple[int, int, int] = (27, 25, 22), spacing: tuple[float, float, float] = (1.6, 1.3, 3.0), channels: int = 1,
         turned: bool = True, seed: int = 0) -> Path:  # fmt: skip
    """Smooth noise, not in RAS order; as NIfTI."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    data = [gaussian_filter(rng.standard_normal(size[::-1]), 2).astype(np.float32) for _ in range(channels)]
    images = []
    for values in data:
        image = sitk.GetImageFromArray(values / values.std())
        image.SetSpacing(spacing)
        images.append(sitk.DICOMOrient(image, "PLI") if turned else image)
    sitk.WriteImage(images[0] if channels == 1 else sitk.JoinSeries(images), str(path))
    return path


def by_monai(folder: Path, path: Path | list[Path], network: Any = None) -> np.ndarray:
    """What MONAI's transforms, inferer and postprocessing make of a scan: (C, I, J, K)."""
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = ConfigParser()
        parser.read_config(str(next((folder / "configs").glob("inference.*"))))
        parser["bundle_root"] = str(folder)
        for transform in parser["postprocessing"]["transforms"]:
            if "SaveImage" in transform["_target_"]:
                transform["_disabled_"] = True
        for transform in parser["preprocessing"]["transforms"]:
            # Any of MONAI's readers gives the same of these files; ITK's needs a package of its own.
            transform.pop("reader", None)
        if network is None:
            network = parser.get_parsed_content("network_def")
            network.load_state_dict(torch.load(next((folder / "models").glob("*.pt"))))
        before, inferer, after = (
            parser.get_parsed_content(name) for name in ("preprocessing", "inferer", "postprocessing")
        )
        data = before(
            {
                "image": [str(p) for p in path]
                if isinstance(path, list) and len(path) > 1
                else str(path[0] if isinstance(path, list) else path)
            }
        )
        with torch.no_grad():
            scores = inferer(data["image"][None], network.eval())[0]
        data["pred"] = MetaTensor(
            scores.as_tensor() if isinstance(scores, MetaTensor) else scores, meta=data["image"].meta
        )
        data["pred"].applied_operations = data["image"].applied_operations
        return np.asarray(after(data)["pred"])


class Torch:
    """A torch module as an engine."""

    def __init__(self, module: Any) -> None:
        self._module = module.eval()

    def infer(self, batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self._module(torch.from_numpy(np.ascontiguousarray(batch))).numpy()


def by_us(imported: ImportedModel, path: Path | list[Path], network: Any = None) -> np.ndarray:
    """The label map of the segment road, (I, J, K) as nibabel has it."""
    from MedQuantINT8Lib.models.spec_parser import parse_spec

    spec = parse_spec(imported.spec.to_json())
    engine = Torch(network if network is not None else imported.network())
    made = segment(preprocess(read_volume(path), spec), spec, engine, SegmentationOptions(check_ranges=False))  # type: ignore[arg-type]
    return made.labels.transpose(2, 1, 0)


def agreement(folder: Path, path: Path, **options: Any) -> float:
    """The share of voxels that bear the same label in both."""
    ours, theirs = by_us(monai_bundle.understand(folder, **options), path), by_monai(folder, path)[0]
    assert ours.shape == theirs.shape and len(np.unique(ours)) > 1
    return float(np.mean(ours == theirs))
