"""DICOM segmentation objects (Supplement 111, and label map segmentations of Supplement 243), written by highdicom.

Each structure is a segment with its coded terms; frames refer to the images that they were made from, and the object keeps their
patient, study and frame of reference. Pixels go to a temporary file frame by frame, where highdicom would hold them all, so that only
the headers of frames grow with the number of structures.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import InputError
from ..models.spec import Code, Label
from .dicom_source import DicomSource
from .segmentation_files import DEFAULT_TERMINOLOGY, present_labels

#: "binary": one bit a voxel and structure, which everything reads that reads segmentations; "labelmap": one number a voxel, smaller and
#: newer (2024).
DicomKind = Literal["binary", "labelmap"]
DICOM_KINDS: tuple[DicomKind, ...] = get_args(DicomKind)
_MANUFACTURER = "MedQuantINT8"
#: Most characters of a LO value.
_LONG_STRING = 64
_UTF_8 = "ISO_IR 192"


@dataclass(frozen=True)
class Algorithm:
    """What made a segmentation, as its segments name it.

    Attributes:
        name: of the network.
        version: of the network.
        parameters: how it was run: precision, engine, and whatever else identifies the result.
    """

    name: str
    version: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def check_source(source: DicomSource, labels: Sequence[Label], kind: DicomKind) -> None:
    """Write an empty segmentation into memory, so that what a series lacks is found before the work and not after it.

    Raises:
        InputError: no segmentation can refer to the series; says why.
    """
    rows, columns = source.grid.size[1], source.grid.size[0]
    empty = np.zeros((1, rows, columns), np.uint8)
    with _understandable(), io.BytesIO() as pixels:
        _write(io.BytesIO(), _build(empty, labels[:1], source, Algorithm("check", "1"), kind, pixels), pixels)


def write_dicom_segmentation(
    path: Path,
    label_map: NDArray[Any],
    labels: Sequence[Label],
    source: DicomSource,
    algorithm: Algorithm,
    kind: DicomKind = "binary",
) -> list[str]:
    """Write a label map as a DICOM segmentation object.

    Structures that have no voxels get no segment. Where none has any, all are described, with one empty frame. "binary" numbers segments
    from 1 on in the order of the labels; "labelmap" takes their values.

    Args:
        path: a new file, which the caller puts in its place.
        label_map: unsigned integers, array (K, J, I) on the grid of the source's volume; values without a label are left out.

    Returns:
        Notes for the user: structures without a segment.

    Raises:
        InputError: the series cannot be referred to.
        OSError: the file cannot be written.
    """
    counts = present_labels(label_map, tuple(labels))
    present = [label for label in sorted(labels, key=lambda label: label.value) if counts[label.value]]
    notes = []
    if not present:
        present, label_map = (
            sorted(labels, key=lambda label: label.value),
            np.zeros((1, *label_map.shape[1:]), np.uint8),
        )
        notes.append(
            "none of the structures was found: the DICOM segmentation describes them all, and its frames are empty"
        )
    elif len(present) < len(labels):
        missing = [label.name for label in labels if not counts[label.value]]
        notes.append(
            f"{len(missing)} structure(s) without voxels have no segment in the DICOM segmentation: {', '.join(missing[:4])}"
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        )
    with _understandable(), TemporaryFile(dir=path.parent) as pixels:
        numbers = _numbers(label_map, present, kind)
        data = _build(numbers, present, source, algorithm, kind, pixels)
        with open(path, "wb") as stream:
            _write(stream, data, pixels)
    return notes


@contextmanager
def _understandable() -> Iterator[None]:
    """Say in words what highdicom and pydicom refuse; keep what they print about texts of the patient off the terminal."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise InputError(
            f"No DICOM segmentation can be made for this series: {' '.join(str(error).split())}",
            "Write .seg.nrrd or .nii.gz instead.",
        ) from error
    finally:
        logger.setLevel(level)


def _numbers(label_map: NDArray[Any], present: Sequence[Label], kind: DicomKind) -> NDArray[Any]:
    """Return the label map in the numbers of its segments, without values that have no label; itself where it is that already."""
    values = [label.value for label in present]
    targets = values if kind == "labelmap" else list(range(1, len(values) + 1))
    highest = int(label_map.max(initial=0))
    number_of = np.zeros(max(highest, values[-1]) + 1, np.uint8 if targets[-1] < 256 else np.uint16)
    number_of[values] = targets
    if np.array_equal(number_of[: highest + 1], np.arange(highest + 1)) and label_map.dtype in (np.uint8, np.uint16):
        return label_map
    numbers = np.empty(label_map.shape, number_of.dtype)
    for plane, target in zip(label_map, numbers, strict=True):
        target[...] = number_of[plane]
    return numbers


