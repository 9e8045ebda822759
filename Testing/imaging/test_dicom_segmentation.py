"""DICOM segmentations: read back by highdicom and pydicom they lie where the label map did, and a public validator finds no error."""

from __future__ import annotations

import shutil
import subprocess
import tracemalloc
import warnings

import numpy as np
import pytest

from MedQuantINT8Lib.errors import DependencyError, InputError
from MedQuantINT8Lib.imaging import dicom_source
from MedQuantINT8Lib.imaging.dicom_segmentation import (
    DICOM_KINDS,
    Algorithm,
    check_source,
    lab_color,
    write_dicom_segmentation,
)
from MedQuantINT8Lib.imaging.dicom_source import load_source
from MedQuantINT8Lib.imaging.volume import LPS_FROM_RAS, Volume
from MedQuantINT8Lib.imaging.volume_files import ReadOptions, read_volume
from MedQuantINT8Lib.models.spec import Code, Label, Terminology

hd = pytest.importorskip("highdicom", reason="needs highdicom (the extra dicom)")
pydicom = pytest.importorskip("pydicom", reason="needs pydicom")

from dicom_files import multiframe, write_series  # noqa: E402

_ORGAN = Code("SCT", "123037004", "Anatomical Structure")
LABELS = (
    Label(2, "left kidney", 1, (200, 30, 40), Terminology(_ORGAN, Code("SCT", "64033007", "Kidney"), Code("SCT", "7771000", "Left"))),
    Label(5, "Gefäß", 2, (0, 128, 255)),
    Label(9, "not found", 3),
)  # fmt: skip
ALGORITHM = Algorithm("A network", "1.2", {"precision": "int8", "engine": "openvino", "engine version": "2025.2"})
AXIAL, CORONAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1)
_TURNED = np.array([[0.8, -0.6, 0.0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])
SERIES = {
    "axial": (AXIAL, 2.0),
    "coronal": (CORONAL, 2.0),
    "oblique": ((*_TURNED[0], *_TURNED[1]), 2.0),
    "decreasing slices": (AXIAL, -2.0),
    "anisotropic": (AXIAL, 7.5),
}


def patient(data, number=0):
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "ID 7", "Müller^Änne", "19800102", "F"
    data.SpecificCharacterSet = "ISO_IR 100"
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20240305", "101112", "S1", "A77"
    data.ReferringPhysicianName, data.StudyDescription, data.PatientAge = "Doe^J", "CT abdomen", "044Y"
    data.SeriesNumber = 4


def series(folder, name="axial", count=6, change=patient, **options):
    """Slices of a series: oddly many rows and columns, so that bits do not fill bytes."""
    orientation, step = SERIES[name]
    normal = np.cross(orientation[:3], orientation[3:])
    pixels = np.random.default_rng(0).integers(0, 500, (count, 9, 11)).astype(np.int16)
    positions = [np.array([-12.5, 40.25, 7.0]) + n * step * normal for n in range(count)]
    return write_series(folder, list(pixels), positions, change, orientation=orientation, **options)


def label_map_of(volume):
    labels = np.zeros(volume.data.shape[1:], np.uint8)
    labels[1, 2:5, 3:9] = 2
    labels[2, 2:5, 1:4] = 2
    labels[2, 5:8, 4:11] = 5
    labels[4, 0, 0] = 5
    return labels


def written(tmp_path, volume, labels, kind="binary"):
    source = load_source(volume)
    check_source(source, LABELS, kind)
    path = tmp_path / f"{kind}.dcm"
    notes = write_dicom_segmentation(path, labels, LABELS, source, ALGORITHM, kind)
    assert [p for p in tmp_path.iterdir() if p.name not in (path.name, "s")] == []
    return path, notes


@pytest.mark.parametrize("kind", DICOM_KINDS)
@pytest.mark.parametrize("name", SERIES)
def test_a_segmentation_lies_where_its_label_map_does(tmp_path, name, kind):
    files = series(tmp_path / "s", name)
    volume = read_volume(tmp_path / "s")
    labels = label_map_of(volume)
    path, _ = written(tmp_path, volume, labels, kind)
    segmentation = hd.seg.segread(path)
    numbers = {2: 2, 5: 5} if kind == "labelmap" else {2: 1, 5: 2}
    lps = LPS_FROM_RAS @ volume.ijk_to_ras

    # By pydicom, frame by frame: where each voxel of each structure lies in the patient.
    data = pydicom.dcmread(path)
    frames = data.pixel_array.reshape(-1, 9, 11)
    found = {value: set() for value in numbers}
    shared = data.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    for frame, group in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            value = (
                frame[row, column]
                if kind == "labelmap"
                else group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            )
            place = position + column * spacing[1] * orientation[:3] + row * spacing[0] * orientation[3:]
            found[next(v for v, n in numbers.items() if n == value)].add(tuple(np.round(place, 2) + 0.0))
    for value in numbers:
        places = (lps @ np.array([[i, j, k, 1] for k, j, i in np.argwhere(labels == value)]).T)[:3].T
        assert found[value] == {tuple(np.round(place, 2) + 0.0) for place in places}

    # By highdicom, as a volume.
    read = segmentation.get_volume(combine_segments=True, skip_overlap_checks=True)
    for value, number in numbers.items():
        places = (read.affine @ np.array([[*index, 1] for index in np.argwhere(read.array == number)]).T)[:3].T
        expected = (lps @ np.array([[i, j, k, 1] for k, j, i in np.argwhere(labels == value)]).T)[:3].T
        assert np.allclose(
            np.array(sorted(map(tuple, places.round(3)))), np.array(sorted(map(tuple, expected.round(3)))), atol=0.01
        )

    # Each frame names the image that it was made from, at the same place.
    images = {str(image.SOPInstanceUID): image for image in map(pydicom.dcmread, files)}
    for group in data.PerFrameFunctionalGroupsSequence:
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        image = images[reference.ReferencedSOPInstanceUID]
        assert image.ImagePositionPatient == group.PlanePositionSequence[0].ImagePositionPatient
    referenced = data.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == "1.2.3.4"
    assert {str(item.ReferencedSOPInstanceUID) for item in referenced.ReferencedInstanceSequence} == set(images)


@pytest.mark.parametrize("kind", DICOM_KINDS)
def test_segments_have_the_coded_terms_and_say_what_made_them(tmp_path, kind):
    series(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    path, notes = written(tmp_path, volume, label_map_of(volume), kind)
    data = pydicom.dcmread(path)
    assert data.SegmentationType == kind.upper() and data.SegmentsOverlap == "NO"
    segments = [segment for segment in data.SegmentSequence if segment.SegmentNumber]
    assert [segment.SegmentLabel for segment in segments] == ["left kidney", "Gefäß"]
    assert [segment.SegmentNumber for segment in segments] == ([2, 5] if kind == "labelmap" else [1, 2])
    assert notes == ["1 structure(s) without voxels have no segment in the DICOM segmentation: not found"]
    kidney, vessel = segments
    (kind_of,) = kidney.SegmentedPropertyTypeCodeSequence
    assert kidney.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert (kind_of.CodingSchemeDesignator, kind_of.CodeValue, kind_of.CodeMeaning) == ("SCT", "64033007", "Kidney")
    assert kind_of.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    # Without a code of its own: tissue, and the name as text.
    assert vessel.SegmentedPropertyTypeCodeSequence[0].CodeValue == "85756007"
    (algorithm,) = kidney.SegmentationAlgorithmIdentificationSequence
    assert kidney.SegmentAlgorithmType == "AUTOMATIC" and kidney.SegmentAlgorithmName == "A network"
    assert algorithm.AlgorithmName == "A network" and algorithm.AlgorithmVersion == "1.2"
    assert algorithm.AlgorithmParameters == "precision=int8,engine=openvino,engine version=2025.2"
    color = hd.color.CIELabColor(*lab_color((200, 30, 40)))
    assert list(kidney.RecommendedDisplayCIELabValue) == list(color.value)
    if hasattr(hd.color.CIELabColor, "from_rgb"):
        theirs = hd.color.CIELabColor.from_rgb(200, 30, 40)
        assert np.allclose(theirs.value, color.value, atol=65535 / 100)


@pytest.mark.parametrize("label", ["plain", "Gefäß", "肝臓"])
def test_the_patient_and_the_study_are_those_of_the_series(tmp_path, label):
    series(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    source = load_source(volume)
    labels = (Label(1, label, 1),)
    write_dicom_segmentation(tmp_path / "o.dcm", (volume.data[0] > 250).astype(np.uint8), labels, source, ALGORITHM)
    data, image = pydicom.dcmread(tmp_path / "o.dcm"), pydicom.dcmread(volume.dicom_files[0])
    for keyword in (
        "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
        "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
    ):  # fmt: skip
        assert data.get(keyword) == image.get(keyword), keyword
    assert data.PatientName == "Müller^Änne" and data.SegmentSequence[0].SegmentLabel == label
    assert data.SeriesInstanceUID != image.SeriesInstanceUID and data.SOPInstanceUID != image.SOPInstanceUID
    assert data.Modality == "SEG"


def test_headers_that_were_emptied_or_are_odd_are_no_obstacle(tmp_path):
    def change(data, number):
        data.PatientSex, data.PatientBirthDate, data.PatientName = "female", "unknown", "Doe"
        data.ImageOrientationPatient = [1, 0, 1e-7 * number, 0, 1, 0]
        data.SliceThickness = None
        if number:
            del data.SliceThickness

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series(tmp_path / "s", change=change)
    volume = read_volume(tmp_path / "s")
    path, _ = written(tmp_path, volume, label_map_of(volume))
    data = pydicom.dcmread(path)
    assert data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2
    assert data.PatientSex == "" and not data.PatientBirthDate and data.PatientID == "" and data.StudyDate == ""


def test_a_result_without_any_structure_is_written_and_said(tmp_path):
    series(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    for kind in DICOM_KINDS:
        path, notes = written(tmp_path, volume, np.zeros(volume.data.shape[1:], np.uint8), kind)
        data = pydicom.dcmread(path)
        assert not data.pixel_array.any() and len(data.SegmentSequence) == 3 + (kind == "labelmap")
        assert "none of the structures was found" in notes[0]
        path.unlink()


def test_values_without_a_label_are_left_out(tmp_path):
    series(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    labels = label_map_of(volume).astype(np.uint16)
    labels[0] = 300
    path, _ = written(tmp_path, volume, labels)
    data = hd.seg.segread(path)
    assert data.number_of_segments == 2 and int(data.pixel_array.sum()) == np.count_nonzero(label_map_of(volume))


def test_frames_of_one_multiframe_object_are_referred_to(tmp_path):
    def change(data):
        del data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness
        patient(data)

    frames = np.random.default_rng(1).integers(0, 90, (5, 9, 11))
    # Stored from the top down: the last frame is the volume's first slice.
    multiframe(tmp_path / "m.dcm", frames, [(0, 0, -2.0 * n) for n in range(5)], change)
    volume = read_volume(tmp_path / "m.dcm")
    labels = np.zeros((5, 9, 11), np.uint8)
    labels[0, 3, 4] = 2
    source = load_source(volume)
    check_source(source, LABELS, "binary")
    write_dicom_segmentation(tmp_path / "o.dcm", labels, LABELS, source, ALGORITHM)
    (group,) = pydicom.dcmread(tmp_path / "o.dcm").PerFrameFunctionalGroupsSequence
    assert list(group.PlanePositionSequence[0].ImagePositionPatient) == [0, 0, -8]
    assert group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == 5


def test_slices_that_were_filled_in_lie_on_the_grid_and_the_series_is_referred_to(tmp_path):
    files = series(tmp_path / "s", count=7)
    files[3].unlink()
    volume = read_volume(tmp_path / "s", options=ReadOptions(allow_gaps=True))
    source = load_source(volume)
    assert not source.matched
    labels = np.zeros(volume.data.shape[1:], np.uint8)
    labels[3, 4, 5] = 2
    write_dicom_segmentation(tmp_path / "o.dcm", labels, LABELS, source, ALGORITHM)
    data = pydicom.dcmread(tmp_path / "o.dcm")
    position = data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert np.allclose(position, (LPS_FROM_RAS @ volume.ijk_to_ras @ [0, 0, 3, 1])[:3])
    assert len(data.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6


def test_a_tilted_series_that_was_straightened_keeps_its_place(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 500, (6, 9, 11)).astype(np.int16)
    write_series(tmp_path / "s", list(pixels), [(0, 0.6 * n, 2 * n) for n in range(6)], patient)
    volume = read_volume(tmp_path / "s", options=ReadOptions(allow_tilt=True))
    source = load_source(volume)
    assert not source.matched
    labels = np.zeros(volume.data.shape[1:], np.uint8)
    labels[2, 7, 5] = 2
    write_dicom_segmentation(tmp_path / "o.dcm", labels, LABELS, source, ALGORITHM)
    read = hd.seg.segread(tmp_path / "o.dcm").get_volume(combine_segments=True)
    (index,) = np.argwhere(read.array)
    assert np.allclose(
        (read.affine @ [*index, 1])[:3], (LPS_FROM_RAS @ volume.ijk_to_ras @ [5, 7, 2, 1])[:3], atol=0.01
    )


def test_what_is_not_dicom_or_cannot_be_referred_to_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="was not read from DICOM"):
        load_source(Volume(np.zeros((3, 4, 5)), np.eye(4)))
    for keyword, words in (
        ("FrameOfReferenceUID", "frame of reference UID"),
        ("StudyInstanceUID", "study instance UID"),
    ):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        series(tmp_path / "s", change=lambda data, number, keyword=keyword: delattr(data, keyword))
        with pytest.raises(InputError, match=words):
            load_source(read_volume(tmp_path / "s"))
    # In the head of the file as well, by which it is found.
    shutil.rmtree(tmp_path / "s")
    files = series(tmp_path / "s", change=lambda data, number: delattr(data, "SOPInstanceUID"))
    source = load_source(read_volume(tmp_path / "s"))
    heads = [pydicom.dcmread(path).file_meta.MediaStorageSOPInstanceUID for path in files]
    assert [image.SOPInstanceUID for image in source.images] == heads
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(DependencyError, match="highdicom"):
        dicom_source.require_highdicom()


def test_the_pixels_of_all_structures_are_never_in_memory_at_once(tmp_path):
    """Counted by tracemalloc, which NumPy and Python report to."""

    def peak(structures):
        labels = np.zeros(volume.data.shape[1:], np.uint8)
        for n in range(structures):
            labels[n % 2, :, n::structures] = n + 1
        names = tuple(Label(n + 1, f"s{n}", n + 1) for n in range(structures))
        tracemalloc.start()
        try:
            write_dicom_segmentation(tmp_path / "o.dcm", labels, names, source, ALGORITHM)
            return tracemalloc.get_traced_memory()[1], (tmp_path / "o.dcm").stat().st_size
        finally:
            tracemalloc.stop()
            (tmp_path / "o.dcm").unlink()

    pixels = [np.arange(512 * 1024, dtype=np.int16).reshape(512, 1024) % 99 for _ in range(2)]
    write_series(tmp_path / "s", pixels, [(0, 0, 0), (0, 0, 2)], patient)
    volume = read_volume(tmp_path / "s")
    source = load_source(volume)
    peak(2)  # What is imported and kept at the first time is not counted.
    few, _ = peak(2)
    many, size = peak(240)
    # Python's collector may leave one more copy of the scan's two images (4 MB) for a while.
    assert size > 240 * 64 * 1024 and many - few < size / 3


def test_dciodvfy_finds_no_error(tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy (apt-get install dicom3tools)")
    series(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    path, _ = written(tmp_path, volume, label_map_of(volume))
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    assert "Segmentation" in done.stdout + done.stderr
    assert not [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")], done.stderr
