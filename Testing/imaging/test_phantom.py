"""The synthetic abdomen: the same for the same seed, right is right, as a CT scan lies, and the same patient on every grid."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib.imaging.phantom import PHASES, SCAN_SPACING, make_phantom, paint_phantom, phantom_labels
from MedQuantINT8Lib.imaging.volume import Grid

SMALL = ((64, 60, 56), 5.0)


@pytest.fixture(scope="module")
def made():
    return make_phantom(42, *SMALL, phase="portal venous")


def test_a_seed_gives_the_same_scan_again_and_another_gives_another(made):
    volume, labels = make_phantom(42, *SMALL, phase="portal venous")
    assert np.array_equal(volume.data, made[0].data) and np.array_equal(labels, made[1])
    assert not np.array_equal(make_phantom(43, *SMALL)[1], labels)


def test_it_lies_as_a_ct_scan_does(made):
    volume, labels = made
    assert volume.grid.axcodes == "LPS" and volume.data.dtype == np.int16 and labels.shape == volume.data[0].shape
    assert SCAN_SPACING[0] == SCAN_SPACING[1] < SCAN_SPACING[2]
    assert volume.data.min() < -950 and volume.data.max() > 250


@pytest.mark.parametrize("seed", [1, 2, 1000])
def test_every_structure_is_there_and_on_its_side(seed):
    volume, labels = make_phantom(seed, *SMALL)
    assert sorted(np.unique(labels)) == [0, *(label.value for label in phantom_labels())]
    for label in phantom_labels():
        where = np.argwhere(labels == label.value)[:, ::-1].mean(axis=0)
        right = (volume.ijk_to_ras[:3, :3] @ where + volume.ijk_to_ras[:3, 3])[0]
        side = {"right": 1, "left": -1}.get(label.name.split()[0])
        if side is not None:
            assert side * right > 40, label.name
            assert label.terminology.modifier.meaning.lower() == label.name.split()[0]
    liver, spleen = (np.argwhere(labels == v)[:, 2].mean() for v in (1, 4))
    # I runs to the patient's left.
    assert liver < spleen


def test_contrast_medium_arrives_phase_by_phase():
    aorta = {}
    for phase in PHASES:
        volume, labels = make_phantom(5, *SMALL, phase=phase)
        aorta[phase] = float(np.median(volume.data[0][labels == 6]))
    assert aorta["native"] < aorta["delayed"] < aorta["portal venous"] < aorta["arterial"]


def test_the_patient_is_the_same_on_another_grid(made):
    grid = made[0].grid
    matrix = grid.ijk_to_ras.copy()
    matrix[:3, :3] /= 2
    matrix[:3, 3] -= matrix[:3, :3] @ [0.5, 0.5, 0.5]
    fine = paint_phantom(42, Grid(tuple(2 * n for n in grid.size), matrix), "portal venous").labels
    for label in phantom_labels():
        coarse_ml = (made[1] == label.value).sum() * grid.voxel_ml
        assert (fine == label.value).sum() * grid.voxel_ml / 8 == pytest.approx(coarse_ml, rel=0.12), label.name
