"""The translation of MONAI's intensity transforms to steps of model.json, argument by argument.

Arguments and defaults are those of MONAI 1.3 to 1.6 (``monai.transforms.intensity``).
"""

from __future__ import annotations

import ast
from typing import Any

from ..models.spec import Normalization
from .expression_evaluator import Unresolved
from .lambdas import only_argument, parsed_function
from .monai_arguments import Arguments

#: Types of whole numbers that hold every gray value of a scan: only the fraction is lost.
_WHOLE = ("int16", "int32", "int64", "short", "int", "long")
#: Functions of longer text are not read.
_LONGEST = 500
_FLOAT = ("float32", "float64", "float", "double")


def normalizeintensityd(t: Arguments) -> list[Any]:
    _plain(t)
    mask = "nonzero" if t.flag("nonzero") else "all"
    mean, std = t.get("subtrahend"), t.get("divisor")
    by_channel = t.flag("channel_wise")
    if by_channel and (mean is not None or std is not None):
        means, stds = _each(t, "subtrahend"), _each(t, "divisor")
        count = len(means or stds)
        if (means and len(means) != count) or (stds and len(stds) != count):
            raise t.refusal("divisor", std)
        return [_zscore(t, mask, means[n] if means else None, stds[n] if stds else None, (n,)) for n in range(count)]
    for name, value in (("subtrahend", mean), ("divisor", std)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise t.refusal(name, value)
    return [_zscore(t, mask, mean, std, (), "channel" if by_channel else "all")]


def _zscore(
    t: Arguments, mask: Any, mean: Any, std: Any, channels: tuple[int, ...], over: Any = "channel"
) -> Normalization:
    if std is not None and std < 0:
        raise t.refusal("divisor", std)
    divisor = None if std is None else float(std) or 1.0
    if mean is not None and divisor is not None and mask == "all":
        return Normalization("linear", low=-mean / divisor, high=(1 - mean) / divisor, channels=channels)
    return Normalization(
        "zscore", mean=None if mean is None else float(mean), std=divisor, mask=mask, channels=channels, over=over
    )


def _each(t: Arguments, name: str) -> list[float]:
    value = t.get(name)
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(
        isinstance(n, int | float) and not isinstance(n, bool) for n in value
    ):
        raise t.refusal(name, value)
    return [float(n) for n in value]


def scaleintensityd(t: Arguments) -> list[Any]:
    _plain(t)
    over: Any = "channel" if t.flag("channel_wise") else "all"
    low, high = t.get("minv", 0.0), t.get("maxv", 1.0)
    factor = t.get("factor")
    if low is None and high is None:
        return [] if factor is None else [Normalization("linear", low=0.0, high=1 + t.number("factor"))]
    steps = [Normalization("minmax", over=over)]
    return steps if low is None or high is None else steps + _rescale(t.number("minv", 0.0), t.number("maxv", 1.0))


def _rescale(low: float, high: float) -> list[Normalization]:
    return [] if (low, high) == (0.0, 1.0) else [Normalization("linear", low=low, high=high)]


def scaleintensityranged(t: Arguments) -> list[Any]:
    _plain(t)
    a, b = t.number("a_min"), t.number("a_max")
    if a == b:
        raise t.refusal("a_max", b)
    low, high, clip = _ends(t)
    if a < b:
        # Clipping in between is the same as at the end, and what packages have said so far.
        whole = clip and low is not None and high is not None
        steps = [Normalization("window", low=a, high=b, clip=whole)]
    else:
        whole, steps = False, [Normalization("linear", low=-a / (b - a), high=(1 - a) / (b - a))]
    if low is not None and high is not None:
        steps += _rescale(low, high)
    return steps + ([] if whole or not clip else _clip(low, high))


def _ends(t: Arguments) -> tuple[float | None, float | None, bool]:
    low, high, clip = t.get("b_min"), t.get("b_max"), t.flag("clip")
    low = None if low is None else t.number("b_min")
    high = None if high is None else t.number("b_max")
    if clip and low is not None and high is not None and low >= high:
        raise t.refusal("b_min", low)
    return low, high, clip


def _clip(low: float | None, high: float | None) -> list[Normalization]:
    return [] if low is None and high is None else [Normalization("clip", low=low, high=high)]


def scaleintensityrangepercentilesd(t: Arguments) -> list[Any]:
    _plain(t)
    over: Any = "channel" if t.flag("channel_wise") else "all"
    lower, upper = t.number("lower"), t.number("upper")
    if not 0 <= lower < upper <= 100:
        raise t.refusal("upper", upper)
    low, high, clip = _ends(t)
    if t.flag("relative"):
        if low is None or high is None:
            raise t.refusal("relative", True)
        low, high = low + (high - low) * lower / 100, low + (high - low) * upper / 100
    whole = clip and low is not None and high is not None
    steps = [Normalization("percentile", low=lower, high=upper, clip=whole, over=over)]
    if low is not None and high is not None:
        steps += _rescale(low, high)
    return steps + ([] if whole or not clip else _clip(low, high))


def clipintensitypercentilesd(t: Arguments) -> list[Any]:
    _plain(t)
    t.only("sharpness_factor")
    t.ignore("return_clipping_values")
    over: Any = "channel" if t.flag("channel_wise") else "all"
    low = t.number("lower") if "lower" in t else None
    high = t.number("upper") if "upper" in t else None
    if low is not None and high is not None and low >= high:
        raise t.refusal("upper", high)
    return [Normalization("clip_percentile", low=low, high=high, over=over)]


def thresholdintensityd(t: Arguments) -> list[Any]:
    limit = t.number("threshold")
    fill = t.number("cval", 0.0)
    return [
        Normalization("threshold", low=limit, fill=fill)
        if t.flag("above", True)
        else Normalization("threshold", high=limit, fill=fill)
    ]


def shiftintensityd(t: Arguments) -> list[Any]:
    t.only("safe", False)
    t.only("factor_key")
    t.ignore("meta_keys", "meta_key_postfix")
    offset = t.number("offset")
    return [Normalization("linear", low=offset, high=1 + offset)]


def cast(t: Arguments) -> list[Any]:
    """Translate the type that EnsureTyped, CastToTyped, ToTensord and LoadImaged give voxels from here on."""
    name = t.dtype("dtype")
    if name in _FLOAT:
        return []
    if name in _WHOLE:
        return [Normalization("truncate")]
    raise t.refusal("dtype", t.get("dtype"))


def lambdad(t: Arguments) -> list[Any]:
    """Translate a plain function: a sum, a product, clipping, or nothing."""
    function = t.of_key("func") if not isinstance(t.get("func"), Unresolved) else t.get("func")
    t.only("inv_func")
    t.only("overwrite", True)
    t.ignore("track_meta")
    text = function.text if isinstance(function, Unresolved) else function
    steps = _parse_function(text.lstrip("$ ").strip()) if isinstance(text, str) else None
    if steps is None:
        raise t.refusal("func", function)
    return steps


def is_plain_function(text: str) -> bool:
    """Return whether a function's text holds nothing but its variable, numbers, arithmetic and clamping: running it does no harm."""
    return _parse_function(text) is not None


def _parse_function(text: str) -> list[Normalization] | None:
    tree = parsed_function(text) if len(text) <= _LONGEST else None
    if not isinstance(tree, ast.Lambda) or (argument := only_argument(tree)) is None:
        return None
    return _plain_function(tree.body, argument)


def _plain_function(body: ast.AST, name: str) -> list[Normalization] | None:
    if (line := _line(body, name)) is not None:
        scale, shift = line
        if scale == 0:
            return None
        return [] if (scale, shift) == (1.0, 0.0) else [Normalization("linear", low=shift, high=scale + shift)]
    if isinstance(body, ast.Call) and isinstance(body.func, ast.Attribute):
        owner, arguments = body.func.value, list(body.args)
        if body.func.attr in ("float", "contiguous", "clone", "double") and not arguments and not body.keywords:
            return _plain_function(owner, name)
        if body.func.attr not in ("clamp", "clip"):
            return None
        if isinstance(owner, ast.Name) and owner.id in ("torch", "np", "numpy") and arguments:
            owner = arguments.pop(0)
        ends = {"min": None, "max": None, **dict(zip(("min", "max"), map(_constant, arguments), strict=False))}
        for keyword in body.keywords:
            if keyword.arg not in ("min", "max", "a_min", "a_max"):
                return None
            ends[keyword.arg.removeprefix("a_")] = _constant(keyword.value)
        before = _plain_function(owner, name)
        if before is None or (ends["min"] is None and ends["max"] is None) or len(arguments) > 2:
            return None
        low, high = ends["min"], ends["max"]
        if low is not None and high is not None and low >= high:
            return None
        return before + _clip(low, high)
    return None


def _constant(node: ast.AST) -> float | None:
    try:
        value = ast.literal_eval(node)  # type: ignore[arg-type]
    except ValueError:
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _line(node: ast.AST, name: str) -> tuple[float, float] | None:
    """Return an expression as scale and shift of its variable; None if it is no straight line."""
    if isinstance(node, ast.Name):
        return (1.0, 0.0) if node.id == name else None
    if (number := _constant(node)) is not None:
        return 0.0, number
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        line = _line(node.operand, name)
        return None if line is None else (-line[0], -line[1])
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _line(node.left, name), _line(node.right, name)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Add):
        return left[0] + right[0], left[1] + right[1]
    if isinstance(node.op, ast.Sub):
        return left[0] - right[0], left[1] - right[1]
    if isinstance(node.op, ast.Mult) and 0.0 in (left[0], right[0]):
        return left[0] * right[1] + right[0] * left[1], left[1] * right[1]
    if isinstance(node.op, ast.Div) and right[0] == 0.0 and right[1] != 0.0:
        return left[0] / right[1], left[1] / right[1]
    return None


def _plain(t: Arguments) -> None:
    """Refuse a type of the result other than floating point."""
    if t.dtype("dtype") not in _FLOAT:
        raise t.refusal("dtype", t.get("dtype"))


HANDLERS = {
    "NormalizeIntensityd": normalizeintensityd,
    "ScaleIntensityd": scaleintensityd,
    "ScaleIntensityRanged": scaleintensityranged,
    "ScaleIntensityRangePercentilesd": scaleintensityrangepercentilesd,
    "ClipIntensityPercentilesd": clipintensitypercentilesd,
    "ThresholdIntensityd": thresholdintensityd,
    "ShiftIntensityd": shiftintensityd,
    "Lambdad": lambdad,
}
