"""Checks of a label map that a user gives: that its values are labels the model knows, and that it lies where its scan lies."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..errors import InputError
from .volume import Volume

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
