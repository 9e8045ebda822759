"""The images of a DICOM file: where each lies, how its numbers are stored, and the numbers themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .dicom_file import (
    BIG_ENDIAN,
    DEFLATED,
    DOUBLE_PIXELS,
    EXPLICIT,
    FLOAT_PIXELS,
    IMPLICIT,
    DamagedDicom,
    DicomFile,
    DicomSet,
)

SOP_CLASS, SOP_INSTANCE, SERIES, STUDY, FRAME_OF_REFERENCE = 0x00080016, 0x00080018, 0x0020000E, 0x0020000D, 0x00200052
MODALITY, INSTANCE_NUMBER, ACQUISITION_NUMBER = 0x00080060, 0x00200013, 0x00200012
_POSITION, _ORIENTATION, _SPACING = 0x00200032, 0x00200037, 0x00280030
_THICKNESS, _BETWEEN = 0x00180050, 0x00180088
_SLOPE, _INTERCEPT, _LOOKUP = 0x00281053, 0x00281052, 0x00283000
_ROWS, _COLUMNS, _FRAMES, _SAMPLES, _PHOTOMETRIC = 0x00280010, 0x00280011, 0x00280008, 0x00280002, 0x00280004
_ALLOCATED, _STORED, _HIGH_BIT, _SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_MEASURES, _PLANE_POSITION, _PLANE_ORIENTATION, _TRANSFORM = 0x00289110, 0x00209113, 0x00209116, 0x00289145
#: What tells two passes over the same positions apart, by name.
PASSES = {
    "acquisition": ACQUISITION_NUMBER, "time point": 0x00200100, "echo": 0x00180086, "echo time": 0x00180081, "kind of image": 0x00080008,
    "trigger time": 0x00181060, "time of acquisition": 0x00080032, "time of the image": 0x00080033,
}  # fmt: skip
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
_JPEG = "1.2.840.10008.1.2."
#: Compressions that GDCM's codecs decode.
DECODED = {_JPEG + tail for tail in ("4.50", "4.51", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91", "5")}


@dataclass(frozen=True)
class PixelForm:
    """How numbers are stored. Those of two images with equal forms can be decoded together."""

    syntax: str
    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool

    @property
    def image_bytes(self) -> int:
        """The bytes of one uncompressed image."""
        return self.rows * self.columns * self.allocated // 8


@dataclass(frozen=True)
class DicomImage:
    """One image (a file, or a frame of one) with where its pixels lie in the patient, in millimeters (LPS).

    Attributes:
        frame: its number in the file, from 0; frames: how many the file holds.
        position: the center of the first pixel.
        across, down: unit vectors along a row (growing column) and along a column.
        spacing: between columns, and between rows.
        passes: what may tell it from an image at the same position, by the names of :data:`PASSES`.
    """

    file: DicomFile
    frame: int
    frames: int
    form: PixelForm
    position: NDArray[np.float64]
    across: NDArray[np.float64]
    down: NDArray[np.float64]
    spacing: tuple[float, float]
    slope: float
    intercept: float
    photometric: str
    thickness: float
    passes: dict[str, str]

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.file.path.name if self.frames == 1 else f"{self.file.path.name}, frame {self.frame + 1}"

    @property
    def number(self) -> int | None:
        """The instance number of its file; None where there is none that is a whole number."""
        text = self.file.data.text(INSTANCE_NUMBER)
        return int(text) if text.lstrip("-").isdigit() else None

    @property
    def normal(self) -> NDArray[np.float64]:
        """The unit vector (LPS) at right angles to the image's plane, shape (3,)."""
        return np.cross(self.across, self.down)


def images_of(file: DicomFile) -> list[DicomImage]:
    """Return the images of a file.

    Raises:
        InputError: colors, no position, a pixel form or a lookup table that is not understood, or pixels that are cut off.
    """
    data, name = file.data, str(file.path)
    try:
        form = _form(file)
        frames = int(data.numbers(_FRAMES)[0]) if data.text(_FRAMES) else 1
        if not 1 <= frames <= 100000:
            raise DamagedDicom(f"it says that it holds {frames} frames")
        _check_whole(file, form, frames)
        groups = data.sequences.get(_PER_FRAME, [])
        if groups and len(groups) != frames:
            raise DamagedDicom(f"it holds {frames} frames, but places for {len(groups)}")
        if frames > 1 and not groups:
            raise InputError(
                f"{name} holds {frames} frames without a position for each.",
                "Export it as single images, or as an enhanced multi-frame object.",
            )
        shared_group = data.first(_SHARED) or DicomSet(data.order)
        return [_image(file, n, frames, form, groups[n] if groups else data, shared_group) for n in range(frames)]
    except DamagedDicom as error:
        raise InputError(
            f"{name} is damaged: {error}.", "Copy it again; if it is no part of the scan, move it away."
        ) from error


