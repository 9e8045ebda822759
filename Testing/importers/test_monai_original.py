"""MONAI itself beside an import of a bundle: its own transforms, inferer and postprocessing decide whether the import is accepted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from MedQuantINT8Lib.errors import DependencyError, PackageError
from MedQuantINT8Lib.importers.expressions import Config
from MedQuantINT8Lib.importers.import_comparison import accept, compare_import
from MedQuantINT8Lib.importers.monai_original import BundleParts, monai_original
from MedQuantINT8Lib.importers.monai_transforms import translate_postprocessing, translate_preprocessing
from MedQuantINT8Lib.models.spec import Channel, Label, ModelSpec, Output, Window

LOAD = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
RAS = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
SPACE = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"}
NORMAL = {"_target_": "NormalizeIntensityd", "keys": "image"}
INVERT = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "image",
    "nearest_interp": False,
}
SOFTMAX = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    INVERT,
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    {"_target_": "SaveImaged", "keys": "pred", "output_dir": "out"},
]
INFERER = {
    "_target_": "SlidingWindowInferer",
    "roi_size": [16, 16, 16],
    "sw_batch_size": 4,
    "overlap": 0.25,
    "mode": "gaussian",
}


class Shifting(torch.nn.Module):
    """Scores that depend on neighbors: a wrong voxel shows."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Conv3d(channels, classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def exported(network: Shifting, path) -> Any:
    """The same as ONNX, made by hand: torch's exporter takes its time."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight, bias = (p.detach().numpy() for p in network.parameters())
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, 16, 16, 16])
        for name, count in (("x", weight.shape[1]), ("y", weight.shape[0]))
    ]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1] * 6)
    graph = helper.make_graph(
        [node], "net", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), str(path))
    return path


def bundle(tmp_path, before, after, channels=1, classes=3) -> tuple[ModelSpec, BundleParts]:
    config = Config(
        {"preprocessing": {"_target_": "Compose", "transforms": before}, "postprocessing": after, "inferer": INFERER},
        tmp_path,
    )
    resolved, decided = config.get("preprocessing")["transforms"], config.get("postprocessing")
    pre, post = translate_preprocessing(resolved, channels), translate_postprocessing(decided, classes)
    first = 0 if post.output.regions else 1
    values = post.values or {n: n + (first == 0) for n in range(classes)}
    order = post.order if post.order is not None else range(first, classes)
    spec = ModelSpec(
        "made", "1", "MR", tuple(Channel(str(n)) for n in range(channels)), pre.geometry, pre.normalization,
        Window((16, 16, 16), overlap=0.25), post.output, tuple(Label(values[n], f"class {n}", n) for n in order), "made",
        crop=pre.crop, normalize_in=pre.normalize_in, cleaning=post.cleaning, order=pre.order, fits=pre.fits,
    )  # fmt: skip
    network = Shifting(channels, classes).eval()
    return spec, BundleParts(resolved, config.get("inferer"), decided, lambda: network, spec, post.values is not None)


REGIONS = [
    {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
    INVERT,
    {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
]
BRATS = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
CROP = {
    "_target_": "CropForegroundd",
    "keys": "image",
    "source_key": "image",
    "select_fn": "$lambda x: x > -0.4",
    "margin": 2,
}
JOINED = [
    {"_target_": "LoadImaged", "keys": ["t1", "t2"]},
    {"_target_": "EnsureChannelFirstd", "keys": ["t1", "t2"]},
    {"_target_": "NormalizeIntensityd", "keys": ["t1", "t2"], "nonzero": True},
    {"_target_": "ConcatItemsd", "keys": ["t1", "t2"], "name": "image"},
]
FORMS: dict[str, tuple[list[Any], list[Any], int]] = {
    "softmax": ([*LOAD, RAS, SPACE, NORMAL], SOFTMAX, 1),
    "crop after spacing": ([*LOAD, RAS, SPACE, NORMAL, CROP], SOFTMAX, 1),
    "argmax before inversion": (
        [*LOAD, SPACE, RAS, NORMAL],
        [SOFTMAX[0], SOFTMAX[2], {**INVERT, "nearest_interp": True}],
        1,
    ),
    "regions with values": ([LOAD[0], NORMAL], [*REGIONS, {"_target_": "Lambdad", "keys": "pred", "func": BRATS}], 2),
    "regions": ([*LOAD, RAS, SPACE, {**NORMAL, "nonzero": True}], REGIONS, 2),
    "joined channels": (JOINED, SOFTMAX, 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_import_of_a_bundle_agrees_with_monai_in_input_scores_and_labels(form, tmp_path):
    before, after, channels = FORMS[form]
    spec, parts = bundle(tmp_path, before, after, channels)
    check = compare_import(spec, exported(parts.network(), tmp_path / "net.onnx"), monai_original(parts))
    assert check.compared and check.original.startswith("MONAI ") and not check.reason and check.acceptable, (
        check.problem
    )
    assert all(scan.input_difference < 1e-5 and scan.score_difference < 1e-4 for scan in check.scans)
    assert all(scan.label_agreement > 0.999 for scan in check.scans)


WRONG = {
    "network's input": lambda spec: replace(spec, geometry=replace(spec.geometry, anchor="edges")),
    "network's input differs": lambda spec: replace(
        spec, normalization=(replace(spec.normalization[0], mask="above_mean"),)
    ),
    "scores": lambda spec: replace(spec, window=replace(spec.window, overlap=0.7, blend="constant")),
    "label map": lambda spec: replace(spec, output=Output("softmax", resample="labels")),
}


@pytest.mark.parametrize("part", WRONG)
def test_an_import_that_does_otherwise_than_monai_is_refused(part, tmp_path):
    spec, parts = bundle(tmp_path, [*LOAD, RAS, SPACE, NORMAL], SOFTMAX)
    check = compare_import(WRONG[part](spec), exported(parts.network(), tmp_path / "net.onnx"), monai_original(parts))
    with pytest.raises(PackageError, match=part):
        accept(check)


def test_only_transforms_that_are_understood_are_made(tmp_path):
    spec, parts = bundle(tmp_path, [*LOAD, NORMAL], SOFTMAX)
    stranger = {"_target_": "SaveImaged2", "keys": "image"}
    for place in ("preprocessing", "postprocessing"):
        with pytest.raises(DependencyError, match="not made for a comparison"):
            monai_original(replace(parts, **{place: [stranger]}))
    assert monai_original(parts).title.startswith("MONAI ") and spec.output_channels == 3


def test_a_scan_that_monai_itself_refuses_is_named(tmp_path):
    spec, parts = bundle(tmp_path, [*LOAD, NORMAL], SOFTMAX)

    def failing() -> Any:
        class Failing(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("sizes do not fit")

        return Failing()

    check = compare_import(
        spec, exported(parts.network(), tmp_path / "net.onnx"), monai_original(replace(parts, network=failing))
    )
    assert check.acceptable and "the original itself fails on 5: sizes do not fit" in check.reason
    assert np.all([scan.input_difference < 1e-5 and scan.label_agreement is None for scan in check.scans])
