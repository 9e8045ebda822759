"""NRRD and MetaImage files: the header is checked here, the voxels are read by ITK in a process of its own."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..outputs import data_files
from .nifti_file import decompress
from .reading_process import read_apart
from .volume import LPS_FROM_RAS, Matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER_BYTES = 1 << 20
_HIGHEST_RATIO = 1032
_NRRD_BYTES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
    8: ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "double"),
}  # fmt: skip
_META_BYTES = {
    "CHAR": 1,
    "UCHAR": 1,
    "SHORT": 2,
    "USHORT": 2,
    "INT": 4,
    "UINT": 4,
    "FLOAT": 4,
    "LONG": 4,
    "ULONG": 4,
    "DOUBLE": 8,
    "LONG_LONG": 8,
    "ULONG_LONG": 8,
}
_TIME = ("time",)
#: What NRRD calls the patient's axes; ITK takes any other space for the first.
_PATIENT_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")
_COLORS = ("rgb-color", "rgba-color", "hsv-color", "xyz-color")


def read_itk_file(path: Path, check: Callable[[], None] | None = None) -> tuple[NDArray[Any], Matrix, list[str]]:
    """Return voxels (C, K, J, I), the IJK-to-RAS matrix, and ITK's warnings.

    Raises:
        InputError: damaged, cut off, of too few or too many axes, frames in time, or colors.
    """
    expected, fields = _check_size(path)
    with _readable_name(path) as readable:
        result = read_apart("scan", [readable], [str(path)], expected, str(path), check)
    data, image = result.arrays[0], result.images[0]
    notes = [f"{path}: ITK warned: {text}" for text in result.warnings]
    if "sizes" in fields and fields.get("space", "").lower() not in _PATIENT_SPACES:
        notes.append(
            f"{path} does not say how it lies in the patient: its axes were taken as left, back and head, so left and right may be exchanged"
        )
    size = image["dimension"]
    direction = np.array(image["direction"]).reshape(size, size)
    if size == 4:
        if image["components"] > 1:
            raise InputError(f"{path} has frames and several numbers a voxel.", "Give one 3D scan.")
    elif size == 3:
        data = np.moveaxis(data, -1, 0) if image["components"] > 1 else data[None]
    else:
        raise InputError(f"{path} is a {size}-dimensional image, not a volume.", "Give the whole 3D scan.")
    lps = np.eye(4)
    lps[:3, :3] = direction[:3, :3] * np.array(image["spacing"][:3])
    lps[:3, 3] = image["origin"][:3]
    return data, LPS_FROM_RAS @ lps, notes


@contextmanager
def _readable_name(path: Path) -> Iterator[Path]:
    """Yield the file under a name that ITK can read: one that is not UTF-8 would end the process. Its data files keep theirs."""
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        pass
    else:
        yield path
        return
    with TemporaryDirectory(prefix="medquant-link-") as scratch:
        for source, name in [(path, "scan" + path.suffix.lower()), *((file, file.name) for file in data_files(path))]:
            (Path(scratch) / name).symlink_to(source.absolute())
        yield Path(scratch) / ("scan" + path.suffix.lower())


def _check_size(path: Path) -> tuple[int, dict[str, str]]:
    """Return the bytes of the voxels as the header says, if the file can hold them, and its fields.

    Raises:
        InputError: no such header, or one that says more than the file holds.
    """
    with open(path, "rb") as stream:
        head = stream.read(_HEADER_BYTES)
    nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    try:
        fields, length = _nrrd_fields(head) if nrrd else _meta_fields(head)
        sizes, bytes_each = _nrrd_sizes(fields, path) if nrrd else _meta_sizes(fields)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"{path} cannot be read: its header is no {'NRRD' if nrrd else 'MetaImage'} header.",
            "The file is damaged or of another type; copy it again.",
        ) from error
    expected_bytes = math.prod(sizes) * bytes_each
    if any(size < 1 for size in sizes) or not 0 < len(sizes) <= 16:
        raise InputError(
            f"{path} says that it is {' x '.join(map(str, sizes))} voxels large.", "The file is damaged; copy it again."
        )
    detached_files = data_files(path)
    data_name = fields.get("data file") or fields.get("datafile") or fields.get("elementdatafile", "LOCAL")
    if data_name.upper() not in ("LOCAL",) and not detached_files:
        if data_name.upper().startswith("LIST") or "%" in data_name:
            return expected_bytes, fields
        raise InputError(
            f"{path} refers to the file {Path(data_name).name}, which is not there.",
            "Copy it to the header, under its old name.",
        )
    available_bytes = (
        sum(file.stat().st_size for file in detached_files) if detached_files else path.stat().st_size - length
    )
    raw = fields.get("encoding", "raw").lower() == "raw" and fields.get("compresseddata", "false").lower() != "true"
    text = fields.get("encoding", "raw").lower() in ("ascii", "txt", "text", "hex")
    if available_bytes * (1 if raw or text else _HIGHEST_RATIO) < (expected_bytes if not text else math.prod(sizes)):
        raise InputError(
            f"{path} cannot be read: it is cut off, and holds fewer voxels than its header says.",
            "Copy or download it again.",
        )
    return expected_bytes, fields


def check_written(path: Path) -> None:
    """Check that an NRRD file from another library holds all voxels that its header says, and whole compressed data.

    Raises:
        OSError: it does not: the disk was full, and its writer did not say so.
    """
    try:
        _check_size(path)
        with open(path, "rb") as stream:
            fields, length = _nrrd_fields(stream.read(_HEADER_BYTES))
            sizes, each = _nrrd_sizes(fields, path)
            if fields.get("encoding", "raw").lower() in ("gzip", "gz"):
                stream.seek(length)
                if sum(len(chunk) for chunk in decompress(stream, str(path))) != math.prod(sizes) * each:
                    raise OSError(errno.EIO, "it is not whole")
    except InputError as error:
        raise OSError(errno.ENOSPC, "it is not whole") from error


def _lines(head: bytes) -> list[bytes]:
    return head.split(b"\n")


def _nrrd_fields(head: bytes) -> tuple[dict[str, str], int]:
    if head[:4] != b"NRRD":
        raise ValueError("no NRRD")
    fields: dict[str, str] = {}
    at = 0
    for line in _lines(head):
        at += len(line) + 1
        text = line.rstrip(b"\r").decode("utf-8", errors="surrogateescape")
        if not text and at > 1:
            break
        key, separator, value = text.partition(": ")
        if separator and not text.startswith("#") and ":=" not in text.split(": ")[0]:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields, min(at, len(head))


def _nrrd_sizes(fields: dict[str, str], path: Path) -> tuple[list[int], int]:
    sizes = [int(part) for part in fields["sizes"].split()]
    if int(fields["dimension"]) != len(sizes):
        raise ValueError("sizes do not fit the dimension")
    kinds = [kind.strip('"') for kind in fields.get("kinds", "").lower().split()]
    for kind in kinds:
        if kind in _TIME:
            raise InputError(f"{path} holds frames in time, not channels of one scan.", "Give one frame as a 3D scan.")
        if kind in _COLORS:
            raise InputError(f"{path} holds colors, not a scan.", "Give a scan of gray values.")
    kind = fields["type"].lower()
    return sizes, next(count for count, names in _NRRD_BYTES.items() if kind in names) if any(
        kind in names for names in _NRRD_BYTES.values()
    ) else _unknown(kind)


def _unknown(kind: str) -> int:
    raise ValueError(f"unknown voxel type {kind}")


def _meta_fields(head: bytes) -> tuple[dict[str, str], int]:
    fields, at = {}, 0
    for line in _lines(head):
        at += len(line) + 1
        key, separator, value = line.rstrip(b"\r").decode("utf-8", errors="surrogateescape").partition("=")
        if not separator:
            raise ValueError("no MetaImage")
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            return fields, min(at, len(head))
    raise ValueError("no ElementDataFile")


def _meta_sizes(fields: dict[str, str]) -> tuple[list[int], int]:
    sizes = [int(part) for part in fields["dimsize"].split()]
    if int(fields["ndims"]) != len(sizes):
        raise ValueError("DimSize does not fit NDims")
    each = _META_BYTES[fields["elementtype"].upper().removeprefix("MET_").removesuffix("_ARRAY")]
    return sizes, each * int(fields.get("elementnumberofchannels", "1"))
