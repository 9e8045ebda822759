"""DICOM as archives deliver it: what pydicom reads is what comes out, and what is no whole, even stack is refused by name."""

from __future__ import annotations

import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from dicom_files import by_pydicom, multiframe, write_series
from MedQuantINT8Lib.errors import InputError, MedQuantError
from MedQuantINT8Lib.imaging.dicom_file import DamagedDicom, read_dicom
from MedQuantINT8Lib.imaging.volume_files import ReadOptions, ScanReader, read_volume

K, J, COLUMNS = 10, 12, 14
RNG = np.random.default_rng(0)
SLICES = RNG.integers(0, 1000, (K, J, COLUMNS)).astype(np.int16)
EVEN = [(-5.0, 7.0, 2.0 * k + 30) for k in range(K)]
GAPS, TILT = ReadOptions(allow_gaps=True), ReadOptions(allow_tilt=True)


def lps(volume, i, j, k):
    return (volume.ijk_to_ras @ [i, j, k, 1])[:3] * [-1, -1, 1]


def test_an_even_series_lies_where_its_positions_say_in_any_order_of_names(tmp_path):
    names = [f"IM{n}" for n in RNG.permutation(K)]
    write_series(tmp_path / "s", SLICES, EVEN, names=names)
    (tmp_path / "s" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "s" / "readme.txt").write_text("text")
    (tmp_path / "s" / "Thumbs").write_bytes(b"\1" * 500)
    volume = read_volume(tmp_path / "s")
    assert np.array_equal(volume.data[0], SLICES) and volume.data.dtype == np.int16
    assert np.allclose(lps(volume, 3, 4, 5), [-5 + 3 * 0.5, 7 + 4 * 0.75, 30 + 5 * 2])
    assert volume.notes == (f"{1} file(s) are no DICOM files and were left out: Thumbs",)


def test_oblique_and_turned_slices_lie_where_their_positions_say(tmp_path):
    angle = 0.3
    across, down = np.array([0, np.cos(angle), np.sin(angle)]), np.array([0, np.sin(angle), -np.cos(angle)])
    normal = np.cross(across, down)
    positions = [np.array([10, 20, 30]) - 1.5 * n * normal for n in range(K)]
    write_series(tmp_path / "s", SLICES, positions, orientation=[*across, *down])
    volume = read_volume(tmp_path / "s")
    # Slices come in the order of the normal, which runs against that of the files here.
    assert np.array_equal(volume.data[0], SLICES[::-1])
    assert np.allclose(lps(volume, 3, 4, K - 1 - 5), positions[5] + 3 * 0.5 * across + 4 * 0.75 * down, atol=1e-4)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_every_encoding_gives_what_pydicom_gives(tmp_path, syntax):
    paths = write_series(tmp_path / "s", SLICES, EVEN)
    for path in paths:
        data = pydicom.dcmread(path)
        if syntax == RLELossless:
            data.compress(RLELossless, generate_instance_uid=False)
            data.save_as(path)
            continue
        data.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            data.PixelData = data.pixel_array.astype(">i2").tobytes()
        pydicom.dcmwrite(
            path,
            data,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
            force_encoding=True,
        )
    assert np.array_equal(read_volume(tmp_path / "s").data[0], by_pydicom(paths))


@pytest.mark.parametrize(
    ("compressor", "dtype"),
    [("JPEG", np.uint16), ("JPEG2000", np.uint16), ("JPEG2000", np.int16), ("JPEGLS", np.uint16)],
)
def test_compressed_slices_give_the_pixels_that_were_compressed(tmp_path, compressor, dtype):
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetCompressor(compressor)
    writer.UseCompressionOn()
    writer.KeepOriginalImageUIDOn()
    pixels = (SLICES[:3] - (500 if dtype == np.int16 else 0)).astype(dtype)
    for n in range(3):
        image = sitk.GetImageFromArray(pixels[n : n + 1])
        image.SetOrigin((1.0, 2.0, 3.0 * n))
        for tag, value in (("0020|000e", "1.2.3"), ("0008|0018", f"1.2.3.{n}"), ("0008|0060", "MR")):
            image.SetMetaData(tag, value)
        writer.SetFileName(str(tmp_path / f"{n}.dcm"))
        writer.Execute(image)
    syntax = pydicom.dcmread(tmp_path / "0.dcm").file_meta.TransferSyntaxUID
    assert syntax.is_compressed
    assert np.array_equal(read_volume(tmp_path).data[0], pixels)


