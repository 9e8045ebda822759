"""Volumes from files, their geometry, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.volume import Grid, Volume, axis_map, resample, to_sitk
from MedQuantINT8Lib.imaging.volume_files import read_volume
from scans import GEOMETRIES, orthogonal


def write(path: Path, volume: Volume) -> Path:
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(path))
    return path


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_a_file_comes_back_with_its_voxels_and_matrix(tmp_path, geometry, extension, dtype):
    data = np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(dtype)
    volume = read_volume(write(tmp_path / f"scan{extension}", Volume(data, geometry)))
    assert np.array_equal(volume.data[0], data)
    assert np.allclose(volume.ijk_to_ras, geometry, atol=1e-4)


def test_orientation_agrees_with_nibabel_convention():
    assert Volume(np.zeros((2, 3, 4)), np.diag([1, 1, 1, 1])).grid.axcodes == "RAS"
    assert Volume(np.zeros((2, 3, 4)), np.diag([-1, -1, 1, 1])).grid.axcodes == "LPS"
    assert Volume(np.zeros((2, 3, 4)), orthogonal((1, 1, 3), (12, -20, 31))).grid.axcodes == "RAS"


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LIA", "PIR", "SAR"])
def test_reorientation_is_exact_and_undone(geometry, orientation):
    data = np.random.default_rng(1).normal(size=(5, 6, 7))
    volume = Volume(data, geometry)
    turn = axis_map(volume.grid, orientation)
    turned, grid = turn.apply(data), turn.map_grid(volume.grid)
    assert grid.axcodes == orientation
    assert turned.shape == grid.size[::-1]
    assert np.array_equal(turn.inverse().apply(turned), data)
    # The voxel at an index of the new grid is the one at the same place of the old grid.
    index = np.array([1, 2, 3, 1])
    place = grid.ijk_to_ras @ index
    old = np.rint(np.linalg.inv(geometry) @ place).astype(int)
    assert turned[index[2], index[1], index[0]] == data[old[2], old[1], old[0]]


def test_resampling_equals_simpleitks_own_geometry(geometry, blob):
    volume, _ = blob(geometry)
    matrix = GEOMETRIES["axial"].copy()
    matrix[:3, 3] = (geometry @ [20, 18, 12, 1])[:3] - [11, 10, 10]
    target = Volume(np.zeros((20, 21, 22), np.float32), matrix).grid
    ours = resample(volume.data[0], volume.grid, target, "linear")
    reference = sitk.Resample(
        to_sitk(volume.data[0], volume.grid),
        to_sitk(np.zeros(target.size[::-1], np.float32), target),
        sitk.Transform(),
        sitk.sitkLinear,
        -999.0,
        sitk.sitkFloat32,
    )
    expected = sitk.GetArrayFromImage(reference)
    inside = expected != -999
    assert inside.sum() > 500
    assert np.allclose(ours[inside], expected[inside], atol=2e-2)


@pytest.mark.data
def test_a_dicom_series_is_read(data):
    volume = read_volume(data / "ct" / "dicom_series")
    assert volume.data.shape[1] == 20
    assert -1100 < volume.data.min() < -500 < volume.data.max()


def test_a_made_dicom_series_has_the_geometry_of_its_slices(tmp_path):
    folder = tmp_path / "series"
    make_dicom(folder, "1.2.3.4.5", slices=5)
    volume = read_volume(folder)
    assert volume.data.shape == (1, 5, 8, 9)
    assert np.allclose(volume.grid.spacing, (0.5, 0.75, 2.0))
    assert volume.data[0, 3, 0, 0] == 3


def test_a_folder_of_two_series_asks_which(tmp_path):
    make_dicom(tmp_path / "two", "1.2.3.4.5", slices=3)
    make_dicom(tmp_path / "two", "1.2.3.4.6", slices=4)
    with pytest.raises(InputError, match="2 DICOM series"):
        read_volume(tmp_path / "two")
    assert read_volume(tmp_path / "two", "1.2.3.4.6").data.shape[1] == 4


def make_dicom(folder: Path, series: str, slices: int) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(exist_ok=True)
    for number in range(slices):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"{series}.{number + 1}"
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = series, "1.2.3", "CT"
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [10, 20, 2.0 * number], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness, dataset.InstanceNumber = [0.75, 0.5], 2.0, number + 1
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (
            8,
            9,
            1,
            "MONOCHROME2",
        )
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
        dataset.PixelData = np.full((8, 9), number, np.int16).tobytes()
        dataset.save_as(folder / f"{series}.{number}.dcm", enforce_file_format=True)


def test_channels_of_one_scan_must_share_a_grid(tmp_path):
    first = write(tmp_path / "a.nrrd", Volume(np.ones((4, 5, 6), np.float32), np.eye(4)))
    second = write(tmp_path / "b.nrrd", Volume(np.ones((4, 5, 6), np.float32), np.diag([2, 2, 2, 1])))
    assert read_volume([first, first]).channels == 2
    with pytest.raises(InputError, match="same voxel grid"):
        read_volume([first, second])


def test_missing_empty_truncated_and_foreign_files_are_named(tmp_path):
    good = write(
        tmp_path / "good.nii.gz",
        Volume(np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32), np.eye(4)),
    )
    cases = {
        "missing.nii.gz": (None, "no scan"),
        "empty.nii.gz": (b"", "empty"),
        "cut.nii.gz": (good.read_bytes()[:2000], "cannot be read|cut off"),
        "cut.nii": (gzip.decompress(good.read_bytes())[:9000], "cut off"),
        "cut.nrrd": (
            write(
                tmp_path / "good.nrrd", Volume(np.random.default_rng(0).normal(size=(20, 20, 20)), np.eye(4))
            ).read_bytes()[:9000],
            "cannot be read",
        ),
        "cut.mha": (
            write(
                tmp_path / "good.mha", Volume(np.random.default_rng(0).normal(size=(20, 20, 20)), np.eye(4))
            ).read_bytes()[:9000],
            "cannot be read",
        ),
        "header.nii.gz": (gzip.compress(b"\x5c\x01\x00\x00abc"), "cut off"),
        "text.nrrd": (b"this is no scan", "cannot be read"),
        "letter.txt": (b"this is no scan", "no scan that can be read"),
    }
    for name, (content, problem) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=problem) as caught:
            read_volume(tmp_path / name)
        assert name in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="no DICOM series"):
        read_volume(tmp_path / "folder")


@pytest.mark.parametrize("sizes", [(0.0, 1.0, 1.0), (1.0, -2.0, 1.0), (1.0, 1.0, float("nan"))])
def test_zero_negative_and_undefined_spacing_is_refused(tmp_path, sizes):
    path = write(
        tmp_path / "scan.nii", Volume(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32), np.eye(4))
    )
    content = bytearray(path.read_bytes())
    content[80:92] = np.array(sizes, "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match="spacing"):
        read_volume(path)


def test_what_no_network_can_answer_for_is_refused():
    good = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    bad = good.copy()
    bad[1, 2, 3] = np.nan
    infinite = good.copy()
    infinite[0, 0, :2] = np.inf
    same_axes = np.eye(4)
    same_axes[:3, 1] = same_axes[:3, 0]
    cases = [
        (bad, np.eye(4), "1 voxel.* NaN"),
        (infinite, np.eye(4), "2 voxel"),
        (np.full((4, 5, 6), 7), np.eye(4), "7 everywhere"),
        (good[:1], np.eye(4), "single slice"),
        (good, np.diag([1, 1, 0, 1]), "spacing"),
        (good, same_axes, "singular"),
    ]
    for array, matrix, problem in cases:
        with pytest.raises(InputError, match=problem):
            Volume(array, matrix, "scan").check()
    with pytest.raises(InputError, match=r"1 channel.* needs 2"):
        Volume(good, np.eye(4)).check(channels=2)
    Volume(good[:2], np.eye(4)).check()


def test_half_a_voxel_beyond_the_border_the_other_axes_are_still_interpolated():
    """Where a grid of half the spacing ends: the nearest voxel along one axis is no reason to take it along all of them."""
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    source, target = Grid((5, 4, 3), np.diag([2.0, 2.0, 2.0, 1.0])), Grid((10, 8, 6), np.eye(4))
    expected = values
    for axis in range(3):
        places = np.minimum(np.arange(2 * values.shape[axis]) / 2, values.shape[axis] - 1)
        low = np.floor(places).astype(int)
        share = np.expand_dims(places - low, [n for n in range(3) if n != axis])
        high = np.minimum(low + 1, values.shape[axis] - 1)
        expected = np.take(expected, low, axis) * (1 - share) + np.take(expected, high, axis) * share
    np.testing.assert_allclose(resample(values, source, target, "linear"), expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_spline_along_two_voxels_mirrors_them(axis):
    """SimpleITK alone reads memory beyond them, so that each call gave something else."""
    shape, size = [7, 8, 9], [10, 9, 8]
    shape[axis], size[2 - axis] = 2, 4
    voxels = np.random.default_rng(axis).normal(size=shape).astype(np.float32)
    matrix = np.diag([0.7, 0.7, 0.7, 1.0])
    matrix[:3, 3] = -0.2
    target = Grid(tuple(size), matrix)
    resampled = resample(voxels, Grid(tuple(shape[::-1]), np.eye(4)), target, "bspline")
    mirrored, begin = np.pad(voxels, [(6 * (n == 2),) * 2 for n in shape], mode="reflect"), np.eye(4)
    begin[2 - axis, 3] = -6
    expected = resample(mirrored, Grid(tuple(mirrored.shape[::-1]), begin), target, "bspline")
    # Half a voxel behind the last one, and further, it is the nearest one's value, as along longer axes.
    expected = np.delete(expected, 3, axis)
    np.testing.assert_allclose(np.delete(resampled, 3, axis), expected, atol=1e-5)
    nearest = resample(voxels, Grid(tuple(shape[::-1]), np.eye(4)), target, "nearest")
    assert np.array_equal(np.take(resampled, 3, axis), np.take(nearest, 3, axis))
