"""Scans from files: NIfTI, NRRD, MetaImage and DICOM series folders, through SimpleITK."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import split_paths
from .volume import Volume, matrix_from_sitk

EXTENSIONS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def scan_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The scan files that lie in a folder, by name; none if there is no such folder."""
    place = Path(folder)
    return [p for p in sorted(place.iterdir()) if p.name.lower().endswith(EXTENSIONS)] if place.is_dir() else []


def scan_paths(text: str) -> list[str]:
    """The path of a scan, or of each of its channels, from the form that commands take: joined by commas."""
    return split_paths(text)


def scan_name(path: str | os.PathLike[str]) -> str:
    """The name of a scan without folder and type, for naming results."""
    name = Path(path).name
    for extension in (".seg.nrrd", *sorted(EXTENSIONS, key=len, reverse=True)):
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return Path(name).stem or "scan"


def result_names(scans: Sequence[Path]) -> list[str]:
    """A name for the result of each scan: the scan's own without its type, or with it where several differ by type alone.

    Names that differ by upper and lower case alone count as one: not every disk tells them apart.
    """
    short = [scan_name(scan) for scan in scans]
    count = Counter(name.casefold() for name in short)
    names, taken = [], {name for name, number in count.items() if number == 1}
    for scan, name in zip(scans, short, strict=True):
        if count[name.casefold()] > 1:
            full, number = scan.name, 2
            while full.casefold() in taken:
                full, number = f"{scan.name}-{number}", number + 1
            name = full
            taken.add(name.casefold())
        names.append(name)
    return names


def read_volume(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], series: str | None = None) -> Volume:
    """Read a scan; several paths are the channels of one scan and must lie on one grid.

    Args:
        paths: file or DICOM folder, or one for each channel.
        series: the series instance UID to take from a DICOM folder that holds several.

    Raises:
        InputError: missing, empty, truncated or foreign files, a bad header, channels on different grids.
    """
    names = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    volumes = [_read_one(Path(name), series) for name in names]
    first = volumes[0]
    for other in volumes[1:]:
        if other.grid != first.grid:
            raise InputError(
                f"{other.name} does not lie on the same voxel grid as {first.name}.", "Resample one to the other first."
            )
    data = first.data if len(volumes) == 1 else np.concatenate([v.data for v in volumes])
    return Volume(data, first.ijk_to_ras, " + ".join(v.name for v in volumes))


def _read_one(path: Path, series: str | None) -> Volume:
    if not path.exists():
        raise InputError(f"There is no scan at {path}.", "Check the path.")
    if path.is_file():
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes).", "Copy or download it again.")
        if not path.name.lower().endswith(EXTENSIONS) and not _is_dicom(path):
            raise InputError(
                f"{path} is no scan that can be read.", f"Give a DICOM folder or a file of type {', '.join(EXTENSIONS)}."
            )
        _check_nifti_header(path)
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = _read_series(path, series) if path.is_dir() else sitk.ReadImage(str(path))
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"{path} cannot be read: {_last_line(error)}.", "The file may be cut off or of another type; copy it again."
        ) from error
    return _to_volume(image, path)


def _to_volume(image: Any, path: Path) -> Volume:
    import SimpleITK as sitk

    if image.GetDimension() == 4:
        frames = [image[:, :, :, n] for n in range(image.GetSize()[3])]
        data = np.stack([sitk.GetArrayFromImage(frame) for frame in frames])
        return Volume(data, matrix_from_sitk(frames[0]), str(path))
    if image.GetDimension() != 3:
        raise InputError(f"{path} is a {image.GetDimension()}-dimensional image, not a volume.", "Give the whole 3D scan.")
    data = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        data = np.moveaxis(data, -1, 0)
    return Volume(data, matrix_from_sitk(image), str(path))


def _read_series(folder: Path, series: str | None) -> Any:
    import SimpleITK as sitk

    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not found:
        raise InputError(f"{folder} holds no DICOM series.", "Give the folder that holds the slices.")
    if series is None and len(found) > 1:
        raise InputError(f"{folder} holds {len(found)} DICOM series: {', '.join(found)}.", "Choose one with --series UID.")
    if series is not None and series not in found:
        raise InputError(f"{folder} holds no DICOM series {series}.", f"It holds {', '.join(found)}.")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series or found[0]))
    return reader.Execute()


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as stream:
        stream.seek(128)
        return stream.read(4) == b"DICM"


def _check_nifti_header(path: Path) -> None:
    """Refuse a NIfTI header with zero or negative voxel sizes, which ITK would silently replace by 1 mm."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            header = stream.read(348)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read: {_last_line(error)}.", "The file may be cut off or of another type; copy it again."
        ) from error
    if len(header) < 348:
        raise InputError(f"{path} is cut off within its header.", "Copy or download it again.")
    order = "<" if struct.unpack("<i", header[:4])[0] == 348 else ">"
    if struct.unpack(order + "i", header[:4])[0] != 348:
        return  # NIfTI-2 or something else: ITK decides.
    sizes = struct.unpack(order + "3f", header[80:92])
    if not all(np.isfinite(sizes)) or min(sizes) <= 0:
        raise InputError(
            f"{path} has a voxel spacing of {' x '.join(f'{s:g}' for s in sizes)} mm.",
            "Repair its header, for example in Slicer's Volumes module.",
        )
    dims = struct.unpack(order + "8h", header[40:56])
    voxels = math.prod(max(1, n) for n in dims[1 : 1 + max(0, min(7, dims[0]))])
    expected = int(struct.unpack(order + "f", header[108:112])[0]) + voxels * struct.unpack(order + "h", header[72:74])[0] // 8
    if _unpacked_size(path, expected) < expected:
        raise InputError(f"{path} is cut off: it holds fewer voxels than its header says.", "Copy or download it again.")


def _unpacked_size(path: Path, expected: int) -> int:
    """Bytes of a NIfTI file after decompression. ITK fills what is missing with zeros and says nothing."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with open(path, "rb") as stream:
        stream.seek(-4, os.SEEK_END)
        if int.from_bytes(stream.read(4), "little") == expected % (1 << 32):
            return expected  # gzip's own note of the size: no need to unpack
    size = 0
    try:
        with gzip.open(path, "rb") as stream:
            while chunk := stream.read(1 << 22):
                size += len(chunk)
    except (OSError, EOFError, zlib.error):
        return 0
    return size


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
