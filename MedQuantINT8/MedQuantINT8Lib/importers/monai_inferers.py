"""MONAI's inferers as the window of model.json."""

from __future__ import annotations

from typing import Any

from ..errors import PackageError
from ..model_spec import Window
from .monai_arguments import ADVICE, Arguments

_SLIDING = {"SlidingWindowInferer", "SlidingWindowInfererAdapt"}
_PADDING = {"constant": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}
#: How much is computed at once, and where; none of it changes the result.
_RUNNING = ("sw_batch_size", "sw_device", "device", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps", "buffer_dim")
#: A patch for networks that see the whole volume: what is exported, and what calibration draws.
_WHOLE = 96


def translate_inferer(inferer: Any, multiples: tuple[int, int, int]) -> Window:
    """The window of an inferer's resolved description.

    Args:
        multiples: what a patch's sides must be multiples of, as far as the network tells.

    Raises:
        PackageError: an inferer, an argument or a value that a window cannot say; named.
    """
    if not isinstance(inferer, dict) or not isinstance(inferer.get("_target_"), str):
        raise PackageError(f"The bundle's inferer is {str(inferer)[:80]!r}, not a description.", ADVICE)
    given = Arguments(inferer)
    if given.name == "SimpleInferer":
        given.finish()
        return _whole(multiples)
    if given.name == "Vista3dInferer":
        given.ignore("sw_batch_size", "use_point_window", "use_cfp")
        window = _sliding(given, multiples, blend="gaussian", overlap=given.get("overlap"))
    elif given.name in _SLIDING:
        blend = str(given.get("mode", "constant"))
        if blend not in ("gaussian", "constant"):
            raise given.refusal("mode", blend)
        given.ignore(*_RUNNING)
        given.only("with_coord", False)
        window = _sliding(given, multiples, blend=blend, overlap=given.get("overlap", 0.25))
    else:
        raise PackageError(f"The bundle's inferer is {given.name}, which is not understood.", ADVICE)
    given.finish()
    return window


def _sliding(given: Arguments, multiples: tuple[int, int, int], *, blend: str, overlap: Any) -> Window:
    sizes = _by_axis(given, "roi_size", given.get("roi_size"), lambda n: n is None or (isinstance(n, int) and not isinstance(n, bool)))
    overlaps = _by_axis(given, "overlap", overlap, lambda n: _is_number(n) and 0 <= n < 1)
    sigma = _by_axis(given, "sigma_scale", given.get("sigma_scale", 0.125), lambda n: _is_number(n) and n > 0)
    padding, value = str(given.get("padding_mode", "constant")), given.get("cval", 0.0)
    if padding not in _PADDING:
        raise given.refusal("padding_mode", padding)
    if not _is_number(value):
        raise given.refusal("cval", value)
    open_axes = [size is None or size <= 0 for size in sizes]
    if all(open_axes):
        return _whole(multiples)
    if any(open_axes):
        # Windows have one size for all scans: engines are built for it.
        raise given.refusal("roi_size", list(sizes))
    patch = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
    fitting = all(side % m == 0 for side, m in zip(patch, multiples, strict=True))
    same = len(set(overlaps)) == 1
    return Window(
        patch,
        multiples if fitting else patch,
        max(map(float, overlaps)),
        blend=blend,  # type: ignore[arg-type]
        pad_value=float(value),
        padding=_PADDING[padding],  # type: ignore[arg-type]
        overlaps=None if same else (float(overlaps[0]), float(overlaps[1]), float(overlaps[2])),
        sigma=(float(sigma[0]), float(sigma[1]), float(sigma[2])),
    )


def _whole(multiples: tuple[int, int, int]) -> Window:
    a, b, c = (-(-_WHOLE // m) * m for m in multiples)
    return Window((a, b, c), multiples, 0.0, whole_volume=True, blend="constant")


def _by_axis(given: Arguments, name: str, value: Any, fits: Any) -> tuple[Any, Any, Any]:
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(fits(item) for item in values):
        raise given.refusal(name, value)
    return values[0], values[1], values[2]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
