"""Scans from files: NIfTI, NRRD, MetaImage, DICOM folders and files. What is not understood, or not whole, is an error.

NIfTI and DICOM are read by this project's own readers (:mod:`.nifti_file`, :mod:`.dicom_series`), NRRD and MetaImage by ITK
in a process of its own (:mod:`.itk_file`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import split_paths
from .nifti_file import is_nifti, read_nifti
from .nifti_header import NiftiForm
from .volume import Volume

EXTENSIONS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def scan_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the scan files that lie in a folder, by name; none if there is no such folder."""
    place = Path(folder)
    return [p for p in sorted(place.iterdir()) if p.name.lower().endswith(EXTENSIONS)] if place.is_dir() else []


def scan_paths(text: str) -> list[str]:
    """Return the path of a scan, or of each of its channels, from the form that commands take: joined by commas."""
    return split_paths(text)


def scan_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a scan without folder and type, for naming results."""
    name = Path(path).name
    for extension in (".seg.nrrd", *sorted(EXTENSIONS, key=len, reverse=True)):
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return Path(name).stem or "scan"


def result_names(scans: Sequence[Path]) -> list[str]:
    """Return a name for the result of each scan: the scan's own without its type, or with it where several differ by type alone.

    Names that differ by upper and lower case alone count as one: not every disk tells them apart.
    """
    short = [scan_name(scan) for scan in scans]
    count = Counter(name.casefold() for name in short)
    names, used_names = [], {name for name, number in count.items() if number == 1}
    for scan, name in zip(scans, short, strict=True):
        if count[name.casefold()] > 1:
            full, number = scan.name, 2
            while full.casefold() in used_names:
                full, number = f"{scan.name}-{number}", number + 1
            name = full
            used_names.add(name.casefold())
        names.append(name)
    return names


@dataclass(frozen=True)
class ReadOptions:
    """How scans are read, where a file leaves a choice.

    Attributes:
        series: the series instance UID to take from a DICOM folder that holds several; ``UID:N`` is the N-th stack of a series
            that holds several.
        allow_gaps: fill missing slices and uneven steps of a DICOM series by interpolation, instead of an error.
        allow_tilt: resample a DICOM series of a tilted gantry to a straight grid, instead of an error.
        nifti_form: which of a NIfTI file's two forms says where voxels lie, where both are given: by default the sform.
    """

    series: str | None = None
    allow_gaps: bool = False
    allow_tilt: bool = False
    nifti_form: NiftiForm = "auto"


class ScanReader:
    """Reads scans in one way and remembers what had to be chosen or mended, for whoever gets the results.

    Attributes:
        notes: of all scans that were read so far, each once.
    """

    def __init__(self, options: ReadOptions = ReadOptions(), check: Callable[[], None] | None = None) -> None:
        self.options, self._check = options, check
        self.notes: list[str] = []

    def __call__(self, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Volume:
        """Read a scan, as :func:`read_volume` does."""
        volume = read_volume(paths, options=self.options, check=self._check)
        self.notes += [note for note in volume.notes if note not in self.notes]
        return volume


def read_volume(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    series: str | None = None,
    options: ReadOptions = ReadOptions(),
    check: Callable[[], None] | None = None,
) -> Volume:
    """Read a scan; several paths are the channels of one scan and must lie on one grid.

    Args:
        paths: file or DICOM folder, or one for each channel.
        series: as ``options.series``, which it precedes.
        check: called while something is waited for; what it raises ends the reading.

    Returns:
        The volume; its ``notes`` say what had to be chosen or mended.

    Raises:
        InputError: missing, empty, truncated or foreign files, a bad header, channels on different grids.
    """
    names = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    volumes = [_read_one(Path(name), series or options.series, options, check) for name in names]
    first = volumes[0]
    for other in volumes[1:]:
        if other.grid != first.grid:
            raise InputError(
                f"{other.name} does not lie on the same voxel grid as {first.name}.", "Resample one to the other first."
            )
    data = first.data if len(volumes) == 1 else np.concatenate([v.data for v in volumes])
    return Volume(
        data,
        first.ijk_to_ras,
        " + ".join(v.name for v in volumes),
        tuple(note for v in volumes for note in v.notes),
        first.dicom_files,
    )


def _read_one(path: Path, series: str | None, options: ReadOptions, check: Callable[[], None] | None) -> Volume:
    try:
        if not path.exists():
            raise InputError(f"There is no scan at {path}.", "Check the path.")
        if path.is_dir():
            from .dicom_series import read_dicom_folder

            return read_dicom_folder(path, series, allow_gaps=options.allow_gaps, allow_tilt=options.allow_tilt)
        if not path.is_file():
            raise InputError(f"{path} is no file and no folder.", "Give a scan.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes).", "Copy or download it again.")
        return _read_file(path, options, check)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}.", "Check its permissions, its name and the disk."
        ) from error
    except MemoryError as error:
        raise InputError(
            f"{path} cannot be read: there is not enough memory.", "Close other programs, or crop the scan."
        ) from error


def _read_file(path: Path, options: ReadOptions, check: Callable[[], None] | None) -> Volume:
    if is_nifti(path):
        data, matrix, notes = read_nifti(path, options.nifti_form)
    elif path.name.lower().endswith(EXTENSIONS):
        from .itk_file import read_itk_file

        data, matrix, notes = read_itk_file(path, check)
    elif _is_dicom(path):
        from .dicom_series import read_dicom_file

        return read_dicom_file(path, allow_gaps=options.allow_gaps, allow_tilt=options.allow_tilt)
    else:
        raise InputError(
            f"{path} is no scan that can be read.", f"Give a DICOM folder or a file of type {', '.join(EXTENSIONS)}."
        )
    return Volume(data, matrix, str(path), tuple(notes))


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as stream:
        stream.seek(128)
        return stream.read(4) == b"DICM" or path.suffix.lower() in (".dcm", ".ima")
