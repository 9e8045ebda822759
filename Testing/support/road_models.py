"""Models whose scores go to the scan's grid in every way that there is, for the GPU's road and its checks."""

from __future__ import annotations

from dataclasses import replace

from MedQuantINT8Lib.models.spec import Crop, Fit, Geometry, Label, ModelSpec, Normalization, Output, Window
from scans import spec_with

_NNUNET = {"anchor": "edges", "interpolation": "nnunet"}
_WINDOW = Window((24, 24, 24), overlap=0.5)
_CT = Normalization("window", low=-500.0, high=900.0)


def _labels(count: int, *, first: int = 1) -> tuple[Label, ...]:
    """``count`` structures with values other than their channels."""
    return tuple(Label(7 * n + 3, f"s{n}", n + first) for n in range(count))


_REGIONS = {"labels": _labels(4, first=0), "output": Output("sigmoid", resample="probabilities")}
ROADS = {
    "linear by centers": {"geometry": Geometry("KJI", "LPS", spacing=(3.0, 1.1, 2.0))},
    "MONAI's": {"geometry": Geometry("IJK", "RAS", spacing=(2.4, 1.3, 3.0), anchor="monai")},
    "torch": {"geometry": Geometry("KJI", "RAS", size=(30, 41, 37), resize="torch")},
    "nnU-Net": {"geometry": Geometry("KJI", "native", spacing=(2.5, 2.0, 1.7), **_NNUNET)},
    "nnU-Net by slices": {"geometry": Geometry("KJI", "native", spacing=(9.0, 1.5, 1.7), **_NNUNET)},
    "turned last": {"geometry": Geometry("KJI", "RAS", spacing=(9.0, 1.5, 1.7), **_NNUNET, reorient="last")},
    "cropped, many labels": {
        "geometry": Geometry("IJK", "PIR", spacing=(1.6, 1.3, 2.0)), "crop": Crop("nonzero", margin=1),
        "labels": (*_labels(30), Label(400, "last", 31)),
    },
    "padded afterwards": {
        "geometry": Geometry("KJI", "RAS", spacing=(2.0, 1.5, 1.7)), "fits": (Fit("pad_multiple", (16, 16, 16)),),
        "order": ("reorient", "resample", "normalize", "fit"),
    },
    "labels brought back": {
        "geometry": Geometry("KJI", "LPS", spacing=(2.5, 1.5, 1.5), anchor="corners", interpolation="bspline"),
        "output": Output("softmax", resample="labels"), "crop": Crop("nonzero", margin=1),
    },
    "many labels brought back": {
        "geometry": Geometry("IJK", "RAS", spacing=(1.5, 1.1, 1.7), anchor="corners", interpolation="bspline"),
        "labels": (*_labels(5), Label(700, "last", 6)), "output": Output("softmax", resample="labels"),
    },
    "regions": {"geometry": Geometry("IJK", "RAS", spacing=(1.5, 1.2, 2.0), anchor="monai"), **_REGIONS},
    "regions by window": {
        "geometry": Geometry("KJI", "RAS", spacing=(1.5, 1.2, 2.0)), **_REGIONS, "output": Output("sigmoid", thresholds=(0.5, 0.4, 0.7, 0.2)),
    },
    "regions' logits": {
        "geometry": Geometry("KJI", "RAS", spacing=(1.5, 1.2, 2.0)), "labels": _REGIONS["labels"][::-1],
        "output": Output("sigmoid", resample="logits", inclusive=True),
    },
    "regions' masks": {
        "geometry": Geometry("IJK", "LPS", spacing=(1.5, 1.2, 2.0)), **_REGIONS, "output": Output("sigmoid", resample="masks", threshold=0.3),
    },
    "probabilities": {
        "geometry": Geometry("KJI", "RAS", spacing=(2.0, 1.2, 1.5)), "labels": _labels(3), "output": Output("softmax", resample="probabilities"),
    },
    "thresholds of a softmax": {
        "geometry": Geometry("KJI", "RAS", spacing=(2.0, 1.2, 1.5)), "labels": _labels(3),
        "output": Output("softmax", resample="probabilities", decision="threshold", threshold=0.6),
    },
}  # fmt: skip


def road_spec(name: str) -> ModelSpec:
    """The model of that name."""
    settings = {"labels": _labels(4), "window": _WINDOW, "normalization": (_CT,), **ROADS[name]}
    return replace(spec_with(cleaning=()), **{"output": Output(), "crop": Crop(), **settings})
