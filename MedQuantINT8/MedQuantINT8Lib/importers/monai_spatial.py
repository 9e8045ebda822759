"""The translation of MONAI's spatial transforms to steps of model.json: orientation, resampling, crops and paddings, argument by argument.

Arguments and defaults are those of MONAI 1.3 to 1.6 (``monai.transforms.spatial`` and ``croppad``).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from typing import Any

from ..models.spec import NATIVE, Crop, Fit, Geometry
from .expression_evaluator import Unresolved
from .lambdas import only_argument, parsed_function
from .monai_arguments import Arguments

_SPLINES = {
    "bilinear": "linear",
    "trilinear": "linear",
    "1": "linear",
    "nearest": "nearest",
    "0": "nearest",
    "3": "bspline",
}
_RESIZES = {
    "area": "area",
    "nearest": "nearest",
    "nearest-exact": "exact",
    "linear": "linear",
    "bilinear": "linear",
    "trilinear": "linear",
}
_PADS = {
    "constant": "constant",
    "edge": "edge",
    "replicate": "edge",
    "reflect": "reflect",
    "wrap": "wrap",
    "circular": "wrap",
}
_COMPARISONS = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<=", ast.NotEq: "!="}


@dataclass(frozen=True)
class Orient:
    """The step that turns the volume by flips and swaps to the axis codes ``axcodes``."""

    axcodes: str


@dataclass(frozen=True)
class Resample:
    """The step that resamples to the spacing or size of ``geometry`` (its orientation is not looked at)."""

    geometry: Geometry


def orientationd(t: Arguments) -> list[Any]:
    labels = t.get("labels")
    if labels is not None and [list(pair) for pair in labels] != [["L", "R"], ["P", "A"], ["I", "S"]]:
        raise t.refusal("labels", labels)
    codes = t.get("axcodes")
    if t.flag("as_closest_canonical"):
        return [Orient("RAS")]
    if not isinstance(codes, str | list | tuple):
        raise t.refusal("axcodes", codes)
    return [Orient("".join(str(code) for code in codes))]


def spacingd(t: Arguments) -> list[Any]:
    spacing = _read_spacing(t, "pixdim")
    low, high = _limits(t, "min_pixdim"), _limits(t, "max_pixdim")
    mode = str(t.of_key("mode", "bilinear")).lower()
    if mode not in _SPLINES:
        raise t.refusal("mode", mode)
    padding = str(t.of_key("padding_mode", "border")).lower()
    if padding not in ("border", "zeros") or (padding == "zeros" and mode.isdigit()):
        raise t.refusal("padding_mode", padding)
    t.only("recompute_affine", False)
    # grid_sample and affine_grid take the same value of align_corners: where voxels are read does not depend on it.
    t.flag("align_corners")
    t.ignore("ensure_same_shape")
    _float(t, "dtype")
    return [
        Resample(
            Geometry(
                orientation=NATIVE,
                spacing=spacing,
                anchor="monai_extent" if t.flag("scale_extent") else "monai",
                interpolation=_SPLINES[mode],  # type: ignore[arg-type]
                tolerance=0.0,
                tolerance_mm=0.001,
                min_spacing=low,
                max_spacing=high,
                diagonal=t.flag("diagonal"),
                outside="zeros" if padding == "zeros" else "border",
            )
        )
    ]


def resized(t: Arguments) -> list[Any]:
    mode = str(t.of_key("mode", "area")).lower()
    if mode not in _RESIZES:
        raise t.refusal("mode", mode)
    way = _RESIZES[mode]
    corners = t.of_key("align_corners")
    if corners is not None and way != "linear":
        raise t.refusal("align_corners", corners)
    t.only("anti_aliasing_sigma")
    _float(t, "dtype")
    geometry = Geometry(
        orientation=NATIVE,
        interpolation=way,  # type: ignore[arg-type]
        anchor="corners" if corners is not None and t.flag("align_corners") else "edges",
        resize="torch",
        anti_aliasing=t.flag("anti_aliasing"),
    )
    value = t.get("spatial_size")
    if str(t.get("size_mode", "all")) == "longest":
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise t.refusal("spatial_size", value)
        return [Resample(replace(geometry, longest=value))]
    t.only("size_mode", "all")
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise t.refusal("spatial_size", value)
    return [Resample(replace(geometry, size=_sizes(t, "spatial_size")))]


def cropforegroundd(t: Arguments) -> list[Any]:
    kind, comparison, threshold = _selection(t)
    margins, multiple = _counts(t, "margin", 0, 0), _counts(t, "k_divisible", 1, 1)
    cut = t.flag("allow_smaller")
    mode = str(t.of_key("mode", "constant")).lower()
    may_pad = (any(margins) and not cut) or any(k > 1 for k in multiple)
    value = t.get("value", t.get("constant_values", 0.0))
    if may_pad and (mode not in _PADS or not isinstance(value, int | float)):
        raise t.refusal("mode", mode)
    indices = t.get("channel_indices")
    channels = (
        () if indices is None else tuple(int(c) for c in (indices if isinstance(indices, list | tuple) else [indices]))
    )
    if any(c < 0 for c in channels):
        raise t.refusal("channel_indices", indices)
    t.ignore("source_key", "start_coord_key", "end_coord_key", "return_coords")
    same = len(set(margins)) == 1
    return [
        Crop(
            kind,  # type: ignore[arg-type]
            threshold,
            margins[0] if same else 0,
            comparison=comparison,  # type: ignore[arg-type]
            margins=None if same else margins,
            multiples=multiple,
            channels=channels,
            beyond="pad" if any(margins) and not cut else "cut",
            padding=_PADS[mode] if may_pad else "constant",  # type: ignore[arg-type]
            pad_value=float(value) if may_pad else 0.0,
        )
    ]


def centerspatialcropd(t: Arguments) -> list[Any]:
    return [Fit("crop", _sizes(t, "roi_size"))]


def centerscalecropd(t: Arguments) -> list[Any]:
    value = t.get("roi_scale")
    shares = value if isinstance(value, list | tuple) else [value] * 3
    if len(shares) != 3 or not all(isinstance(s, int | float) and not isinstance(s, bool) for s in shares):
        raise t.refusal("roi_scale", value)
    a, b, c = (float(s) if s > 0 else 1.0 for s in shares)
    return [Fit("crop_share", share=(a, b, c))]


def spatialpadd(t: Arguments) -> list[Any]:
    return [_pad(t, "pad", "spatial_size")]


def divisiblepadd(t: Arguments) -> list[Any]:
    return [_pad(t, "pad_multiple", "k")]


def resizewithpadorcropd(t: Arguments) -> list[Any]:
    return [Fit("crop", _sizes(t, "spatial_size")), _pad(t, "pad", "spatial_size")]


def _pad(t: Arguments, kind: Any, name: str) -> Fit:
    mode = str(t.of_key("mode", "constant")).lower()
    value = t.get("value", t.get("constant_values", 0.0))
    method = str(t.of_key("method", "symmetric")).lower()
    if mode not in _PADS or not isinstance(value, int | float):
        raise t.refusal("mode", mode)
    if method not in ("symmetric", "end"):
        raise t.refusal("method", method)
    return Fit(kind, _sizes(t, name), padding=_PADS[mode], pad_value=float(value), at_end=method == "end")  # type: ignore[arg-type]


def _selection(t: Arguments) -> tuple[str, str, float]:
    """Kind, comparison and threshold of the function that chooses foreground; what is not a plain comparison is refused."""
    function = t.get("select_fn")
    if function is None:
        return "threshold", ">", 0.0
    text = function.text if isinstance(function, Unresolved) else function
    if isinstance(text, str):
        plain = text.lstrip("$ ").strip()
        if plain.rsplit(".", 1)[-1] == "is_positive":
            return "threshold", ">", 0.0
        if (comparison := _comparison(plain)) is not None:
            return ("nonzero" if comparison == ("!=", 0.0) else "threshold", *comparison)
    raise t.refusal("select_fn", function)


def is_plain_comparison(text: str) -> bool:
    """Return whether a function's text holds nothing but a comparison of its variable with a number: running it does no harm."""
    return _comparison(text) is not None


