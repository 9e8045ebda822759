"""Several configurations of nnU-Net as one task that averages their probabilities, as nnUNetv2_ensemble does it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.imaging.volume import Volume, to_sitk
from MedQuantINT8Lib.importers import base
from MedQuantINT8Lib.importers.import_check import ImportCheck
from MedQuantINT8Lib.importers.nnunet_task import find_task, understand_task
from MedQuantINT8Lib.models.task_package import TaskPackage, peek_task
from nnunet_folders import checkpoint, dataset, plans, random_network, write_folder

TRAINER = "nnUNetTrainer__nnUNetPlans__"
FULL, LOW = "3d_fullres", "3d_lowres"
LABELS = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
REGIONS = {"labels": {"background": 0, "all": [1, 2, 3], "two": [2, 3], "one": [3]}, "regions_class_order": [1, 2, 3]}


def result_folders(root, data, **cleaned):
    """Result folders of two configurations of random networks, at two spacings."""
    outputs = len(data["labels"]) - ("regions_class_order" in data)
    folders = {}
    made = {name: random_network(seed, 1, outputs) for seed, name in enumerate((FULL, LOW), 1)}
    plan = plans(architecture=made[FULL][1], patch_size=[8, 12, 16])
    full = plan["configurations"][FULL]
    low = {**full, "spacing": [1.5 * value for value in full["spacing"]], "architecture": made[LOW][1]}
    plan["configurations"] = {FULL: full, LOW: low}
    for name, (net, _) in made.items():
        saved = {"fold_0/checkpoint_final.pth": checkpoint(net, init_args={"configuration": name})}
        folders[name] = write_folder(root, plan, dataset(**data), saved, f"Dataset001_Phantom/{TRAINER}{name}")
    return folders


def nnunets_mean(folders, file):
    """The labels (K, J, I) and probabilities of nnU-Net's own predictors and of its function that averages."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    probabilities = []
    for folder in folders:
        predictor = nnUNetPredictor(0.5, True, False, False, torch.device("cpu"), False, False, False)
        predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
        image, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(file)])
        probabilities.append(predictor.predict_single_npy_array(image, properties, None, None, True)[1])
    mean = (probabilities[0] + probabilities[1]) / 2
    return predictor.label_manager.convert_probabilities_to_segmentation(mean), mean


@pytest.fixture(scope="module", params=["labels", "regions"])
def imported(request, tmp_path_factory):
    """Result folders, the task that they are imported as, a scan, and what nnU-Net says of it."""
    root = tmp_path_factory.mktemp(request.param)
    folders = result_folders(root / "results", LABELS if request.param == "labels" else REGIONS)
    names = ["a", "b", "c"] if request.param == "labels" else ["all", "two", "one"]
    with pytest.MonkeyPatch.context() as patch:
        # What each network is compared with is tested elsewhere.
        patch.setattr(base, "_compare_with_original", lambda *_: ImportCheck.not_compared("a test"))
        command = ["import", "nnunet", str(root / "results"), "--configuration", f"{FULL},{LOW}"]
        assert main([*command, "-o", str(root / "task"), "-q"]) == 0
    values = np.random.default_rng(3).normal(0, 100, (21, 24, 26)).astype(np.float32)
    # nnU-Net crops what is 0 all around, and is sure of the background there.
    values[:3] = 0
    volume, file = Volume(values, np.diag([-4.5, -4.1, 5.3, 1.0]), "noise"), root / "case_0000.nii.gz"
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(file))
    return root, folders, names, file, nnunets_mean(folders.values(), file)


def test_the_mean_is_nnunets(imported, tmp_path):
    root, _, names, file, (theirs, mean) = imported
    spec = peek_task(root / "task")
    assert [s.name for s in spec.structures] == names and len(spec.parts) == 1 and len(spec.parts[0].packages) == 2
    outputs = [tmp_path / "labels.nii.gz", tmp_path / "margins.nii.gz"]
    how = ["-o", str(outputs[0]), "--margins", str(outputs[1]), "-q", "--engine", "onnxruntime", "--precision", "fp32"]
    assert main(["segment", str(root / "task"), str(file), *how]) == 0
    ours, margins = (sitk.GetArrayFromImage(sitk.ReadImage(str(output))) for output in outputs)
    assert np.mean(ours == theirs) > 0.995 and len(np.unique(theirs)) > 2 and not ours[:3].any()
    if names[0] == "a":
        first, second = np.sort(mean, 0)[::-1][:2]
        assert np.quantile(np.abs(margins - (first - second)), 0.99) < 0.01


def test_the_postprocessing_is_that_of_the_ensemble(imported, tmp_path):
    root, folders, _, _, _ = imported
    function = "remove_all_but_largest_component_from_segmentation"
    for place, labels in (
        (folders[FULL] / "crossval_results_folds_0", [2]),
        (folders[FULL].parent / f"ensembles/ensemble___{TRAINER}{FULL}___{TRAINER}{LOW}___0", [1]),
        (folders[FULL].parent / f"ensembles/ensemble___{TRAINER}{FULL}___{TRAINER}2d___0", [3]),
    ):
        place.mkdir(parents=True, exist_ok=True)
        value = {"postprocessing_fns": [function], "postprocessing_kwargs": [{"labels_or_regions": labels}]}
        (place / "postprocessing.json").write_text(json.dumps(value))
    task = understand_task(find_task(root / "results", f"{FULL},{LOW}"))
    assert not any(model.spec.cleaning for model in task.models)
    assert [(step.kind, step.labels, step.equal) for step in task.parts[0].cleaning] == [("largest", (1,), "all")]
    notes = [note for model in task.models for note in model.notes]
    assert any("that of the ensemble" in note for note in notes) and any("the mean is cleaned as" in n for n in notes)


def test_what_cannot_be_chosen_is_refused_in_words(imported):
    root = imported[0]
    for configuration, message in (
        (f"{FULL},2d", "the configuration 2d has 0 trainings there"),
        (f"{FULL},{FULL}", "is named twice"),
        (None, "NAME,NAME averages several"),
    ):
        with pytest.raises(PackageError) as caught:
            find_task(root / "results", configuration)
        assert message in str(caught.value)
    value = TaskPackage.load(root / "task").spec
    assert value.parts[0].name == f"{FULL}-{LOW}"
