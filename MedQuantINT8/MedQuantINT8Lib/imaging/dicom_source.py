"""The DICOM images that a scan was read from, as a segmentation of it refers to them: their headers, checked before any work.

Headers are read by pydicom here, without pixels; what lies where was checked before by this project's own reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, InputError
from .volume import LPS_FROM_RAS, Grid, Volume

#: What every object has (type 2): empty where the series leaves it out, which some programs that remove names do.
_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
    "ReferringPhysicianName",
)  # fmt: skip
#: What is read of all images but the first.
_FEW_TAGS = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
    "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "NumberOfFrames", "ImageType",
]  # fmt: skip
_NEEDED = {
    "StudyInstanceUID": "study instance UID",
    "SeriesInstanceUID": "series instance UID",
    "SOPInstanceUID": "SOP instance UID",
    "SOPClassUID": "SOP class UID",
    "FrameOfReferenceUID": "frame of reference UID",
}
#: A slice lies where the volume has it if it is off by less than these shares of a pixel and of a step.
_IN_PLANE, _ALONG = 0.1, 0.07


@dataclass(frozen=True)
class DicomSource:
    """The images of a scan.

    Attributes:
        images: data sets without pixels: single images in the order of the volume's slices (K), or one multi-frame image.
        positions: the position of each slice of the volume (LPS, millimeters), shape (K, 3); as the images themselves say it where
            each slice is one of them.
        matched: whether each slice of the volume is an image as it was stored; not so where gaps were filled or a tilt resampled.
        grid: of the volume.
    """

    images: list[Any]
    positions: NDArray[np.float64]
    matched: bool
    grid: Grid

    @property
    def multiframe(self) -> bool:
        """Whether the images are frames of one object."""
        return len(self.images) == 1 and int(self.images[0].get("NumberOfFrames") or 1) > 1

    @property
    def orientation(self) -> list[float]:
        """The direction of rows and of columns (LPS), six numbers as ImageOrientationPatient has them."""
        directions = (LPS_FROM_RAS @ self.grid.ijk_to_ras)[:3, :2] / np.array(self.grid.spacing[:2])
        return [float(value) for value in directions.T.ravel()]


def require_highdicom() -> None:
    """Say what is missing where DICOM segmentations cannot be written.

    Raises:
        DependencyError: highdicom is not installed, or too old.
    """
    try:
        import highdicom

        version = tuple(int(part) for part in highdicom.__version__.split(".")[:2])
    except (ImportError, ValueError) as error:
        raise DependencyError(
            "DICOM segmentations are written by highdicom, which is not installed.", "Run pip install highdicom."
        ) from error
    if version < (0, 25):
        raise DependencyError(
            f"DICOM segmentations need highdicom 0.25 or later; {highdicom.__version__} is installed.",
            "Run pip install --upgrade highdicom.",
        )


def load_source(volume: Volume) -> DicomSource:
    """Return the images that a volume was read from.

    Raises:
        InputError: it was not read from DICOM, or its images lack what a reference to them needs.
        DependencyError: highdicom is not installed.
    """
    if not volume.dicom_files:
        raise InputError(
            f"{volume.name} was not read from DICOM: a DICOM segmentation refers to the images that it was made from.",
            "Give the DICOM folder of the scan, or write .seg.nrrd or .nii.gz.",
        )
    require_highdicom()
    images = [_read(path, whole=n == 0) for n, path in enumerate(volume.dicom_files)]
    _check(images, volume.name)
    _complete(images, volume.grid)
    frames = [position for image in images for position in _positions(image)]
    grid_positions = _grid_positions(volume.grid)
    order = _order(np.array(frames), grid_positions, volume.grid)
    size = (int(images[0].Columns), int(images[0].Rows))
    if order is None or size != volume.grid.size[:2]:
        return DicomSource(images, grid_positions, False, volume.grid)
    ordered = images if len(images) == 1 else [images[n] for n in order]
    return DicomSource(ordered, np.array(frames)[order], True, volume.grid)


def _read(path: str, *, whole: bool) -> Any:
    import pydicom

    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=None if whole else _FEW_TAGS)
        # Texts are kept as they are read, whatever the character set of what is written.
        data.decode()
    except Exception as error:
        # Damaged headers raise what they like.
        raise InputError(
            f"{path} cannot be referred to: pydicom cannot read its header ({type(error).__name__}: {error}).",
            "Write .seg.nrrd or .nii.gz instead.",
        ) from error
    return data


def _check(images: Sequence[Any], name: str) -> None:
    for image in images:
        # The head of the file repeats them; some programs that remove names empty the data set's own.
        head = getattr(image, "file_meta", {})
        for keyword in ("SOPClassUID", "SOPInstanceUID"):
            if not image.get(keyword) and (uid := head.get(f"MediaStorage{keyword}")):
                setattr(image, keyword, uid)
        if missing := [words for keyword, words in _NEEDED.items() if not image.get(keyword)]:
            where = Path(str(getattr(image, "filename", name))).name
            raise InputError(
                f"{name}: {where} has no {' and no '.join(missing)}, which a DICOM segmentation refers to.",
                "Export the series again with its UIDs (replaced, not emptied), or write .seg.nrrd or .nii.gz.",
            )
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if len({str(image.get(keyword)) for image in images}) > 1:
            raise InputError(
                f"{name} holds images of several {keyword}s, which one DICOM segmentation cannot refer to.",
                "Give the images of one series.",
            )


def _complete(images: Sequence[Any], grid: Grid) -> None:
    """Bring headers into the form that highdicom asks for: nothing of type 2 missing, values that the standard knows, equal directions."""
    from pydicom.valuerep import DA, TM

    first = images[0]
    for keyword in _TYPE_2:
        if first.get(keyword) is None:
            setattr(first, keyword, "")
    if str(first.PatientSex) not in ("M", "F", "O"):
        first.PatientSex = ""
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(str(first.get(keyword) or ""))
        except ValueError:
            setattr(first, keyword, "")
    for image in images[1:]:
        # Rounded differently in each image by some scanners; that they are one was checked when the scan was read.
        for keyword in ("ImageOrientationPatient", "PixelSpacing"):
            if keyword in first:
                setattr(image, keyword, first.get(keyword))
    if not first.get("SliceThickness"):
        # Unknown, which the standard allows and highdicom does not: the step between slices is what the volume has.
        first.SliceThickness = f"{grid.spacing[2]:.8g}"
    for image in images:
        if "SharedFunctionalGroupsSequence" in image:
            _share_orientation(image)
            measures = image.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
            if measures and not measures[0].get("SliceThickness"):
                measures[0].SliceThickness = f"{grid.spacing[2]:.8g}"


def _share_orientation(image: Any) -> None:
    """Say the orientation once for all frames, where each frame says it."""
    shared, frames = image.SharedFunctionalGroupsSequence[0], image.PerFrameFunctionalGroupsSequence
    if "PlaneOrientationSequence" not in shared and "PlaneOrientationSequence" in frames[0]:
        shared.PlaneOrientationSequence = frames[0].PlaneOrientationSequence
    if "PixelMeasuresSequence" not in shared and "PixelMeasuresSequence" in frames[0]:
        shared.PixelMeasuresSequence = frames[0].PixelMeasuresSequence


def _positions(image: Any) -> list[list[float]]:
    if "PerFrameFunctionalGroupsSequence" not in image:
        return [[float(value) for value in image.ImagePositionPatient]]
    shared = image.SharedFunctionalGroupsSequence
    positions = []
    for frame in image.PerFrameFunctionalGroupsSequence:
        place = frame if "PlanePositionSequence" in frame else shared[0]
        positions.append([float(value) for value in place.PlanePositionSequence[0].ImagePositionPatient])
    return positions


def _grid_positions(grid: Grid) -> NDArray[np.float64]:
    lps = LPS_FROM_RAS @ grid.ijk_to_ras
    positions: NDArray[np.float64] = lps[:3, 3] + np.arange(grid.size[2])[:, None] * lps[:3, 2]
    return positions


def _order(frames: NDArray[np.float64], grid_positions: NDArray[np.float64], grid: Grid) -> NDArray[np.intp] | None:
    """Return which image each slice is; None where the images are not the slices."""
    if len(frames) != len(grid_positions):
        return None
    normal = np.cross(grid.ijk_to_ras[:3, 0], grid.ijk_to_ras[:3, 1])
    normal = (LPS_FROM_RAS[:3, :3] @ normal) / np.linalg.norm(normal)
    sign = 1.0 if normal @ (LPS_FROM_RAS @ grid.ijk_to_ras)[:3, 2] > 0 else -1.0
    order = np.argsort(sign * (frames @ normal))
    apart = frames[order] - grid_positions
    along = np.abs(apart @ normal)
    across = np.linalg.norm(apart - (apart @ normal)[:, None] * normal, axis=1)
    near = along.max() <= _ALONG * grid.spacing[2] and across.max() <= _IN_PLANE * min(grid.spacing[:2])
    return order if near else None
