"""TotalSegmentator's tasks: numbered and merged as it does, and run on small random networks in its public form."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.importers import catalogue
from MedQuantINT8Lib.importers.catalogue_tasks import install_task, task_of
from MedQuantINT8Lib.inference import pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.ensemble import load_ensemble
from MedQuantINT8Lib.inference.label_merging import merge_labels
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.inference.task_model import load_model
from MedQuantINT8Lib.models.installed import installed_models
from MedQuantINT8Lib.progress import Task
from task_packages import bands, spotted

CHOICE = EngineChoice("onnxruntime", "fp32", 1, "cpu")
OPTIONS = SegmentationOptions(check_ranges=False)
#: How many classes each of the five networks has, as TotalSegmentator publishes them.
CLASSES = {"organs": 24, "vertebrae": 26, "cardiac": 18, "muscles": 23, "ribs": 26}
#: Some values of its class map "total", from each network's first and last classes and between.
NUMBERS = {
    "spleen": 1, "liver": 5, "lung_middle_lobe_right": 13, "kidney_cyst_right": 24, "sacrum": 25, "vertebrae_S1": 26, "vertebrae_L5": 27,
    "vertebrae_T12": 32, "vertebrae_T1": 43, "vertebrae_C7": 44, "vertebrae_C1": 50, "heart": 51, "aorta": 52, "superior_vena_cava": 62,
    "inferior_vena_cava": 63, "iliac_artery_left": 65, "iliac_vena_right": 68, "humerus_left": 69, "hip_right": 78, "spinal_cord": 79,
    "gluteus_minimus_right": 85, "iliopsoas_right": 89, "brain": 90, "skull": 91, "rib_left_1": 92, "rib_left_12": 103, "rib_right_1": 104,
    "sternum": 116, "costal_cartilages": 117,
}  # fmt: skip


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_total_is_numbered_as_totalsegmentator_numbers_it():
    spec = task_of(catalogue.entry("total"))
    values = {structure.name: structure.value for structure in spec.structures}
    assert sorted(values.values()) == list(range(1, 118))
    assert {name: values[name] for name in NUMBERS} == NUMBERS
    assert {part.name: len(part.labels) for part in spec.parts} == CLASSES
    for part in spec.parts:
        assert [item.value for item in part.labels] == list(range(1, CLASSES[part.name] + 1))


@pytest.mark.parametrize("name", ["total", "total_fast", "liver_vessels", "cerebral_bleed", "hip_implant"])
def test_everything_that_a_task_runs_is_in_the_catalog_and_can_be_downloaded(name):
    item, known = catalogue.entry(name), catalogue.entries()
    assert item.needed and set(item.needed) == set(task_of(item).installed_names)
    assert catalogue.can_download(item, known)
    for needed in item.needed:
        assert known[needed].form == "nnunet" and re.search(r"-weights/Dataset\d{3}_\w+\.zip$", known[needed].url)


def by_totalsegmentator(maps, part_names, class_map):
    """Its rule: part after part, each of a part's classes is written into the whole at its number, background is not."""
    number = {name: value for value, name in class_map.items()}
    whole = np.zeros_like(next(iter(maps.values())))
    for part, labels in maps.items():
        for value, name in part_names[part].items():
            whole[labels == value] = number[name]
    return whole


def test_label_maps_are_merged_by_totalsegmentators_rule():
    spec = task_of(catalogue.entry("total"))
    rng = np.random.default_rng(0)
    # Half of each part is background, so that every part shows through and is painted over.
    maps = {
        part: (rng.integers(0, 2, (20, 22, 24)) > 0) * rng.integers(1, n + 1, (20, 22, 24)).astype(np.uint8)
        for part, n in CLASSES.items()
    }
    class_map = {structure.value: structure.name for structure in spec.structures}
    names = {part.name: {item.value: item.name for item in part.labels} for part in spec.parts}
    numbers = {structure.name: structure.value for structure in spec.structures}
    ours = np.zeros((20, 22, 24), np.uint8)
    for part in spec.in_merge_order(spec.parts):
        merge_labels(ours, maps[part.name], {item.value: numbers[item.name] for item in part.labels})
    theirs = by_totalsegmentator(maps, names, class_map)
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours)) == 118


