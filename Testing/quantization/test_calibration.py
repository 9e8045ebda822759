"""What calibration draws, counted where it was drawn; label maps that are none of the model's."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.models.spec import Label
from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler, allotted, counts_by_kind

PATCH = (8, 8, 8)
SPEC = replace(
    phantom_spec(),
    normalization=(),
    geometry=replace(phantom_spec().geometry, spacing=None, orientation="native"),
    labels=tuple(Label(value, f"structure {value}", value) for value in range(1, 6)),
)


def scan(seed, size=24):
    """A bright ball in noise of its own."""
    k, j, i = np.ogrid[:size, :size, :size]
    ball = (k - size / 2) ** 2 + (j - size / 2) ** 2 + (i - size / 2) ** 2 < (size / 5) ** 2
    return Volume(
        (100 * ball + np.random.default_rng(seed).random(ball.shape)).astype(np.float32), np.eye(4), f"scan {seed}"
    )


def sampler(volumes, **options):
    labels = options.pop("labels", ())
    return PatchSampler(
        [lambda v=v: v for v in volumes],
        SPEC,
        PATCH,
        CalibrationOptions(**options),
        labels=[lambda v=v: v for v in labels],
    )


@pytest.mark.parametrize("volumes", [1, 2, 3, 4, 7, 20, 50])
def test_the_shares_hold_over_all_volumes_together(volumes):
    options = CalibrationOptions(patches=20)
    found = allotted(options, volumes)
    assert sum(map(Counter, found), Counter()) == Counter(foreground=12, air=2, random=6)
    sizes = [sum(counts.values()) for counts in found]
    assert max(sizes) - min(sizes) <= 1 and len(found) == volumes


def test_counts_are_by_the_largest_remainder():
    assert counts_by_kind(CalibrationOptions(patches=1)) == {"foreground": 1, "air": 0, "random": 0}
    assert counts_by_kind(CalibrationOptions(patches=3)) == {"foreground": 2, "air": 0, "random": 1}
    assert counts_by_kind(CalibrationOptions(patches=5, foreground=1 / 3, air=1 / 3)) == {
        "foreground": 2,
        "air": 2,
        "random": 1,
    }
    for patches in range(1, 60):
        assert sum(counts_by_kind(CalibrationOptions(patches=patches, foreground=0.37, air=0.21)).values()) == patches


def test_one_patch_of_each_of_twenty_scans_is_not_all_foreground():
    drawn = sampler([scan(n) for n in range(20)], patches=20)
    middles = [float(patch.mean()) for patch in drawn]
    assert drawn.drawn == {"foreground": 12, "air": 2, "random": 6}
    assert sum(value > 5 for value in middles) >= 12 and sum(value < 5 for value in middles) >= 2


def test_what_is_told_was_drawn():
    """A volume no larger than the patch gives one patch, however many are asked for; the same scan given twice gives no more."""
    small = scan(0, 8)
    one = sampler([small], patches=20)
    assert len(list(one)) == 1 and one.drawn == {"whole": 1}
    twice = sampler([small, small], patches=20)
    assert len(list(twice)) == 2 and twice.drawn == {"whole": 1}
    no_air = sampler([Volume(scan(1).data + 1, np.eye(4))], patches=4, foreground=0.0, air=0.0)
    assert len(list(no_air)) == 4 and no_air.drawn == {"random": 4}


def test_networks_are_compared_around_foreground_first():
    drawn = sampler([scan(n) for n in range(20)], patches=20)
    kinds = [sample.kind for sample in drawn.first_samples(6)]
    assert kinds == ["foreground"] * 6
    few = sampler([scan(0), scan(1)], patches=4, foreground=0.25, air=0.25)
    assert [sample.kind for sample in few.first_samples(4)].index("foreground") == 0 and len(few.first_samples(6)) == 4
    first, again = drawn.first_samples(3), list(drawn)
    assert all(any(np.array_equal(sample.patch, patch) for patch in again) for sample in first)


def labels_of(volume, value):
    return Volume(np.where(volume.data[0] > 50, value, 0).astype(np.int16), volume.ijk_to_ras, "labels.nii.gz")


def test_label_maps_that_are_none_of_the_models_are_refused():
    one = scan(0)
    sampler([one], labels=[labels_of(one, 2)]).check_labels()
    with pytest.raises(
        InputError, match=r"label values that the model does not know: 41, 42 \(the model's are 1, 2, 3, 4, 5\)"
    ):
        strange = labels_of(one, 41)
        strange.data[0, 12, 12, 12] = 42
        sampler([one], labels=[strange]).check_labels()
    with pytest.raises(InputError, match="hold none of the model's structures"):
        sampler([one], labels=[labels_of(one, 0)]).check_labels()
    with pytest.raises(InputError, match="no whole numbers"):
        sampler([one], labels=[Volume(one.data[0] + 0.25, one.ijk_to_ras, "scan.nii.gz")]).check_labels()
    with pytest.raises(InputError, match="negative"):
        sampler([one], labels=[labels_of(one, -1)]).check_labels()
    moved = np.eye(4)
    moved[0, 3] = 3.0
    with pytest.raises(InputError, match=r"does not lie where scan 0 lies: a corner is 3\.0 voxels away"):
        sampler([one], labels=[replace(labels_of(one, 1), ijk_to_ras=moved)]).check_labels()
