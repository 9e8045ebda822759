"""A region of interest: what lies outside of it is background, in straight and in oblique scans, and it is refused where nothing lies in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.region_of_interest import region_box, region_ras
from MedQuantINT8Lib.imaging.volume import Grid
from MedQuantINT8Lib.inference import pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.region_run import chosen_labels
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.inference.task_model import load_model
from MedQuantINT8Lib.models.spec import Label
from MedQuantINT8Lib.progress import Task
from scans import GEOMETRIES
from task_packages import bands, spotted, three_parts

CHOICE = EngineChoice("onnxruntime", "fp32", 1, "cpu")
OPTIONS = SegmentationOptions(check_ranges=False)


def centers(grid: Grid) -> np.ndarray:
    """Where voxel centers lie, (K, J, I, 3) in millimeters (RAS)."""
    k, j, i = np.meshgrid(*[np.arange(n) for n in grid.size[::-1]], indexing="ij")
    return np.stack([i, j, k], -1) @ grid.ijk_to_ras[:3, :3].T + grid.ijk_to_ras[:3, 3]


def inside(grid: Grid, region) -> np.ndarray:
    places, low, high = centers(grid), np.array(region[::2]), np.array(region[1::2])
    return ((places >= low) & (places <= high)).all(axis=-1)


def middle_region(grid: Grid):
    """A box that holds a part of the scan on every side of its middle."""
    places = centers(grid).reshape(-1, 3)
    middle, size = places.mean(axis=0), np.ptp(places, axis=0)
    return tuple(float(v) for n in range(3) for v in (middle[n] - 0.21 * size[n], middle[n] + 0.17 * size[n]))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return bands(tmp_path_factory.mktemp("band"), "band", {"grey": 0.3, "white": 0.7})


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return three_parts(tmp_path_factory.mktemp("three"))


def test_outside_of_the_region_is_background_and_inside_is_the_whole_run(package, geometry):
    volume = spotted(matrix=geometry)
    region = middle_region(volume.grid)
    whole = pipeline.segment(package, volume, CHOICE, OPTIONS, Task()).result.labels
    run = pipeline.segment(package, volume, CHOICE, replace(OPTIONS, roi=region), Task())
    mask = inside(volume.grid, region)
    assert 0 < mask.sum() < mask.size
    np.testing.assert_array_equal(run.result.labels, np.where(mask, whole, 0))
    (box,) = run.boxes
    i, j, k = (slice(a, b) for a, b in zip(box["start"], box["stop"], strict=True))
    held = np.zeros_like(mask)
    held[k, j, i] = True
    assert not (mask & ~held).any()
    np.testing.assert_array_equal(run.result.ijk_to_ras, volume.ijk_to_ras)
    assert run.volume is volume


def test_an_oblique_scan_is_told_of(package):
    volume = spotted(matrix=GEOMETRIES["oblique"])
    options = replace(OPTIONS, roi=middle_region(volume.grid))
    assert any("oblique" in note for note in pipeline.segment(package, volume, CHOICE, options, Task()).result.notes)
    volume = spotted(matrix=GEOMETRIES["sagittal"])
    options = replace(OPTIONS, roi=middle_region(volume.grid))
    assert not any(
        "oblique" in note for note in pipeline.segment(package, volume, CHOICE, options, Task()).result.notes
    )


def test_the_region_takes_fewer_windows(package):
    volume = spotted((32, 32, 32))
    whole = pipeline.segment(package, volume, CHOICE, OPTIONS, Task())
    part = pipeline.segment(package, volume, CHOICE, replace(OPTIONS, roi=(8, 15, 8, 15, 8, 15)), Task())
    assert (whole.result.windows, part.result.windows) == (64, 1)


@pytest.mark.parametrize("region", [(500, 600, 0, 10, 0, 10), (3.2, 3.8, 0, 10, 0, 10)], ids=["beside", "between"])
def test_a_region_without_a_voxel_is_refused_in_words(package, region):
    volume = spotted()
    with pytest.raises(InputError, match=r"holds no voxel of spots, which lies in R 0.0 to 23.0, A 0.0 to 19.0"):
        pipeline.segment(package, volume, CHOICE, replace(OPTIONS, roi=region), Task())


def test_a_region_of_a_single_slice_is_segmented(package):
    volume = spotted()
    whole = pipeline.segment(package, volume, CHOICE, OPTIONS, Task()).result.labels
    run = pipeline.segment(package, volume, CHOICE, replace(OPTIONS, roi=(0, 23, 0, 19, 7.9, 8.1)), Task())
    np.testing.assert_array_equal(run.result.labels[8], whole[8])
    assert not np.delete(run.result.labels, 8, axis=0).any()


def test_lps_is_ras_with_two_axes_turned():
    assert region_ras((1, 2, 3, 4, 5, 6), "RAS") == (1, 2, 3, 4, 5, 6)
    assert region_ras((1, 2, 3, 4, 5, 6), "LPS") == (-2, -1, -4, -3, 5, 6)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ((1, 2, 3, 4, 5), "six numbers"),
        ((2, 1, 3, 4, 5, 6), "from x = 2 to 1"),
        ((1, float("nan"), 3, 4, 5, 6), "six numbers"),
    ],
)
def test_what_is_no_box_is_refused(limits, said):
    with pytest.raises(InputError, match=said):
        region_ras(limits, "RAS")


def test_the_box_of_voxels_is_exact_on_a_straight_grid():
    grid = Grid((10, 12, 14), np.array([[-1.5, 0, 0, 40], [0, 2.0, 0, -5], [0, 0, 1, 7], [0, 0, 0, 1.0]]))
    # Centers at R 40, 38.5, ..., A -5, -3, ..., S 7, 8, ...; limits at a center hold it.
    assert region_box(grid, (31, 37, -3, 1, 9.5, 12)) == ((2, 7), (1, 4), (3, 6))


def test_a_task_in_a_region_is_the_task_of_the_cut_scan(together):
    volume = spotted(matrix=np.diag([1.0, 1.0, 1.0, 1.0]))
    region = (4.0, 19.0, 2.0, 17.0, 4.0, 11.0)
    cut = replace(volume, data=volume.data[:, 4:12, 2:18, 4:20], ijk_to_ras=np.eye(4) + 0)
    with load_model(str(together)) as model:
        run = pipeline.segment(model, volume, CHOICE, replace(OPTIONS, roi=region), Task())
        alone = pipeline.segment(model, cut, CHOICE, OPTIONS, Task())
    expected = np.zeros_like(run.result.labels)
    expected[4:12, 2:18, 4:20] = alone.result.labels
    np.testing.assert_array_equal(run.result.labels, expected)
    assert len(run.parts) == 3


def test_intensities_that_come_from_the_box_are_told_of(package, tmp_path):
    from MedQuantINT8Lib.models.spec import Normalization

    other = bands(tmp_path, "scaled", {"grey": 0.3}, normalization=(Normalization("minmax"),))
    options = replace(OPTIONS, roi=(4, 19, 2, 17, 4, 11))
    notes = pipeline.segment(other, spotted(), CHOICE, options, Task()).result.notes
    assert any("normalizes intensities by the voxels of the box alone" in note for note in notes)
    notes = pipeline.segment(package, spotted(), CHOICE, options, Task()).result.notes
    assert not any("normalizes" in note for note in notes)


def test_a_structure_that_is_not_known_is_answered_with_what_is_meant():
    labels = [Label(n, name, n) for n, name in enumerate(("liver", "kidney_left", "kidney_right"), 1)]
    with pytest.raises(InputError, match="Perhaps liver is meant. It finds: kidney_left, kidney_right, liver"):
        chosen_labels(labels, ["Liver"], "organs")
    with pytest.raises(InputError, match="Perhaps kidney_left is meant"):
        chosen_labels(labels, ["kidney left"], "organs")
    many = [Label(n, f"rib {n}", n) for n in range(1, 118)]
    with pytest.raises(
        InputError, match="It finds 117, such as rib 1, rib 10, rib 100; medquant models show"
    ) as caught:
        chosen_labels(many, ["heart"], "all")
    assert "Perhaps" not in str(caught.value)
