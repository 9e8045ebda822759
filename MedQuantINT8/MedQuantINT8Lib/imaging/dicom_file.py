"""The elements of one DICOM file, as far as a volume needs them: a bounded reader that cannot crash.

Why not GDCM or pydicom: GDCM (in SimpleITK) ends the process at some damaged headers, drops files that it cannot read without
a word, and gives no functional groups of multi-frame objects; pydicom would be one more package for everybody who segments.
Encodings are those of PS3.5: explicit and implicit VR, both byte orders, deflated, sequences of either length. The tests
compare every value with what pydicom reads.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

Tag = int
PIXELS, FLOAT_PIXELS, DOUBLE_PIXELS = 0x7FE00010, 0x7FE00008, 0x7FE00009
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UT", b"UN", b"UC", b"UR", b"SV", b"UV"}
_VRS = _LONG_VRS | {
    b"AE",
    b"AS",
    b"AT",
    b"CS",
    b"DA",
    b"DS",
    b"DT",
    b"FL",
    b"FD",
    b"IS",
    b"LO",
    b"LT",
    b"PN",
    b"SH",
    b"SL",
    b"SS",
    b"ST",
    b"TM",
    b"UI",
    b"UL",
    b"US",
}
#: Sequences that are looked into; in implicit VR nothing else says that they are sequences.
_SEQUENCES = {0x52009229, 0x52009230, 0x00289110, 0x00209113, 0x00209116, 0x00289145, 0x00209111, 0x00283000}
_DEEPEST = 16
_FIRST_BYTES = 1 << 18
_MOST_INFLATED = 1 << 30
IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)


class DamagedDicom(Exception):
    """A file that begins as DICOM but cannot be followed to its pixels."""


class _NeedMore(Exception):
    """An element reaches beyond what was read of the file."""


@dataclass
class DicomSet:
    """The elements of a data set or an item by their tags: values as bytes, sequences as lists of items.

    Attributes:
        order: "<" or ">", of binary numbers.
    """

    order: str = "<"
    values: dict[Tag, bytes] = field(default_factory=dict)
    sequences: dict[Tag, list[DicomSet]] = field(default_factory=dict)

    def text(self, tag: Tag) -> str:
        """Return the value as text, without padding; "" where there is none."""
        return self.values.get(tag, b"").decode("latin-1").strip(" \0")

    def numbers(self, tag: Tag) -> list[float]:
        """Return the numbers of a value of decimal or integer strings; an empty list where there is none.

        Raises:
            DamagedDicom: it is no number.
        """
        text = self.text(tag)
        try:
            return [float(part) for part in text.split("\\")] if text else []
        except ValueError as error:
            raise DamagedDicom(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is {text[:40]!r} instead of a number") from error

    def integer(self, tag: Tag, default: int | None = None) -> int | None:
        """Return a binary number of 16 or 32 bits, unsigned."""
        value = self.values.get(tag, b"")
        if len(value) >= 4 and len(value) != 6:
            return int(struct.unpack_from(self.order + "I", value)[0])
        return int(struct.unpack_from(self.order + "H", value)[0]) if len(value) >= 2 else default

    def first(self, *tags: Tag) -> DicomSet | None:
        """Return the first item of a sequence, and of sequences in it."""
        item: DicomSet = self
        for tag in tags:
            items = item.sequences.get(tag)
            if not items:
                return None
            item = items[0]
        return item


@dataclass
class DicomFile:
    """One DICOM file: its path, transfer syntax and elements, and where its pixels lie.

    Attributes:
        pixels: where its pixels lie: offset and length in ``content`` (or in the file), the length None where they are
            compressed in fragments; None where it holds none.
        content: what a deflated file holds, unpacked.
    """

    path: Path
    syntax: str
    data: DicomSet
    pixels: tuple[int, int | None] | None = None
    content: bytes | None = None

    def pixel_bytes(self) -> bytes:
        """Return the value of the pixel element, or the fragments with their marks up to the end of the sequence."""
        assert self.pixels is not None
        offset, length = self.pixels
        if self.content is not None:
            return self.content[offset:] if length is None else self.content[offset : offset + length]
        with open(self.path, "rb") as stream:
            stream.seek(offset)
            return stream.read() if length is None else stream.read(length)


def read_dicom(path: Path) -> DicomFile | None:
    """Return the elements of a file up to its pixels; None if it is no DICOM file.

    Raises:
        DamagedDicom: it is one, but its elements cannot be followed.
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        data = stream.read(_FIRST_BYTES)
        try:
            return _parse(path, data, len(data) < _FIRST_BYTES)
        except _NeedMore:
            data += stream.read()
    return _parse(path, data, True)


