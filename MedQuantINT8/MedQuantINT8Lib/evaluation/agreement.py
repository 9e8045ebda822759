"""Agreement between two segmentations: Dice of each structure, and where they differ."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.volume import Volume
from ..models.spec import Label


@dataclass(frozen=True)
class StructureAgreement:
    """One structure in two segmentations.

    Attributes:
        dice: None where the structure is absent in both, or where the reference does not have it: there is nothing to agree on.
        ml, other_ml: volumes in millilitres.
    """

    value: int
    name: str
    dice: float | None
    ml: float
    other_ml: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float | None:
    """Dice similarity of two masks of one shape; None if both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int(np.logical_and(first, second).sum()) / total if total else None


def agreement(
    first: NDArray[Any],
    second: NDArray[Any],
    labels: Sequence[Label],
    voxel_ml: float = 0.0,
    annotated: Collection[int] | None = None,
) -> list[StructureAgreement]:
    """Compare two label maps of one shape, structure by structure.

    Args:
        annotated: the values that ``second`` says something of, where it is a reference; what is not among them gets no Dice.

    Raises:
        InputError: different shapes.
    """
    if first.shape != second.shape:
        raise InputError(
            f"The label maps are {first.shape} and {second.shape} voxels.", "Compare segmentations of one scan."
        )
    size = max(int(first.max()), int(second.max()), *(label.value for label in labels)) + 1
    ours, theirs = np.bincount(first.ravel(), minlength=size), np.bincount(second.ravel(), minlength=size)
    both = np.bincount(first[first == second], minlength=size)
    found = []
    for label in labels:
        v = label.value
        total = int(ours[v] + theirs[v])
        found.append(
            StructureAgreement(
                v,
                label.name,
                2 * int(both[v]) / total if total and (annotated is None or v in annotated) else None,
                float(ours[v]) * voxel_ml,
                float(theirs[v]) * voxel_ml,
            )
        )
    return found


#: Label values that a message names, at most.
_NAMED = 8


def in_words(values: Collection[int]) -> str:
    """Label values for a message, the first few of many."""
    first = ", ".join(map(str, sorted(values)[:_NAMED]))
    return f"{first} and {len(values) - _NAMED} more" if len(values) > _NAMED else first


def label_values(volume: Volume) -> set[int]:
    """The values of a label map, without 0.

    Raises:
        InputError: values that are negative or no whole numbers: a scan, or a map of probabilities.
    """
    found = np.unique(volume.data)
    if found.size and (
        found[0] < 0 or not np.isfinite(found).all() or bool(np.any(np.abs(found - np.rint(found)) > 1e-3))
    ):
        kind = "negative values" if found[0] < 0 else "values that are no whole numbers"
        raise InputError(f"{volume.name} holds {kind}: it is no label map.", "Give the label map of that scan.")
    return {int(value) for value in np.rint(found)} - {0}


#: Corners of a label map's grid may lie so far from the scan's, in voxels: headers are rounded.
_APART = 0.5


def check_same_place(labels: Volume, scan: Volume) -> None:
    """Refuse a label map that lies on another grid than its scan.

    Raises:
        InputError: another size, or another place in the patient.
    """
    if labels.grid.size != scan.grid.size:
        raise InputError(
            f"{labels.name} has {labels.grid.size} voxels, but {scan.name} has {scan.grid.size}.",
            "Give the label map of that scan.",
        )
    if not (apart := labels.grid.apart(scan.grid)) <= _APART:
        raise InputError(
            f"{labels.name} does not lie where {scan.name} lies: a corner is {apart:.1f} voxels away.",
            "Give the label map of that scan, or resample it to the scan's grid.",
        )


def check_label_values(volume: Volume, known: Collection[int]) -> set[int]:
    """The model's label values that a label map holds.

    Raises:
        InputError: it holds others; names them.
    """
    found = label_values(volume)
    if strangers := found - set(known):
        raise InputError(
            f"{volume.name} holds label values that the model does not know: {in_words(strangers)} (the model's are {in_words(known)}).",
            "Give the model's own label values; set structures that it does not find to 0.",
        )
    return found


def mean_dice(rows: Sequence[StructureAgreement]) -> float | None:
    """Mean over structures that are present in either; None if none is."""
    values = [row.dice for row in rows if row.dice is not None]
    return float(np.mean(values)) if values else None