# ---- installed


def test_a_task_is_installed_with_the_models_that_it_runs(models, tmp_path):
    """Models that are there stay; the others are taken from a folder, under the names that they are downloaded by."""
    item, known = catalogue.entry("liver_vessels"), catalogue.entries()
    installed = []

    def install(entry, source, task):
        installed.append((entry.name, source, task.part))
        bands(models / entry.name, "package", {"a": 0.1})
        return []

    folder = tmp_path / "by hand"
    folder.mkdir()
    with pytest.raises(InputError, match="holds no Dataset298_TotalSegmentator_total_6mm_1559subj.zip"):
        install_task(item, folder, Task(), known, install)
    assert installed == [] and not models.exists()
    (folder / "Dataset298_TotalSegmentator_total_6mm_1559subj.zip").touch()
    (folder / "Dataset008_HepaticVessel").mkdir()
    package = install_task(item, folder, Task(), known, install)
    assert [(name, source.name) for name, source, _ in installed] == [
        ("totalsegmentator_total_6mm", "Dataset298_TotalSegmentator_total_6mm_1559subj.zip"),
        ("totalsegmentator_liver_vessels", "Dataset008_HepaticVessel"),
    ]
    assert installed[1][2] == "totalsegmentator_liver_vessels (2 of 2): "
    assert package.spec == task_of(item) and installed_models()["liver_vessels"] == [models / "liver_vessels"]
    install_task(item, None, Task(), known, install)
    assert len(installed) == 2


