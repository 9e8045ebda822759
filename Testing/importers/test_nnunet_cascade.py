"""nnU-Net's cascade: the previous stage's labels as further channels, and both stages as one task, as nnU-Net's own predictor does it."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib.errors import InputError, PackageError
from MedQuantINT8Lib.imaging.nnunet_resampling import resize_labels
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.importers import nnunet
from MedQuantINT8Lib.importers.check_scans import make_synthetic_scans
from MedQuantINT8Lib.models.spec import SplineResampling
from MedQuantINT8Lib.models.spec_parser import parse_spec
from nnunet_folders import checkpoint, dataset, plans, random_network, write_folder

REGIONS = {"labels": {"background": 0, "all": [1, 2, 3], "two": [2, 3], "one": [3]}, "regions_class_order": [1, 2, 3]}
THREE = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
TRAINER = "nnUNetTrainer__nnUNetPlans__"
CASCADE, LOWRES = "3d_cascade_fullres", "3d_lowres"


def cascade_folders(
    root, transpose=(0, 1, 2), data=THREE, scheme="ZScoreNormalization", masked=False, aniso=False, **changes
):
    """Result folders of a lowres configuration and of the cascade on it, of random networks."""
    outputs = len(data["labels"]) - ("regions_class_order" in data)
    low, made = random_network(1, 1, outputs)
    high, made_high = random_network(2, 1 + 3, outputs)
    spacing = [9.1, 2.4, 2.7] if aniso else [5.0, 4.0, 4.0]
    plan = plans(
        transpose, architecture=made, normalization_schemes=[scheme], use_mask_for_norm=[masked],
        patch_size=[[8, 12, 16][n] for n in transpose], spacing=[spacing[n] for n in transpose],
    )  # fmt: skip
    full = plan["configurations"]["3d_fullres"]
    plan["configurations"] = {
        "3d_fullres": full,
        LOWRES: {**full, "spacing": [1.5 * value for value in full["spacing"]], "next_stage": CASCADE},
        CASCADE: {"inherits_from": "3d_fullres", "previous_stage": LOWRES, "architecture": made_high, **changes},
    }
    folders = {}
    for name, net in ((LOWRES, low), (CASCADE, high)):
        saved = checkpoint(net, init_args={"configuration": name})
        place = f"Dataset001_Phantom/{TRAINER}{name}"
        folders[name] = write_folder(root, plan, dataset(**data), {"fold_0/checkpoint_final.pth": saved}, place)
    return folders


CASES = {
    "plain": {},
    "transposed, masked by what is not 0": {"transpose": (2, 0, 1), "masked": True},
    "slice by slice": {"aniso": True},
    "regions": {"data": REGIONS},
    "nearest, masked": {
        "masked": True,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 0, "order_z": 0, "force_separate_z": None},
    },
    "linear between slices": {
        "aniso": True,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 1, "force_separate_z": None},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_input_of_a_cascade_is_nnunets(name, tmp_path):
    model = nnunet.understand(cascade_folders(tmp_path, **CASES[name])[CASCADE])[0]
    spec = parse_spec(model.spec.to_json())
    assert spec.channels[-1].one_hot == (1, 2, 3) and spec.input_channels == 4 and spec.scans == 1
    original = model.original()
    for volume in make_synthetic_scans(spec):
        ours, theirs = preprocess(volume, spec).data, original.prepare(volume)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours[:1], theirs[:1], atol=2e-3 * theirs[:1].std())
        # A mask that is exactly half there may be rounded to either side.
        assert np.mean(ours[1:] != theirs[1:]) < 2e-3, volume.name
        assert all(theirs[1 + n].any() for n in range(3))


@pytest.mark.parametrize(
    "how", [SplineResampling(1), SplineResampling(0), SplineResampling(1, 0, True), SplineResampling(1, 1, True)]
)
def test_label_maps_are_resized_as_nnunet_resizes_them(how):
    resampling = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    labels = np.random.default_rng(0).integers(0, 4, (6, 7, 8)).repeat(3, 0).repeat(2, 1).repeat(3, 2)
    for size in ((17, 15, 25), (31, 10, 9), (24, 14, 18)):
        across = 2 if how.separate_z else None
        expected = resampling.resample_data_or_seg(
            labels[None].astype(np.int16), size[::-1], True, 0 if how.separate_z else None, how.order, bool(how.separate_z), how.order_z
        )[0]  # fmt: skip
        assert np.mean(resize_labels(labels, size, how, across) != expected) < 1e-3


def test_what_is_no_label_map_is_refused_in_words(tmp_path):
    spec = nnunet.understand(cascade_folders(tmp_path)[CASCADE])[0].spec
    scan = np.random.default_rng(0).normal(0, 100, (2, 20, 20, 20)).astype(np.float32)
    with pytest.raises(InputError, match="in the place of a label map"):
        preprocess(Volume(scan, np.eye(4), "scan"), spec)
    with pytest.raises(InputError, match="1 channel"):
        preprocess(Volume(scan[:1], np.eye(4), "scan"), spec)
    scan[1] = 0  # a previous stage that found nothing
    assert not preprocess(Volume(scan, np.diag([4.0, 4.0, 5.0, 1.0]), "scan"), spec).data[1:].any()
    for channels in (
        [{"name": "a", "one_hot": [1]}],
        [{"name": "a", "one_hot": [1]}, {"name": "b"}],
        [{"name": "b"}, {"name": "a", "one_hot": [1, 1]}],
    ):
        with pytest.raises(PackageError, match="channels"):
            parse_spec({**spec.to_json(), "channels": channels})


def test_label_maps_resampled_another_way_are_refused(tmp_path):
    for changes, message in (
        ({"resampling_fn_seg": "resample_torch_fornnunet"}, "of a cascade is not understood"),
        ({"resampling_fn_seg_kwargs": {"is_seg": True, "order": 2}}, "'order' is 2"),
        ({"resampling_fn_seg_kwargs": {"is_seg": True, "magic": 2}}, "'magic' is 2"),
        ({"resampling_fn_seg_kwargs": {"is_seg": False}}, "'is_seg' is False"),
        ({"previous_stage": 3}, "'previous_stage' is 3"),
    ):
        with pytest.raises(PackageError, match=message):
            nnunet.understand(cascade_folders(tmp_path, **changes)[CASCADE])
