"""NIfTI files, read and written without ITK: a damaged file cannot crash the process, and a grid keeps its shear."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, StorageError
from ..system import available_memory
from .deflate import inflating, little_endian_bytes, packer
from .nifti_header import HEADER_BYTES, TYPES, Matrix, NiftiForm, NiftiHeader, matrix_of, parse_header

_CHUNK = 1 << 20
#: Unpacked at a time: what stays in a core's own cache until it is put in its place.
_MOST_UNPACKED = 1 << 20
#: Deflate cannot pack more tightly than this.
_HIGHEST_RATIO = 1032
#: What may follow the voxels; more than this is no scan but a file that fills the memory.
_MOST_BEHIND = 64 << 20


def read_nifti(path: Path, form: NiftiForm = "auto") -> tuple[NDArray[Any], Matrix, list[str]]:
    """Return voxels (C, K, J, I) with the header's scaling applied, the IJK-to-RAS matrix, and notes of what was chosen.

    Integers stay as they are stored where the header has no scaling, else they become float32. Complex voxels become their
    magnitude. The check sums of a .nii.gz are verified.

    Raises:
        InputError: cut off, damaged, of an unknown type, too large for the memory, or frames in time instead of channels.
    """
    name = str(path)
    with open(path, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        source = decompress(stream, name) if packed else _plain(stream)
        head, rest = b"", b""
        for rest in source:
            head += rest
            if len(head) >= HEADER_BYTES:
                break
        header = parse_header(head, name)
        size = path.stat().st_size
        _check_size(header, size * _HIGHEST_RATIO if packed else size, name)
        if header.fourth:
            raise InputError(
                f"{name} holds {header.shape[3]} frames of {header.fourth}, not channels of one scan.",
                "Give one frame as a 3D scan.",
            )
        stored = _fill(header, head, source, name)
    matrix, notes = matrix_of(header, form, name)
    i, j, k, frames = header.shape
    data = stored.view(header.dtype).reshape(frames, k, j, i)
    if not header.dtype.isnative:
        data = data.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    if data.dtype.kind == "c":
        data = np.abs(data)
        notes.append(f"{name} holds complex numbers: their magnitude was taken")
    if (header.slope, header.intercept) != (1.0, 0.0):
        data = rescale(data, header.slope, header.intercept)
    return data, matrix, notes


def _check_size(header: NiftiHeader, most: int, name: str) -> None:
    if header.offset + header.data_bytes > most:
        raise InputError(
            f"{name} is cut off: it holds fewer voxels than its header says.", "Copy or download it again."
        )
    if header.data_bytes > available_memory():
        raise InputError(
            f"{name} needs {header.data_bytes / 1e9:.1f} GB of memory; there are {available_memory() / 1e9:.1f} GB.",
            "Close other programs, or crop the scan.",
        )


def _fill(header: NiftiHeader, head: bytes, source: Iterator[bytes], name: str) -> NDArray[np.uint8]:
    """Return the voxels' bytes. All of the file is looked at, so that check sums behind them count."""
    stored = np.empty(header.data_bytes, np.uint8)
    at, chunk = -header.offset, head
    while True:
        begin, end = max(0, -at), min(len(chunk), len(stored) - at)
        if end > begin:
            stored[at + begin : at + end] = np.frombuffer(chunk, np.uint8)[begin:end]
        at += len(chunk)
        if at > len(stored) + _MOST_BEHIND:
            raise InputError(f"{name} holds much more than its header says.", "The file is damaged; copy it again.")
        try:
            chunk = next(source)
        except StopIteration:
            break
    if at < len(stored):
        raise InputError(
            f"{name} is cut off: it holds fewer voxels than its header says.", "Copy or download it again."
        )
    return stored


