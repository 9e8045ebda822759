"""MONAI's transforms before the network as the fields of model.json. One that is not understood is an error that names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import PackageError
from ..model_spec import NATIVE, Crop, Geometry, Normalization
from .monai_arguments import enabled, first, transform_name, true

_LOADING = {
    "LoadImaged", "EnsureChannelFirstd", "AddChanneld", "EnsureTyped", "ToTensord", "CastToTyped", "ToDeviced", "Identityd",
    "DeleteItemsd", "SelectItemsd", "FromMetaTensord", "SqueezeDimd",
}  # fmt: skip
#: Padding up to the window, which the sliding window does; prompts of VISTA3D, which the exported graph holds.
_DONE_ELSEWHERE = {"SpatialPadd", "DivisiblePadd", "VistaPreTransformd"}
_INTERPOLATION = {"bilinear": "linear", "nearest": "nearest", "3": "bspline"}


@dataclass
class Preprocessing:
    """What the preprocessing says, in model.json's terms."""

    geometry: Geometry
    crop: Crop
    normalization: tuple[Normalization, ...]
    normalize_in: str
    notes: list[str] = field(default_factory=list)


def _triple(value: Any, where: str) -> tuple[float, float, float]:
    numbers = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(numbers, list | tuple) or len(numbers) != 3 or not all(isinstance(n, int | float) for n in numbers):
        raise PackageError(f"{where} is {value!r}; three numbers were expected.", "Correct the bundle's configuration.")
    a, b, c = (float(n) for n in numbers)
    return a, b, c


def translate_preprocessing(transforms: Sequence[Any]) -> Preprocessing:
    """Translate the transforms that run before the network.

    Raises:
        PackageError: a transform, or an order of transforms, that model.json cannot say; names it.
    """
    reader = _Reader()
    for transform in enabled(transforms):
        name = transform_name(transform)
        if name in _LOADING | _DONE_ELSEWHERE:
            continue
        handler = getattr(reader, name.lower(), None)
        if handler is None:
            raise PackageError(
                f"The bundle's preprocessing uses {name}, which is not understood.",
                "Describe the preprocessing by hand: medquant import onnx, or give --spec.",
            )
        handler(transform)
    return reader.result()


class _Reader:
    """Reads transforms in their order; a method a transform, in lower case."""

    def __init__(self) -> None:
        self._orientation = NATIVE
        self._spacing: tuple[float, float, float] | None = None
        self._size: tuple[int, int, int] | None = None
        self._interpolation, self._tolerance, self._reorient = "linear", 0.001, "first"
        self._crop, self._steps = Crop(), list[Normalization]()
        self._intensity_first: bool | None = None
        self.notes: list[str] = []

    def result(self) -> Preprocessing:
        geometry = Geometry(
            "IJK",
            self._orientation,
            self._spacing,
            self._size,
            "centers",
            self._interpolation,  # type: ignore[arg-type]
            self._tolerance,
            self._reorient,  # type: ignore[arg-type]
        )
        where = "input" if self._intensity_first else "network"
        return Preprocessing(geometry, self._crop, tuple(self._steps), where, self.notes)

    @property
    def _resampled(self) -> bool:
        return self._spacing is not None or self._size is not None

    def _step(self, *steps: Normalization) -> None:
        if self._resampled and self._intensity_first:
            raise PackageError(
                "The bundle changes intensities both before and after resampling, which is not understood.",
                "Give a description with --spec.",
            )
        if not self._resampled:
            self._intensity_first = True
        self._steps.extend(steps)

    def orientationd(self, t: dict[str, Any]) -> None:
        codes = t.get("axcodes", "RAS")
        self._orientation = "RAS" if true(t.get("as_closest_canonical")) else "".join(codes)
        self._reorient = "last" if self._resampled else "first"

    def spacingd(self, t: dict[str, Any]) -> None:
        spacing = _triple(t.get("pixdim"), "Spacingd's pixdim")
        self._spacing = spacing
        mode = str(first(t.get("mode", "bilinear")))
        if mode not in _INTERPOLATION:
            raise PackageError(f"Spacingd's mode is {mode!r}, which is not understood.", "Give a description with --spec.")
        self._interpolation = _INTERPOLATION[mode]
        if t.get("min_pixdim") is not None:
            low = _triple(t["min_pixdim"], "Spacingd's min_pixdim")
            self._tolerance = max(1 - a / b for a, b in zip(low, spacing, strict=True))

    def resized(self, t: dict[str, Any]) -> None:
        a, b, c = _triple(t.get("spatial_size"), "Resized's spatial_size")
        self._size = (int(a), int(b), int(c))

    def scaleintensityranged(self, t: dict[str, Any]) -> None:
        low, high = t.get("b_min"), t.get("b_max")
        self._step(Normalization("window", low=float(t["a_min"]), high=float(t["a_max"]), clip=true(t.get("clip"))))
        self._to(low, high)

    def scaleintensityrangepercentilesd(self, t: dict[str, Any]) -> None:
        if true(t.get("relative")):
            raise PackageError("ScaleIntensityRangePercentilesd with 'relative' is not understood.", "Give a description with --spec.")
        self._step(Normalization("percentile", low=float(t["lower"]), high=float(t["upper"]), clip=true(t.get("clip"))))
        self._to(t.get("b_min"), t.get("b_max"))

    def scaleintensityd(self, t: dict[str, Any]) -> None:
        if t.get("factor") is not None:
            raise PackageError("ScaleIntensityd with a factor is not understood.", "Give a description with --spec.")
        self._step(Normalization("minmax"))
        self._to(t.get("minv", 0.0), t.get("maxv", 1.0))

    def _to(self, low: Any, high: Any) -> None:
        if low is not None and high is not None and (float(low), float(high)) != (0.0, 1.0):
            self._step(Normalization("linear", low=float(low), high=float(high)))

    def normalizeintensityd(self, t: dict[str, Any]) -> None:
        mean, std = t.get("subtrahend"), t.get("divisor")
        if mean is None and std is None:
            self._step(Normalization("zscore", mask="nonzero" if true(t.get("nonzero")) else "all"))
            return
        if not isinstance(mean, int | float) or not isinstance(std, int | float) or true(t.get("nonzero")):
            raise PackageError(
                "NormalizeIntensityd with a subtrahend and divisor for each channel is not understood.",
                "Give a description with --spec.",
            )
        self._step(Normalization("linear", low=-mean / std, high=(1 - mean) / std))

    def cropforegroundd(self, t: dict[str, Any]) -> None:
        margin = int(first(t.get("margin", 0)))
        threshold = 0.0
        if self._steps:
            kinds = [step.kind for step in self._steps]
            if kinds not in (["window"], ["window", "linear"]):
                raise PackageError(
                    f"The bundle crops the foreground of an image that is normalised by {self._steps[-1].kind}, which is not understood.",
                    "Give a description with --spec.",
                )
            threshold = _raw_zero(self._steps)
        self._crop = Crop("threshold", threshold, margin)
        if self._resampled and margin:
            self.notes.append("the bundle crops after resampling; here the margin counts voxels of the scan")


def _raw_zero(steps: list[Normalization]) -> float:
    """The scan's intensity that a window, and a linear step after it, bring to 0."""
    window = steps[0]
    assert window.low is not None and window.high is not None
    share = 0.0
    if len(steps) > 1:
        low, high = steps[1].low or 0.0, steps[1].high or 0.0
        share = -low / (high - low)
    return window.low + share * (window.high - window.low)


