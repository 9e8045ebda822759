"""Preprocessing and the way back, against MONAI's transforms and on every kind of geometry."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.preprocessing import normalize, percentiles, preprocess
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.models.spec import Crop, Geometry, Normalization
from scans import GEOMETRIES, spec_with


def monai_image(volume: Volume):
    import torch
    from monai.data import MetaTensor

    # MONAI's arrays are (C, I, J, K), its affine is in RAS as nibabel's.
    return MetaTensor(
        torch.from_numpy(volume.data.transpose(0, 3, 2, 1).astype(np.float32)),
        affine=torch.from_numpy(volume.ijk_to_ras),
    )


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 2.0), (0.9, 1.45, 3.1)])
def test_orientation_and_spacing_equal_monais(geometry, blob, orientation, spacing):
    from monai.transforms import Orientation, Spacing

    volume, _ = blob(geometry)
    ours = preprocess(volume, spec_with(geometry=Geometry("IJK", orientation, spacing=spacing)))
    theirs = Spacing(pixdim=spacing, mode="bilinear", padding_mode="border")(
        Orientation(axcodes=orientation, labels=(("L", "R"), ("P", "A"), ("I", "S")))(monai_image(volume))
    )
    assert ours.data.shape == tuple(theirs.shape)
    assert np.allclose(ours.grid.ijk_to_ras, np.asarray(theirs.affine), atol=1e-3)
    assert np.abs(ours.data - np.asarray(theirs)).max() < 0.02 * 100


def test_axis_order_only_turns_the_array(blob):
    volume, _ = blob(GEOMETRIES["oblique"])
    first = preprocess(volume, spec_with(geometry=Geometry("IJK", "RAS", spacing=(2.0, 1.0, 3.0))))
    second = preprocess(volume, spec_with(geometry=Geometry("KJI", "RAS", spacing=(3.0, 1.0, 2.0))))
    assert np.array_equal(first.data, second.data.swapaxes(1, 3))


@pytest.mark.parametrize("form", ["native", "spacing", "edges", "size", "bspline"])
@pytest.mark.parametrize("crop", [Crop(), Crop("threshold", 50.0, 3)])
def test_a_label_comes_back_to_its_place(geometry, blob, form, crop):
    volume, mask = blob(geometry)
    geometries = {
        "native": Geometry("KJI", "LPS"),
        "spacing": Geometry("KJI", "RAS", spacing=(1.7, 1.3, 1.1)),
        "edges": Geometry("IJK", "LAS", spacing=(1.7, 1.3, 1.1), anchor="edges"),
        "size": Geometry("IJK", "LIA", size=(48, 40, 56)),
        "bspline": Geometry("KJI", "RAS", spacing=(1.2, 1.2, 1.2), interpolation="bspline"),
    }
    network_input = preprocess(volume, spec_with(geometry=geometries[form], crop=crop))
    found = network_input.restore((network_input.data[0] > 60).astype(np.uint8))
    assert found.shape == volume.data.shape[1:]
    moved = np.argwhere(found).mean(axis=0) - np.argwhere(mask).mean(axis=0)
    assert np.abs(moved).max() < 0.5
    overlap = 2 * (found.astype(bool) & mask).sum() / (found.sum() + mask.sum())
    assert overlap == 1.0 if form == "native" else overlap > 0.85


def test_scores_are_resampled_before_the_largest_is_chosen(blob):
    volume, mask = blob(GEOMETRIES["anisotropic"])
    network_input = preprocess(volume, spec_with(geometry=Geometry("KJI", "RAS", spacing=(2.0, 2.0, 2.0))))
    scores = np.stack([60 - network_input.data[0], network_input.data[0] - 60])
    by_scores = network_input.restore_from_scores(scores, np.array([0, 7], np.uint8))
    assert set(np.unique(by_scores)) == {0, 7}

    def overlap(found):
        return 2 * ((found > 0) & mask).sum() / ((found > 0).sum() + mask.sum())

    assert overlap(by_scores) >= overlap(network_input.restore((scores[1] > 0).astype(np.uint8)))


def test_normalisations_equal_monais():
    import torch
    from monai.transforms import NormalizeIntensity, ScaleIntensity, ScaleIntensityRange, ScaleIntensityRangePercentiles

    values = np.random.default_rng(0).normal(100, 300, (6, 7, 8)).astype(np.float32)
    values[values < 0] = 0
    cases = [
        (Normalization("window", low=20, high=400), ScaleIntensityRange(20, 400, 0, 1, clip=True)),
        (Normalization("window", low=20, high=400, clip=False), ScaleIntensityRange(20, 400, 0, 1, clip=False)),
        (Normalization("minmax"), ScaleIntensity()),
        (Normalization("percentile", low=2, high=98), ScaleIntensityRangePercentiles(2, 98, 0, 1, clip=True)),
        (Normalization("zscore"), NormalizeIntensity()),
        (Normalization("zscore", mask="nonzero"), NormalizeIntensity(nonzero=True)),
    ]
    for step, reference in cases:
        assert np.allclose(
            normalize(values, (step,)), np.asarray(reference(torch.from_numpy(values[None].copy())))[0], atol=2e-4
        ), step


def test_nnunets_ct_scheme_and_maximum():
    values = np.array([-2000, 0, 100, 5000], np.float32)
    assert np.allclose(
        normalize(values, (Normalization("nnunet_ct", low=-100, high=300, mean=50, std=200),)),
        [-0.75, -0.25, 0.25, 1.25],
    )
    assert np.allclose(normalize(values, (Normalization("minmax", low=0),)), values / 5000)


def test_counted_percentiles_equal_sorted_ones():
    rng = np.random.default_rng(0)
    for values in (rng.integers(-1024, 3000, 5001), rng.integers(0, 4, 1000), rng.normal(size=999)):
        found = percentiles(values.astype(np.float32), (2, 98))
        assert np.allclose(found, np.percentile(values.astype(np.float32), (2, 98)), atol=1e-3)


def test_a_crop_that_leaves_nothing_says_so(blob):
    volume, _ = blob(GEOMETRIES["axial"])
    with pytest.raises(InputError, match="nothing is left"):
        preprocess(volume, spec_with(crop=Crop("threshold", 1e6)))


@pytest.mark.parametrize("size", [(40, 36, 2), (2, 36, 24)])
def test_two_voxel_thin_volumes_come_back(size):
    data = np.random.default_rng(0).normal(size=size[::-1]).astype(np.float32)
    network_input = preprocess(
        Volume(data, GEOMETRIES["oblique"]), spec_with(geometry=Geometry("KJI", "RAS", spacing=(1.0, 1.0, 1.0)))
    )
    assert network_input.restore(np.ones(network_input.data.shape[1:], np.uint8)).shape == size[::-1]


def test_foreground_is_found_from_the_outside_as_over_the_whole_volume():
    from MedQuantINT8Lib.imaging.preprocessing import _extent

    rng = np.random.default_rng(0)
    for _ in range(30):
        channels = [(rng.random((70, 40, 33)) > 0.99999).astype(np.int16) for _ in range(2)]
        mask = (channels[0] > 0) | (channels[1] > 0)
        for axis in range(3):
            hits = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
            expected = (int(hits[0]), int(hits[-1]) + 1) if hits.size else None
            assert _extent(channels, axis, lambda part: part > 0) == expected


@pytest.mark.parametrize(
    "step",
    [
        Normalization("nnunet_ct", -900, 900, 12.0, 250.0),
        Normalization("window", low=-160, high=240),
        Normalization("truncate"),
    ],
    ids=lambda step: step.kind,
)
def test_a_large_scan_is_normalized_plane_by_plane_to_the_same_numbers(step):
    from MedQuantINT8Lib.imaging.intensity import normalize

    scan = np.random.default_rng(0).integers(-1000, 1500, (70, 128, 130)).astype(np.int16)
    planes = np.stack([normalize(plane.astype(np.float32), [step]) for plane in scan])
    whole = normalize(scan, [step])
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, planes)
