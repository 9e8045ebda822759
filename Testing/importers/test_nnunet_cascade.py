"""nnU-Net's cascade: the previous stage's labels as further channels, and both stages as one task, as nnU-Net's own predictor does it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import nnunet_folders
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import InputError, PackageError
from MedQuantINT8Lib.imaging.nnunet_resampling import NnunetResampler, resize_labels, slice_axis
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import Volume, to_sitk
from MedQuantINT8Lib.importers import base, nnunet
from MedQuantINT8Lib.importers.check_scans import make_synthetic_scans
from MedQuantINT8Lib.importers.import_check import ImportCheck
from MedQuantINT8Lib.importers.nnunet_task import find_task, understand_task, write_imported_task
from MedQuantINT8Lib.models.package import ModelPackage, peek
from MedQuantINT8Lib.models.spec import SplineResampling
from MedQuantINT8Lib.models.spec_parser import parse_spec
from MedQuantINT8Lib.models.task import check_source, parse_task
from MedQuantINT8Lib.models.task_package import TaskPackage, peek_task
from MedQuantINT8Lib.models.task_writing import note_package
from MedQuantINT8Lib.progress import Task
from nnunet_folders import checkpoint, dataset, plans, random_network, write_folder

REGIONS = {"labels": {"background": 0, "all": [1, 2, 3], "two": [2, 3], "one": [3]}, "regions_class_order": [1, 2, 3]}
THREE = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
TRAINER = "nnUNetTrainer__nnUNetPlans__"
CASCADE, LOWRES = "3d_cascade_fullres", "3d_lowres"


def cascade_folders(
    root, transpose=(0, 1, 2), data=THREE, scheme="ZScoreNormalization", masked=False, aniso=False, **changes
):
    """Result folders of a lowres configuration and of the cascade on it, of random networks."""
    outputs = len(data["labels"]) - ("regions_class_order" in data)
    low, made = random_network(1, 1, outputs)
    high, made_high = random_network(2, 1 + 3, outputs)
    spacing = [9.1, 2.4, 2.7] if aniso else [5.0, 4.0, 4.0]
    plan = plans(
        transpose, architecture=made, normalization_schemes=[scheme], use_mask_for_norm=[masked],
        patch_size=[[8, 12, 16][n] for n in transpose], spacing=[spacing[n] for n in transpose],
    )  # fmt: skip
    full = plan["configurations"]["3d_fullres"]
    plan["configurations"] = {
        "3d_fullres": full,
        LOWRES: {**full, "spacing": [1.5 * value for value in full["spacing"]], "next_stage": CASCADE},
        CASCADE: {"inherits_from": "3d_fullres", "previous_stage": LOWRES, "architecture": made_high, **changes},
    }
    folders = {}
    for name, net in ((LOWRES, low), (CASCADE, high)):
        saved = checkpoint(net, init_args={"configuration": name})
        place = f"Dataset001_Phantom/{TRAINER}{name}"
        folders[name] = write_folder(root, plan, dataset(**data), {"fold_0/checkpoint_final.pth": saved}, place)
    return folders


CASES = {
    "plain": {},
    "transposed, masked by what is not 0": {"transpose": (2, 0, 1), "masked": True},
    "slice by slice": {"aniso": True},
    "regions": {"data": REGIONS},
    "nearest, masked": {
        "masked": True,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 0, "order_z": 0, "force_separate_z": None},
    },
    "linear between slices": {
        "aniso": True,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 1, "force_separate_z": None},
    },
}


def exactly_along(values, axis, size):
    """Whole numbers resized linearly along an axis between the same outer edges, times 2 * size: nothing is rounded."""
    old, parts = values.shape[axis], 2 * size
    places = np.clip(old * (2 * np.arange(size) + 1) - size, 0, (old - 1) * parts)
    low = places // parts
    weight = np.expand_dims(places - low * parts, [n for n in range(values.ndim) if n != axis])
    high = np.minimum(low + 1, old - 1)
    return np.take(values, low, axis) * (parts - weight) + np.take(values, high, axis) * weight


def ties(labels, size, how, across):
    """Where a resized label map (K, J, I) has masks that are equal, or a mask of exactly one half, in whole numbers.

    The last bit of a floating point number decides there, and ours and nnU-Net's are not multiplied in the same order.
    """
    shape = size[::-1]
    z = None if across is None else 2 - across
    scores = []
    for value in np.unique(labels):
        score = (labels == value).astype(np.int64)
        for axis in (n for n in range(3) if n != z):
            score = exactly_along(score, axis, shape[axis])
        scores.append(score)
    best = np.max(scores, axis=0)
    tied = np.sum(np.stack(scores) == best, axis=0) > 1
    if how.order == 0:
        # The nearest voxel is taken, and no masks are compared.
        tied[...] = False
    if z is None:
        return tied
    touched = exactly_along(tied.astype(np.int64), z, shape[z]) > 0
    winner = np.argmax(scores, axis=0)
    halves = [exactly_along((winner == n).astype(np.int64), z, shape[z]) == shape[z] for n in range(len(scores))]
    return touched | (np.any(halves, axis=0) & (how.order_z == 1))


@pytest.mark.parametrize("name", CASES)
def test_the_input_of_a_cascade_is_nnunets(name, tmp_path, monkeypatch):
    resized = []

    def noting(resampler, labels, source, size):
        across = slice_axis(source.spacing, resampler.spacing, resampler.labels)
        resized.append(ties(labels, size, resampler.labels, across))
        return forward_labels(resampler, labels, source, size)

    forward_labels = NnunetResampler.forward_labels
    monkeypatch.setattr(NnunetResampler, "forward_labels", noting)
    model = nnunet.understand(cascade_folders(tmp_path, **CASES[name])[CASCADE])[0]
    spec = parse_spec(model.spec.to_json())
    assert spec.channels[-1].one_hot == (1, 2, 3) and spec.input_channels == 4 and spec.scans == 1
    original = model.original()
    for volume in make_synthetic_scans(spec):
        ours, theirs = preprocess(volume, spec).data, original.prepare(volume)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours[:1], theirs[:1], atol=2e-3 * theirs[:1].std())
        # Nothing differs but what equal masks leave to the last bit, as 13 of 6300 values of the oblique scan.
        tied = resized.pop()
        differs = ours[1:] != theirs[1:]
        assert not np.any(differs & ~tied), volume.name
        assert np.mean(tied) < 0.2, volume.name
        assert all(theirs[1 + n].any() for n in range(3))


@pytest.mark.parametrize(
    "how", [SplineResampling(1), SplineResampling(0), SplineResampling(1, 0, True), SplineResampling(1, 1, True)]
)
def test_label_maps_are_resized_as_nnunet_resizes_them(how):
    resampling = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    labels = np.random.default_rng(0).integers(0, 4, (6, 7, 8)).repeat(3, 0).repeat(2, 1).repeat(3, 2)
    for size in ((17, 15, 25), (31, 10, 9), (24, 14, 18)):
        across = 2 if how.separate_z else None
        expected = resampling.resample_data_or_seg(
            labels[None].astype(np.int16), size[::-1], True, 0 if how.separate_z else None, how.order, bool(how.separate_z), how.order_z
        )[0]  # fmt: skip
        assert np.mean(resize_labels(labels, size, how, across) != expected) < 1e-3


def test_what_is_no_label_map_is_refused_in_words(tmp_path):
    spec = nnunet.understand(cascade_folders(tmp_path)[CASCADE])[0].spec
    scan = np.random.default_rng(0).normal(0, 100, (2, 20, 20, 20)).astype(np.float32)
    with pytest.raises(InputError, match="in the place of a label map"):
        preprocess(Volume(scan, np.eye(4), "scan"), spec)
    with pytest.raises(InputError, match="1 channel"):
        preprocess(Volume(scan[:1], np.eye(4), "scan"), spec)
    scan[1] = 0  # a previous stage that found nothing
    assert not preprocess(Volume(scan, np.diag([4.0, 4.0, 5.0, 1.0]), "scan"), spec).data[1:].any()
    for channels in (
        [{"name": "a", "one_hot": [1]}],
        [{"name": "a", "one_hot": [1]}, {"name": "b"}],
        [{"name": "b"}, {"name": "a", "one_hot": [1, 1]}],
    ):
        with pytest.raises(PackageError, match="channels"):
            parse_spec({**spec.to_json(), "channels": channels})


def test_label_maps_resampled_another_way_are_refused(tmp_path):
    for changes, message in (
        ({"resampling_fn_seg": "resample_torch_fornnunet"}, "of a cascade is not understood"),
        ({"resampling_fn_seg_kwargs": {"is_seg": True, "order": 2}}, "'order' is 2"),
        ({"resampling_fn_seg_kwargs": {"is_seg": True, "magic": 2}}, "'magic' is 2"),
        ({"resampling_fn_seg_kwargs": {"is_seg": False}}, "'is_seg' is False"),
        ({"previous_stage": 3}, "'previous_stage' is 3"),
    ):
        with pytest.raises(PackageError, match=message):
            nnunet.understand(cascade_folders(tmp_path, **changes)[CASCADE])


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    """Result folders of both stages, and the task that they are imported as, by the command."""
    root = tmp_path_factory.mktemp("cascade")
    folders = cascade_folders(root / "results", transpose=(1, 2, 0))
    with pytest.MonkeyPatch.context() as patch:
        # What each network is compared with is tested above and elsewhere.
        patch.setattr(base, "_compare_with_original", lambda *_: ImportCheck.not_compared("a test"))
        assert main(["import", "nnunet", str(root / "results"), "-o", str(root / "task"), "-q"]) == 0
    return folders, root / "task"


def test_both_stages_are_one_task_with_the_labels_of_nnunets_predictor(cascade, tmp_path, capsys):
    folders, task = cascade
    file, previous, output = (tmp_path / name for name in ("case_0000.nii.gz", "previous.nii.gz", "labels.nii.gz"))
    values = np.random.default_rng(3).normal(0, 100, (21, 24, 26)).astype(np.float32)
    volume = Volume(values, np.diag([-4.5, -4.1, 5.3, 1.0]), "noise")
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(file))
    first = nnunet_folders.by_nnunet(folders[LOWRES], [file])
    sitk.WriteImage(to_sitk(first, volume.grid), str(previous))
    theirs = nnunet_folders.by_nnunet(folders[CASCADE], [file], previous=previous)
    how = ["-o", str(output), "--force", "-q", "--engine", "onnxruntime", "--precision", "fp32"]
    assert main(["segment", str(task), str(file), *how]) == 0
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(output)))
    assert np.mean(ours == theirs) > 0.99 and len(np.unique(theirs)) > 2
    # The second stage alone takes the label map as its last channel, and what it holds matters.
    package = str(task / "packages" / CASCADE)
    assert main(["segment", package, f"{file},{previous}", *how]) == 0
    assert np.mean(sitk.GetArrayFromImage(sitk.ReadImage(str(output))) == theirs) > 0.99
    sitk.WriteImage(to_sitk(np.zeros_like(first), volume.grid), str(previous))
    assert main(["segment", package, f"{file},{previous}", *how]) == 0
    assert np.mean(sitk.GetArrayFromImage(sitk.ReadImage(str(output))) == theirs) < 0.95
    assert main(["segment", package, str(file), *how]) == 2
    assert "1 channel(s), but the network needs 2" in capsys.readouterr().err


def test_a_task_says_which_part_takes_which_labels(cascade):
    spec = peek_task(cascade[1])
    assert [(step.name, step.within) for step in spec.find] == [(LOWRES, None)]
    assert [(part.name, part.previous) for part in spec.parts] == [(CASCADE, LOWRES)]
    assert [s.name for s in spec.structures] == ["a", "b", "c"] and len(spec.channels) == 1
    for changes, message in (
        ({"previous": "magic"}, "'previous' of 3d_cascade_fullres is 'magic'"),
        ({"previous": None}, "has no 'previous' that gives one"),
    ):
        value = spec.to_json()
        value["parts"][0] |= changes
        with pytest.raises(PackageError, match=message):
            check_source(parse_task(value), parse_task(value).parts[0], [peek(cascade[1] / "packages" / CASCADE)[0]])


def test_a_task_notes_that_a_package_of_it_was_written_anew(cascade, tmp_path):
    task = tmp_path / "a task"
    shutil.copytree(cascade[1], task)
    path = task / "packages" / LOWRES
    (tmp_path / "README.md").write_text("quantized, say")
    with ModelPackage.load(path) as package:
        package.with_files(path, {"README.md": tmp_path / "README.md"})
    with pytest.raises(PackageError, match="damaged or was changed"):
        TaskPackage.load(task)
    assert note_package(path) == task.resolve() and TaskPackage.load(task).spec.name
    assert note_package(tmp_path / "a task") is None


def test_a_second_stage_is_calibrated_with_the_labels_of_the_first(cascade, tmp_path, monkeypatch):
    from MedQuantINT8Lib.cli import quantize

    scans_of = {}

    def quantize_one(args, task, choices, model, target, scans):
        shutil.copytree(model, target)
        scans_of[Path(model).name] = scans
        labels = sitk.GetArrayFromImage(sitk.ReadImage(scans[0].split(",")[1])) if "," in scans[0] else None
        assert labels is None or (set(np.unique(labels)) <= {0, 1, 2, 3} and labels.any())
        return {}, []

    monkeypatch.setattr(quantize, "_quantize", quantize_one)
    values = np.random.default_rng(3).normal(0, 100, (21, 24, 26)).astype(np.float32)
    volume, file = Volume(values, np.diag([-4.5, -4.1, 5.3, 1.0]), "noise"), tmp_path / "scan.nii.gz"
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(file))
    command = ["quantize", str(cascade[1]), "--calibrate", str(file), "-o", str(tmp_path / "quantized"), "-q"]
    assert main(command) == 0
    assert scans_of[LOWRES] == [str(file)] and scans_of[CASCADE][0].startswith(f"{file},")


def test_trainings_are_chosen_by_what_is_there(tmp_path, capsys):
    folders = cascade_folders(tmp_path / "results")
    task = find_task(folders[CASCADE])
    assert task.name == "Dataset001_Phantom" and task.parts[0].previous.folder == folders[LOWRES]
    assert find_task(folders[LOWRES]) is None and find_task(tmp_path / "results", LOWRES) is None
    assert find_task(tmp_path / "results", CASCADE).parts[0].stage.folder == folders[CASCADE]
    # A third training of the data set leaves open which is meant.
    shutil.copytree(folders[LOWRES], folders[LOWRES].with_name(f"{TRAINER}3d_fullres"))
    with pytest.raises(PackageError, match="holds several trainings"):
        find_task(tmp_path / "results")
    for option in (["--draft", "x.json"], ["--patch", "8", "8", "8"]):
        assert main(["import", "nnunet", str(folders[CASCADE]), "-o", str(tmp_path / "t"), *option]) == 2
        assert f"{option[0]} is for one network" in capsys.readouterr().err


@pytest.mark.slow
def test_several_data_sets_become_one_task_whose_structures_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_compare_with_original", lambda *_: ImportCheck.not_compared("a test"))
    for number, labels in ((1, {"background": 0, "a": 1}), (2, {"background": 0, "b": 1, "c": 2})):
        net, made = random_network(number, 1, len(labels))
        plan = plans(architecture=made, patch_size=[8, 12, 16])
        place = f"Dataset00{number}_Part/{TRAINER}3d_fullres"
        write_folder(
            tmp_path / "both", plan, dataset(labels=labels), {"fold_0/checkpoint_final.pth": checkpoint(net)}, place
        )
    task = understand_task(find_task(tmp_path / "both"))
    with write_imported_task(task, tmp_path / "task.zip", Task()) as package:
        assert [part.name for part in package.spec.parts] == ["Dataset001_Part", "Dataset002_Part"]
        assert [(s.value, s.name) for s in package.spec.structures] == [(1, "a"), (2, "b"), (3, "c")]
