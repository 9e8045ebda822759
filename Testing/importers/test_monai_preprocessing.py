"""MONAI's transforms before the network, argument by argument: the network's input is MONAI's own, voxel by voxel, or the import is refused."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.importers.expressions import Config
from MedQuantINT8Lib.importers.import_check import difference
from MedQuantINT8Lib.importers.monai_transforms import translate_preprocessing
from MedQuantINT8Lib.models.spec import Channel
from MedQuantINT8Lib.models.spec_parser import parse_spec
from scans import GEOMETRIES


def scan(channels: int = 1, matrix: Any = None, seed: int = 0) -> Volume:
    """Smooth grey values from about -700 to 900 in air of -1000, zeros in a block; the second channel is twenty times as bright."""
    rng = np.random.default_rng(seed)
    size = (25, 28, 33)
    made = []
    for channel in range(channels):
        coarse = rng.standard_normal((6, 7, 8))
        places = np.meshgrid(
            *(np.linspace(0, n - 1.001, m).astype(int) for n, m in zip(coarse.shape, size, strict=True)), indexing="ij"
        )
        values = (coarse[tuple(places)] * 200 + rng.normal(0, 60, size) + 100) * (20.0**channel)
        values[:, :, :4] = values[:3] = values[:, -3:] = -1000
        values[8:12, 9:14, 12 + channel : 20] = 0
        made.append(values)
    if matrix is None:
        matrix = np.array([[-1.5, 0, 0, 20], [0, 1.25, 0, -30], [0, 0, 2.0, 5], [0, 0, 0, 1.0]])
    return Volume(np.stack(made).astype(np.float32), matrix, "scan")


def by_monai(transforms: list[dict[str, Any]], volume: Volume, keys: list[str]) -> np.ndarray:
    """What MONAI's own transforms give, (C, I, J, K); entries of one channel each under ``keys``, or one of all."""
    import torch
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor
    from monai.transforms import Compose

    parser = ConfigParser({"imports": ["$import numpy as np", "$import torch"], "transforms": transforms})
    image = torch.from_numpy(volume.data.transpose(0, 3, 2, 1).copy())
    parts = {key: image[n : n + 1] for n, key in enumerate(keys)} if len(keys) > 1 else {keys[0]: image}
    entry = {key: MetaTensor(part.clone(), affine=torch.from_numpy(volume.ijk_to_ras)) for key, part in parts.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Compose(parser.get_parsed_content("transforms"))(entry)["image"])


def by_us(transforms: list[dict[str, Any]], volume: Volume, tmp_path) -> np.ndarray:
    resolved = Config({"transforms": transforms}, tmp_path).get("transforms")
    made = translate_preprocessing(resolved, volume.channels)
    spec = replace(
        phantom_spec(),
        channels=tuple(Channel(str(n)) for n in range(volume.channels)),
        geometry=made.geometry,
        crop=made.crop,
        normalization=made.normalization,
        normalize_in=made.normalize_in,
        order=made.order,
        fits=made.fits,
    )
    # Through the description, as a package has it.
    return preprocess(volume, parse_spec(spec.to_json())).data


