"""What a bundle does after its network: the label map is MONAI's own, or the transform is refused by its name."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.importers import monai_bundle
from MedQuantINT8Lib.importers.label_functions import LabelFunction, NotUnderstood, combinations, paint_order
from MedQuantINT8Lib.importers.monai_postprocessing import translate_postprocessing
from monai_beside import ARGMAX, LINEAR, SAVE, SIGMOID, SOFTMAX, agreement, by_monai, by_us, invert, scan, write


def discrete(**arguments):
    return {"_target_": "AsDiscreted", "keys": "pred", **arguments}


def function(text, **arguments):
    return {"_target_": "Lambdad", "keys": "pred", "func": text, **arguments}


def step(name, **arguments):
    return {"_target_": name, "keys": "pred", **arguments}


LARGEST = "KeepLargestConnectedComponentd"
BRATS = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
CUTS = "$lambda x: torch.where(x[[2]] > 0.6, 4, torch.where(x[[0]] > 0.3, 1, torch.where(x[[1]] > 0.5, 2, 0)))"
FORMS = {
    "probabilities": ([SOFTMAX, invert(), ARGMAX, SAVE], "probabilities"),
    "logits": ([invert(), SOFTMAX, ARGMAX], "logits"),
    "labels, nearest": ([SOFTMAX, ARGMAX, invert(True), SAVE], "labels"),
    "probabilities, nearest": ([SOFTMAX, invert(True), ARGMAX], "labels"),
    "sigmoid and argmax": ([SIGMOID, invert(), ARGMAX], "probabilities"),
    "nested regions": ([SIGMOID, invert(), discrete(threshold=0.5), function(BRATS), SAVE], "probabilities"),
    "thresholds in a lambda": ([SIGMOID, invert(), function(CUTS)], "probabilities"),
    "all in lambdas": (
        [function("$lambda y: torch.softmax(y, dim=0)"), invert(), function("$lambda x: x.argmax(0, keepdim=True)"), function("$lambda x: x.to(torch.uint8)")],
        "probabilities",
    ),
    "a value changed": ([SOFTMAX, invert(), ARGMAX, function("$lambda x: torch.where(x == 2, 4, x)")], "probabilities"),
    "largest before": ([ARGMAX, step(LARGEST, applied_labels=[1, 2]), invert(True)], "labels"),
    "two largest after": ([SOFTMAX, invert(), ARGMAX, step(LARGEST, num_components=2, connectivity=1)], "probabilities"),
    "largest of all": ([SOFTMAX, invert(), ARGMAX, step(LARGEST, independent=False)], "probabilities"),
    "holes": ([SOFTMAX, invert(), ARGMAX, step("FillHolesd", applied_labels=[1], connectivity=1)], "probabilities"),
    "small parts": ([SOFTMAX, invert(), discrete(argmax=True, to_onehot=3), step("RemoveSmallObjectsd", min_size=40), ARGMAX], "probabilities"),
    "largest by edges": ([ARGMAX, step(LARGEST, connectivity=2, num_components=3), invert(True)], "labels"),
    "largest of masks together": ([SOFTMAX, invert(), discrete(argmax=True, to_onehot=3), step(LARGEST, applied_labels=[1, 2], is_onehot=True, independent=False), ARGMAX], "probabilities"),
    "holes by edges": ([SOFTMAX, invert(), ARGMAX, step("FillHolesd", connectivity=2)], "probabilities"),
    "small by volume": ([SOFTMAX, invert(), ARGMAX, step("RemoveSmallObjectsd", min_size=300.5, by_measure=True, independent_channels=False, connectivity=2)], "probabilities"),
    "small by volume before": ([ARGMAX, step("RemoveSmallObjectsd", min_size=150, by_measure=True, independent_channels=False), invert(True)], "labels"),
    "small labels": ([ARGMAX, step("RemoveSmallObjectsd", min_size=2000), invert(True)], "labels"),
    "small masks together": ([SOFTMAX, invert(), discrete(argmax=True, to_onehot=3), step("RemoveSmallObjectsd", min_size=40, independent_channels=False), ARGMAX], "probabilities"),
    "small of all": ([SOFTMAX, invert(), ARGMAX, step("RemoveSmallObjectsd", min_size=200, independent_channels=False)], "probabilities"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made_scan(tmp_path_factory):
    return scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz")


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_those_of_monai(form, tmp_path, made_scan):
    post, resample = FORMS[form]
    folder = write(tmp_path / "bundle", post=post)
    assert monai_bundle.understand(folder).spec.output.resample == resample
    assert agreement(folder, made_scan) > 0.9999


def test_one_structure_by_a_threshold(tmp_path, made_scan):
    folder = write(
        tmp_path / "bundle", network={**LINEAR, "out_channels": 1}, post=[SIGMOID, invert(), discrete(threshold=0.3)]
    )
    assert agreement(folder, made_scan) > 0.9999
    rounded = write(
        tmp_path / "rounded",
        network={**LINEAR, "out_channels": 1},
        post=[SIGMOID, invert(), discrete(rounding="torchrounding")],
    )
    assert agreement(rounded, made_scan) > 0.9999


def test_one_mask_is_interpolated_as_monai_does(tmp_path, made_scan):
    two = {**LINEAR, "out_channels": 2}
    folder = write(tmp_path / "bundle", network=two, post=[SOFTMAX, ARGMAX, invert(), discrete(threshold=0.5)])
    imported = monai_bundle.understand(folder)
    assert imported.spec.output.resample == "masks"
    ours, theirs = by_us(imported, made_scan), by_monai(folder, made_scan)[0]
    # Where the mask is exactly one half MONAI's rounding decides.
    assert np.mean(ours == theirs) > 0.995


def test_masks_of_regions_are_interpolated_each_by_itself(tmp_path, made_scan):
    brats = function(BRATS.replace("> 0", ">= 0.5"))
    folder = write(
        tmp_path / "bundle", post=[SIGMOID, discrete(threshold=0.6), invert(), discrete(threshold=0.5), brats]
    )
    assert monai_bundle.understand(folder).spec.output.resample == "masks"
    # Where a mask is exactly one half MONAI's rounding decides.
    assert agreement(folder, made_scan) > 0.995


def test_interpolated_label_numbers_become_interpolated_masks(tmp_path, made_scan):
    folder = write(tmp_path / "bundle", post=[ARGMAX, invert()])
    imported = monai_bundle.understand(folder)
    ours, theirs = by_us(imported, made_scan), by_monai(folder, made_scan)[0]
    whole = theirs == np.round(theirs)
    assert any("label numbers" in note for note in imported.notes)
    # Between 0 and 2 MONAI writes 1 and fractions, which are no labels; where its answer is a number of one class, so is ours.
    assert np.mean(ours[whole] == theirs[whole]) > 0.95 and (~whole).any()


def test_regions_keep_what_lies_inside(tmp_path, made_scan):
    names = {"num_channels": 3, "channel_def": {"0": "core", "1": "whole", "2": "inner"}}
    folder = write(tmp_path / "bundle", post=[SIGMOID, invert(), discrete(threshold=0.5), SAVE], pred=names)
    imported = monai_bundle.understand(folder)
    assert imported.spec.output.paint == "nested" and any("overlap" in note for note in imported.notes)
    ours, masks = by_us(imported, made_scan), by_monai(folder, made_scan) > 0
    assert np.array_equal(ours > 0, masks.any(0))
    for value in (1, 2, 3):
        assert masks[value - 1][ours == value].all(), "a voxel bears only a label of a region that it lies in"


def test_a_region_for_the_background_gets_no_label(tmp_path, made_scan):
    folder = write(tmp_path / "bundle", post=[SIGMOID, invert(), discrete(threshold=0.5)])
    imported = monai_bundle.understand(folder)
    assert [(label.value, label.channel) for label in imported.spec.labels] == [(1, 1), (2, 2)]
    ours, masks = by_us(imported, made_scan), by_monai(folder, made_scan) > 0
    assert np.array_equal(ours > 0, masks[1:].any(0))


REFUSED = {
    "a lambda": ([SIGMOID, invert(), discrete(threshold=0.5), function("$lambda x: my_cleaning(x)")], "Lambdad has func = .*my_cleaning.*--trust-code"),
    "a lambda that looks about": ([SOFTMAX, invert(), ARGMAX, function("$lambda x: x.flip(1)")], "Lambdad has func"),
    "a channel left out": ([SIGMOID, discrete(threshold=0.5), invert(True), function("$lambda x: torch.where(x[[0]] > 0, 1, 0)")], "Lambdad has func"),
    "labels joined": ([SOFTMAX, invert(), ARGMAX, function("$lambda x: torch.where(x > 0, 1, 0)")], "Lambdad has func"),
    "an unknown argument": ([SOFTMAX, invert(), discrete(argmax=True, magic=3)], "AsDiscreted has magic = 3"),
    "an unknown transform": ([SOFTMAX, invert(), ARGMAX, step("Magicd")], "Magicd"),
    "another activation": ([step("Activationsd", other="$torch.tanh"), invert(), ARGMAX], "Activationsd has other"),
    "two activations": ([SOFTMAX, SIGMOID, ARGMAX], "follows another activation"),
    "a softmax along another axis": ([step("Activationsd", softmax=True, dim=1), invert(), ARGMAX], "Activationsd has dim = 1"),
    "largest of overlapping regions": ([SIGMOID, discrete(threshold=0.5), step(LARGEST), invert(True)], "KeepLargest.*overlap"),
    "small masks that touch other classes": ([discrete(argmax=True, to_onehot=3), step("RemoveSmallObjectsd", connectivity=2), ARGMAX], "connectivity = 2"),
    "connectivity 4": ([ARGMAX, step(LARGEST, connectivity=4), invert(True)], "connectivity = 4"),
    "a part inverted": ([SOFTMAX, invert(transform="@preprocessing#transforms#2"), ARGMAX], "Invertd has transform"),
    "two inversions": ([SOFTMAX, invert(), invert(), ARGMAX], "twice"),
    "a scaled file": ([SOFTMAX, invert(), ARGMAX, {**SAVE, "scale": 255}], "SaveImaged has scale"),
    "probabilities cut to numbers": ([SOFTMAX, invert(), {**SAVE, "output_dtype": "$np.uint8"}], "SaveImaged has output_dtype"),
    "an ensemble": ([step("MeanEnsembled"), SOFTMAX, invert(), ARGMAX], "MeanEnsembled"),
    "a threshold that is none": ([SIGMOID, invert(), discrete(threshold=True)], "AsDiscreted has threshold"),
    "a copy": ([SOFTMAX, ARGMAX, step("CopyItemsd", names="mask", times=1), {"_target_": LARGEST, "keys": "mask"}, invert(True)], "copy of the prediction"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_a_label_map_cannot_say_is_named(form, tmp_path):
    post, match = REFUSED[form]
    with pytest.raises(PackageError, match=match):
        monai_bundle.understand(write(tmp_path / "bundle", post=post))


def test_trusted_functions_are_run_on_combinations(tmp_path, made_scan):
    post = [
        SIGMOID,
        invert(),
        discrete(threshold=0.5),
        function("$lambda x: torch.stack([x[2] * 4, x[0], x[1] * 2]).max(0, keepdim=True)[0]"),
    ]
    folder = write(tmp_path / "bundle", post=post)
    with pytest.raises(PackageError, match="--trust-code"):
        monai_bundle.understand(folder)
    assert agreement(folder, made_scan, trust_code=True) > 0.9999
    looking = write(tmp_path / "looking", post=[SOFTMAX, invert(), ARGMAX, function("$lambda x: x.flip(1) + x.mean()")])
    with pytest.raises(PackageError, match="more than a voxel|cannot say"):
        monai_bundle.understand(looking, trust_code=True)


def test_functions_are_read_by_their_text():
    bits = combinations(3)
    assert paint_order([int(v) for v in LabelFunction(BRATS[1:])(bits)[0]], 3) == [(1, 2), (0, 1), (2, 4)]
    assert np.array_equal(LabelFunction("lambda x: (x > 0.5).float()")(bits), bits)
    assert np.array_equal(
        LabelFunction("lambda x: torch.logical_and(x[0:1] > 0, ~(x[1:2] > 0))")(bits)[0], (bits[0] > 0) & ~(bits[1] > 0)
    )
    assert LabelFunction("torch.sigmoid").whole().name == "sigmoid"
    for text in (
        "lambda x: open('/etc/passwd')",
        "lambda x: x.__class__",
        "lambda x, y: x",
        "print",
        "lambda x: x[y]",
        "lambda: 1",
    ):
        with pytest.raises(NotUnderstood):
            function = LabelFunction(text)
            function.whole()
            function(bits)
    with pytest.raises(NotUnderstood):
        paint_order([0, 1, 2, 3], 2)


def test_transforms_of_other_entries_do_not_matter():
    other = {"_target_": "AsDiscreted", "keys": "label", "threshold": 0.9}
    both = {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": [3, 3]}
    made = translate_postprocessing([other, SOFTMAX, invert(), both], 3)
    assert made.output.activation == "softmax" and not made.output.regions


def test_vista3d_decides_by_itself(tmp_path):
    vista = {"_target_": "monai.apps.vista3d.transforms.VistaPostTransformd", "keys": "pred"}
    post = [
        vista,
        invert(True, transform="$copy.deepcopy(@preprocessing)"),
        function("$lambda x: torch.nan_to_num(x, nan=255)"),
    ]
    folder = write(
        tmp_path / "vista",
        post=post,
        network="$monai.networks.nets.vista3d132(in_channels=1)",
        everything_labels=[1, 3],
    )
    (folder / "models" / "model.pt").touch()
    spec = monai_bundle.understand(folder).spec
    assert spec.output.resample == "labels" and [label.value for label in spec.labels] == [1, 3]
    with pytest.raises(PackageError, match="VistaPostTransformd"):
        monai_bundle.understand(write(tmp_path / "other", post=post))
