"""The translation of MONAI's inferers to the window of model.json."""

from __future__ import annotations

from typing import Any

from ..errors import PackageError
from ..models.spec import Window
from .monai_arguments import ADVICE, Arguments
from .slices import with_slice_axis

_SLIDING = {"SlidingWindowInferer", "SlidingWindowInfererAdapt"}
_PADDING = {"constant": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}
#: How much is computed at once, and where; none of it changes the result.
_RUNNING = (
    "sw_batch_size",
    "sw_device",
    "device",
    "progress",
    "cache_roi_weight_map",
    "cpu_thresh",
    "buffer_steps",
    "buffer_dim",
)
#: A patch for networks that see the whole volume: what is exported, and what calibration draws.
_WHOLE = 96


def slice_axis(inferer: Any) -> int | None:
    """Return the tensor's spatial axis across which an inferer's resolved description goes slice by slice; None for one of three axes.

    Raises:
        PackageError: The inferer goes across an axis that a scan does not have.
    """
    if not isinstance(inferer, dict) or str(inferer.get("_target_")).rpartition(".")[2] != "SliceInferer":
        return None
    axis = inferer.get("spatial_dim", 0)
    if isinstance(axis, bool) or not isinstance(axis, int) or axis not in (0, 1, 2):
        raise Arguments(inferer).refusal("spatial_dim", axis)
    return axis


def translate_inferer(inferer: Any, multiples: tuple[int, ...]) -> Window:
    """Return the window of an inferer's resolved description; one that goes slice by slice is one voxel long across the slices.

    Args:
        multiples: what a patch's sides must be multiples of, as far as the network tells: two for a network of slices, else three.

    Raises:
        PackageError: An inferer, an argument or a value, which the message names, has no form in a window.
    """
    if not isinstance(inferer, dict) or not isinstance(inferer.get("_target_"), str):
        raise PackageError(f"The bundle's inferer is {str(inferer)[:80]!r}, not a description.", ADVICE)
    arguments = Arguments(inferer)
    axis = slice_axis(inferer)
    if len(multiples) != (3 if axis is None else 2):
        does = "runs windows of three axes" if axis is None else "runs single slices"
        raise PackageError(
            f"The bundle's inferer {arguments.name} {does}, and its network has {len(multiples)} spatial axes.", ADVICE
        )
    if axis is not None:
        multiples = with_slice_axis([*multiples], axis, 1)
    a, b, c = multiples
    if arguments.name == "SimpleInferer":
        arguments.finish()
        return _whole((a, b, c))
    if arguments.name == "Vista3dInferer":
        arguments.ignore("sw_batch_size", "use_point_window", "use_cfp")
        window = _sliding(arguments, (a, b, c), blend="gaussian", overlap=arguments.get("overlap"))
    elif arguments.name in _SLIDING or axis is not None:
        blend = str(arguments.get("mode", "constant"))
        if blend not in ("gaussian", "constant"):
            raise arguments.refusal("mode", blend)
        arguments.ignore(*_RUNNING)
        arguments.only("with_coord", False)
        window = _sliding(arguments, (a, b, c), blend=blend, overlap=arguments.get("overlap", 0.25), across=axis)
    else:
        raise PackageError(f"The bundle's inferer is {arguments.name}, which is not understood.", ADVICE)
    arguments.finish()
    return window


def _sliding(
    arguments: Arguments, multiples: tuple[int, int, int], *, blend: str, overlap: Any, across: int | None = None
) -> Window:
    if across is None:
        sizes = _by_axis(
            arguments,
            "roi_size",
            arguments.get("roi_size"),
            lambda n: n is None or (isinstance(n, int) and not isinstance(n, bool)),
        )
    else:
        arguments.get("spatial_dim", 0)
        sizes = _of_slices(arguments, across)
    overlaps = _by_axis(arguments, "overlap", overlap, lambda n: _is_number(n) and 0 <= n < 1)
    sigma = _by_axis(arguments, "sigma_scale", arguments.get("sigma_scale", 0.125), lambda n: _is_number(n) and n > 0)
    padding, value = str(arguments.get("padding_mode", "constant")), arguments.get("cval", 0.0)
    if padding not in _PADDING:
        raise arguments.refusal("padding_mode", padding)
    if not _is_number(value):
        raise arguments.refusal("cval", value)
    open_axes = [size is None or size <= 0 for size in sizes]
    if all(open_axes):
        return _whole(multiples)
    if any(open_axes):
        # Windows have one size for all scans: engines are built for it.
        raise arguments.refusal("roi_size", list(sizes))
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


def _of_slices(arguments: Arguments, across: int) -> tuple[int, int, int]:
    """Return the window of an inferer of slices, whose roi_size has the two sides of a slice."""
    roi = arguments.get("roi_size")
    # Windows have one size for all scans, so that a side that a scan would decide (-1) is refused here as well.
    whole = isinstance(roi, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in roi)
    if not whole or len(roi) != 2:
        raise arguments.refusal("roi_size", roi)
    return with_slice_axis(list(roi), across, 1)


def _whole(multiples: tuple[int, int, int]) -> Window:
    a, b, c = (-(-_WHOLE // m) * m for m in multiples)
    return Window((a, b, c), multiples, 0.0, whole_volume=True, blend="constant")


def _by_axis(arguments: Arguments, name: str, value: Any, fits: Any) -> tuple[Any, Any, Any]:
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(fits(item) for item in values):
        raise arguments.refusal(name, value)
    return values[0], values[1], values[2]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