def of(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": name, "keys": "image", **arguments}


NORMAL = of("NormalizeIntensityd")
WINDOW = of("ScaleIntensityRanged", a_min=-500, a_max=500, b_min=0, b_max=1, clip=True)
RAS, SPACE = of("Orientationd", axcodes="RAS"), of("Spacingd", pixdim=[2.0, 1.7, 1.4])
CASES: dict[str, list[dict[str, Any]]] = {
    "spacing": [SPACE, NORMAL],
    "one spacing for all": [of("Spacingd", pixdim=1.9), NORMAL],
    "two spacings": [of("Spacingd", pixdim=[1.9, 1.1]), NORMAL],
    "own spacing": [of("Spacingd", pixdim=[3, -1, 2]), of("Orientationd", axcodes="SPL")],
    "spacing null": [of("Spacingd", pixdim=[3.0, None, 0])],
    "extent": [RAS, of("Spacingd", pixdim=[2.9, 1.7, 1.4], scale_extent=True), NORMAL],
    "least and most spacing": [of("Spacingd", pixdim=[1, 1, 1.6], max_pixdim=[1.4, 1.4, 1.4], min_pixdim=[0.5, 0.5, 0.5])],
    "most spacing of one axis": [of("Spacingd", pixdim=[1, 1, 1], max_pixdim=2.2)],
    "almost its spacing": [of("Spacingd", pixdim=[1.5009, 1.2489, 2.0012])],
    "spline": [of("Spacingd", pixdim=[1.9, 1.3, 1.4], mode=3)],
    "nearest": [of("Spacingd", pixdim=[1.93, 1.31, 1.47], mode="nearest")],
    "zeros outside": [of("Spacingd", pixdim=[1.9, 1.3, 1.4], padding_mode="zeros", align_corners=True), NORMAL],
    "diagonal": [of("Spacingd", pixdim=[1.9, 1.3, 1.4], diagonal=True), NORMAL],
    "turned afterwards": [SPACE, of("Orientationd", axcodes="PIR"), NORMAL],
    "closest canonical": [of("Orientationd", as_closest_canonical=True)],
    "area": [WINDOW, of("Resized", spatial_size=[16, 40, 12])],
    "trilinear": [of("Resized", spatial_size=[16, 40, -1], mode="trilinear"), NORMAL],
    "trilinear by corners": [of("Resized", spatial_size=[16, 40, 12], mode="bilinear", align_corners=True), NORMAL],
    "resized nearest": [of("Resized", spatial_size=[16, 40, 12], mode="nearest")],
    "resized nearest-exact": [of("Resized", spatial_size=[16, 40, 12], mode="nearest-exact")],
    "longest": [of("Resized", spatial_size=24, size_mode="longest", mode="trilinear", anti_aliasing=True)],
    "crop": [of("CropForegroundd", source_key="image"), NORMAL],
    "crop after scaling": [WINDOW, of("CropForegroundd", source_key="image", margin=2, allow_smaller=True), RAS, SPACE],
    "crop after spacing": [RAS, SPACE, WINDOW, of("CropForegroundd", source_key="image", margin=[3, 0, 5])],
    "crop at -900": [of("CropForegroundd", source_key="image", select_fn="$lambda x: x > -900"), RAS, SPACE, NORMAL],
    "crop by lower or equal": [of("CropForegroundd", source_key="image", select_fn="$lambda v: v <= -50", margin=1)],
    "crop to multiples": [SPACE, of("CropForegroundd", source_key="image", k_divisible=[16, 8, 1], mode="edge"), NORMAL],
    "crop between statistics": [NORMAL, of("CropForegroundd", source_key="image"), SPACE, NORMAL],
    "middle": [of("CenterSpatialCropd", roi_size=[17, 99, -1]), NORMAL],
    "share of the middle": [SPACE, of("CenterScaleCropd", roi_scale=[0.5, 0.33, 0.9])],
    "padding": [of("SpatialPadd", spatial_size=[40, 28, 26]), NORMAL],
    "padding at the end": [NORMAL, of("SpatialPadd", spatial_size=40, method="end", mode="constant", value=-2)],
    "padding to multiples": [RAS, of("DivisiblePadd", k=16, mode="reflect"), NORMAL],
    "crop or pad": [SPACE, of("ResizeWithPadOrCropd", spatial_size=[20, 40, 30]), WINDOW],
    "descending": [of("ScaleIntensityRanged", a_min=500, a_max=-500, b_min=0, b_max=1, clip=True)],
    "only a lower end": [of("ScaleIntensityRanged", a_min=-500, a_max=500, b_min=0.25, clip=True)],
    "another range": [of("ScaleIntensityRanged", a_min=-500, a_max=500, b_min=-1, b_max=3, clip=True), SPACE, WINDOW],
    "minimum and maximum": [SPACE, of("ScaleIntensityd", minv=-1, maxv=1)],
    "factor": [of("ScaleIntensityd", minv=None, maxv=None, factor=0.5)],
    "percentiles": [of("ScaleIntensityRangePercentilesd", lower=5, upper=90, b_min=-1, b_max=1, clip=True)],
    "relative percentiles": [of("ScaleIntensityRangePercentilesd", lower=5, upper=90, b_min=0, b_max=255, relative=True)],
    "clipped percentiles": [of("ClipIntensityPercentilesd", lower=5, upper=None), NORMAL],
    "nonzero": [of("NormalizeIntensityd", nonzero=True)],
    "mean only": [of("NormalizeIntensityd", subtrahend=-200)],
    "divisor only": [of("NormalizeIntensityd", divisor=50, nonzero=True)],
    "both of nonzero": [of("NormalizeIntensityd", subtrahend=10, divisor=50, nonzero=True)],
    "threshold": [of("ThresholdIntensityd", threshold=-300, cval=-300), of("ThresholdIntensityd", threshold=400, above=False, cval=7)],
    "shift": [of("ShiftIntensityd", offset=24)],
    "whole numbers": [of("CastToTyped", dtype="$np.int16"), NORMAL],
    "functions": [of("Lambdad", func="$lambda x: (x + 1000) / 2000.0"), of("Lambdad", func="$lambda x: torch.clamp(x, 0.1, max=0.8)")],
    "what changes nothing": [of("EnsureTyped", device="cpu", track_meta=True), of("Lambdad", func="$lambda x: x"), of("Identityd"), NORMAL],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_networks_input_is_monais(name, tmp_path):
    volume = scan()
    theirs = by_monai(CASES[name], volume, ["image"])
    ours = by_us(CASES[name], volume, tmp_path)
    assert ours.shape == theirs.shape
    if name == "nearest":
        assert np.mean(ours != theirs) < 0.002
    else:
        assert np.abs(ours - theirs).max() < 2e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("noise", [0.0, 3e-7])
def test_every_geometry_lies_where_monai_lays_it(geometry, noise, tmp_path):
    matrix = GEOMETRIES[geometry].copy()
    matrix[:3, :3] += noise * np.random.default_rng(1).standard_normal((3, 3))
    matrix[:3, :3] *= (1.3, 1.1, 2.7)
    for transforms in (
        [RAS, of("Spacingd", pixdim=[1.5, 3.0, 1.9]), NORMAL],
        [of("Spacingd", pixdim=[1.5, 3.0, 1.9]), RAS, NORMAL],
    ):
        volume = scan(matrix=matrix)
        assert difference(by_us(transforms, volume, tmp_path), by_monai(transforms, volume, ["image"])) < 1e-5


CHANNELS: dict[str, list[dict[str, Any]]] = {
    "statistics of all channels": [NORMAL],
    "nonzero of all channels": [of("NormalizeIntensityd", nonzero=True)],
    "each channel": [of("NormalizeIntensityd", channel_wise=True, nonzero=True)],
    "minimum of all": [of("ScaleIntensityd")],
    "minimum of each": [of("ScaleIntensityd", channel_wise=True)],
    "percentiles of all": [of("ScaleIntensityRangePercentilesd", lower=2, upper=97, b_min=0, b_max=1)],
    "clipped percentiles of all": [of("ClipIntensityPercentilesd", lower=2, upper=97)],
    "numbers for each": [of("NormalizeIntensityd", channel_wise=True, subtrahend=[10, 200], divisor=[3, 0])],
    "foreground of one": [
        of("CropForegroundd", source_key="image", channel_indices=[1], select_fn="$lambda x: x > 3000"),
        NORMAL,
    ],
    "foreground of any": [of("CropForegroundd", source_key="image", select_fn="$lambda x: x > 300")],
}
JOINED: dict[str, list[dict[str, Any]]] = {
    "each by itself": [{"_target_": "NormalizeIntensityd", "keys": ["t1", "t2"]}],
    "differently": [
        {"_target_": "NormalizeIntensityd", "keys": ["t2"]},
        {"_target_": "ScaleIntensityRanged", "keys": "t1", "a_min": -500, "a_max": 500, "b_min": 0, "b_max": 1},
    ],
    "cropped by one": [
        {"_target_": "Orientationd", "keys": ["t1", "t2"], "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": ["t1", "t2"], "pixdim": [2, 2, 2], "mode": ["bilinear", "bilinear"]},
        {"_target_": "CropForegroundd", "keys": ["t1", "t2"], "source_key": "t2"},
    ],
}


@pytest.mark.parametrize("name", CHANNELS)
def test_several_channels_are_treated_as_monai_does(name, tmp_path):
    volume = scan(2)
    assert difference(by_us(CHANNELS[name], volume, tmp_path), by_monai(CHANNELS[name], volume, ["image"])) < 1e-5


@pytest.mark.parametrize("name", JOINED)
def test_channels_of_separate_entries_are_joined(name, tmp_path):
    joined = {"_target_": "ConcatItemsd", "keys": ["t1", "t2"], "name": "image", "dim": 0}
    transforms = [*JOINED[name], joined, of("ScaleIntensityd", channel_wise=True)]
    volume = scan(2)
    assert difference(by_us(transforms, volume, tmp_path), by_monai(transforms, volume, ["t1", "t2"])) < 1e-5


REFUSED = {
    "RandAffined": of("RandAffined"),
    "Spacingd has padding_mode": of("Spacingd", pixdim=[1, 1, 1], padding_mode="reflection"),
    "Spacingd has mode": of("Spacingd", pixdim=[1, 1, 1], mode=4),
    "Spacingd has recompute_affine": of("Spacingd", pixdim=[1, 1, 1], recompute_affine=True),
    "Spacingd has lazy": of("Spacingd", pixdim=[1, 1, 1], lazy=True),
    "Spacingd has colour": of("Spacingd", pixdim=[1, 1, 1], colour="red"),
    "Resized has mode": of("Resized", spatial_size=[1, 1, 1], mode="bicubic"),
    "Resized has spatial_size": of("Resized", spatial_size=16),
    "Orientationd has labels": of("Orientationd", axcodes="RAS", labels=[["R", "L"], ["P", "A"], ["I", "S"]]),
    "CropForegroundd has select_fn": of("CropForegroundd", source_key="image", select_fn="$lambda x: x > x.mean()"),
    "CropForegroundd has mode": of("CropForegroundd", source_key="image", margin=2, mode="minimum"),
    "foreground of 'label'": of("CropForegroundd", source_key="label"),
    "NormalizeIntensityd has dtype": of("NormalizeIntensityd", dtype="$np.uint8"),
    "NormalizeIntensityd has subtrahend": of("NormalizeIntensityd", subtrahend=[1, 2]),
    "EnsureTyped has dtype": of("EnsureTyped", dtype="$torch.uint8"),
    "Lambdad has func": of("Lambdad", func="$lambda x: x.flip(1)"),
    "Lambdad has inv_func": of("Lambdad", func="$lambda x: x", inv_func="$lambda x: -x"),
    "ClipIntensityPercentilesd has sharpness_factor": of(
        "ClipIntensityPercentilesd", lower=1, upper=99, sharpness_factor=2.0
    ),
    "SpatialPadd has mode": of("SpatialPadd", spatial_size=[1, 1, 1], mode="mean"),
    "LoadImaged has reverse_indexing": of("LoadImaged", reverse_indexing=True),
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_is_not_understood_is_refused_by_transform_and_argument(match, tmp_path):
    resolved = Config({"transforms": [REFUSED[match]]}, tmp_path).get("transforms")
    with pytest.raises(PackageError, match=match):
        translate_preprocessing(resolved)


def test_what_would_need_two_of_a_kind_is_refused():
    for twice in (
        [SPACE, RAS, SPACE],
        [of("CropForegroundd", source_key="image")] * 2,
        [RAS, of("Orientationd", axcodes="LPS")],
    ):
        with pytest.raises(PackageError, match="more than once"):
            translate_preprocessing(twice)
    with pytest.raises(PackageError, match="no longer knows where voxels lie"):
        translate_preprocessing([of("EnsureTyped", track_meta=False), SPACE])


def test_transforms_of_labels_alone_do_not_matter_and_each_key_has_its_own_argument():
    label = {"_target_": "RandFlipd", "keys": "label"}
    both = {"_target_": "Spacingd", "keys": ["label", "image"], "pixdim": [2, 2, 2], "mode": ["nearest", "bilinear"]}
    made = translate_preprocessing([label, both])
    assert made.geometry.interpolation == "linear" and made.order == ()


def test_the_order_of_steps_names_every_step_and_is_left_out_where_it_is_usual(tmp_path):
    usual = translate_preprocessing([RAS, SPACE, NORMAL])
    assert usual.order == () and usual.normalize_in == "network"
    first = translate_preprocessing([of("CropForegroundd", source_key="image"), NORMAL, RAS, SPACE])
    assert first.order == ("crop", "normalize", "reorient", "resample")
    spec = replace(
        phantom_spec(), geometry=first.geometry, crop=first.crop, normalization=first.normalization, order=first.order
    )
    assert parse_spec(spec.to_json()).steps == first.order
    for order, match in (
        (first.order[1:], "'crop' 1 time"),
        ((*first.order, "normalize"), "'normalize' 1 time"),
        (first.order[::-1], "reorient"),
    ):
        with pytest.raises(PackageError, match=match):
            parse_spec(replace(spec, order=order).to_json())


@pytest.mark.parametrize(
    "name", ["crop after spacing", "crop to multiples", "crop or pad", "padding", "turned afterwards", "area", "middle"]
)
def test_labels_come_back_to_their_place_after_every_kind_of_step(name, tmp_path):
    resolved = Config({"transforms": CASES[name]}, tmp_path).get("transforms")
    made = translate_preprocessing(resolved, 1)
    spec = replace(
        phantom_spec(), geometry=made.geometry, crop=made.crop, normalization=made.normalization,
        normalize_in=made.normalize_in, order=made.order, fits=made.fits,
    )  # fmt: skip
    volume = scan()
    network_input = preprocess(volume, spec)
    places = np.zeros(volume.data.shape[1:], np.uint8)
    places[8:15, 9:18, 10:20] = 3
    there = network_input.labels_in_network_space(places)
    assert there.shape == network_input.data.shape[1:]
    back = network_input.restore(there)
    overlap = 2 * ((back == 3) & (places == 3)).sum() / ((back == 3).sum() + (places == 3).sum())
    assert (
        back.shape == places.shape and overlap > (0.75 if name == "area" else 0.85) and set(np.unique(back)) <= {0, 3}
    )
    scores = np.stack([(there != 3), (there == 3)]).astype(np.float32)
    assert (network_input.restore_from_scores(scores, np.array([0, 3], np.uint8)) == back).mean() > 0.99
