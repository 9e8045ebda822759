"""MONAI's transforms after the network as the fields of model.json. One that is not understood is an error that names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import PackageError
from ..model_spec import Output
from .monai_arguments import enabled, transform_name, true

_SAVING = {"Invertd", "SaveImaged", "ToDeviced", "CopyItemsd", "DeleteItemsd", "EnsureTyped", "SplitDimd", "Lambdad"}


def _kept_channels(transform: dict[str, Any]) -> tuple[int, ...] | None:
    """The classes of which KeepLargestConnectedComponentd keeps the largest part (none: all); None if it asks for more."""
    wanted = transform.get("applied_labels")
    plain = true(transform.get("independent", True)) and int(transform.get("num_components", 1)) == 1
    if not plain or transform.get("connectivity") not in (None, 3):
        return None
    values = () if wanted is None else wanted if isinstance(wanted, list | tuple) else (wanted,)
    return tuple(int(value) for value in values)


def translate_postprocessing(transforms: Sequence[Any]) -> tuple[Output, tuple[int, ...] | None, list[str]]:
    """Translate what follows the network: an activation, the output channels of which only the largest part is kept (empty: all;
    None: nothing is done), and notes on what is left out.

    Raises:
        PackageError: a transform that is not understood; names it.
    """
    activation, threshold, notes = "softmax", 0.5, []
    largest: tuple[int, ...] | None = None
    for transform in enabled(transforms):
        name = transform_name(transform)
        if name == "Activationsd":
            activation = "sigmoid" if true(transform.get("sigmoid")) else "softmax"
        elif name == "AsDiscreted":
            if (value := transform.get("threshold")) is not None:
                threshold = 0.5 if isinstance(value, bool) else float(value)
        elif name == "Invertd":
            if true(transform.get("nearest_interp")):
                notes.append("the bundle resamples labels by nearest neighbour; here class scores are, where memory allows")
        elif name == "KeepLargestConnectedComponentd" and (kept := _kept_channels(transform)) is not None:
            largest = kept
        elif name in ("KeepLargestConnectedComponentd", "FillHolesd", "RemoveSmallObjectsd"):
            notes.append(f"{name} of the bundle's postprocessing is not done")
        elif name not in _SAVING | {"VistaPostTransformd"}:
            raise PackageError(
                f"The bundle's postprocessing uses {name}, which is not understood.", "Give a description with --spec."
            )
    return Output(activation, threshold=threshold), largest, notes  # type: ignore[arg-type]