def test_signs_unused_bits_and_the_rescaling_of_each_slice_are_applied(tmp_path):
    def twelve_bits(data, n):
        data.BitsStored, data.HighBit = 12, 11
        # The four unused bits hold something else, as old scanners have it.
        data.PixelData = ((np.frombuffer(data.PixelData, np.uint16) & 0x0FFF) | 0xA000).tobytes()
        data.RescaleSlope, data.RescaleIntercept = 1, -1024

    paths = write_series(tmp_path / "unsigned", SLICES.astype(np.uint16), EVEN, twelve_bits)
    volume = read_volume(tmp_path / "unsigned")
    assert np.array_equal(volume.data[0], SLICES.astype(int) - 1024) and volume.data.dtype == np.int16

    def sloped(data, n):
        data.RescaleSlope, data.RescaleIntercept = 0.5 + n, -3.25

    paths = write_series(tmp_path / "sloped", SLICES, EVEN, sloped)
    volume = read_volume(tmp_path / "sloped")
    assert np.allclose(volume.data[0], by_pydicom(paths)) and volume.data.dtype == np.float32

    def shifted(data, n):
        data.RescaleIntercept = -30000.0 * n

    paths = write_series(tmp_path / "wide", SLICES, EVEN, shifted)
    assert np.array_equal(read_volume(tmp_path / "wide").data[0], by_pydicom(paths))


def test_monochrome1_keeps_its_values_and_is_told(tmp_path):
    write_series(
        tmp_path / "s", SLICES, EVEN, lambda data, n: setattr(data, "PhotometricInterpretation", "MONOCHROME1")
    )
    volume = read_volume(tmp_path / "s")
    assert np.array_equal(volume.data[0], SLICES) and "MONOCHROME1" in volume.notes[0]


def test_missing_slices_are_named_and_filled_when_asked(tmp_path):
    kept = [0, 1, 2, 5, 6, 8, 9]
    ramp = np.stack([np.full((J, COLUMNS), 10 * k, np.int16) for k in range(K)])
    ramp[0, 0, 0] = 1
    write_series(
        tmp_path / "s",
        ramp[kept],
        [EVEN[k] for k in kept],
        lambda data, n: setattr(data, "InstanceNumber", kept[n] + 1),
        names=[f"{k}.dcm" for k in kept],
    )
    with pytest.raises(
        InputError,
        match=r"3 of 10 slices are missing, at 36\.00, 38\.00, 44\.00 mm.*2\.dcm and 5\.dcm, numbers 4 to 5.*--allow-gaps",
    ):
        read_volume(tmp_path / "s")
    reader = ScanReader(GAPS)
    volume = reader(tmp_path / "s")
    assert volume.data.shape == (1, K, J, COLUMNS) and np.allclose(volume.data[0, :, 5, 5], 10 * np.arange(K))
    assert np.allclose(volume.grid.spacing, (0.5, 0.75, 2.0)) and "interpolated" in reader.notes[0]


def test_uneven_spacing_is_refused_and_resampled_when_asked(tmp_path):
    heights = [0, 2, 4, 6, 8, 10, 15.3, 20, 25.1, 30]
    ramp = np.stack([np.full((J, COLUMNS), round(100 * h), np.int16) for h in heights])
    ramp[0, 0, 0] = 1
    write_series(tmp_path / "s", ramp, [(0, 0, h) for h in heights])
    with pytest.raises(InputError, match=r"uneven: from 2 to 5\.3 mm"):
        read_volume(tmp_path / "s")
    volume = read_volume(tmp_path / "s", options=GAPS)
    assert np.allclose(volume.data[0, :, 5, 5], 100 * np.linspace(0, 30, 16), atol=1) and volume.notes


def test_positions_that_wobble_by_rounding_are_even(tmp_path):
    write_series(tmp_path / "s", SLICES, [(0, 0, 2.0 * k + (0.03 if k % 2 else 0)) for k in range(K)])
    assert np.allclose(read_volume(tmp_path / "s").grid.spacing[2], 2.0, atol=0.01)


