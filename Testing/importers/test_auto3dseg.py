"""Models of Auto3DSeg: prepared, segmented and labelled as the Slicer extension's script does it with MONAI, or refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNetDS

from auto3dseg_models import CONFIG, MRI, NETWORK, REGIONS, model
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.errors import MedQuantError, PackageError
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.importers import auto3dseg
from MedQuantINT8Lib.importers.auto3dseg_config import MODES, read_config
from MedQuantINT8Lib.importers.base import write
from MedQuantINT8Lib.importers.check_scans import make_synthetic_scans
from MedQuantINT8Lib.importers.import_check import difference
from MedQuantINT8Lib.models.package import FP32, IMPORT, ModelPackage
from MedQuantINT8Lib.progress import Task
from spoiling import spoiled

PREPARED = {
    "range": {},
    "meanstd": MRI,
    "meanstdtanh": {**MRI, "normalize_mode": "meanstdtanh"},
    "pet": {**MRI, "normalize_mode": "pet"},
    "none": {**MRI, "normalize_mode": "none"},
    "as it lies in the file": {"orientation_ras": False, **MRI},
    "not cropped": {"crop_foreground": False},
    "not resampled": {"resample_resolution": None, **MRI},
    "resampled although resample is false": {"resample": False},
    "two modalities": {"network": {"in_channels": 2}, "extra_modalities": {"image2": "pet"}},
    "MRI first": {"network": {"in_channels": 2}, "normalize_mode": "mri", "extra_modalities": {"image2": "ct"}},
    "four channels of one image": {"network": {"in_channels": 4}, **MRI},
    "brats": {"name": "brats-gli-v1", "network": {"in_channels": 4}, **REGIONS},
}


@pytest.mark.parametrize("name", PREPARED)
def test_scans_are_prepared_as_the_extension_does(tmp_path, name):
    item = auto3dseg.understand(model(tmp_path, **PREPARED[name]))
    original = item.original()
    for volume in make_synthetic_scans(item.spec):
        ours, theirs = preprocess(volume, item.spec).data, original.prepare(volume)
        assert ours.shape == theirs.shape
        assert difference(ours, theirs) < 1e-3, volume.name


IMPORTED = {
    "classes": {},
    "BraTS, whose regions are the labels 2, 1 and 3": {
        "name": "brats-gli-v1",
        "network": {"in_channels": 4},
        **REGIONS,
    },
    "regions with their labels": {"class_index": [[1, 2, 3], [2, 3], [3]], **REGIONS},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORTED)
def test_imports_agree_with_monai_in_input_scores_and_labels(tmp_path, name):
    package = write(auto3dseg.understand(model(tmp_path, **IMPORTED[name])), tmp_path / "package", Task())
    record = json.loads((package.folder / IMPORT).read_text())
    assert record["compared"] and record["original"].startswith("MONAI")
    assert max(scan["score_difference"] for scan in record["scans"]) < 0.005
    assert min(scan["label_agreement"] for scan in record["scans"]) > 0.997


@pytest.mark.slow
def test_the_network_computes_what_monais_does(tmp_path):
    folder = model(tmp_path, resample_resolution=None)
    assert main(["import", "auto3dseg", str(folder), "-o", str(tmp_path / "package"), "-q"]) == 0
    package = ModelPackage.load(tmp_path / "package")
    module = SegResNetDS(**{k: v for k, v in NETWORK.items() if k != "_target_"}).eval()
    module.load_state_dict(torch.load(folder / "model.pt", weights_only=True)["state_dict"])
    x = torch.randn(1, 1, 24, 24, 16)
    with torch.no_grad():
        expected = module(x)[0]
    got = session((package.folder / FP32).read_bytes(), "fp32").run(None, {"image": x.numpy()})[0]
    assert np.allclose(got, expected.numpy(), atol=1e-3)
    assert json.loads((package.folder / IMPORT).read_text())["compared"]
    assert package.spec.name == "organs-v1" and package.spec.modality == "CT" and package.spec.window.overlap == 0.625


@pytest.mark.parametrize(
    ("resolution", "levels"),
    [(None, 4), ([1, 1, 5], 4), ([0.5, 0.5, 3.0], 4), ([1, 2.1, 9], 3), ([0.3, 0.3, 6], 3), ([2, 2, 2], 5)],
)
def test_windows_are_multiples_of_what_the_network_needs_along_each_axis(resolution, levels):
    described = {
        "init_filters": 4,
        "in_channels": 1,
        "out_channels": 2,
        "blocks_down": [1] * levels,
        "resolution": resolution,
    }
    factors = [int(n) for n in SegResNetDS(**described).shape_factor()]
    config = {**CONFIG, "network": {"_target_": "SegResNetDS", **described}, "roi_size": [16 * n for n in factors]}
    assert list(read_config(config, "model.pt").factors) == factors
    if max(factors) > 1:
        axis = factors.index(max(factors))
        wrong = [16 * n + (n // 2 if a == axis else 0) for a, n in enumerate(factors)]
        with pytest.raises(PackageError, match="no multiple of " + " x ".join(map(str, factors))):
            read_config({**config, "roi_size": wrong}, "model.pt")


def test_what_auto3dsegs_segmenter_tells_the_network_is_told(tmp_path):
    config = {
        **CONFIG,
        "network": {**NETWORK, "norm": "INSTANCE_NVFUSER"},
        "anisotropic_scales": True,
        "resample_resolution": [1.0, 1.0, 5.0],
    }
    found = read_config({**config, "roi_size": [24, 24, 15]}, "model.pt")
    assert (
        found.network["norm"] == "INSTANCE"
        and found.network["resolution"] == [1.0, 1.0, 5.0]
        and found.factors == (4, 4, 1)
    )


def test_channels_are_called_as_the_configuration_calls_them(tmp_path):
    two = auto3dseg.understand(model(tmp_path, "two", {"in_channels": 2}, extra_modalities={"image2": "pet"}))
    assert [channel.name for channel in two.spec.channels] == ["ct", "image2"]
    assert [channel.name for channel in auto3dseg.understand(model(tmp_path, "one")).spec.channels] == ["ct"]


def labels_of(config, tmp_path, name="other", table=None):
    folder = model(tmp_path, name, **config)
    if table:
        (folder / "labels.csv").write_text(table)
    item = auto3dseg.understand(folder)
    return [(label.channel, label.value, label.name) for label in item.spec.labels], item.notes


def test_regions_get_the_labels_that_the_extension_or_the_configuration_gives_them(tmp_path):
    brats, notes = labels_of(REGIONS, tmp_path, "brats-gli", "LabelValue,Name\n1,necrosis\n2,edema\n3,enhancing\n")
    assert brats == [(0, 2, "edema"), (1, 1, "necrosis"), (2, 3, "enhancing")] and "2, 1, 3" in notes[0]
    nested, notes = labels_of(
        {**REGIONS, "class_index": [[1, 2, 3], [1, 3], [3]], "class_names": ["whole", "core", "enhancing"]}, tmp_path
    )
    assert nested == [(0, 2, "whole"), (1, 1, "core"), (2, 3, "enhancing")] and not notes
    named = [{"name": "whole", "index": [1, 2]}, {"name": "core", "index": [2]}]
    two = {**REGIONS, "network": {"out_channels": 2}, "class_names": named}
    assert labels_of(two, tmp_path, "two")[0] == [(0, 1, "whole"), (1, 2, "core")]
    unknown, notes = labels_of(REGIONS, tmp_path, "unknown")
    assert [value for _, value, _ in unknown] == [1, 2, 3] and "class_index" in notes[0]
    with pytest.raises(PackageError, match="painted one over the other"):
        labels_of({**REGIONS, "class_index": [[1, 2], [2, 3], [4]]}, tmp_path, "crossing")
    with pytest.raises(PackageError, match="has 2 regions, the network has 3"):
        labels_of({**REGIONS, "class_index": [[1, 2], [2]]}, tmp_path, "few")


def test_hyper_parameters_and_labels_are_read_from_beside_the_weights(tmp_path):
    folder = model(tmp_path)
    saved = torch.load(folder / "model.pt", weights_only=True)
    torch.save(saved["state_dict"], folder / "model.pt")
    with pytest.raises(PackageError, match="no configuration"):
        auto3dseg.understand(folder)
    lines = {
        **CONFIG,
        "ckpt_path": "$@bundle_root + '/model'",
        "loss": {"_target_": "DiceCELoss", "softmax": "$not @sigmoid"},
    }
    (folder / "hyper_parameters.yaml").write_text(json.dumps(lines))
    (folder / "labels.csv").write_text("LabelValue,Name\n1,whole\n")
    assert [label.name for label in auto3dseg.understand(folder).spec.labels] == ["whole", "structure 2"]


REFUSED = {
    "'magic' is not understood": {"normalize_mode": "magic"},
    "extra_modalities, image2 'magic'": {
        "network": {**NETWORK, "in_channels": 2},
        "extra_modalities": {"image2": "magic"},
    },
    "names 1 channels besides the first, the network has 1": {"extra_modalities": {"image2": "ct"}},
    "not a SegResNetDS": {"network": {"_target_": "UNet", "out_channels": 2}},
    "two different intensity_bounds": {"intensity_bounds": None},
    "'custom_data_transforms'": {"custom_data_transforms": [{"key": "load_transforms"}]},
    "'sliding_inferrer'": {"sliding_inferrer": {"_target_": "SlidingWindowInferer"}},
    "'spatial_dims' is 2": {"network": {**NETWORK, "spatial_dims": 2}},
    "'preprocess'": {"network": {**NETWORK, "preprocess": "$lambda x: x"}},
    "'sigmoid' is 'yes'": {"sigmoid": "yes"},
    "'roi_size' is .* list of 3": {"roi_size": [32, 32]},
    "'resample_resolution'": {"resample_resolution": [1.0, 1.0, 0.0]},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_a_configuration_says_and_nobody_understands_is_refused_by_name(named):
    with pytest.raises(PackageError, match=named):
        read_config({**CONFIG, **REFUSED[named]}, "model.pt")


def test_arguments_that_build_no_network_are_refused(tmp_path):
    folder = model(tmp_path)
    saved = torch.load(folder / "model.pt", weights_only=True)
    for arguments, named in (({"magic": 1}, "magic"), ({"norm": "none such"}, "cannot be built")):
        changed = {**saved, "config": {**saved["config"], "network": {**NETWORK, **arguments}}}
        torch.save(changed, folder / "model.pt")
        with pytest.raises(PackageError, match=named):
            auto3dseg.understand(folder).network()


def test_any_wrong_type_is_an_error_in_words(tmp_path):
    """Whatever of the configuration is exchanged for another type: taken where it changes nothing, else one of our own errors."""
    random = np.random.default_rng(23)
    folder = model(tmp_path, extra_modalities={}, class_index=None)
    saved = torch.load(folder / "model.pt", weights_only=True)
    refused = 0
    for _ in range(120):
        try:
            torch.save({**saved, "config": spoiled(saved["config"], random)}, folder / "model.pt")
            auto3dseg.understand(folder).network()
        except MedQuantError as error:
            refused += 1
            assert str(error).endswith(".") and "\n" not in str(error)
    assert refused > 50
    assert set(MODES.values()) == {"none", "range", "meanstd", "meanstdtanh", "pet"}