def test_the_command_shows_what_a_task_runs(models, capsys):
    assert main(["models", "show", "total", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [network["name"] for network in shown["networks"]] == ["coarse", *CLASSES]
    assert not any(network["there"] for network in shown["networks"])
    assert main(["models", "show", "liver_vessels"]) == 0
    out = capsys.readouterr().out
    assert "first     coarse: totalsegmentator_total_6mm (not installed)" in out
    assert "runs      liver_vessels: totalsegmentator_liver_vessels, in the box of coarse (not installed)" in out
    assert main(["models", "show", "total", "--classes", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["classes"]) == 117


# ---- run


def small_total(models):
    """The task "total", and bands of brightness in place of the six networks that it runs."""
    spec = task_of(catalogue.entry("total"))
    for n, source in enumerate(spec.sources):
        count = len(source.labels)
        # A later part paints what is brighter, so that each shows in the whole.
        limits = np.linspace(0.05 + 0.18 * max(0, n - 1), 0.95, count)
        names = [f"class {value}" for value in range(1, count + 1)]
        spacing = 3.0 if source.name == "coarse" else 1.5
        package = bands(models / source.installed, "package", dict(zip(names, limits, strict=True)), spacing)
        assert package.spec.labels[0].name == "class 1"
    (models / "total").mkdir()
    (models / "total" / "task.json").write_text(json.dumps(spec.to_json()))
    return spec


def test_total_on_small_networks_is_the_parts_merged_by_hand(models):
    spec = small_total(models)
    volume = spotted((30, 28, 26))
    maps = {}
    for part in spec.parts:
        with load_ensemble(str(installed_models()[part.installed][0])) as ensemble:
            maps[part.name] = pipeline.segment(ensemble, volume, CHOICE, OPTIONS, Task()).result.labels
    class_map = {structure.value: structure.name for structure in spec.structures}
    names = {part.name: {item.value: item.name for item in part.labels} for part in spec.parts}
    with load_model(str(models / "total")) as model:
        run = pipeline.segment(model, volume, CHOICE, OPTIONS, Task())
    np.testing.assert_array_equal(run.result.labels, by_totalsegmentator(maps, names, class_map))
    assert [part["name"] for part in run.parts] == list(CLASSES)
    present = {class_map[value] for value in np.unique(run.result.labels) if value}
    assert all(len(present & set(names[part].values())) > 3 for part in CLASSES)


def test_three_of_117_take_at_most_a_third_of_the_windows(models):
    small_total(models)
    volume = spotted((64, 60, 56))
    # What was chosen lies in a corner.
    volume = replace(volume, data=np.where(np.indices(volume.data.shape[1:]).max(0) < 20, volume.data, 0.001))
    wanted = replace(OPTIONS, structures=("liver", "spleen", "pancreas"))
    with load_model(str(models / "total")) as model:
        whole = pipeline.segment(model, volume, CHOICE, OPTIONS, Task())
        few = pipeline.segment(model, volume, CHOICE, wanted, Task())
    assert [part["name"] for part in few.parts] == ["coarse", "organs"]
    assert 0 < 3 * few.result.windows <= whole.result.windows
    assert set(np.unique(few.result.labels)) <= {0, 1, 5, 7} and few.boxes


@pytest.mark.slow
def test_two_stages_on_random_networks_in_the_public_form(models, tmp_path, capsys):
    """The task liver_vessels from nnU-Net folders as they are published: import, run, and the same by hand on the cut scan."""
    pytest.importorskip("nnunetv2", reason="needs nnU-Net, whose networks these are")
    import nnunet_folders as nnunet
    from MedQuantINT8Lib.imaging.phantom import make_phantom
    from MedQuantINT8Lib.imaging.region_of_interest import box_slices, cut_volume, mask_box

    # The coarse network finds its fifth class where a scan is bright, as bones are.
    coarse = nnunet.threshold_network(rows=[(0.0, 0.0), *[(0.0, -99.0)] * 4, (10.0, -5.0)])
    for place, (network, architecture), names in (
        ("Dataset298_TotalSegmentator_total_6mm_1559subj/nnUNetTrainer_4000epochs_NoMirroring", coarse, list("abcde")),
        ("Dataset008_HepaticVessel/nnUNetTrainer", nnunet.random_network(1), ["vessel", "tumor"]),
    ):
        nnunet.write_folder(
            tmp_path / "public",
            nnunet.plans(architecture=architecture),
            nnunet.dataset(labels={"background": 0, **{name: n for n, name in enumerate(names, 1)}}),
            {"fold_0/checkpoint_final.pth": nnunet.checkpoint(network)},
            f"{place}__nnUNetPlans__3d_fullres",
        )
    arguments = ["models", "get", "liver_vessels", "--from", str(tmp_path / "public"), "--accept-license", "-q"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert {"liver_vessels", "totalsegmentator_total_6mm", "totalsegmentator_liver_vessels"} <= set(installed_models())
    volume, truth = make_phantom(3, (60, 50, 40), 6.0)
    # Nothing is as bright as bone but for the spine.
    volume = replace(volume, data=np.where(truth == 5, volume.data, np.minimum(volume.data, 100)))
    with load_model(str(models / "liver_vessels")) as model:
        run = pipeline.segment(model, volume, CHOICE, OPTIONS, Task())
        coarse, part = (model.ensemble(source) for source in model.spec.sources)
        liver = pipeline.segment(coarse, volume, CHOICE, OPTIONS, Task()).result.labels == 5
        assert liver.any()
        box = mask_box(liver, volume.grid.spacing, 20)
        alone = pipeline.segment(part, cut_volume(volume, box), CHOICE, OPTIONS, Task()).result.labels
    expected = np.zeros_like(run.result.labels)
    expected[box_slices(box)] = alone
    assert 2 * alone.size < expected.size
    np.testing.assert_array_equal(run.result.labels, expected)
    assert {1, 2} <= set(np.unique(expected))
    assert run.boxes[0]["found"] == ["liver"]
