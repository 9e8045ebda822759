"""model.json to :class:`ModelSpec`: every field is checked, and what is wrong is named by its full path."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, Literal, TypeVar, get_args

from ..errors import PackageError
from .colors import color_of
from .spec import (
    NATIVE,
    Activation,
    Anchor,
    AxisOrder,
    Channel,
    Cleaning,
    CleaningKind,
    Code,
    Comparison,
    Crop,
    CropKind,
    Decision,
    Fit,
    FitKind,
    Geometry,
    Interpolation,
    Label,
    MaskKind,
    ModelSpec,
    Normalization,
    NormalizationKind,
    Output,
    Padding,
    Placement,
    Resampled,
    SplineResampling,
    Step,
    Terminology,
    Window,
)

SUPPORTED_SCHEMA_VERSIONS = ("1.0", "1.1", "1.2", "1.3")

#: Numbers of voxels, millimetres and intensities beyond these are no description of a network.
_MOST, _MOST_WHOLE, _MOST_VOXELS = 1e30, 1 << 20, 1 << 31

_T = TypeVar("_T")


class _Reader:
    """Reads one JSON object field by field and complains by the field's full path."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise PackageError(f"{where} must be an object, not {_kind(value)}.", "Correct the package's model.json.")
        self.value, self.where, self.read = value, where, set[str]()

    def fail(self, key: str, problem: str) -> PackageError:
        return PackageError(f"{self.where}: {_shown(key)} {problem}.", "Correct the package's model.json.")

    def get(self, key: str, parse: Callable[[Any, str], _T], default: Any = ...) -> _T:
        self.read.add(key)
        if key not in self.value or (self.value[key] is None and default is None):
            if default is ...:
                raise self.fail(key, "is missing")
            return default
        return parse(self.value[key], f"{self.where}: '{key}'")

    def finish(self) -> None:
        extra = sorted(set(self.value) - self.read)
        if extra:
            raise self.fail(extra[0], "is not a known field")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _shown(value: Any) -> str:
    """A value in a message: of a stranger's file, so neither long nor with characters that a terminal obeys."""
    return ascii(value)[:60] if isinstance(value, (str, int, float, bool)) or value is None else _kind(value)


def _bad(where: str, problem: str) -> PackageError:
    return PackageError(f"{where} {problem}.", "Correct the package's model.json.")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _bad(where, f"must be text, not {_kind(value)}")
    if any(c not in "\n\r\t" and (unicodedata.category(c) in ("Cc", "Cs")) for c in value):
        raise _bad(where, "has control characters, or half of a character")
    return value


