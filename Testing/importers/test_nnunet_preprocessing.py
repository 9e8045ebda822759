"""What nnU-Net's own preprocessor makes of a scan, and what an imported network gets: the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_fill_holes, gaussian_filter

from MedQuantINT8Lib.imaging.foreground_mask import filled_nonzero
from MedQuantINT8Lib.imaging.nnunet_resampling import network_size, resize, slice_axis
from MedQuantINT8Lib.imaging.preprocessing import NetworkInput, preprocess
from MedQuantINT8Lib.imaging.volume import Volume, to_sitk
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.importers import nnunet
from MedQuantINT8Lib.models.spec import SplineResampling
from nnunet_folders import checkpoint, dataset, plans, threshold_network, write_folder
from scans import orthogonal


def made_scan(size: tuple[int, int, int], matrix: np.ndarray, channels: int = 1, seed: int = 0) -> Volume:
    """Smooth noise around 0 of about 300, with a border of zeros and, in the first channel, a hole of them."""
    random = np.random.default_rng(seed)
    data = np.stack([gaussian_filter(random.standard_normal(size[::-1]), 1.2) for _ in range(channels)])
    data = (data / data.std() * 300 + 40 * np.arange(channels)[:, None, None, None]).astype(np.float32)
    data[:, :2] = 0
    data[:, :, :, -3:] = 0
    middle = tuple(slice(n // 2 - 2, n // 2 + 2) for n in size[::-1])
    data[(0, *middle)] = 0
    return Volume(data, matrix, "made")


def both(tmp_path: Path, volume: Volume, *, reader: str = "SimpleITKIO", transpose=(0, 1, 2), **changes):
    """(ours, nnU-Net's) input of the network, float32 (C, K, J, I) of nnU-Net's transposed axes, and ours to go back with."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    schemes = changes.get("normalization_schemes", ["ZScoreNormalization"] * volume.channels)
    masks = changes.pop("use_mask_for_norm", [False] * volume.channels)
    plan = plans(transpose, **{"normalization_schemes": schemes, "use_mask_for_norm": masks, **changes})
    plan["image_reader_writer"] = reader
    net, made = threshold_network(channels=volume.channels)
    plan["configurations"]["3d_fullres"]["architecture"] = made
    folder = write_folder(tmp_path, plan, dataset(volume.channels), {"fold_0/checkpoint_final.pth": checkpoint(net)})
    spec = nnunet.understand(folder)[0].spec
    files = []
    for n, channel in enumerate(volume.data):
        files.append(str(tmp_path / f"case_{n:04}.nii.gz"))
        sitk.WriteImage(to_sitk(channel, volume.grid), files[-1])
    manager = PlansManager(plan)
    configuration = manager.get_configuration("3d_fullres")
    image, properties = manager.image_reader_writer_class().read_images(files)
    theirs, _, _ = configuration.preprocessor_class(verbose=False).run_case_npy(
        image, None, properties, manager, configuration, dataset(volume.channels)
    )
    ours = preprocess(read_volume(files), spec)  # a NIfTI file keeps spacings in 32 bits, which decides half voxels
    return ours, ours.data.transpose(0, *(1 + axis for axis in transpose)), theirs


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * max(1, np.abs(theirs).max() / 10)


GRIDS = {
    "downsampled": (orthogonal((3.1, 3.3, 4.2)), (37, 31, 23)),
    "upsampled": (orthogonal((7.0, 6.1, 8.3)), (17, 19, 13)),
    "oblique and flipped": (orthogonal((3.5, 3.0, 6.2), (10, -15, 20), flips="ij"), (30, 26, 21)),
    "thick slices": (orthogonal((2.5, 2.6, 9.0)), (41, 30, 12)),
    "thick along the first axis": (orthogonal((9.5, 2.5, 2.6)), (11, 30, 29)),
    "two thick axes": (orthogonal((9.0, 9.0, 2.0)), (11, 13, 30)),
    "half voxels": (orthogonal((2.0, 2.0, 2.5)), (25, 29, 27)),
    "the network's own": (orthogonal((4.0, 4.0, 5.0)), (20, 22, 18)),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)], ids=["as it is", "transposed"])
def test_resampling_is_nnunets(tmp_path, grid, transpose):
    matrix, size = GRIDS[grid]
    _, ours, theirs = both(tmp_path, made_scan(size, matrix), transpose=transpose)
    assert_same(ours, theirs)


PLANNED = {
    "torch": (
        "resample_torch_fornnunet",
        {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False},
    ),
    "torch by slices": (
        "resample_torch_fornnunet",
        {"is_seg": False, "force_separate_z": None, "separate_z_anisotropy_threshold": 3},
    ),
    "linear": ("resample_data_or_seg_to_shape", {"order": 1, "order_z": 1, "force_separate_z": None}),
    "nearest": ("resample_data_or_seg_to_shape", {"order": 0, "order_z": 0, "force_separate_z": True}),
    "defaults": ("resample_data_or_seg_to_shape", {}),
    "by slices above 2": (
        "resample_data_or_seg_to_shape",
        {"order": 3, "force_separate_z": None, "separate_z_anisotropy_threshold": 2},
    ),
    "none": ("no_resampling_hack", {}),
}


