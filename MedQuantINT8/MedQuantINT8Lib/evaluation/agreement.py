"""Agreement between two segmentations: Dice of each structure, and where they differ."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.spec import Label


@dataclass(frozen=True)
class StructureAgreement:
    """One structure in two segmentations.

    Attributes:
        dice: None where the structure is absent in both, or where the reference does not have it: there is nothing to agree on.
        ml, other_ml: volumes in milliliters.
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
    rows = []
    for label in labels:
        v = label.value
        total = int(ours[v] + theirs[v])
        rows.append(
            StructureAgreement(
                v,
                label.name,
                2 * int(both[v]) / total if total and (annotated is None or v in annotated) else None,
                float(ours[v]) * voxel_ml,
                float(theirs[v]) * voxel_ml,
            )
        )
    return rows


def mean_dice(rows: Sequence[StructureAgreement]) -> float | None:
    """Mean over structures that are present in either; None if none is."""
    values = [row.dice for row in rows if row.dice is not None]
    return float(np.mean(values)) if values else None