def _comparison(text: str) -> tuple[str, float] | None:
    """Return the comparison and number of a function's text: ">" and -900 for ``lambda x: x > -900``; None for another text."""
    tree = parsed_function(text[:500])
    if not (isinstance(tree, ast.Lambda) and isinstance(tree.body, ast.Compare)):
        return None
    body, argument = tree.body, only_argument(tree)
    if not (isinstance(body.left, ast.Name) and body.left.id == argument and len(body.ops) == 1):
        return None
    comparison = _COMPARISONS.get(type(body.ops[0]))
    try:
        number = ast.literal_eval(body.comparators[0])
    except ValueError:
        return None
    if comparison is None or isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return comparison, float(number)


def _read_spacing(t: Arguments, name: str) -> tuple[float | None, float | None, float | None]:
    """Three spacings; a shorter list goes on with its last; what is not above 0 keeps the scan's own."""
    value = t.get(name)
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    if not numbers or not all(n is None or (isinstance(n, int | float) and not isinstance(n, bool)) for n in numbers):
        raise t.refusal(name, value)
    a, b, c = (float(n) if n is not None and n > 0 else None for n in (*numbers, *[numbers[-1]] * 3)[:3])
    return a, b, c


def _limits(t: Arguments, name: str) -> tuple[float | None, float | None, float | None] | None:
    """Three limits of spacing; a shorter list says nothing of the axes that it leaves out."""
    if name not in t:
        return None
    value = t.get(name)
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    if not all(n is None or (isinstance(n, int | float) and not isinstance(n, bool) and n >= 0) for n in numbers):
        raise t.refusal(name, value)
    a, b, c = (None if n is None else float(n) for n in (*numbers, None, None, None)[:3])
    return a, b, c


def _sizes(t: Arguments, name: str) -> tuple[int | None, int | None, int | None]:
    """Three numbers of voxels, or one for all axes; what is not above 0 keeps the volume's own."""
    value = t.get(name)
    numbers = list(value) if isinstance(value, list | tuple) else [value] * 3
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    if len(numbers) != 3 or not all(n is None or (isinstance(n, int) and not isinstance(n, bool)) for n in numbers):
        raise t.refusal(name, value)
    a, b, c = (int(n) if n is not None and n > 0 else None for n in numbers)
    return a, b, c


def _counts(t: Arguments, name: str, default: int, least: int) -> tuple[int, int, int]:
    value = t.get(name, default)
    numbers = list(value) if isinstance(value, list | tuple) else [value] * 3
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    if len(numbers) != 3 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise t.refusal(name, value)
    a, b, c = (max(int(n), least) for n in numbers)
    return a, b, c


def _float(t: Arguments, name: str) -> None:
    """Refuse a type of numbers other than floating point of 32 bits or more."""
    if t.dtype(name) not in ("float32", "float64"):
        raise t.refusal(name, t.get(name))


HANDLERS = {
    "Orientationd": orientationd,
    "Spacingd": spacingd,
    "Resized": resized,
    "CropForegroundd": cropforegroundd,
    "CenterSpatialCropd": centerspatialcropd,
    "CenterScaleCropd": centerscalecropd,
    "SpatialPadd": spatialpadd,
    "DivisiblePadd": divisiblepadd,
    "ResizeWithPadOrCropd": resizewithpadorcropd,
}
