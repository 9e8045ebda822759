"""Seven configurations of the public model zoo, with made networks: the same as MONAI's own inference."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from data_models import DATA
from MedQuantINT8Lib.importers import monai_bundle
from monai_beside import Torch, by_monai, by_us, scan

CONFIGURATIONS = DATA / "bundles"
pytestmark = pytest.mark.skipif(
    not CONFIGURATIONS.is_dir(), reason="needs the model zoo's configurations (MEDQUANT_DATA)"
)
#: What is made smaller: networks and windows; and from where up labels agree with MONAI's.
BUNDLES = {
    "brats_mri_segmentation": ({"init_filters": 8}, [32, 32, 16], 0.9999),
    "pancreas_ct_dints_segmentation": ({}, [32, 32, 32], 0.9999),
    "pediatric_abdominal_ct_segmentation": ({"filters": [4, 4, 4, 4, 4, 4]}, [32, 32, 32], 0.9999),
    "prostate_mri_anatomy": ({"channels": [2, 2, 2, 2, 2, 2], "num_res_units": 0}, [32, 32, 32], 0.999),
    "spleen_ct_segmentation": ({"channels": [2, 2, 2, 2, 2]}, [32, 32, 32], 0.9999),
    "swin_unetr_btcv_segmentation": ({"feature_size": 12}, [32, 32, 32], 0.9999),
    "wholeBody_ct_segmentation": ({"init_filters": 8}, [32, 32, 32], 0.9999),
}


def small_copy(name, folder):
    """A copy of a configuration as JSON, for the processor, with a small network and window; and its configuration."""
    shutil.copytree(CONFIGURATIONS / name, folder, copy_function=shutil.copyfile)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    path = next((folder / "configs").glob("inference.*"))
    text = path.read_text().replace("torch.device('cuda')", "torch.device('cpu')")
    if path.suffix != ".json":
        yaml = pytest.importorskip("yaml")
        text = json.dumps(yaml.safe_load(text))
        path.unlink()
    config = json.loads(text)
    network, window, _ = BUNDLES[name]
    config["network_def"].update(network)
    config["inferer"]["roi_size"] = window
    # MONAI imports what a configuration names; the scripts and pandas are not here, and not used.
    config["imports"] = [i for i in config["imports"] if "scripts" not in i and "pandas" not in i]
    (folder / "models").mkdir(exist_ok=True)
    if "dints" in name:
        config["dints_space"].update(channel_mul=0.125, num_blocks=2)
        rng = np.random.default_rng(0)
        code = {
            "arch_code_a": np.ones((2, 10), int),
            "arch_code_c": rng.integers(0, 4, (2, 10)),
            "node_a": np.ones((3, 4)),
        }
        torch.save(code, folder / "models" / "search_code_18590.pt")
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    return config


class Shifted(torch.nn.Module):
    """A small network that is not symmetric: scores are convolutions with a seeded kernel, so that turned axes show."""

    def __init__(self, channels, classes):
        super().__init__()
        torch.manual_seed(1)
        self.body = torch.nn.Conv3d(channels, classes, 3, padding=1)
        with torch.no_grad():
            self.body.weight.mul_(6)
            self.body.bias.zero_()

    def forward(self, x):
        return self.body(x - x.mean(dim=(2, 3, 4), keepdim=True))


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_of_the_zoo_does_what_monai_does(name, tmp_path, monkeypatch):
    folder = tmp_path / name
    small_copy(name, folder)
    weights = folder / "models" / ("dynunet_FT.pt" if name.startswith("pediatric") else "model.pt")
    torch.save({}, weights)
    # The real network is made on both sides, with the same seeded weights.
    theirs = network_of_monai(folder, monkeypatch)
    torch.manual_seed(0)
    torch.save(theirs.state_dict(), weights)
    imported = monai_bundle.understand(folder)
    spec = imported.spec
    channels, classes = len(spec.channels), spec.output_channels
    patch = torch.randn(1, channels, *[2 * m if m == 32 else 32 for m in spec.window.multiples])
    with torch.no_grad():
        expected = theirs.eval()(patch).numpy()
    assert np.allclose(Torch(imported.network()).infer(patch.numpy()), expected, atol=1e-4)
    # Labels of random weights are noise; those of a small convolution are not.
    network = Shifted(channels, classes)
    path = scan(tmp_path / "scan.nii.gz", (40, 33, 18), (0.9, 1.1, 3.0), turned=channels == 1)
    paths = [path]
    for n in range(1, channels):
        paths.append(scan(tmp_path / f"scan{n}.nii.gz", (40, 33, 18), (0.9, 1.1, 3.0), turned=False, seed=n))
    scale(paths, spec.modality)
    ours = by_us(imported, paths, network)
    if name == "prostate_mri_anatomy":
        masks_for_numbers(folder)
    expected = by_monai(folder, paths, network)[0]
    floor = BUNDLES[name][2]
    assert ours.shape == expected.shape and len(np.unique(ours)) > 1
    assert np.mean(ours == expected) > floor


def masks_for_numbers(folder):
    """This bundle interpolates label numbers, which gives fractions and, between 0 and 2, a 1: masks are what labels can be."""
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    post = config["postprocessing"]["transforms"]
    place = next(n for n, transform in enumerate(post) if transform["_target_"] == "Invertd")
    post.insert(place, {"_target_": "AsDiscreted", "keys": "pred", "to_onehot": 3})
    post.insert(place + 2, {"_target_": "AsDiscreted", "keys": "pred", "argmax": True})
    path.write_text(json.dumps(config))


def network_of_monai(folder, monkeypatch):
    from monai.bundle import ConfigParser

    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: load(*a, **{**k, "weights_only": False}))
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser["bundle_root"] = str(folder)
    torch.manual_seed(0)
    # MONAI took the size of images once, and no longer does.
    parser["network_def"].pop("img_size", None)
    made = parser.get_parsed_content("network_def")
    monkeypatch.undo()
    return made


def scale(paths, modality):
    """CT in Hounsfield units, MR in positive numbers with a margin of air."""
    import SimpleITK as sitk

    for path in paths:
        image = sitk.ReadImage(str(path))
        values = sitk.GetArrayFromImage(image)
        values = values * 150 + 30 if modality == "CT" else np.maximum(values * 100 + 150, 0)
        if modality == "CT":
            values[:2], values[:, :3], values[:, :, -4:] = -1000, -1000, -1000
        made = sitk.GetImageFromArray(values.astype(np.float32))
        made.CopyInformation(image)
        sitk.WriteImage(made, str(path))
