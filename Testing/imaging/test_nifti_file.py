"""NIfTI: what nibabel reads is what comes out; where the header contradicts itself it is said or refused."""

from __future__ import annotations

import gzip
import io
import struct
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.errors import InputError, MedQuantError
from MedQuantINT8Lib.imaging.nifti_file import decompress
from MedQuantINT8Lib.imaging.segmentation_files import write_segmentation
from MedQuantINT8Lib.imaging.volume import Grid, Volume
from MedQuantINT8Lib.imaging.volume_files import ReadOptions, read_volume
from scans import orthogonal

DATA = np.random.default_rng(0).integers(0, 100, (5, 6, 7))
MATRIX = np.array([[-0.8, 0.1, 0, 30], [0.1, 0.9, 0.1, -20], [0, -0.1, 2.5, 4], [0, 0, 0, 1.0]])


def straight(matrix=MATRIX):
    left, _, right = np.linalg.svd(matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0))
    made = matrix.copy()
    made[:3, :3] = left @ right * np.linalg.norm(matrix[:3, :3], axis=0)
    return made


def patched(path: Path, offset: int, form: str, *values: float) -> Path:
    """A .nii file with other numbers in its header."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(content)
    return path


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(DATA.astype(np.int16), straight())
    image.set_qform(straight(), 1)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("form", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_voxel_type_and_version_is_read_as_nibabel_reads_it(tmp_path, kind, form):
    order = ">" if kind in ("i2", "f4", "u8") else "<"
    header = form.header_class(endianness=order)
    header.set_data_dtype(kind)
    image = form(DATA.astype(order + kind), MATRIX, header)
    path = tmp_path / ("A.NII.GZ" if kind == "i2" else "a.nii.gz")
    nibabel.save(image, tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(path)
    volume, theirs = read_volume(path), nibabel.load(path)
    assert np.array_equal(volume.data[0].T, theirs.get_fdata()) and volume.data.dtype == np.dtype(kind)
    assert np.allclose(volume.ijk_to_ras, theirs.affine, atol=1e-5) and volume.data.dtype.isnative


def test_scaling_and_complex_numbers(tmp_path):
    scaled = nibabel.Nifti1Image(DATA.astype(np.float64), MATRIX)
    scaled.set_data_dtype("i2")
    scaled.header.set_slope_inter(2.5, -7)
    nibabel.save(scaled, tmp_path / "scaled.nii")
    assert np.allclose(
        read_volume(tmp_path / "scaled.nii").data[0].T, nibabel.load(tmp_path / "scaled.nii").get_fdata()
    )
    for bad, value in ((float("nan"), 0), (0, 1)):
        patched(tmp_path / "scaled.nii", 112, "<ff", bad, value)
        assert np.array_equal(
            read_volume(tmp_path / "scaled.nii").data[0].T, nibabel.load(tmp_path / "scaled.nii").get_fdata()
        )
    turned = (DATA + 1j * DATA[::-1]).astype(np.complex64)
    nibabel.save(nibabel.Nifti1Image(turned, MATRIX), tmp_path / "complex.nii.gz")
    volume = read_volume(tmp_path / "complex.nii.gz")
    assert np.allclose(volume.data[0].T, np.abs(turned)) and any("magnitude" in note for note in volume.notes)


def test_where_two_forms_disagree_the_taken_one_is_said_and_can_be_chosen(tmp_path):
    other = np.diag([1.0, 1, 2, 1])
    image = nibabel.Nifti1Image(DATA.astype(np.int16), MATRIX)
    image.set_sform(MATRIX, 1)
    image.set_qform(other, 1)
    nibabel.save(image, tmp_path / "s.nii.gz")
    volume = read_volume(tmp_path / "s.nii.gz")
    assert np.allclose(volume.ijk_to_ras, MATRIX, atol=1e-5) and "sform and qform disagree" in volume.notes[0]
    chosen = read_volume(tmp_path / "s.nii.gz", options=ReadOptions(nifti_form="qform"))
    assert np.allclose(chosen.ijk_to_ras, other, atol=1e-4) and not chosen.notes
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "s.nii.gz")
    with pytest.raises(InputError, match="no usable qform"):
        read_volume(tmp_path / "s.nii.gz", options=ReadOptions(nifti_form="qform"))


@pytest.mark.parametrize("form", ["auto", "sform", "qform"])
def test_voxels_of_an_oblique_scan_are_as_long_as_itk_says(tmp_path, form):
    matrix = orthogonal((3.5, 3.0, 6.2), (10, -15, 20), flips="ij")
    image = nibabel.Nifti1Image(DATA.astype(np.int16), matrix)
    image.set_qform(matrix, 1)
    nibabel.save(image, tmp_path / "s.nii.gz")
    found = read_volume(tmp_path / "s.nii.gz", options=ReadOptions(nifti_form=form))
    # The sform's own columns are 2.99999991 mm long, which decides how half a voxel is rounded.
    assert np.allclose(found.grid.spacing, sitk.ReadImage(str(tmp_path / "s.nii.gz")).GetSpacing(), rtol=1e-14, atol=0)
    assert np.allclose(found.ijk_to_ras, matrix, atol=1e-4)
    # One that is really of another length is left as it is.
    patched_spacing = nibabel.load(tmp_path / "s.nii.gz")
    patched_spacing.header["pixdim"][1] = 3.501
    nibabel.save(patched_spacing, tmp_path / "t.nii.gz")
    if form != "qform":
        assert np.isclose(
            read_volume(tmp_path / "t.nii.gz", options=ReadOptions(nifti_form=form)).grid.spacing[0], 3.5, rtol=1e-6
        )


def test_without_a_form_the_sides_are_said_to_be_unknown(tmp_path):
    image = nibabel.Nifti1Image(DATA.astype(np.int16), None)
    image.header.set_zooms((1, 2, 3))
    nibabel.save(image, tmp_path / "s.nii.gz")
    volume = read_volume(tmp_path / "s.nii.gz")
    assert np.allclose(volume.grid.spacing, (1, 2, 3)) and "left and right" in volume.notes[0]


def test_a_broken_sform_gives_way_to_a_whole_qform(plain):
    patched(plain, 280, "<12f", *[0.0] * 12)
    assert np.allclose(read_volume(plain).ijk_to_ras, straight(), atol=1e-3)


def test_a_twin_without_compression_beside_it_is_not_read_instead(tmp_path):
    nibabel.save(nibabel.Nifti1Image(DATA.astype(np.int16), MATRIX), tmp_path / "s.nii.gz")
    nibabel.save(nibabel.Nifti1Image(DATA.astype(np.int16) + 1, MATRIX), tmp_path / "s.nii")
    assert np.array_equal(read_volume(tmp_path / "s.nii.gz").data[0].T, DATA)


@pytest.mark.parametrize(
    ("units", "step", "problem"), [(16, 2000.0, "milliseconds"), (8, 2.5, "seconds"), (0, 1.0, ""), (8, 1.0, "")]
)
def test_a_time_series_is_no_set_of_channels(tmp_path, units, step, problem):
    image = nibabel.Nifti1Image(np.stack([DATA, DATA + 1], -1).astype(np.int16), MATRIX)
    nibabel.save(image, tmp_path / "s.nii")
    patched(patched(tmp_path / "s.nii", 123, "<B", 2 | units), 92, "<f", step)
    if problem:
        with pytest.raises(InputError, match=f"2 frames of a series in {problem}"):
            read_volume(tmp_path / "s.nii")
    else:
        volume = read_volume(tmp_path / "s.nii")
        assert volume.channels == 2 and np.array_equal(volume.data[1].T, DATA + 1)


@pytest.mark.parametrize(
    ("offset", "form", "values", "problem"),
    [
        (70, "<hh", (1, 1), "1-bit"), (70, "<hh", (128, 24), "RGB"), (70, "<hh", (1536, 128), "128-bit"), (70, "<hh", (77, 16), "code 77"),
        (72, "<h", (8,), "8 bits a voxel"), (108, "<f", (float("nan"),), "begin at byte nan"), (108, "<f", (1e30,), "begin at byte"),
        (40, "<h", (0,), "0 axes"), (40, "<8h", (3, 5, 6, -7, 1, 1, 1, 1), "axes"), (40, "<8h", (3, 5000, 6000, 7000, 1, 1, 1, 1), "cut off"),
        (40, "<8h", (5, 5, 6, 1, 7, 2, 1, 1), "more than four axes"), (40, "<8h", (2, 5, 6, 1, 1, 1, 1, 1), "2-dimensional"),
        (112, "<ff", (1.0, float("inf")), "scl_inter"), (0, "<i", (347,), "does not begin"), (68, "<h", (1007,), "vectors"), (344, "<4s", (b"ni1\0",), "pair"),
    ],
)  # fmt: skip
def test_headers_that_cannot_be_followed_are_refused_by_name(plain, offset, form, values, problem):
    with pytest.raises(InputError, match=problem) as caught:
        read_volume(patched(plain, offset, form, *values))
    assert plain.name in str(caught.value)


def test_damage_to_compressed_data_is_found(tmp_path, plain):
    packed = bytearray(gzip.compress(plain.read_bytes()))
    cases = {
        "check sum": packed[:-8] + b"\0\0\0\1" + packed[-4:],
        "middle": packed[:200] + bytes([packed[200] ^ 255]) + packed[201:],
        "cut": packed[:-100],
        "cut before packed": gzip.compress(plain.read_bytes()[:-100]),
        "tail cut": packed[:-4],
        "garbage behind": packed + b"garbage",
    }
    for name, content in cases.items():
        (tmp_path / "d.nii.gz").write_bytes(content)
        with pytest.raises(InputError, match="cut off|damaged"):
            read_volume(tmp_path / "d.nii.gz")
            pytest.fail(name)
    (tmp_path / "d.nii.gz").write_bytes(
        gzip.compress(plain.read_bytes()[:300]) + gzip.compress(plain.read_bytes()[300:]) + bytes(512)
    )
    assert np.array_equal(read_volume(tmp_path / "d.nii.gz").data[0].T, DATA)


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, plain):
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", 1) as stream:
        stream.write(plain.read_bytes())
        for _ in range(70):
            stream.write(bytes(1 << 20))
    with pytest.raises(InputError, match="much more than its header says"):
        read_volume(tmp_path / "bomb.nii.gz")


def test_names_that_are_not_utf8_are_read(tmp_path, plain):
    name = tmp_path / b"scan-\xe9.nii".decode("utf-8", "surrogateescape")
    plain.rename(name)
    assert np.array_equal(read_volume(name).data[0].T, DATA)


def test_random_damage_is_refused_or_read_and_never_anything_else(tmp_path, plain):
    rng = np.random.default_rng(3)
    source = plain.read_bytes()
    for number in range(600):
        content = bytearray(source)
        for _ in range(rng.integers(1, 6)):
            content[int(rng.integers(0, 352))] = rng.integers(0, 256)
        (tmp_path / "damaged.nii").write_bytes(
            content[: int(rng.integers(0, len(content)))] if number % 4 == 0 else content
        )
        try:
            read_volume(tmp_path / "damaged.nii")
        except MedQuantError as error:
            assert "damaged.nii" in str(error)


def test_grids_that_differ_by_rounding_are_one_and_by_more_are_not():
    grid = Grid((200, 200, 100), MATRIX)
    rounded = MATRIX.astype(np.float32).astype(np.float64) * (1 + 1e-7)
    assert grid == Grid((200, 200, 100), rounded)
    moved = MATRIX.copy()
    moved[0, 3] += 0.02
    turned = MATRIX.copy()
    turned[0, 0] *= 1.001
    assert (
        grid != Grid((200, 200, 100), moved)
        and grid != Grid((200, 200, 100), turned)
        and grid != Grid((200, 200, 99), MATRIX)
    )


def test_channels_that_differ_by_rounding_are_one_scan(tmp_path):
    for name, matrix in (("a", MATRIX), ("b", MATRIX * (1 + 3e-7)), ("c", MATRIX + np.diag([0, 0, 0.01, 0]))):
        nibabel.save(nibabel.Nifti1Image(DATA.astype(np.int16), matrix), tmp_path / f"{name}.nii.gz")
    assert read_volume([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]).channels == 2
    with pytest.raises(InputError, match="same voxel grid"):
        read_volume([tmp_path / "a.nii.gz", tmp_path / "c.nii.gz"])


def test_a_volume_with_voxels_that_are_no_numbers_is_refused(tmp_path):
    data = DATA.astype(np.float32)
    data[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(data, MATRIX), tmp_path / "nan.nii.gz")
    with pytest.raises(InputError, match="1 voxel"):
        read_volume(tmp_path / "nan.nii.gz").check()
    assert isinstance(read_volume(tmp_path / "nan.nii.gz"), Volume)


@pytest.mark.parametrize("module", ["isal", "zlib"])
def test_either_module_unpacks_and_refuses_the_same(monkeypatch, module):
    """isal, where it is installed, in place of zlib: members, padding, a cut, a wrong check sum, damage."""
    if module == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal", reason="needs isal, which unpacks in half the time")
    content = np.random.default_rng(1).integers(0, 40, 5_000_000).astype(np.uint8).tobytes()
    packed = gzip.compress(content[:3_000_000]) + gzip.compress(content[3_000_000:])

    def unpacked(data: bytes) -> bytes:
        return b"".join(decompress(io.BytesIO(data), "scan.nii.gz"))

    assert unpacked(packed) == content == unpacked(packed + bytes(600))
    damaged = bytearray(packed)
    damaged[len(packed) // 4 : len(packed) // 4 + 200] = bytes(200)
    wrong_sum = bytearray(packed)
    wrong_sum[-8] ^= 1
    for data, message in ((packed[:-9], "cut off"), (wrong_sum, "damaged"), (damaged, "damaged|cut off")):
        with pytest.raises(InputError, match=message):
            unpacked(bytes(data))


@pytest.mark.parametrize("module", ["isal", "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.seg.nrrd", "labels.mha", "labels.mhd"])
def test_either_module_packs_label_maps_that_itk_reads(monkeypatch, tmp_path, module, dtype, name):
    if module == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal", reason="needs isal, which packs label maps in an eighth of the time")
    labels = np.zeros((70, 150, 160), dtype)
    labels[10:40, 20:100, 30:90] = 3
    labels[20:30, 50:60, 40:120] = np.random.default_rng(0).integers(0, 118, (10, 10, 80))
    write_segmentation(tmp_path / name, labels, np.diag([1.0, 1.0, 2.0, 1.0]), ())
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))), labels)
