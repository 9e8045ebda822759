"""Label maps as NRRD and MetaImage files, written without ITK.

ITK's writers say nothing of a disk that is full while they compress, and end the process at a name that is not UTF-8. Here
every byte that cannot be written is an :class:`OSError`, and a sheared grid keeps its shear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StorageError
from .deflate import little_endian_bytes, packer
from .nifti_file import is_nifti, write_nifti
from .volume import LPS_FROM_RAS, Matrix

_CHUNK = 1 << 20
_NRRD_TYPES = {
    "u1": "unsigned char",
    "i1": "signed char",
    "u2": "unsigned short",
    "i2": "short",
    "u4": "unsigned int",
    "i4": "int",
    "f4": "float",
    "f8": "double",
}
_META_TYPES = {
    "u1": "UCHAR",
    "i1": "CHAR",
    "u2": "USHORT",
    "i2": "SHORT",
    "u4": "UINT",
    "i4": "INT",
    "f4": "FLOAT",
    "f8": "DOUBLE",
}


def write_label_map(
    path: Path, labels: NDArray[Any], ijk_to_ras: Matrix, fields: Mapping[str, str] | None = None
) -> None:
    """Write a label map (K, J, I) as the name says: .nii, .nii.gz, .nrrd, .mha, or .mhd with its .zraw beside it.

    Args:
        fields: key and value pairs for the header of an NRRD file.

    Raises:
        StorageError: a voxel type that the format has no place for.
        OSError: it cannot be written, or not whole.
    """
    if is_nifti(path):
        write_nifti(path, labels, ijk_to_ras)
    elif path.name.lower().endswith(".nrrd"):
        _write_nrrd(path, labels, ijk_to_ras, fields or {})
    else:
        _write_meta_image(path, labels, ijk_to_ras)


def data_file_name(name: str) -> str | None:
    """Return the file with voxels that is written beside a header of that name; None where all is in one file."""
    return name[:-4] + ".zraw" if name.lower().endswith(".mhd") else None


def _write_nrrd(path: Path, labels: NDArray[Any], ijk_to_ras: Matrix, fields: Mapping[str, str]) -> None:
    kind = _format_type(_NRRD_TYPES, labels, path)
    lps = LPS_FROM_RAS @ ijk_to_ras
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {kind}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in labels.shape[::-1])}",
        f"space directions: {' '.join(_vector(lps[:3, axis]) for axis in range(3))}",
        "kinds: domain domain domain",
        *(["endian: little"] if labels.dtype.itemsize > 1 else []),
        "encoding: gzip",
        f"space origin: {_vector(lps[:3, 3])}",
        *(f"{key}:={_escape(value)}" for key, value in fields.items()),
    ]
    with open(path, "wb") as stream:
        stream.write(("\n".join(lines) + "\n\n").encode("utf-8", errors="surrogateescape"))
        for chunk in _compress(labels, 31):
            stream.write(chunk)


def _write_meta_image(path: Path, labels: NDArray[Any], ijk_to_ras: Matrix) -> None:
    kind = _format_type(_META_TYPES, labels, path)
    lps = LPS_FROM_RAS @ ijk_to_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    chunks = list(_compress(labels, 15))
    data_name = data_file_name(path.name)
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {sum(map(len, chunks))}",
        # An axis after the other, as the format has it.
        f"TransformMatrix = {_numbers((lps[:3, :3] / spacing).T.ravel())}",
        f"Offset = {_numbers(lps[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_numbers(spacing)}",
        f"DimSize = {' '.join(str(n) for n in labels.shape[::-1])}",
        f"ElementType = MET_{kind}",
        f"ElementDataFile = {data_name or 'LOCAL'}",
    ]
    header = ("\n".join(lines) + "\n").encode("utf-8", errors="surrogateescape")
    with open(path, "wb") as stream:
        stream.write(header)
        if data_name is None:
            stream.writelines(chunks)
    if data_name is not None:
        path.with_name(data_name).write_bytes(b"".join(chunks))


def _format_type(types: Mapping[str, str], labels: NDArray[Any], path: Path) -> str:
    kind = types.get(labels.dtype.str[1:])
    if kind is None:
        raise StorageError(
            f"Cannot write {path.name}: the format has no place for {labels.dtype} voxels.", "Choose .nii.gz instead."
        )
    return kind


def _compress(data: NDArray[Any], window: int) -> Iterator[bytes]:
    content, packing = little_endian_bytes(data), packer(data, window)
    for begin in range(0, len(content), _CHUNK):
        yield packing.compress(content[begin : begin + _CHUNK])
    yield packing.flush()


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.17g}" for value in np.asarray(values, np.float64) + 0.0)


def _vector(values: Any) -> str:
    return f"({_numbers(values).replace(' ', ',')})"


def _escape(value: str) -> str:
    """Return a value with line ends and backslashes as two characters each, as NRRD has them."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