def _image(
    file: DicomFile, number: int, frames: int, form: PixelForm, frame_group: DicomSet, shared_group: DicomSet
) -> DicomImage:
    def value(sequence: int, tag: int) -> DicomSet:
        """Return the set that holds the element: the frame's group, the shared one, or the data set itself."""
        for place in (frame_group.first(sequence), shared_group.first(sequence), file.data):
            if place is not None and place.text(tag):
                return place
        return file.data

    name = str(file.path)
    position = value(_PLANE_POSITION, _POSITION).numbers(_POSITION)
    orientation = value(_PLANE_ORIENTATION, _ORIENTATION).numbers(_ORIENTATION)
    spacing = value(_MEASURES, _SPACING).numbers(_SPACING)
    for numbers, count, what in (
        (position, 3, "position (ImagePositionPatient)"),
        (orientation, 6, "orientation (ImageOrientationPatient)"),
        (spacing, 2, "pixel spacing (PixelSpacing)"),
    ):
        if not numbers:
            raise InputError(
                f"{name} has no {what}: it does not say where its pixels lie in the patient.",
                "Export the series again, or convert it to NIfTI with its true geometry.",
            )
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise DamagedDicom(f"its {what} is {numbers}")
    if min(spacing) <= 1e-4:
        raise DamagedDicom(f"its pixels are {spacing[0]:g} x {spacing[1]:g} mm large")
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(across @ down) > 0.01:
        raise DamagedDicom("the directions of its rows and columns are not at right angles")
    slopes = value(_TRANSFORM, _SLOPE).numbers(_SLOPE)
    intercepts = value(_TRANSFORM, _INTERCEPT).numbers(_INTERCEPT)
    slope, intercept = slopes[0] if slopes else 1.0, intercepts[0] if intercepts else 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0.0:
        raise DamagedDicom(f"its values are {slope:g} x stored + {intercept:g}")
    measures = value(_MEASURES, _THICKNESS)
    thickness = (measures.numbers(_BETWEEN) or measures.numbers(_THICKNESS) or [1.0])[0]
    return DicomImage(
        file, number, frames, form, np.array(position), across / lengths[0], down / lengths[1], (spacing[1], spacing[0]), slope, intercept,
        file.data.text(_PHOTOMETRIC), thickness if math.isfinite(thickness) and thickness > 0 else 1.0,
        {what: file.data.text(tag) for what, tag in PASSES.items()} if frames == 1 else {},
    )  # fmt: skip


def _form(file: DicomFile) -> PixelForm:
    data, name = file.data, str(file.path)
    if FLOAT_PIXELS in data.values or DOUBLE_PIXELS in data.values:
        raise InputError(f"{name} holds floating point pixels (a parametric map).", "Convert it to NIfTI.")
    samples = data.integer(_SAMPLES, 1)
    photometric = data.text(_PHOTOMETRIC)
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise InputError(
            f"{name} is a color image ({photometric or f'{samples} samples a pixel'}), not a scan.",
            "Give a series of gray values.",
        )
    if data.sequences.get(_LOOKUP):
        raise InputError(
            f"{name} has values through a lookup table (ModalityLUTSequence).",
            "Convert it to NIfTI with a program that applies it.",
        )
    rows, columns = data.integer(_ROWS), data.integer(_COLUMNS)
    allocated, stored = data.integer(_ALLOCATED, 0) or 0, data.integer(_STORED, 0) or 0
    high, signed = data.integer(_HIGH_BIT, stored - 1), data.integer(_SIGNED, 0)
    if not rows or not columns:
        raise DamagedDicom(f"its size is {rows} x {columns}")
    if (
        allocated not in (8, 16, 32)
        or not 0 < stored <= allocated
        or high is None
        or not stored - 1 <= high < allocated
    ):
        raise DamagedDicom(f"its pixels have {stored} of {allocated} bits, the highest being {high}")
    if file.syntax not in NATIVE and file.syntax not in DECODED:
        raise InputError(
            f"{name} is compressed in a way that is not known here ({file.syntax}).",
            "Decompress it, for example with dcmdjpeg or gdcmconv --raw.",
        )
    return PixelForm(file.syntax, rows, columns, allocated, stored, high, bool(signed))


def _check_whole(file: DicomFile, form: PixelForm, frames: int) -> None:
    if file.pixels is None:
        raise DamagedDicom("it ends before its pixels")
    offset, length = file.pixels
    if form.syntax not in NATIVE:
        if length is not None:
            raise DamagedDicom("its pixels are said to be compressed, but are not")
        return
    available_bytes = (len(file.content) if file.content is not None else file.path.stat().st_size) - offset
    if length is None or length < frames * form.image_bytes or available_bytes < frames * form.image_bytes:
        raise DamagedDicom("it is cut off: it holds fewer pixels than its header says")


def stored_pixels(images: Sequence[DicomImage]) -> NDArray[Any]:
    """Return the stored numbers of native images of one file and form, array (images, rows, columns)."""
    form, file = images[0].form, images[0].file
    order = ">" if form.syntax == BIG_ENDIAN else "<"
    content = np.frombuffer(file.pixel_bytes(), np.dtype(f"{order}u{form.allocated // 8}"))
    size = form.rows * form.columns
    words = np.stack([content[image.frame * size : (image.frame + 1) * size] for image in images])
    return real_bits(words.astype(words.dtype.newbyteorder("=")).reshape(len(images), form.rows, form.columns), form)


def real_bits(numbers: NDArray[Any], form: PixelForm) -> NDArray[Any]:
    """Return the numbers that unsigned words hold, in an array of the same shape: bits outside of the stored ones are cut off, signs are extended."""
    low, unused = form.high_bit + 1 - form.stored, form.allocated - form.stored
    if low:
        numbers = numbers >> numbers.dtype.type(low)
    if form.signed:
        signed = (numbers << numbers.dtype.type(unused)).view(f"i{form.allocated // 8}")
        return signed >> signed.dtype.type(unused)
    return numbers & numbers.dtype.type((1 << form.stored) - 1) if unused else numbers


def path_names(paths: Sequence[Path] | Sequence[str], most: int = 4) -> str:
    """Return the first few names of several files, in words."""
    names = [Path(path).name for path in paths]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
