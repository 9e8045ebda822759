"""Segmentations in files, without Slicer: ``.seg.nrrd`` with names, colors and terminology, a plain label map, or a folder of masks.

The fields of ``.seg.nrrd`` are those that Slicer's segmentation storage node writes and reads
(https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import replacing
from ..models.spec import Code, Label, Terminology
from ..outputs import check_output_file, check_output_folder
from ..system import cpu_count
from ..thread_pool import Threads
from .label_map_files import data_file_name, write_label_map
from .volume import Matrix

#: What a segmentation is written as.
OutputKind = Literal["segmentation", "label_map", "dicom", "masks"]
LABEL_MAP_EXTENSIONS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
DICOM_EXTENSION = ".dcm"
#: What the name of one file for a whole segmentation ends in.
SINGLE_EXTENSIONS = (".seg.nrrd", DICOM_EXTENSION, *LABEL_MAP_EXTENSIONS)
#: The type of the files in a folder of masks.
MASK_EXTENSION = ".nii.gz"
_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_ANATOMIC_CONTEXT = "Anatomic codes - DICOM master list"
#: What a label without a code of its own is: tissue, as Slicer's own default says.
DEFAULT_TERMINOLOGY = Terminology(Code("SCT", "85756007", "Tissue"), Code("SCT", "85756007", "Tissue"))


def terminology_tag(terminology: Terminology | None) -> str:
    """Return Slicer's serialized terminology entry: Context~Category~Type~Modifier~AnatomicContext~Region~RegionModifier."""
    entry = terminology or DEFAULT_TERMINOLOGY

    def code(value: Code | None) -> str:
        return f"{value.scheme}^{value.value}^{value.meaning}" if value else "^^"

    return "~".join(
        (_CONTEXT, code(entry.category), code(entry.type), code(entry.modifier), _ANATOMIC_CONTEXT, "^^", "^^")
    )


def segment_id(label: Label) -> str:
    """Return the stable identifier of a label's segment."""
    return f"Segment_{label.value}"


def output_kind(path: str | os.PathLike[str]) -> OutputKind:
    """Return what a name says that a segmentation is written as; a folder is one that is there, ends in a separator, or has no type.

    Raises:
        InputError: the name ends in a type that cannot be written.
    """
    text = os.fspath(path)
    name = Path(text).name.lower()
    if not text.endswith(tuple(filter(None, (os.sep, os.altsep)))):
        if name.endswith(".seg.nrrd"):
            return "segmentation"
        if name.endswith(LABEL_MAP_EXTENSIONS):
            return "label_map"
        if name.endswith(DICOM_EXTENSION):
            return "dicom"
        if Path(text).suffix and not Path(text).is_dir():
            raise InputError(
                f"{path} has no type that a segmentation can be written as.",
                f"End the name in .seg.nrrd, {DICOM_EXTENSION} or one of {', '.join(LABEL_MAP_EXTENSIONS)}, or give a folder (ending in {os.sep}) for one mask a structure.",
            )
    return "masks"


def check_output_path(
    path: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    labels: Sequence[Label] = (),
) -> None:
    """Refuse, before any work starts, a name whose type cannot be written, a place that cannot be, or an input.

    Args:
        inputs: every file and folder that is read.
        labels: the structures, of which a folder gets a mask each.

    Raises:
        InputError: an unknown type, or the output is one of the inputs.
        StorageError: the folder cannot be made or written.
    """
    if output_kind(path) == "masks":
        check_output_folder(path, mask_names(labels), inputs)
    else:
        check_output_file(path, inputs, tuple(filter(None, [data_file_name(Path(path).name)])))


def output_files(path: str | os.PathLike[str], labels: Sequence[Label] = ()) -> list[Path]:
    """Return all files that a segmentation is written as: a header may have its voxels in a file of their own, a folder has its masks."""
    target = Path(path)
    if output_kind(path) == "masks":
        return [target / name for name in mask_names(labels)]
    return [target, *(target.with_name(name) for name in filter(None, [data_file_name(target.name)]))]


#: Names that Windows keeps for devices, whatever their type.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_LONGEST_NAME = 120


