"""Networks that prepare a scan differently are averaged by their probabilities on the scan's grid."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.volume import to_sitk
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.inference import pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.ensemble import Ensemble
from MedQuantINT8Lib.inference.gpu_road import GpuRoad
from MedQuantINT8Lib.inference.margins import ONE
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.models.spec import Cleaning, Mirroring, Output
from MedQuantINT8Lib.progress import Task
from task_packages import bands, spotted

FP32 = EngineChoice("onnxruntime", "fp32")


def segment(packages, volume, **options):
    return pipeline.segment(Ensemble(packages), volume, FP32, SegmentationOptions(**options), Task())


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Three packages of the same structures: two on one grid, one at twice the spacing and in another order of axes."""
    folder = tmp_path_factory.mktemp("packages")
    fine = [bands(folder / str(n), f"fine{n}", {"low": 0.3 + n / 10, "high": 0.7}) for n in range(2)]
    return [*fine, bands(folder / "coarse", "coarse", {"low": 0.35, "high": 0.6}, spacing=2.0)]


def test_the_mean_is_that_of_each_groups_probabilities(packages):
    volume = spotted()
    alone = [segment(group, volume, probabilities=True).result.probabilities for group in (packages[:2], packages[2:])]
    for probabilities in alone:
        assert probabilities.shape == (3, *volume.data.shape[1:]) and probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    mean = (alone[0] + alone[1]) / 2
    run = segment(packages, volume, margins=True)
    np.testing.assert_array_equal(run.result.labels, np.argmax(mean, 0))
    first, second = np.sort(mean, 0)[::-1][:2]
    np.testing.assert_allclose(run.result.margins / ONE, first - second, atol=0.5 / ONE + 1e-6)
    assert run.result.notes[0] == "the probabilities of fine0 and coarse were averaged on the scan's grid"
    assert [part["name"] for part in run.parts] == ["fine0", "coarse"]
    assert run.result.windows == sum(part["windows"] for part in run.parts) and run.result.probabilities is None
    # None of the networks alone says the same.
    assert all((run.result.labels != np.argmax(probabilities, 0)).any() for probabilities in alone)


def test_one_networks_probabilities_are_those_of_its_labels(packages):
    volume = spotted()
    for package in packages:
        run = segment([package], volume, probabilities=True)
        np.testing.assert_array_equal(run.result.labels, segment([package], volume).result.labels)


def test_probabilities_are_not_left_to_a_gpu_that_gives_labels(packages, monkeypatch):
    asked = []
    monkeypatch.setattr(GpuRoad, "fits", lambda _, **wanted: asked.append(wanted) or False)
    segment(packages, spotted())
    assert asked == [{"skip_air": False, "margins": True}] * 2


def test_a_region_and_structures_are_kept_as_of_one_network(packages):
    volume = spotted()
    whole = segment(packages, volume)
    some = segment(packages, volume, structures=("high",), roi=(0, 23, 0, 19, 0, 7))
    assert set(np.unique(some.result.labels)) == {0, 2} and not some.result.labels[8:].any()
    np.testing.assert_array_equal(some.result.labels[:6] == 2, whole.result.labels[:6] == 2)


@pytest.mark.parametrize("resampled", [None, "logits", "probabilities"])
def test_regions_are_averaged_and_painted(resampled, tmp_path):
    changes = {"output": Output("sigmoid", resample=resampled)}
    made = [
        bands(tmp_path / str(n), f"r{n}", {"a": 0.3, "b": 0.6}, spacing=spacing, **changes)
        for n, spacing in enumerate((None, 2.0))
    ]
    volume = spotted()
    alone = [segment([package], volume, probabilities=True).result.probabilities for package in made]
    for package, probabilities in zip(made, alone, strict=True):
        painted = np.where(probabilities[2] > 0.5, 2, np.where(probabilities[1] > 0.5, 1, 0))
        np.testing.assert_array_equal(painted, segment([package], volume).result.labels)
    mean = (alone[0] + alone[1]) / 2
    expected = np.where(mean[2] > 0.5, 2, np.where(mean[1] > 0.5, 1, 0))
    np.testing.assert_array_equal(segment(made, volume).result.labels, expected)


def test_what_cannot_be_averaged_is_refused_in_words(packages, tmp_path):
    for name, limits, changes, reason in (
        ("names", {"low": 0.3, "other": 0.7}, {}, "their labels differ"),
        ("count", {"low": 0.3}, {}, "their labels differ"),
        ("kind", {"low": 0.3, "high": 0.7}, {"output": Output("sigmoid")}, "their kind of output differs"),
        ("cleaned", {"low": 0.3, "high": 0.7}, {"cleaning": (Cleaning("largest", count=1),)}, "their cleaning differs"),
    ):
        other = bands(tmp_path / name, name, limits, spacing=2.0, **changes)
        with pytest.raises(InputError, match=reason):
            Ensemble([packages[0], other])
    made = [
        bands(tmp_path / f"labels{n}", f"l{n}", {"low": 0.3}, spacing=spacing, output=Output(resample="labels"))
        for n, spacing in enumerate((None, 2.0))
    ]
    with pytest.raises(InputError, match="makes labels before it goes back"):
        Ensemble(made)
    with pytest.raises(InputError, match="its masks cannot be resampled"):
        segment(packages, spotted(), resample="masks")


def test_too_little_memory_is_said_before_any_network_is_run(packages, monkeypatch):
    from MedQuantINT8Lib.inference import configurations

    monkeypatch.setattr(configurations, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match="probabilities of 3 classes"):
        segment(packages, spotted())


def test_mirroring_is_checked_for_every_network_before_any_is_run(packages, tmp_path):
    mirrored = bands(tmp_path / "m", "m", {"low": 0.3, "high": 0.7}, spacing=3.0, mirroring=Mirroring((0, 1)))
    run = segment([packages[0], mirrored], spotted(), mirroring=True)
    assert "fine0 is not mirrored: its network was not trained for it" in run.result.notes
    with pytest.raises(InputError, match="fine0 does not allow mirroring along axis 0"):
        segment([mirrored, packages[0]], spotted(), mirroring=(0,))


def test_by_the_command_on_a_folder_of_scans_as_well(packages, tmp_path, capsys):
    volume = spotted()
    (tmp_path / "scans").mkdir()
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(tmp_path / "scans/a.nii.gz"))
    model = ",".join(str(package.folder) for package in packages)
    how = ["--engine", "onnxruntime", "--precision", "fp32", "-q"]
    assert main(["segment", model, str(tmp_path / "scans"), "-o", str(tmp_path / "out"), *how]) == 0
    assert main(["segment", model, str(tmp_path / "scans/a.nii.gz"), "-o", str(tmp_path / "one.seg.nrrd"), *how]) == 0
    assert "the probabilities of fine0 and coarse were averaged" in capsys.readouterr().out
    one, many = (read_volume(tmp_path / name).data for name in ("one.seg.nrrd", "out/a.seg.nrrd"))
    np.testing.assert_array_equal(one, many)