def _build(
    numbers: NDArray[Any],
    labels: Sequence[Label],
    source: DicomSource,
    algorithm: Algorithm,
    kind: DicomKind,
    pixels: Any,
) -> Any:
    """Return the data set of a segmentation, its pixels in the stream ``pixels`` (or in itself, where highdicom works otherwise)."""
    import highdicom as hd

    class Spooled(hd.seg.Segmentation):
        """A segmentation whose encoded frames go into a file."""

        def _encode_pixels_native(self, planes: NDArray[Any]) -> bytes:
            pixels.write(super()._encode_pixels_native(planes))
            return b""

    first = source.images[0]
    texts = "".join([*(label.name for label in labels), algorithm.name, algorithm.version])
    # The series' own character set where it has all the letters; else one that has them all.
    placed = _geometry(source, len(numbers)) | ({} if texts.isascii() else {"specific_character_set": _UTF_8})
    return Spooled(
        source_images=source.images,
        pixel_array=numbers,
        segmentation_type=kind.upper(),
        segment_descriptions=_descriptions(labels, algorithm, kind),
        series_instance_uid=hd.UID(),
        series_number=1000 + max(0, int(first.get("SeriesNumber") or 0)) % 1_000_000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=_MANUFACTURER,
        manufacturer_model_name=_MANUFACTURER,
        software_versions=__version__,
        device_serial_number="1",
        content_label="SEGMENTATION",
        content_description=_long_string(f"{algorithm.name} {algorithm.version}"),
        series_description=_long_string(f"Segmentation by {algorithm.name}"),
        **placed,
    )


def _geometry(source: DicomSource, planes: int) -> dict[str, Any]:
    """Return where the frames lie, as highdicom takes it: nothing where they are the source's single images, one by one."""
    import highdicom as hd

    if source.matched and not source.multiframe and planes == len(source.images):
        return {}
    spacing = source.grid.spacing
    patient = hd.CoordinateSystemNames.PATIENT
    return {
        "plane_positions": [
            hd.PlanePositionSequence(patient, position.tolist()) for position in source.positions[:planes]
        ],
        "plane_orientation": hd.PlaneOrientationSequence(patient, source.orientation),
        # Between rows, and between columns.
        "pixel_measures": hd.PixelMeasuresSequence((spacing[1], spacing[0]), spacing[2], spacing[2]),
    }


def _descriptions(labels: Sequence[Label], algorithm: Algorithm, kind: DicomKind) -> list[Any]:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    identification = hd.AlgorithmIdentificationSequence(
        name=_long_string(algorithm.name),
        family=codes.DCM.ArtificialIntelligence,
        version=_long_string(algorithm.version) or "1",
        source=_long_string(f"{_MANUFACTURER} {__version__}"),
        parameters={key: value.replace("\\", "/") for key, value in algorithm.parameters.items()} or None,
    )
    return [
        _description(label, label.value if kind == "labelmap" else number, identification)
        for number, label in enumerate(labels, 1)
    ]


def _description(label: Label, number: int, identification: Any) -> Any:
    import highdicom as hd

    terms = label.terminology or DEFAULT_TERMINOLOGY
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_long_string(label.name),
        segmented_property_category=_concept(terms.category),
        segmented_property_type=_concept(terms.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        display_color=hd.color.CIELabColor(*lab_color(label.color)),
    )
    if terms.modifier is not None:
        types = description.SegmentedPropertyTypeCodeSequence[0]
        types.SegmentedPropertyTypeModifierCodeSequence = [_concept(terms.modifier)]
    if description.SegmentLabel != label.name:
        description.SegmentDescription = label.name
    return description


def _concept(code: Code) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(code.value, code.scheme, _long_string(code.meaning))


def _long_string(text: str) -> str:
    """Return a text as a DICOM value of one line can hold it: a backslash would part it in two."""
    return " ".join(text.replace("\\", "/").split())[:_LONG_STRING].strip()


def lab_color(rgb: Sequence[int]) -> tuple[float, float, float]:
    """Return an sRGB color (0 to 255) as CIELab under D50, which DICOM states colors in: L from 0 to 100, a and b."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    # sRGB to XYZ, adapted from D65 to D50 by Bradford's matrix (IEC 61966-2-1, ICC.1).
    to_xyz = ((0.4360747, 0.3850649, 0.1430804), (0.2225045, 0.7168786, 0.0606169), (0.0139322, 0.0971045, 0.7141733))
    white = (0.96422, 1.0, 0.82521)
    ratios = [sum(a * b for a, b in zip(row, linear, strict=True)) / w for row, w in zip(to_xyz, white, strict=True)]
    x, y, z = (t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in ratios)
    return max(0.0, min(100.0, 116 * y - 16)), _bounded(500 * (x - y)), _bounded(200 * (y - z))


def _bounded(value: float) -> float:
    return max(-128.0, min(127.0, value))


def _write(stream: Any, data: Any, pixels: Any) -> None:
    """Write a data set with the pixels that were put into a stream of their own."""
    import pydicom

    if size := pixels.tell():
        expected = -(-int(data.NumberOfFrames) * int(data.Rows) * int(data.Columns) * int(data.BitsAllocated) // 8)
        if size != expected or data.PixelData:
            raise ValueError(f"highdicom encoded {size} bytes of pixels instead of {expected}.")
        if size % 2:
            pixels.write(b"\0")
        pixels.seek(0)
        data.PixelData = pixels
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