@pytest.mark.parametrize("degrees", [20.0, -12.0])
def test_a_tilted_gantry_is_refused_and_straightened_when_asked(tmp_path, degrees):
    drift = np.tan(np.deg2rad(degrees)) * 2.0
    slices = np.full((16, 30, 20), -1000, np.int16)
    slices[12, 10:18, 6:12] = 500
    positions = [(0.0, -drift * k, 2.0 * k) for k in range(16)]
    write_series(tmp_path / "s", slices, positions)
    with pytest.raises(InputError, match=f"tilted by {abs(degrees):.1f} degrees.*--allow-tilt"):
        read_volume(tmp_path / "s")
    volume = read_volume(tmp_path / "s", options=TILT)
    matrix = volume.ijk_to_ras[:3, :3] / np.linalg.norm(volume.ijk_to_ras[:3, :3], axis=0)
    assert np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-6) and "tilted" in volume.notes[0]
    weights = volume.data[0] + 1000.0
    k, j, i = (np.indices(weights.shape) * weights).reshape(3, -1).sum(1) / weights.sum()
    assert np.allclose(lps(volume, i, j, k), [8.5 * 0.5, 13.5 * 0.75 - drift * 12, 24.0], atol=1e-3)
    # Nothing is cut off, and air is air.
    assert np.isclose(weights.sum(), 8 * 6 * 1500) and np.isclose(volume.data.min(), -1000)


def test_two_passes_and_a_localizer_under_one_series_are_named_and_can_be_chosen(tmp_path):
    write_series(
        tmp_path / "s",
        [s for k in range(K) for s in (SLICES[k], SLICES[k] + 1)],
        [p for p in EVEN for _ in (0, 1)],
        lambda data, n: setattr(data, "AcquisitionNumber", n % 2 + 1),
    )
    with pytest.raises(
        InputError, match=r"several stacks.*1: acquisition 1, 10 images, axial.*2: acquisition 2.*--series 1\.2\.3\.4:1"
    ):
        read_volume(tmp_path / "s")
    assert np.array_equal(read_volume(tmp_path / "s", "1.2.3.4:2").data[0], SLICES + 1)
    write_series(tmp_path / "l", SLICES, EVEN)
    write_series(
        tmp_path / "l", SLICES[:2], [(-9, 0, 30), (9, 0, 30)], orientation=(0, 1, 0, 0, 0, -1), names=["x.dcm", "y.dcm"]
    )
    with pytest.raises(InputError, match=r"2: 2 images, sagittal.*x\.dcm, y\.dcm"):
        read_volume(tmp_path / "l")
    volume = read_volume(tmp_path / "l", "1.2.3.4:1")
    assert np.array_equal(volume.data[0], SLICES) and "stack 1 of 2" in volume.notes[0]
    with pytest.raises(InputError, match="no number 3"):
        read_volume(tmp_path / "l", "1.2.3.4:3")


def test_images_at_one_position_that_nothing_tells_apart_are_named(tmp_path):
    write_series(tmp_path / "s", [*SLICES, SLICES[3] + 1], [*EVEN, EVEN[3]])
    with pytest.raises(InputError, match=r"1 pair.* same position: 003\.dcm and 010\.dcm"):
        read_volume(tmp_path / "s")


def test_a_copy_of_an_image_is_left_out_and_told(tmp_path):
    write_series(tmp_path / "s", SLICES, EVEN)
    shutil.copy(tmp_path / "s" / "003.dcm", tmp_path / "s" / "003 (1).dcm")
    volume = read_volume(tmp_path / "s")
    assert np.array_equal(volume.data[0], SLICES) and "1 image(s) are there twice" in volume.notes[0]


def changed(name, value):
    return lambda data, n: setattr(data, name, value)


def removed(*names):
    return lambda data, n: [delattr(data, name) for name in names]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (removed("ImagePositionPatient"), "no position"),
        (removed("ImageOrientationPatient"), "no orientation"),
        (removed("PixelSpacing"), "no pixel spacing"),
        (changed("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "right angles"),
        (changed("PixelSpacing", [0, 1]), "pixels are 0"),
        (changed("PhotometricInterpretation", "PALETTE COLOR"), "color image"),
        (changed("SamplesPerPixel", 3), "color image"),
        (changed("BitsStored", 0), "0 of 16 bits"),
        (changed("Rows", 4000), "cut off"),
        (changed("NumberOfFrames", 3), "cut off"),
        (changed("RescaleSlope", 0), "0 x stored"),
        (lambda data, n: setattr(data, "FrameOfReferenceUID", f"1.2.{n}"), "several frames of reference"),
        (lambda data, n: setattr(data, "PixelData", b"\0" * 8), "cut off"),
        (removed("PixelData"), "no DICOM series"),
        (lambda data, n: n == 4 and delattr(data, "PixelData"), r"004\.dcm is damaged: it ends before"),
        (lambda data, n: n == 4 and setattr(data, "Rows", 6), "several stacks"),
    ],
)
def test_what_says_not_enough_is_refused_by_name(tmp_path, change, problem):
    write_series(tmp_path / "s", SLICES, EVEN, change)
    with pytest.raises(InputError, match=problem):
        read_volume(tmp_path / "s")