def _parse(path: Path, data: bytes, whole: bool) -> DicomFile | None:
    reader = _Reader(data, whole)
    try:
        if data[128:132] == b"DICM":
            meta = DicomSet("<")
            position = reader.elements(meta, 132, len(data), True, 0, group=0x0002)
            syntax = meta.text(0x00020010) or _guess_syntax(data, position)
        elif _looks_like_dicom(data):
            position, syntax = 0, _guess_syntax(data, 0)
        else:
            return None
        file = DicomFile(path, syntax, DicomSet(">" if syntax == BIG_ENDIAN else "<"))
        if syntax == DEFLATED:
            if not whole:
                raise _NeedMore
            unpacker = zlib.decompressobj(-15)
            data = unpacker.decompress(data[position:], _MOST_INFLATED)
            if not unpacker.eof:
                raise DamagedDicom("its deflated content ends too early, or is larger than 1 GB")
            reader, position, file.content = _Reader(data, True), 0, data
        reader.elements(file.data, position, len(data), syntax != IMPLICIT, 0)
        file.pixels = reader.pixels
        return file
    except (struct.error, IndexError, zlib.error, UnicodeDecodeError) as error:
        if not whole:
            raise _NeedMore from error
        raise DamagedDicom("its header cannot be followed") from error


def _looks_like_dicom(data: bytes) -> bool:
    """Return whether data begins with an element of group 8, as files without a preamble do."""
    return (
        len(data) >= 16
        and data[:2] == b"\x08\0"
        and data[3] < 0x21
        and (data[4:6] in _VRS or int.from_bytes(data[4:8], "little") < 256)
    )


def _guess_syntax(data: bytes, at: int) -> str:
    return EXPLICIT if data[at + 4 : at + 6] in _VRS else IMPLICIT


class _Reader:
    """Follows elements in a buffer. Every step goes forward, so that it ends for any content."""

    def __init__(self, data: bytes, whole: bool) -> None:
        self._data, self._whole = data, whole
        self.pixels: tuple[int, int | None] | None = None

    def elements(self, into: DicomSet, at: int, end: int, explicit: bool, depth: int, group: int | None = None) -> int:
        """Read elements into a set until the end, its item's end, its pixels, or another group; return where it stopped."""
        if depth > _DEEPEST:
            raise DamagedDicom(f"its sequences are nested more than {_DEEPEST} deep")
        order, data = into.order, self._data
        while at + 8 <= end:
            high, low = struct.unpack_from(order + "HH", data, at)
            tag = high << 16 | low
            if group is not None and high != group:
                return at
            if tag in (_ITEM_END, _SEQUENCE_END):
                return at + 8
            vr, length, at = self._head(at, order, explicit and high != 0xFFFE)
            if tag == PIXELS and depth == 0:
                self.pixels = (at, None if length == _UNDEFINED else length)
                return at
            if tag in (FLOAT_PIXELS, DOUBLE_PIXELS) and depth == 0:
                into.values[tag] = b""
                return at
            if tag == PIXELS and length == _UNDEFINED:
                at = self._fragments_end(at, order)  # of an icon within a sequence
                continue
            if length == _UNDEFINED or vr == b"SQ" or (tag in _SEQUENCES and vr in (b"", b"UN")):
                # Of unknown type and undefined length means implicit inside (PS3.5, 6.2.2).
                items, at = self._items(at, length, end, order, explicit and vr != b"UN", depth)
                if tag in _SEQUENCES:
                    into.sequences[tag] = items
                continue
            if at + length > end:
                if depth == 0 and not self._whole:
                    raise _NeedMore
                raise DamagedDicom(f"its element ({high:04X},{low:04X}) reaches beyond its end")
            if length <= 4096:
                into.values[tag] = data[at : at + length]
            at += length
        if depth == 0 and group is None and not self._whole:
            raise _NeedMore
        return at

    def _head(self, at: int, order: str, explicit: bool) -> tuple[bytes, int, int]:
        if not explicit:
            return b"", struct.unpack_from(order + "I", self._data, at + 4)[0], at + 8
        vr = self._data[at + 4 : at + 6]
        if vr in _LONG_VRS:
            return vr, struct.unpack_from(order + "I", self._data, at + 8)[0], at + 12
        if vr not in _VRS:
            raise DamagedDicom("its header cannot be followed")
        return vr, struct.unpack_from(order + "H", self._data, at + 6)[0], at + 8

    def _fragments_end(self, at: int, order: str) -> int:
        while True:
            high, low, size = struct.unpack_from(order + "HHI", self._data, at)
            at += 8
            if (high << 16 | low) != _ITEM:
                return at
            at += size

    def _items(
        self, at: int, length: int, end: int, order: str, explicit: bool, depth: int
    ) -> tuple[list[DicomSet], int]:
        last = end if length == _UNDEFINED else at + length
        if last > end:
            if not self._whole:
                raise _NeedMore
            raise DamagedDicom("a sequence reaches beyond its end")
        items: list[DicomSet] = []
        while at + 8 <= last:
            high, low, size = struct.unpack_from(order + "HHI", self._data, at)
            at += 8
            if (high << 16 | low) == _SEQUENCE_END:
                return items, at
            if (high << 16 | low) != _ITEM:
                raise DamagedDicom("a sequence holds something else than items")
            item = DicomSet(order)
            stop = last if size == _UNDEFINED else at + size
            if stop > last:
                if not self._whole:
                    raise _NeedMore
                raise DamagedDicom("an item reaches beyond its sequence")
            after = self.elements(item, at, stop, explicit, depth + 1)
            at = after if size == _UNDEFINED else stop
            items.append(item)
        if length == _UNDEFINED:
            if not self._whole:
                raise _NeedMore
            raise DamagedDicom("a sequence has no end")
        return items, at