def mask_names(labels: Sequence[Label]) -> list[str]:
    """Return a file name for the mask of each structure, that any disk takes and that no other one has.

    Letters, digits, dots inside, hyphens and underscores stay; anything else becomes an underscore. Names that would be one (upper
    and lower case count as the same) get the structure's value behind them.
    """
    stems = [_safe_name(label.name) or f"structure_{label.value}" for label in labels]
    count = Counter(stem.casefold() for stem in stems)
    names, used = [], {key for key, number in count.items() if number == 1}
    for label, stem in zip(labels, stems, strict=True):
        if count[stem.casefold()] > 1:
            stem += f"_{label.value}"
            while stem.casefold() in used:
                stem += f"_{label.value}"
            used.add(stem.casefold())
        names.append(stem + MASK_EXTENSION)
    return names


def _safe_name(name: str) -> str:
    text = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name)).strip("._-")
    while len(text.encode("utf-8")) > _LONGEST_NAME:
        text = text[:-1]
    return f"structure_{text}" if text.split(".")[0].casefold() in _RESERVED else text


def write_segmentation(
    path: str | os.PathLike[str], labels: NDArray[Any], ijk_to_ras: Matrix, names: tuple[Label, ...]
) -> None:
    """Write a label map (K, J, I), whole or not at all; ``.seg.nrrd`` keeps names, colors and terminology.

    Raises:
        StorageError: the file cannot be written.
    """
    with replacing(path) as scratch:
        write_into(scratch, labels, ijk_to_ras, names)


def write_into(scratch: Path, labels: NDArray[Any], ijk_to_ras: Matrix, names: tuple[Label, ...]) -> None:
    """Write as :func:`write_segmentation` does, into a temporary file whose caller puts it in its place.

    Raises:
        OSError: it cannot be written, or not whole.
    """
    fields = _fields(labels, names) if scratch.name.lower().endswith(".seg.nrrd") else {}
    write_label_map(scratch, labels, ijk_to_ras, fields)


def write_masks(
    folder: Path,
    label_map: NDArray[Any],
    ijk_to_ras: Matrix,
    labels: Sequence[Label],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write a mask (0 and 1, uint8) for each structure into a folder, named by :func:`mask_names`; empty ones as well.

    Args:
        label_map: array (K, J, I).
        check: called before each mask; what it raises ends the writing.

    Raises:
        OSError: one of them cannot be written.
    """
    names = mask_names(labels)

    def write(numbers: range) -> None:
        for n in numbers:
            check()
            mask = (label_map == labels[n].value).view(np.uint8)
            write_label_map(folder / names[n], mask, ijk_to_ras)

    # More threads would hold more masks of a large scan at once than they gain in time.
    with Threads(min(4, cpu_count())) as threads:
        threads.share(write, len(labels))


def _fields(labels: NDArray[Any], names: tuple[Label, ...]) -> dict[str, str]:
    k, j, i = labels.shape
    fields = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for index, label in enumerate(names):
        color = " ".join(f"{c / 255:.6g}" for c in label.color)
        prefix = f"Segment{index}_"
        fields |= {
            f"{prefix}ID": segment_id(label),
            f"{prefix}Name": label.name,
            f"{prefix}NameAutoGenerated": "0",
            f"{prefix}Color": color,
            f"{prefix}ColorAutoGenerated": "0",
            f"{prefix}LabelValue": str(label.value),
            f"{prefix}Layer": "0",
            f"{prefix}Extent": f"0 {i - 1} 0 {j - 1} 0 {k - 1}",
            f"{prefix}Tags": f"TerminologyEntry:{terminology_tag(label.terminology)}|",
        }
    return fields


def present_labels(labels: NDArray[Any], names: tuple[Label, ...]) -> dict[int, int]:
    """Return the number of voxels of each named label; ``labels`` is a label map (K, J, I)."""
    counts = label_counts(labels, max(label.value for label in names) + 1)
    return {label.value: int(counts[label.value]) for label in names}


def label_counts(labels: NDArray[Any], at_least: int = 0) -> NDArray[np.int64]:
    """Return the number of voxels of each value of a label map (K, J, I), for ``at_least`` so many values.

    Slice by slice: NumPy would make eight bytes of every voxel first.
    """
    length = max(int(labels.max(initial=0)) + 1, at_least)
    by_plane = np.zeros((len(labels), length), np.int64)

    def count(numbers: range) -> None:
        for n in numbers:
            by_plane[n] = np.bincount(labels[n].ravel(), minlength=length)

    with Threads() as threads:
        threads.share(count, len(labels))
    counts: NDArray[np.int64] = by_plane.sum(axis=0)
    return counts