def _name(value: Any, where: str) -> str:
    if not _text(value, where).strip():
        raise _bad(where, "must not be empty")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _bad(where, f"must be true or false, not {_kind(value)}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_MOST <= value <= _MOST:
        raise _bad(where, "must be a finite number")
    return float(value)


def _whole(value: Any, where: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _bad(where, f"must be a whole number of at least {least}")
    if value > _MOST_WHOLE:
        raise _bad(where, f"must be at most {_MOST_WHOLE}")
    return value


def _choice(options: Any) -> Callable[[Any, str], Any]:
    allowed = get_args(options)

    def parse(value: Any, where: str) -> Any:
        if value not in allowed:
            raise _bad(where, f"is {_shown(value)} but must be one of {', '.join(allowed)}")
        return value

    return parse


def _triple(parse_item: Callable[[Any, str], _T]) -> Callable[[Any, str], tuple[_T, _T, _T]]:
    def parse(value: Any, where: str) -> tuple[_T, _T, _T]:
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise _bad(where, "must be a list of three numbers")
        first, second, third = (parse_item(item, where) for item in value)
        return first, second, third

    return parse


def _maybe(parse_item: Callable[[Any, str], _T]) -> Callable[[Any, str], _T | None]:
    def parse(value: Any, where: str) -> _T | None:
        return None if value is None else parse_item(value, where)

    return parse


def _positive(value: Any, where: str) -> float:
    if (number := _number(value, where)) <= 0:
        raise _bad(where, "must be above 0")
    return number


def _not_negative(value: Any, where: str) -> float:
    if (number := _number(value, where)) < 0:
        raise _bad(where, "must be at least 0")
    return number


def _count(value: Any, where: str) -> int:
    return _whole(value, where, least=1)


def _byte(value: Any, where: str) -> int:
    if (number := _whole(value, where)) > 255:
        raise _bad(where, "must be 0 to 255")
    return number


def _overlap(value: Any, where: str) -> float:
    if not 0 <= (number := _number(value, where)) < 1:
        raise _bad(where, "must be at least 0 and below 1")
    return number


def _probability(value: Any, where: str) -> float:
    if not 0 <= (number := _number(value, where)) <= 1:
        raise _bad(where, "must be 0 to 1")
    return number


def _connectivity(value: Any, where: str) -> int:
    if (number := _whole(value, where)) not in (1, 3):
        raise _bad(where, "must be 1 or 3")
    return number


def _orientation(value: Any, where: str) -> str:
    text = _text(value, where)
    if text == NATIVE:
        return text
    axes = {letter: axis for axis, pair in enumerate(("RL", "AP", "SI")) for letter in pair}
    if sorted(axes.get(letter, -1) for letter in text) != [0, 1, 2]:
        raise _bad(
            where,
            f'is {_shown(text)} but must be three letters, one each of R/L, A/P and S/I, such as RAS, or "native"',
        )
    return text


def _each(parse_item: Callable[[Any, str], _T], least: int) -> Callable[[Any, str], tuple[_T, ...]]:
    def parse(value: Any, where: str) -> tuple[_T, ...]:
        if not isinstance(value, (list, tuple)) or len(value) < least:
            raise _bad(where, f"must be a list with at least {least} item(s)")
        return tuple(parse_item(item, f"{where}[{index}]") for index, item in enumerate(value))

    return parse


def _record(cls: type[_T], **parsers: Callable[[Any, str], Any]) -> Callable[[Any, str], _T]:
    """A parser for dataclass ``cls``; fields with a default in the class may be left out."""
    required = {f.name for f in fields(cls) if _has_no_default(f)}  # type: ignore[arg-type]

    def parse(value: Any, where: str) -> _T:
        reader = _Reader(value, where)
        found = {}
        for name, parser in parsers.items():
            if name in required or value.get(name) is not None:
                found[name] = reader.get(name, parser)
            reader.read.add(name)
        reader.finish()
        return cls(**found)

    return parse


def _has_no_default(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


_code = _record(Code, scheme=_name, value=_name, meaning=_name)
_terminology = _record(Terminology, category=_code, type=_code, modifier=_code)
_label_as_given = _record(
    Label, value=_count, name=_name, channel=_whole, color=_triple(_byte), terminology=_terminology
)
_channel = _record(Channel, name=_name)


def _label(value: Any, where: str) -> Label:
    """A label; without a color of its own it has the one of its value, so that structures can be told apart."""
    label = _label_as_given(value, where)
    return label if "color" in value else replace(label, color=color_of(label.value))


def _order(*allowed: int) -> Callable[[Any, str], int]:
    def parse(value: Any, where: str) -> int:
        if isinstance(value, bool) or value not in allowed:
            raise _bad(where, f"is {_shown(value)} but must be one of {', '.join(map(str, allowed))}")
        return int(value)

    return parse


_spline = _record(SplineResampling, order=_order(0, 1, 3), order_z=_order(0, 1), separate_z=_flag, threshold=_positive)
_crop = _record(
    Crop,
    kind=_choice(CropKind),
    threshold=_number,
    margin=_whole,
    comparison=_choice(Comparison),
    margins=_triple(_whole),
    multiples=_triple(_count),
    channels=_each(_whole, 0),
    beyond=_choice(Literal["cut", "pad"]),
    padding=_choice(Padding),
    pad_value=_number,
    look_at=_choice(Literal["current", "scan"]),
)
_fit = _record(
    Fit,
    kind=_choice(FitKind),
    size=_triple(_maybe(_count)),
    share=_triple(_positive),
    padding=_choice(Padding),
    pad_value=_number,
    at_end=_flag,
)
_geometry = _record(
    Geometry,
    axis_order=_choice(AxisOrder),
    orientation=_orientation,
    spacing=_triple(_maybe(_positive)),
    size=_triple(_maybe(_count)),
    anchor=_choice(Anchor),
    interpolation=_choice(Interpolation),
    tolerance=_overlap,
    reorient=_choice(Literal["first", "last"]),
    spline=_spline,
    score_spline=_spline,
    tolerance_mm=_not_negative,
    min_spacing=_triple(_maybe(_not_negative)),
    max_spacing=_triple(_maybe(_not_negative)),
    diagonal=_flag,
    outside=_choice(Literal["border", "zeros"]),
    longest=_count,
    resize=_choice(Literal["resample", "torch"]),
    anti_aliasing=_flag,
)
_window = _record(
    Window,
    patch_size=_triple(_count),
    multiples=_triple(_count),
    overlap=_overlap,
    whole_volume=_flag,
    blend=_choice(Literal["gaussian", "constant"]),
    placement=_choice(Placement),
    pad_value=_number,
    air_threshold=_number,
    padding=_choice(Padding),
    overlaps=_triple(_overlap),
    sigma=_triple(_positive),
)
_cleaning = _record(
    Cleaning,
    kind=_choice(CleaningKind),
    labels=_each(_count, 0),
    count=_count,
    size=_whole,
    connectivity=_connectivity,
    together=_flag,
    where=_choice(Literal["scan", "network"]),
)
_output = _record(
    Output,
    activation=_choice(Activation),
    activated=_flag,
    threshold=_probability,
    resample=_choice(Resampled),
    decision=_choice(Decision),
    thresholds=_each(_probability, 0),
    inclusive=_flag,
    paint=_choice(Literal["order", "nested"]),
)
_plain_normalization = _record(
    Normalization,
    kind=_choice(NormalizationKind),
    low=_number,
    high=_number,
    mean=_number,
    std=_positive,
    clip=_flag,
    mask=_choice(MaskKind),
    channels=_each(_whole, 0),
    over=_choice(Literal["channel", "all"]),
    fill=_number,
)


def _normalization(value: Any, where: str) -> Normalization:
    step = _plain_normalization(value, where)
    needed = {
        "window": ("low", "high"),
        "percentile": ("low", "high"),
        "nnunet_ct": ("low", "high", "mean", "std"),
        "linear": ("low", "high"),
        "tanh": ("high",),
    }
    for name in needed.get(step.kind, ()):
        if getattr(step, name) is None:
            raise _bad(where, f"of kind {step.kind} needs '{name}'")
    if step.kind in ("clip", "clip_percentile", "threshold") and step.low is None and step.high is None:
        raise _bad(where, f"of kind {step.kind} needs 'low' or 'high'")
    falling = step.kind == "linear" and step.low != step.high
    if step.low is not None and step.high is not None and step.low >= step.high and not falling:
        raise _bad(where, "needs 'low' below 'high'")
    if step.kind in ("percentile", "clip_percentile") and not ((step.low or 0) >= 0 and (step.high or 0) <= 100):
        raise _bad(where, "needs percentiles from 0 to 100")
    return step


_plain_spec = _record(
    ModelSpec,
    name=_name,
    version=_name,
    modality=_name,
    channels=_each(_channel, 1),
    geometry=_geometry,
    normalization=_each(_normalization, 0),
    window=_window,
    output=_output,
    labels=_each(_label, 1),
    license=_name,
    citation=_text,
    source_url=_text,
    title=_text,
    description=_text,
    crop=_crop,
    normalize_in=_choice(Literal["network", "input"]),
    cleaning=_each(_cleaning, 0),
    order=_each(_choice(Step), 0),
    fits=_each(_fit, 0),
)


def parse_spec(value: Any, where: str = "model.json") -> ModelSpec:
    """Parse and validate what model.json holds.

    Raises:
        PackageError: names the field, what is wrong with it and what it may be.
    """
    reader = _Reader(value, where)
    version = reader.get("schema_version", _text)
    if reader.get("schema", _text) != "medquant-model" or version not in SUPPORTED_SCHEMA_VERSIONS:
        raise PackageError(
            f"{where}: schema version {_shown(version)} is not understood by this MedQuantINT8 "
            f"(it knows {', '.join(SUPPORTED_SCHEMA_VERSIONS)}).",
            "Update MedQuantINT8, or export the package for this version.",
        )
    spec = _plain_spec({k: v for k, v in value.items() if k not in ("schema", "schema_version", "files")}, where)
    _check_consistency(spec, where)
    return spec


def _check_consistency(spec: ModelSpec, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", spec.name):
        raise _bad(f"{where}: 'name'", f"is {_shown(spec.name)} but may hold only letters, digits, '.', '_' and '-'")
    for what in ("value", "channel"):
        values = [getattr(label, what) for label in spec.labels]
        if len(set(values)) != len(values):
            raise _bad(f"{where}: 'labels'", f"use a {what} twice")
    # Regions may come with one for the background, which no label is for.
    first = all(label.channel > 0 for label in spec.labels)
    background = spec.output.activation == "softmax" or not spec.output.regions or first
    expected = range(1, len(spec.labels) + 1) if background else range(len(spec.labels))
    missing = sorted(set(expected) - {label.channel for label in spec.labels})
    if missing:
        raise _bad(f"{where}: 'labels'", f"has no label for output channel {missing[0]}")
    if spec.output.thresholds and len(spec.output.thresholds) != spec.output_channels:
        raise _bad(
            f"{where}: 'output'", f"has {len(spec.output.thresholds)} thresholds for {spec.output_channels} channels"
        )
    known = {label.value for label in spec.labels}
    if strangers := sorted({value for step in spec.cleaning for value in step.labels} - known):
        raise _bad(f"{where}: 'cleaning'", f"names the label {strangers[0]}, which the model does not have")
    if any(step.where == "network" for step in spec.cleaning) and spec.output.resample not in ("masks", "labels"):
        raise _bad(f"{where}: 'cleaning'", "may be in network space only where 'output' resamples masks or labels")
    if max(label.value for label in spec.labels) > 65535:
        raise _bad(f"{where}: 'labels'", "has a value above 65535")
    if strangers := sorted({n for step in spec.normalization for n in step.channels if n >= len(spec.channels)}):
        raise _bad(f"{where}: 'normalization'", f"names the channel {strangers[0]}, which the model does not have")
    geometry = spec.geometry
    if sum(value is not None for value in (geometry.spacing, geometry.size, geometry.longest)) > 1:
        raise _bad(f"{where}: 'geometry'", "may have 'spacing', 'size' or 'longest', not several of them")
    if geometry.interpolation in ("area", "exact") and geometry.resize != "torch":
        raise _bad(
            f"{where}: 'geometry'", f"has the interpolation {geometry.interpolation}, which needs 'resize' to be torch"
        )
    if strangers := sorted(n for n in spec.crop.channels if n >= len(spec.channels)):
        raise _bad(f"{where}: 'crop'", f"names the channel {strangers[0]}, which the model does not have")
    _check_order(spec, where)
    for name, sizes in (("window", spec.window.patch_size), ("geometry", spec.geometry.size or (1,))):
        if math.prod(n or 1 for n in sizes) > _MOST_VOXELS:
            raise _bad(f"{where}: '{name}'", f"has {' x '.join(map(str, sizes))} voxels, more than {_MOST_VOXELS}")
    for size, multiple in zip(spec.window.patch_size, spec.window.multiples, strict=True):
        if size % multiple:
            raise _bad(f"{where}: 'window'", f"has a patch size of {size}, which is no multiple of {multiple}")


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
            raise _bad(f"{where}: 'order'", f"must name {step!r} {count} time(s), as often as the model has it")
    if any(step.mask == "nonzero_filled" for step in spec.normalization):
        steps = list(spec.steps)
        count = max(n for n, step in enumerate(spec.normalization, 1) if step.mask == "nonzero_filled")
        done = [n for n, step in enumerate(steps) if step == "normalize"][count - 1]
        if "resample" in steps[:done]:
            raise _bad(f"{where}: 'normalization'", "with the mask nonzero_filled needs 'normalize_in' to be input")
    places = {step: spec.order.index(step) for step in spec.order}
    if "reorient" in places and "resample" in places:
        later = places["reorient"] > places["resample"]
        if later != (spec.geometry.reorient == "last"):
            raise _bad(f"{where}: 'order'", "must have 'reorient' and 'resample' as 'geometry.reorient' says")
