"""Checks of a label map that a user gives: that its values are labels the model knows, and that it lies where its scan lies."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..errors import InputError
from .volume import Volume

#: Label values that a message names, at most.
_MOST_LISTED = 8


def in_words(values: Collection[int]) -> str:
    """Return label values for a message, the first few of many."""
    first = ", ".join(map(str, sorted(values)[:_MOST_LISTED]))
    return f"{first} and {len(values) - _MOST_LISTED} more" if len(values) > _MOST_LISTED else first


def label_values(volume: Volume) -> set[int]:
    """Return the values of a label map, without 0.

    Raises:
        InputError: values that are negative or no whole numbers: a scan, or a map of probabilities.
    """
    values = np.unique(volume.data)
    if values.size and (
        values[0] < 0 or not np.isfinite(values).all() or bool(np.any(np.abs(values - np.rint(values)) > 1e-3))
    ):
        kind = "negative values" if values[0] < 0 else "values that are no whole numbers"
        raise InputError(f"{volume.name} holds {kind}: it is no label map.", "Give the label map of that scan.")
    return {int(value) for value in np.rint(values)} - {0}


#: Corners of a label map's grid may lie so far from the scan's, in voxels: headers are rounded.
_LARGEST_DISTANCE = 0.5


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
    if not (distance := labels.grid.apart(scan.grid)) <= _LARGEST_DISTANCE:
        raise InputError(
            f"{labels.name} does not lie where {scan.name} lies: a corner is {distance:.1f} voxels away.",
            "Give the label map of that scan, or resample it to the scan's grid.",
        )


def check_label_values(volume: Volume, known: Collection[int]) -> set[int]:
    """Return the model's label values that a label map holds.

    Raises:
        InputError: it holds others; names them.
    """
    values = label_values(volume)
    if strangers := values - set(known):
        raise InputError(
            f"{volume.name} holds label values that the model does not know: {in_words(strangers)} (the model's are {in_words(known)}).",
            "Give the model's own label values; set structures that it does not find to 0.",
        )
    return values