@pytest.mark.parametrize("planned", PLANNED)
@pytest.mark.parametrize("grid", ["thick slices", "oblique and flipped"])
def test_each_resampling_that_plans_can_name_is_done_as_they_say(tmp_path, planned, grid):
    name, arguments = PLANNED[planned]
    changes = {f"resampling_fn_{what}": name for what in ("data", "probabilities")}
    changes |= {f"resampling_fn_{what}_kwargs": arguments for what in ("data", "probabilities")}
    if name == "no_resampling_hack":
        changes |= {"resampling_fn_seg": name, "resampling_fn_seg_kwargs": {}}
    matrix, size = GRIDS[grid]
    volume = made_scan(size, matrix)
    network_input, ours, theirs = both(tmp_path, volume, **changes)
    assert_same(ours, theirs)
    assert_same(*scores_back(network_input, plans(**changes), volume))


def scores_back(network_input: NetworkInput, plan, volume: Volume):
    """Made class scores on the scan's grid before cropping, by us and by nnU-Net."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration = PlansManager(plan).get_configuration("3d_fullres")
    scores = np.random.default_rng(1).standard_normal(network_input.data.shape[1:]).astype(np.float32)
    shape = network_input.oriented.size[::-1]
    spacing = list(volume.grid.spacing)[::-1]
    theirs = configuration.resampling_fn_probabilities(scores[None], shape, configuration.spacing, spacing)
    return network_input._back(scores), np.asarray(theirs)[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_class_scores_come_back_as_nnunets_do(tmp_path, grid):
    matrix, size = GRIDS[grid]
    volume = made_scan(size, matrix)
    network_input, _, _ = both(tmp_path, volume)
    assert_same(*scores_back(network_input, plans(), volume))


CT, Z = "CTNormalization", "ZScoreNormalization"


@pytest.mark.parametrize(
    ("schemes", "masks"),
    [
        ([Z, Z], [True, True]),
        ([Z, Z], [True, False]),
        ([CT, Z], [False, False]),
        ([Z, CT], [True, False]),
        ([CT, CT], [False, False]),
        ([CT, "NoNormalization"], [False, False]),
        (["RescaleTo01Normalization", Z], [False, True]),
    ],
)
def test_each_channel_has_its_own_normalization(tmp_path, schemes, masks):
    volume = made_scan((24, 21, 17), orthogonal((4.1, 3.9, 5.2)), channels=2)
    _, ours, theirs = both(tmp_path, volume, normalization_schemes=schemes, use_mask_for_norm=masks)
    assert_same(ours, theirs)


def test_a_smaller_field_of_view_of_one_channel_is_inside_of_the_mask(tmp_path):
    volume = made_scan((24, 22, 20), orthogonal((4.0, 4.0, 5.0)), channels=2)
    volume.data[1, 10:] = 0
    _, ours, theirs = both(tmp_path, volume, use_mask_for_norm=[True, True])
    assert_same(ours, theirs)
    assert ours[1, -1].max() < -0.05  # zeros inside of the mask are normalized with the rest


READERS = ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("flips", ["", "ij", "jk"])
def test_each_reader_lays_voxels_out_as_nnunets_does(tmp_path, reader, flips):
    volume = made_scan((23, 19, 16), orthogonal((3.1, 4.4, 5.7), (8, -6, 12), flips=flips))
    turned = volume.ijk_to_ras[:, [1, 2, 0, 3]]
    volume = Volume(volume.data.transpose(0, 3, 1, 2), turned, "turned")
    _, ours, theirs = both(tmp_path, volume, reader=reader)
    assert_same(ours, theirs)


def test_holes_are_filled_as_scipy_fills_them():
    random = np.random.default_rng(0)
    for shape in ((1, 9, 8), (7, 8, 9), (12, 5, 6), (2, 2, 2)):
        for share in (0.3, 0.6, 0.9):
            data = np.where(random.random((2, *shape)) < share, random.standard_normal((2, *shape)), 0)
            assert np.array_equal(filled_nonzero(data), binary_fill_holes((data != 0).any(0)))


def test_sizes_are_rounded_as_nnunet_rounds_them():
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    random = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(int(n) for n in random.integers(1, 400, 3))
        old, new = (tuple(random.choice([0.5, 0.7, 0.75, 1.0, 1.25, 2.0, 2.5, 3.0], 3).tolist()) for _ in range(2))
        noisy = tuple(
            value * (1 + 1e-15) for value in old
        )  # what is left of a spacing that was multiplied by directions
        assert network_size(size, noisy, new) == tuple(max(int(n), 1) for n in compute_new_shape(size, old, new))


def test_the_axis_across_slices_is_nnunets():
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    random = np.random.default_rng(0)
    for _ in range(500):
        current, wanted = (tuple(random.choice([0.5, 1.0, 2.0, 4.0, 7.0], 3).tolist()) for _ in range(2))
        forced = [None, True, False][int(random.integers(3))]
        separate, axis = determine_do_sep_z_and_axis(forced, current, wanted, 3)
        assert slice_axis(current, wanted, SplineResampling(3, 0, forced, 3.0)) == (axis if separate else None)


def test_a_resized_array_stays_in_the_range_of_what_went_in():
    step = np.zeros((9, 9, 9), np.float32)
    step[4:] = 1
    assert resize(step, (9, 9, 31), SplineResampling(3), None).min() == 0
    assert resize(step, (9, 9, 31), SplineResampling(3), None).max() == 1
    assert resize(step, (9, 9, 9), SplineResampling(3), None) is step