def test_a_single_colour_slice_or_grey_slice_is_no_volume(tmp_path):
    write_series(tmp_path / "s", SLICES[:1], EVEN[:1])
    with pytest.raises(InputError, match="single slice"):
        read_volume(tmp_path / "s").check()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_damaged_file_of_a_series_is_named(tmp_path, share):
    paths = write_series(tmp_path / "s", SLICES, EVEN)
    content = paths[4].read_bytes()
    paths[4].write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"004\.dcm is damaged"):
        read_volume(tmp_path / "s")


def test_frames_of_one_file_lie_where_their_groups_say_with_their_own_rescaling(tmp_path):
    order = RNG.permutation(K)
    frames = SLICES.astype(np.uint16)
    multiframe(tmp_path / "m.dcm", frames, [(-7, -9, 100 + 2.5 * int(k)) for k in order])
    for source in (tmp_path, tmp_path / "m.dcm"):
        volume = read_volume(source)
        expected = np.empty(SLICES.shape)
        for n, k in enumerate(order):
            expected[k] = frames[n] * (1.0 + n) - 10
        assert np.allclose(volume.data[0], expected)
        assert np.allclose(lps(volume, 2, 3, 4), [-7 + 2 * 0.5, -9 + 3 * 0.75, 110])


def test_compressed_frames_are_decoded(tmp_path):
    multiframe(tmp_path / "m.dcm", SLICES.astype(np.uint16), [(0, 0, 2.0 * k) for k in range(K)])
    data = pydicom.dcmread(tmp_path / "m.dcm")
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(tmp_path / "m.dcm")
    assert np.allclose(read_volume(tmp_path / "m.dcm").data[0], SLICES * (1.0 + np.arange(K))[:, None, None] - 10)


def test_compressed_pixels_that_are_cut_off_are_named(tmp_path):
    paths = write_series(tmp_path / "s", SLICES.astype(np.uint16), EVEN)
    for path in paths:
        data = pydicom.dcmread(path)
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(path)
    paths[4].write_bytes(paths[4].read_bytes()[:-60])
    with pytest.raises(InputError, match=r"004\.dcm is damaged: its compressed pixels are cut off"):
        read_volume(tmp_path / "s")


def test_every_element_is_what_pydicom_reads(tmp_path):
    multiframe(tmp_path / "m.dcm", SLICES.astype(np.uint16), EVEN)
    paths = [*write_series(tmp_path / "s", SLICES[:1], EVEN[:1]), tmp_path / "m.dcm"]
    for path in paths:
        ours, theirs = read_dicom(path), pydicom.dcmread(path)
        for element in theirs:
            if element.VR in ("UI", "CS", "DS", "IS", "LO"):
                value = (
                    element.value
                    if isinstance(element.value, str)
                    else "\\".join(str(v) for v in element.value)
                    if hasattr(element.value, "__iter__")
                    else str(element.value)
                )
                assert ours.data.text(int(element.tag)) == value, element
            elif element.VR == "US":
                assert ours.data.integer(int(element.tag)) == element.value


def test_random_damage_is_refused_or_read_and_never_anything_else(tmp_path):
    """Seeded: flipped, lost and exchanged bytes anywhere in the header."""
    rng = np.random.default_rng(7)
    multiframe(tmp_path / "m.dcm", SLICES.astype(np.uint16), EVEN)
    sources = [write_series(tmp_path / "s", SLICES[:1], EVEN[:1])[0], tmp_path / "m.dcm"]
    for number in range(400):
        content = bytearray(sources[number % 2].read_bytes())
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(128, len(content) if number % 3 else 700))
            if number % 5 == 0:
                del content[at : at + int(rng.integers(1, 40))]
            else:
                content[min(at, len(content) - 1)] = rng.integers(0, 256)
        (tmp_path / "damaged.dcm").write_bytes(content)
        try:
            read_volume(tmp_path / "damaged.dcm")
        except MedQuantError as error:
            assert "damaged.dcm" in str(error)


def test_nesting_without_end_ends(tmp_path):
    deep = b"".join(b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" for _ in range(2000))
    (tmp_path / "deep.dcm").write_bytes(bytes(128) + b"DICM" + deep)
    with pytest.raises(DamagedDicom, match="deep"):
        read_dicom(tmp_path / "deep.dcm")