def _plain(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def decompress(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the content of a gzip file of one or several members; zeros behind them are padding.

    Raises:
        InputError: not whole, or other than its check sum says.
    """
    inflate = inflating()
    unpacker, chunk, complete = inflate.decompressobj(31), b"", False
    try:
        while True:
            if not chunk:
                chunk = stream.read(_CHUNK)
                if not chunk:
                    break
            if complete:
                chunk = chunk.lstrip(b"\0")
                if not chunk:
                    continue
                unpacker, complete = inflate.decompressobj(31), False
            content = unpacker.decompress(chunk, _MOST_UNPACKED)
            if content:
                yield content
            complete = unpacker.eof
            chunk = unpacker.unused_data if complete else unpacker.unconsumed_tail
        while not complete and (content := unpacker.decompress(unpacker.unconsumed_tail, _MOST_UNPACKED)):
            yield content
        complete = complete or unpacker.eof
    except inflate.error as error:
        raise InputError(
            f"{name} cannot be read: its compressed data is damaged ({error}).", "Copy or download it again."
        ) from error
    if not complete:
        raise InputError(f"{name} is cut off: its compressed data ends too early.", "Copy or download it again.")


def rescale(data: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    """Return slope x data + intercept in float32, computed in double precision slice by slice."""
    result = np.empty(data.shape, np.float32)
    for index in np.ndindex(data.shape[:-2]):
        result[index] = data[index] * np.float64(slope) + intercept
    return result


def write_nifti(path: Path, data: NDArray[Any], matrix: Matrix) -> None:
    """Write one channel (K, J, I) as NIfTI-1, gzipped if the name ends in .gz.

    The sform is the matrix itself. The qform says the same where axes are at right angles; a sheared grid has none, because
    a quaternion cannot hold it.

    Raises:
        StorageError: a voxel type or size that NIfTI-1 has no room for.
        OSError: the disk is full, or cannot be written.
    """
    codes = {np.dtype(kind): code for code, kind in TYPES.items()}
    code = codes.get(data.dtype.newbyteorder("="))
    if code is None or max(data.shape) > 32767:
        raise StorageError(
            f"Cannot write {path.name}: NIfTI has no place for {data.dtype} voxels of shape {data.shape}.",
            "Choose .nrrd instead.",
        )
    header = _header(data.shape, code, 8 * data.dtype.itemsize, matrix)
    content = little_endian_bytes(data)
    with open(path, "wb") as stream:
        if not path.name.lower().endswith(".gz"):
            stream.write(header)
            stream.write(content)
            return
        packing = packer(data, 31)
        stream.write(packing.compress(header))
        for begin in range(0, len(content), _CHUNK):
            stream.write(packing.compress(content[begin : begin + _CHUNK]))
        stream.write(packing.flush())


def _header(shape: tuple[int, ...], code: int, bits: int, matrix: Matrix) -> bytes:
    k, j, i = shape
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = matrix[:3, :3] / spacing
    straight = bool(np.allclose(directions.T @ directions, np.eye(3), atol=1e-4))
    qfac = -1.0 if np.linalg.det(directions) < 0 else 1.0
    quaternion = _quaternion(directions * [1.0, 1.0, qfac]) if straight else np.zeros(3)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, i, j, k, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, qfac, *spacing, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    header[123] = 2  # millimeters
    struct.pack_into("<hh", header, 252, 1 if straight else 0, 1)
    struct.pack_into("<6f", header, 256, *quaternion, *(matrix[:3, 3] if straight else np.zeros(3)))
    struct.pack_into("<12f", header, 280, *matrix[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)


def _quaternion(rotation: Matrix) -> NDArray[np.float64]:
    """Return b, c, d of a rotation's quaternion, with a at least 0 (Bar-Itzhack, J. Guidance 23(6), 2000: the largest eigenvector of K)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    k = np.array([
        [xx - yy - zz, 0, 0, 0],
        [yx + xy, yy - xx - zz, 0, 0],
        [zx + xz, zy + yz, zz - xx - yy, 0],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]) / 3.0  # fmt: skip
    _, vectors = np.linalg.eigh(k)  # looks at the lower triangle
    b, c, d, a = vectors[:, -1]
    return np.array([b, c, d]) * (-1.0 if a < 0 else 1.0)


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Return whether a name is one of a NIfTI file."""
    return os.fspath(path).lower().endswith((".nii", ".nii.gz"))
