"""A DICOM folder or file as a volume: checked image by image, or refused with the images' names.

Headers are read by :mod:`.dicom_file` and not by ITK, which takes any files of one series for an even stack: with the mean
spacing where slices are missing, without the shift of a tilted gantry, with the rescaling of the first slice for all.
Native pixels are read here; compressed ones are decoded by GDCM in a process of its own (:mod:`.reading_process`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..system import available_memory
from .dicom_file import DamagedDicom, DicomFile, read_dicom
from .dicom_image import (
    FRAME_OF_REFERENCE,
    MODALITY,
    NATIVE,
    SERIES,
    SOP_CLASS,
    DicomImage,
    images_of,
    path_names,
    stored_pixels,
)
from .dicom_stack import fill_gaps, group_by_geometry, passes_of, stack_of, straighten, without_copies
from .volume import LPS_FROM_RAS, Volume

#: Names that are DICOM's own directory, or end as images do.
_DIRECTORY = "dicomdir"
_SUFFIXES = (".dcm", ".ima", ".dicom")
_OTHER_SCANS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def read_dicom_folder(
    folder: Path,
    series: str | None = None,
    *,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    more_folders: Sequence[Path] = (),
) -> Volume:
    """Return the volume of a series in a folder (not in its sub-folders).

    Args:
        more_folders: in which further files of the series lie.
        series: the series instance UID where there are several; with ``:N`` behind it the N-th stack of images in it, where
            one series holds several (passes over the same positions, or a localizer).
        allow_gaps: fill missing slices and uneven steps by interpolation.
        allow_tilt: resample slices of a tilted gantry to a straight grid. The label map then lies on that grid and not on the
            scan's own, which is why it is asked for.

    Raises:
        InputError: no series, several to choose from, or one that is not a whole, even stack of gray images.
    """
    files, notes = _files(folder)
    for other in more_folders:
        other_files, other_notes = _files(other)
        files, notes = [*files, *other_files], [*notes, *other_notes]
    by_series: dict[str, list[DicomFile]] = {}
    for file in files:
        by_series.setdefault(file.data.text(SERIES), []).append(file)
    scans = {uid: members for uid, members in by_series.items() if any(file.pixels is not None for file in members)}
    if not scans:
        below = sorted(p.name for p in folder.iterdir() if p.is_dir() or p.name.lower().endswith(_OTHER_SCANS))
        hint = (
            f"Give the folder that holds the slices, or a scan file{f': perhaps {folder / below[0]}' if below else ''}."
        )
        raise InputError(f"{folder} holds no DICOM series.", hint)
    uid, _, stack = (series or "").partition(":")
    if not uid and len(scans) > 1:
        listing = "; ".join(f"{key or 'one without a UID'} ({_describe(members)})" for key, members in scans.items())
        raise InputError(f"{folder} holds {len(scans)} DICOM series: {listing}.", "Choose one with --series UID.")
    if uid and uid not in scans:
        raise InputError(f"{folder} holds no DICOM series {uid}.", f"It holds {', '.join(scans)}.")
    scan = scans[uid or next(iter(scans))]
    if empty := [
        file.path.name for file in scan if file.pixels is None and file.data.text(SOP_CLASS) == _usual_class(scan)
    ]:
        raise InputError(
            f"{folder / empty[0]} is damaged: it ends before its pixels.",
            "Copy it again; if it is no part of the scan, move it away.",
        )
    return _volume(
        [file for file in scan if file.pixels is not None],
        str(folder),
        stack,
        notes,
        allow_gaps=allow_gaps,
        allow_tilt=allow_tilt,
    )


def read_dicom_file(path: Path, *, allow_gaps: bool = False, allow_tilt: bool = False) -> Volume:
    """Return the volume of one file: a multi-frame object, or a single slice (which :meth:`.volume.Volume.check` refuses)."""
    file = _file(path)
    if file is None or file.pixels is None:
        raise InputError(f"{path} is damaged: it ends before its pixels.", "Copy it again.")
    return _volume([file], str(path), "", [], allow_gaps=allow_gaps, allow_tilt=allow_tilt)


def _files(folder: Path) -> tuple[list[DicomFile], list[str]]:
    dicom_files, other_files = [], []
    for path in sorted(folder.iterdir()):
        if path.name.lower() == _DIRECTORY or path.name.startswith(".") or not path.is_file():
            continue
        file = _file(path)
        if file is not None:
            dicom_files.append(file)
        elif path.suffix.lower() in _SUFFIXES:
            raise InputError(
                f"{path} is damaged: it is no DICOM file in spite of its name.",
                "Copy it again; if it is no part of the scan, move it away.",
            )
        elif not path.suffix:
            other_files.append(path)
    return dicom_files, [
        f"{len(other_files)} file(s) are no DICOM files and were left out: {path_names(other_files)}"
    ] if other_files and dicom_files else []


def _file(path: Path) -> DicomFile | None:
    try:
        return read_dicom(path)
    except DamagedDicom as error:
        raise InputError(
            f"{path} is damaged: {error}.", "Copy it again; if it is no part of the scan, move it away."
        ) from error


def _usual_class(files: Sequence[DicomFile]) -> str:
    return Counter(file.data.text(SOP_CLASS) for file in files if file.pixels is not None).most_common(1)[0][0]


def _describe(files: Sequence[DicomFile]) -> str:
    return f"{files[0].data.text(MODALITY) or 'no modality'}, {len(files)} file{'s' if len(files) > 1 else ''}"


def _volume(
    files: Sequence[DicomFile], name: str, stack_number: str, notes: list[str], *, allow_gaps: bool, allow_tilt: bool
) -> Volume:
    images, copy_notes = without_copies([image for file in files for image in images_of(file)])
    notes += [f"{name}: {text}" for text in copy_notes]
    images = _choose_stack(images, name, stack_number, notes)
    if len({image.file.data.text(FRAME_OF_REFERENCE) for image in images}) > 1:
        raise InputError(
            f"{name} holds images of several frames of reference: their positions cannot be compared.",
            "Give images of one acquisition.",
        )
    if any(image.photometric == "MONOCHROME1" for image in images):
        notes.append(
            f"{name} is MONOCHROME1: bright and dark are exchanged on the screen only, the values were taken as they are"
        )
    stack = stack_of(images, name, allow_gaps=allow_gaps)
    notes += stack.notes
    first = stack.images[0]
    needed_bytes = 4 * len(stack.slice_heights) * first.form.rows * first.form.columns
    if needed_bytes > available_memory():
        raise InputError(
            f"{name} needs {needed_bytes / 1e9:.1f} GB of memory; there are {available_memory() / 1e9:.1f} GB.",
            "Close other programs, or crop the scan.",
        )
    origin, step = first.position, stack.step
    if stack.tilted:
        angle = np.degrees(np.arccos(np.clip(first.normal @ step / np.linalg.norm(step), -1.0, 1.0)))
        if not allow_tilt:
            raise InputError(
                f"{name}: the gantry was tilted by {angle:.1f} degrees, so its slices are shifted against each other.",
                "Give --allow-tilt to resample the scan to a straight grid, on which the result will lie.",
            )
        notes.append(
            f"{name}: the gantry was tilted by {angle:.1f} degrees; the scan was resampled to a straight grid, on which the result lies (--allow-tilt)"
        )
    data = fill_gaps(_values(stack.images, name), stack)
    if stack.tilted:
        data, origin = straighten(data, stack)
        step = (step @ first.normal) * first.normal
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = (
        first.across * first.spacing[0],
        first.down * first.spacing[1],
        step,
        origin,
    )
    paths = dict.fromkeys(str(image.file.path) for image in stack.images)
    return Volume(data, LPS_FROM_RAS @ lps, name, tuple(notes), tuple(paths))


def _choose_stack(images: list[DicomImage], name: str, stack_number: str, notes: list[str]) -> list[DicomImage]:
    """Return the images of one stack; where a series holds several, that of the given number, or an error that lists them."""
    stacks: list[tuple[str, list[DicomImage]]] = []
    for group in group_by_geometry(images):
        what, parts = passes_of(group)
        for part in parts:
            form = part[0].form
            pass_text = f"{what} {part[0].passes[what] or 'none'}, " if what else ""
            stacks.append(
                (
                    f"{pass_text}{len(part)} image{'s' if len(part) > 1 else ''}, {_plane(part[0])}, {form.columns} x {form.rows} pixels ({path_names([i.name for i in part], 2)})",
                    part,
                )
            )
    if stack_number:
        if not stack_number.isdigit() or not 1 <= int(stack_number) <= len(stacks):
            raise InputError(
                f"{name} holds {len(stacks)} stack(s) of images in that series, and no number {stack_number}.",
                "Give a number that is there, or none.",
            )
        if len(stacks) > 1:
            notes.append(
                f"{name}: stack {stack_number} of {len(stacks)} in the series was taken: {stacks[int(stack_number) - 1][0]}"
            )
        return stacks[int(stack_number) - 1][1]
    if len(stacks) > 1:
        uid = images[0].file.data.text(SERIES)
        listing = "; ".join(f"{number}: {text}" for number, (text, _) in enumerate(stacks, 1))
        raise InputError(
            f"{name} holds several stacks of images under one series (another pass, a localizer, or another size): {listing}.",
            f"Choose one, for example with --series {uid}:1.",
        )
    return stacks[0][1]


def _plane(image: DicomImage) -> str:
    names = ("sagittal", "coronal", "axial")
    along = int(np.argmax(np.abs(image.normal)))
    return names[along] if abs(image.normal[along]) > 0.99 else f"oblique, nearly {names[along]}"


def _values(images: Sequence[DicomImage], name: str) -> NDArray[Any]:
    """Return the values (slices, rows, columns) with each image's own rescaling, in a type that holds them all."""
    form = images[0].form
    result = np.empty((len(images), form.rows, form.columns), _dtype(images))
    places: dict[Path, list[int]] = {}
    for n, image in enumerate(images):
        places.setdefault(image.file.path, []).append(n)
    native = [numbers for numbers in places.values() if images[numbers[0]].form.syntax in NATIVE]
    compressed = [numbers for numbers in places.values() if images[numbers[0]].form.syntax not in NATIVE]
    for numbers in native:
        _store(result, images, numbers, stored_pixels([images[n] for n in numbers]))
    if compressed:
        from .dicom_decoding import decode

        for numbers, planes in zip(
            compressed, decode([[images[n] for n in numbers] for numbers in compressed], name), strict=True
        ):
            _store(result, images, numbers, planes)
    return result


def _store(result: NDArray[Any], images: Sequence[DicomImage], numbers: Sequence[int], planes: NDArray[Any]) -> None:
    for n, pixels in zip(numbers, planes, strict=True):
        image = images[n]
        if image.slope != 1.0 or image.intercept != round(image.intercept):
            result[n] = pixels * np.float64(image.slope) + image.intercept
        else:
            result[n] = pixels.astype(np.int64) + int(image.intercept) if image.intercept else pixels


def _dtype(images: Sequence[DicomImage]) -> np.dtype[Any]:
    """Return int16, uint16 or int32 where every rescaling is a shift by whole numbers, else float32."""
    if any(image.slope != 1.0 or image.intercept != round(image.intercept) for image in images):
        return np.dtype(np.float32)
    low = min((-(1 << image.form.stored - 1) if image.form.signed else 0) + int(image.intercept) for image in images)
    high = max((1 << image.form.stored - image.form.signed) - 1 + int(image.intercept) for image in images)
    for kind in (np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float64)
