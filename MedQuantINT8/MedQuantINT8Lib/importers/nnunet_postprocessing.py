"""nnU-Net's postprocessing: what nnUNetv2_find_best_configuration found to help, as steps that a package states.

It stands in postprocessing.pkl and postprocessing.json beside the cross-validation's results; the pickle is read as data. Each step
keeps the largest part of labels or regions together, one step after the other in the file's order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..models.spec import Cleaning
from .fields import Fields, each, known, mapping, read_described, text, wrong
from .pickled_values import PickledName, read_pickled

_LARGEST = "remove_all_but_largest_component_from_segmentation"
_MODULE = "nnunetv2.postprocessing.remove_connected_components"
_ADVICE = "Use nnU-Net itself for this network, or take the file away and clean the labels yourself."
#: The first that is there counts.
POSTPROCESSING_FILES = ("postprocessing.json", "postprocessing.pkl")
_FOLDER = re.compile(r"crossval_results_folds_([0-9_]+|all)")


def find_postprocessing(folder: Path, folds: Sequence[int | str]) -> Path | None:
    """Return the file with the postprocessing of a result folder, or None.

    One in the folder itself comes first, then that of the cross-validation of the folds, then that of the most folds. Where both forms
    of a file are there, it is the .json: nnU-Net writes both of one list.
    """
    found: list[tuple[tuple[int, int], Path]] = []
    wanted = "_".join(str(fold) for fold in sorted(folds, key=str))
    for place in (folder, *sorted(folder.glob("crossval_results_folds_*"))):
        file = next((place / name for name in POSTPROCESSING_FILES if (place / name).is_file()), None)
        match = _FOLDER.fullmatch(place.name)
        if file is not None:
            rank = 2 if place == folder else int(match is not None and match.group(1) == wanted)
            found.append(((rank, len(place.name)), file))
    return max(found, key=lambda item: item[0])[1] if found else None


def read_postprocessing(file: Path, values: Iterable[int]) -> tuple[Cleaning, ...]:
    """Return the steps of a postprocessing.json or .pkl in their order.

    Args:
        values: of the model's label map; what a step says of others concerns no voxel.

    Raises:
        PackageError: the file is damaged, or a step is not understood; names it.
    """
    names, arguments = read_steps(file)
    if len(names) != len(arguments):
        raise PackageError(f"{file.name}: {len(names)} functions have {len(arguments)} lists of arguments.", _ADVICE)
    known_values = set(values)
    steps = [_read_step(name, kwargs, file.name) for name, kwargs in zip(names, arguments, strict=True)]
    return tuple(
        # nnU-Net looks for parts whose voxels touch by faces, edges or corners, and keeps all that are equally large.
        Cleaning("largest", tuple(sorted(labels & known_values)), connectivity=3, together=True, equal="all")
        for labels in steps
        if labels & known_values
    )


def read_steps(file: Path) -> tuple[list[str], list[Any]]:
    """Return the names of a file's functions, and the arguments of each.

    Raises:
        PackageError: the file is damaged, or no such list.
    """
    return _read_json(file) if file.suffix == ".json" else _read_pickle(file)


def _read_json(file: Path) -> tuple[list[str], list[Any]]:
    fields = Fields(read_described(file, "folder with nnU-Net's postprocessing"), file.name, _ADVICE)
    fields.ignore("input_folder", "postprocessed")
    names, arguments = (
        fields.get("postprocessing_fns", each(text)),
        fields.get("postprocessing_kwargs", each(mapping)),
    )
    fields.finish()
    return names, list(arguments)


def _read_pickle(file: Path) -> tuple[list[str], list[Any]]:
    try:
        value = read_pickled(file.read_bytes(), file.name)
    except OSError as error:
        raise PackageError(f"{file} cannot be read: {error.strerror}.", "Get it again.") from error
    if not (isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(item, list) for item in value)):
        raise PackageError(f"{file.name} is not nnU-Net's list of functions and their arguments.", _ADVICE)
    names = []
    for function in value[0]:
        if not isinstance(function, PickledName):
            raise PackageError(f"{file.name} holds {function!r} where a function's name should be.", _ADVICE)
        module, _, name = function.name.rpartition(".")
        names.append(name if module == _MODULE else function.name)
    return names, value[1]


def _read_step(name: str, arguments: Any, where: str) -> set[int]:
    """Return the labels whose union keeps its largest part."""
    if name != _LARGEST:
        raise PackageError(
            f"{where}: the postprocessing {name[:120]} is not understood.", f"Understood is: {known([_LARGEST])}."
        )
    fields = Fields(arguments, f"{where}: {name}", _ADVICE)
    labels = fields.get("labels_or_regions", _labels)
    background = fields.get("background_label", _labels, {0})
    fields.finish()
    if background != {0}:
        raise PackageError(f"{where}: {name}: 'background_label' is {sorted(background)}, not 0.", _ADVICE)
    return labels


def _labels(value: Any, where: str) -> set[int]:
    """Return the values of a label, of a region (several labels), or of a list of either."""
    if isinstance(value, list | tuple):
        return {label for index, item in enumerate(value) for label in _labels(item, f"{where}[{index}]")}
    if type(value) is not int or value < 0:
        raise wrong(where, value, "a label, or a list of labels")
    return {value}
