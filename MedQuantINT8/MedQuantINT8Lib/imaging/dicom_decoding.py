"""Compressed DICOM pixels (JPEG, JPEG-LS, JPEG 2000, RLE), decoded by GDCM in a process of its own.

GDCM gets a file with the fragments as they are and a header of ours that says nothing but how they are coded: what it would
make of the rest of a header (geometry, rescaling, photometric interpretation) does not come in.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .dicom_image import DicomImage, PixelForm, real_bits
from .reading_process import read_apart

_CAPTURE, _BYTES, _WORDS = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.2", "1.2.840.10008.5.1.4.1.1.7.3"
_UID = "2.25.1"


def decode(groups: Sequence[Sequence[DicomImage]], name: str) -> list[NDArray[Any]]:
    """Return the stored numbers (images, rows, columns) of images, grouped by their file.

    Raises:
        InputError: a file that cannot be decoded, by name.
    """
    with TemporaryDirectory(prefix="medquant-dicom-") as scratch:
        paths = []
        for n, group in enumerate(groups):
            path = Path(scratch) / f"{n:06d}.dcm"
            image = group[0]
            path.write_bytes(_minimal_file(image.form, _fragments(image), image.frames))
            paths.append(path)
        expected = sum(group[0].frames * group[0].form.image_bytes for group in groups)
        result = read_apart("frames", paths, [str(group[0].file.path) for group in groups], 4 * expected, name)
        arrays = []
        for group, array in zip(groups, result.arrays, strict=True):
            image = group[0]
            shape = (image.frames, image.form.rows, image.form.columns)
            if (
                array.size != np.prod(shape)
                or array.dtype.kind not in "iu"
                or 8 * array.dtype.itemsize != image.form.allocated
            ):
                raise InputError(f"{image.file.path} is damaged: its pixels do not fit its header.", "Copy it again.")
            numbers = array.reshape(shape).view(f"u{array.dtype.itemsize}")[[one.frame for one in group]]
            arrays.append(real_bits(numbers, image.form))
        return arrays


def _fragments(image: DicomImage) -> bytes:
    """Return the fragments with their marks, up to the end of the sequence.

    Raises:
        InputError: it is cut off.
    """
    content, at = image.file.pixel_bytes(), 0
    while at + 8 <= len(content):
        tag, size = content[at : at + 4], struct.unpack_from("<I", content, at + 4)[0]
        if tag == b"\xfe\xff\xdd\xe0":
            return content[:at]
        if tag != b"\xfe\xff\x00\xe0":
            break
        at += 8 + size
    raise InputError(f"{image.file.path} is damaged: its compressed pixels are cut off.", "Copy it again.")


def _minimal_file(form: PixelForm, fragments: bytes, frames: int) -> bytes:
    sop = _CAPTURE if frames == 1 else _BYTES if form.allocated == 8 else _WORDS
    meta = (
        _text_element(0x0002, 0x0002, b"UI", sop)
        + _text_element(0x0002, 0x0003, b"UI", _UID)
        + _text_element(0x0002, 0x0010, b"UI", form.syntax)
    )
    body = b"".join([
        _text_element(0x0008, 0x0016, b"UI", sop),
        _text_element(0x0008, 0x0018, b"UI", _UID),
        _word_element(0x0028, 0x0002, 1),
        _text_element(0x0028, 0x0004, b"CS", "MONOCHROME2"),
        _text_element(0x0028, 0x0008, b"IS", str(frames)) if frames > 1 else b"",
        _word_element(0x0028, 0x0010, form.rows),
        _word_element(0x0028, 0x0011, form.columns),
        _word_element(0x0028, 0x0100, form.allocated),
        _word_element(0x0028, 0x0101, form.stored),
        _word_element(0x0028, 0x0102, form.high_bit),
        _word_element(0x0028, 0x0103, int(form.signed)),
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB" if form.allocated == 8 else b"OW", 0, 0xFFFFFFFF),
        fragments,
        struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
    ])  # fmt: skip
    length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(meta))
    return bytes(128) + b"DICM" + length + meta + body


def _text_element(group: int, element: int, vr: bytes, value: str) -> bytes:
    data = value.encode("ascii")
    data += (b"\0" if vr == b"UI" else b" ") * (len(data) % 2)
    return struct.pack("<HH2sH", group, element, vr, len(data)) + data


def _word_element(group: int, element: int, value: int) -> bytes:
    return struct.pack("<HH2sHH", group, element, b"US", 2, value)
