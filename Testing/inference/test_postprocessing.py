"""Cleaning of label maps beside the software that asks for it: scikit-image's parts, MONAI's functions, nnU-Net's."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib.inference.postprocessing import _parts, cleaned
from MedQuantINT8Lib.models.spec import Cleaning


def blobs(seed=0, shape=(13, 17, 15), values=3, share=0.45):
    """A label map of many parts that touch by faces, edges and corners."""
    random = np.random.default_rng(seed)
    labels = random.integers(1, values + 1, shape).astype(np.uint8)
    labels[random.random(shape) > share] = 0
    return labels


@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_parts_are_those_of_scikit_image(connectivity):
    measure = pytest.importorskip("skimage.measure")
    for seed, share in ((0, 0.1), (1, 0.2), (2, 0.45)):
        mask = blobs(seed, share=share) > 0
        expected = measure.label(mask, connectivity=connectivity)
        np.testing.assert_array_equal(_parts(mask, connectivity), expected)
        assert expected.max() > 1


@pytest.mark.parametrize("connectivity", [1, 2, 3])
@pytest.mark.parametrize("together", [False, True])
def test_largest_parts_are_those_of_monai(connectivity, together):
    transforms = pytest.importorskip("monai.transforms")
    for count in (1, 3):
        labels = blobs(5, share=0.3)
        expected = transforms.KeepLargestConnectedComponent(
            [1, 3], independent=not together, connectivity=connectivity, num_components=count, is_onehot=False
        )(labels[None].copy())
        step = Cleaning("largest", (1, 3), count=count, connectivity=connectivity, together=together)
        ours = cleaned(labels.copy(), [step])
        # Of equal parts either keeps as many; which, MONAI leaves to its sort.
        assert [(ours == v).sum() for v in range(4)] == [
            (np.asarray(expected[0]) == v).sum() for v in range(4)
        ] or together
        if together:
            assert (ours > 0).sum() == (np.asarray(expected[0]) > 0).sum()


@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_small_parts_and_holes_are_those_of_monai(connectivity, monkeypatch):
    transforms = pytest.importorskip("monai.transforms")
    tensors = pytest.importorskip("monai.data")
    labels = blobs(3, share=0.35)
    affine = np.diag([0.7, 1.1, 2.5, 1])
    # MONAI keeps what is as large as told, but scikit-image 0.26 takes its old argument for the new one, which removes that too.
    remove = pytest.importorskip("skimage.morphology").remove_small_objects
    monkeypatch.setattr(
        "monai.transforms.utils.morphology.remove_small_objects",
        lambda values, size, connectivity: remove(values, connectivity=connectivity, max_size=size - 1),
    )
    scan = tensors.MetaTensor(labels[None].astype(np.int32), affine=affine)
    for kwargs, step in (
        ({"min_size": 40}, {"size": 40, "whole": True}),
        ({"min_size": 300}, {"size": 300, "whole": True}),
        ({"min_size": 9, "independent_channels": False}, {"size": 9, "together": True}),
        ({"min_size": 20.1, "by_measure": True, "independent_channels": False}, {"volume": 20.1, "together": True}),
    ):
        expected = transforms.RemoveSmallObjects(connectivity=connectivity, **kwargs)(scan.clone())
        ours = cleaned(labels.copy(), [Cleaning("remove_small", connectivity=connectivity, **step)], 0.7 * 1.1 * 2.5)
        np.testing.assert_array_equal(ours, np.asarray(expected)[0])
    one = (labels == 1).astype(np.uint8)
    expected = transforms.RemoveSmallObjects(min_size=4, connectivity=connectivity)(one[None].astype(np.int32))
    for whole in (False, True):
        step = Cleaning("remove_small", size=4, connectivity=connectivity, whole=whole)
        np.testing.assert_array_equal(cleaned(one.copy(), [step]), np.asarray(expected)[0])
    walls = blobs(8, values=1, share=0.9)
    walls[4:6, 4:8, 4:8] = 2
    expected = transforms.FillHoles(connectivity=connectivity)(walls[None].copy())
    filled = cleaned(walls.copy(), [Cleaning("fill_holes", connectivity=connectivity)])
    np.testing.assert_array_equal(filled, np.asarray(expected)[0])
    assert (filled != walls).any()


def test_small_parts_are_removed_by_their_volume_in_cubic_millimeters():
    labels = np.zeros((5, 5, 9), np.uint8)
    labels[0, 0, :2] = labels[2, 2, 3:6] = labels[4, 4, 5:] = 1
    step = Cleaning("remove_small", volume=9.0)
    # Three voxels of 3 mm3 are 9 mm3, however their volume was rounded.
    for voxel in (3.0, 3 * (1 - 1e-12), 3 * (1 + 1e-12)):
        assert (cleaned(labels.copy(), [step], voxel) > 0).sum() == 7
    assert (cleaned(labels.copy(), [step], 2.9) > 0).sum() == 4 and (cleaned(labels.copy(), [step], 2.0) > 0).sum() == 0
    assert (cleaned(labels.copy(), [Cleaning("remove_small", volume=9.0)], 9.0) > 0).sum() == 9


def test_steps_are_told_in_words():
    names = {1: "liver", 2: "spleen"}
    assert Cleaning("largest", (1, 2), together=True).in_words(names) == (
        "keeps the largest part of liver + spleen (voxels touch by faces, edges and corners)"
    )
    assert "removes parts below 20 mm3 of each structure" in Cleaning("remove_small", volume=20.0).in_words(names)
    assert "fills holes of spleen (voxels touch by faces)" in Cleaning("fill_holes", (2,), connectivity=1).in_words(
        names
    )
