"""Small DICOM series, written with pydicom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write_series(
    folder: Path,
    slices: Sequence[np.ndarray],
    positions: Sequence[Sequence[float]],
    change: Callable[[Dataset, int], None] | None = None,
    series: str = "1.2.3.4",
    names: Sequence[str] | None = None,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    save: dict[str, Any] | None = None,
) -> list[Path]:
    """CT slices of 0.5 mm wide and 0.75 mm high pixels, one file each; ``change`` edits a data set before it is written."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, (pixels, position) in enumerate(zip(slices, positions, strict=True)):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID, data.Modality = (
            series,
            "1.2.3",
            "1.2.3.9",
            "CT",
        )
        data.ImagePositionPatient = [f"{value:.8g}" for value in position]
        data.ImageOrientationPatient = [f"{value:.10g}" for value in orientation]
        data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [0.75, 0.5], 2.0, number + 1
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
        data.RescaleIntercept, data.RescaleSlope = 0, 1
        data.PixelData = pixels.tobytes()
        if change is not None:
            change(data, number)
        path = folder / (names[number] if names else f"{number:03d}.dcm")
        data.save_as(path, enforce_file_format=True, **(save or {}))
        paths.append(path)
    return paths


def by_pydicom(paths: Sequence[Path]) -> np.ndarray:
    """The rescaled values (slices, rows, columns) as pydicom gives them, in order of height."""
    import pydicom
    from pydicom.pixels import apply_modality_lut

    data = sorted((pydicom.dcmread(path) for path in paths), key=lambda d: float(d.ImagePositionPatient[2]))
    return np.stack([np.asarray(apply_modality_lut(d.pixel_array, d), np.float64) for d in data])


def multiframe(
    path: Path,
    frames: np.ndarray,
    positions: Sequence[Sequence[float]],
    change: Callable[[Dataset], None] | None = None,
) -> None:
    """An enhanced CT: positions and rescaling in functional groups, slopes growing from frame to frame."""
    from pydicom.sequence import Sequence as Items

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for key, value in values.items():
            setattr(made, key, value)
        return made

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID, data.Modality = (
        "1.2.3.4",
        "1.2.3",
        "1.2.3.9",
        "CT",
    )
    data.NumberOfFrames, data.Rows, data.Columns = frames.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.SharedFunctionalGroupsSequence = Items([
        item(
            PixelMeasuresSequence=Items([item(PixelSpacing=["0.75", "0.5"], SliceThickness="2")]),
            PlaneOrientationSequence=Items([item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])]),
        )
    ])  # fmt: skip
    data.PerFrameFunctionalGroupsSequence = Items([
        item(
            PlanePositionSequence=Items([item(ImagePositionPatient=[str(value) for value in position])]),
            PixelValueTransformationSequence=Items([item(RescaleIntercept="-10", RescaleSlope=str(1 + n), RescaleType="HU")]),
        )
        for n, position in enumerate(positions)
    ])  # fmt: skip
    data.PixelData = frames.astype("<u2").tobytes()
    if change is not None:
        change(data)
    data.save_as(path, enforce_file_format=True)
