"""model.json to :class:`ModelSpec`: every field is checked, and what is wrong is named by its full path."""

from __future__ import annotations

import math
from typing import Any

from ..errors import PackageError
from .record_files import file_schema, parse_file
from .spec import MODEL_FORM, NATIVE, ModelSpec

#: A patch of more voxels is no description of a network.
_MOST_VOXELS = 1 << 31


def parse_spec(value: Any, where: str = "model.json") -> ModelSpec:
    """Parse and validate what model.json holds.

    Raises:
        PackageError: names the field, what is wrong with it and what it may be.
    """
    spec = parse_file(ModelSpec, MODEL_FORM, value, where)
    _check_consistency(spec, where)
    return spec


def model_schema() -> dict[str, Any]:
    """Return the JSON Schema of model.json."""
    return file_schema(ModelSpec, MODEL_FORM, {"required": ["model.onnx"]})


def _field_error(where: str, problem: str) -> PackageError:
    return PackageError(f"{where} {problem}.", MODEL_FORM.hint)


def _check_consistency(spec: ModelSpec, where: str) -> None:
    for what in ("value", "channel"):
        values = [getattr(label, what) for label in spec.labels]
        if len(set(values)) != len(values):
            raise _field_error(f"{where}: 'labels'", f"use a {what} twice")
    # Regions may come with one for the background, which no label is for.
    first = all(label.channel > 0 for label in spec.labels)
    background = spec.output.activation == "softmax" or not spec.output.regions or first
    expected = range(1, len(spec.labels) + 1) if background else range(len(spec.labels))
    missing = sorted(set(expected) - {label.channel for label in spec.labels})
    if missing:
        raise _field_error(f"{where}: 'labels'", f"has no label for output channel {missing[0]}")
    if spec.output.thresholds and len(spec.output.thresholds) != spec.output_channels:
        raise _field_error(
            f"{where}: 'output'", f"has {len(spec.output.thresholds)} thresholds for {spec.output_channels} channels"
        )
    kinds = [bool(channel.one_hot) for channel in spec.channels]
    if kinds != sorted(kinds) or not spec.scans:
        raise _field_error(
            f"{where}: 'channels'", "must begin with a scan, and have label maps (one_hot) after all scans"
        )
    if any(len(set(channel.one_hot)) != len(channel.one_hot) for channel in spec.channels):
        raise _field_error(f"{where}: 'channels'", "use a value twice in 'one_hot'")
    label_values = {label.value for label in spec.labels}
    if strangers := sorted({value for step in spec.cleaning for value in step.labels} - label_values):
        raise _field_error(f"{where}: 'cleaning'", f"names the label {strangers[0]}, which the model does not have")
    if any(step.where == "network" for step in spec.cleaning) and spec.output.resample not in ("masks", "labels"):
        raise _field_error(
            f"{where}: 'cleaning'", "may be in network space only where 'output' resamples masks or labels"
        )
    if max(label.value for label in spec.labels) > 65535:
        raise _field_error(f"{where}: 'labels'", "has a value above 65535")
    if strangers := sorted({n for step in spec.normalization for n in step.channels if n >= spec.scans}):
        raise _field_error(
            f"{where}: 'normalization'", f"names the channel {strangers[0]}, which the model does not have as a scan"
        )
    geometry = spec.geometry
    if sum(value is not None for value in (geometry.spacing, geometry.size, geometry.longest)) > 1:
        raise _field_error(f"{where}: 'geometry'", "may have 'spacing', 'size' or 'longest', not several of them")
    if geometry.interpolation in ("area", "exact") and geometry.resize != "torch":
        raise _field_error(
            f"{where}: 'geometry'", f"has the interpolation {geometry.interpolation}, which needs 'resize' to be torch"
        )
    if strangers := sorted(n for n in spec.crop.channels if n >= spec.scans):
        raise _field_error(f"{where}: 'crop'", f"names the channel {strangers[0]}, which the model does not have")
    axes = spec.mirroring.axes
    if len(set(axes)) != len(axes) or any(spec.window.patch_size[axis] == 1 for axis in axes):
        raise _field_error(
            f"{where}: 'mirroring'", "names an axis twice, or one along which the window is one voxel long"
        )
    _check_order(spec, where)
    for name, sizes in (("window", spec.window.patch_size), ("geometry", spec.geometry.size or (1,))):
        if math.prod(n or 1 for n in sizes) > _MOST_VOXELS:
            raise _field_error(
                f"{where}: '{name}'", f"has {' x '.join(map(str, sizes))} voxels, more than {_MOST_VOXELS}"
            )
    for size, multiple in zip(spec.window.patch_size, spec.window.multiples, strict=True):
        if size % multiple:
            raise _field_error(f"{where}: 'window'", f"has a patch size of {size}, which is no multiple of {multiple}")


def _check_order(spec: ModelSpec, where: str) -> None:
    """Every step of preprocessing has its place, as often as there is one of it."""
    counts = {
        "crop": int(spec.crop.kind != "none"),
        "reorient": int(spec.geometry.orientation != NATIVE),
        "resample": int(spec.geometry.resampled),
        "normalize": len(spec.normalization),
        "fit": len(spec.fits),
    }
    for step, count in counts.items():
        if (spec.order or spec.fits) and spec.order.count(step) != count:  # type: ignore[arg-type]
            raise _field_error(f"{where}: 'order'", f"must name {step!r} {count} time(s), as often as the model has it")
    if any(step.mask == "nonzero_filled" for step in spec.normalization):
        steps = list(spec.steps)
        count = max(n for n, step in enumerate(spec.normalization, 1) if step.mask == "nonzero_filled")
        position = [n for n, step in enumerate(steps) if step == "normalize"][count - 1]
        if "resample" in steps[:position]:
            raise _field_error(
                f"{where}: 'normalization'", "with the mask nonzero_filled needs 'normalize_in' to be input"
            )
    places = {step: spec.order.index(step) for step in spec.order}
    if "reorient" in places and "resample" in places:
        later = places["reorient"] > places["resample"]
        if later != (spec.geometry.reorient == "last"):
            raise _field_error(f"{where}: 'order'", "must have 'reorient' and 'resample' as 'geometry.reorient' says")
