"""What is known before a run, and what is looked at while it goes: records, forecasts, load, groups and settings. No Qt, no scene."""

from __future__ import annotations

import os

import numpy as np
import pytest

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.phantom import make_phantom
from MedQuantINT8Lib.imaging.region_of_interest import extent
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.resources import resource
from MedQuantINT8Lib.slicer_module.forecast import forecast, seen_part
from MedQuantINT8Lib.slicer_module.load_gauge import LoadGauge
from MedQuantINT8Lib.slicer_module.run_records import find_run, keep_run
from MedQuantINT8Lib.slicer_module.settings import KEYS, Folders, Settings
from MedQuantINT8Lib.slicer_module.structure_groups import matching, structure_groups

DEMO = str(resource("demo.zip"))
REPORT = {
    "engine": {"title": "OpenVINO (CPU)", "precision": "int8"},
    "seconds": {"network": 8.0, "preprocessing": 1.0, "preparing the engine": 30.0, "total": 40.0},
    "windows": 8,
}


@pytest.fixture
def volume(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path))
    return make_phantom(2000, (56, 48, 50), 5.0)[0]


def test_time_is_unknown_until_a_run_was_recorded_and_the_engines_building_does_not_count(volume):
    choice, options = EngineChoice(), SegmentationOptions()
    before = forecast(DEMO, volume, choice, options)
    assert before.seconds is None and before.engine == "" and before.precision == "int8"
    voxels = int(volume.data[0].size)
    record = keep_run(DEMO, choice, REPORT, voxels)
    assert record.network_seconds == 8 and record.other_seconds == 2, "30 of 40 s are the first run's alone"
    after = forecast(DEMO, volume, choice, options)
    assert after.engine == "OpenVINO (CPU)" and after.seconds == pytest.approx(
        record.seconds(after_windows(volume), voxels)
    )
    assert find_run(DEMO, EngineChoice(device="cpu")) is None, "another device is another time"


def after_windows(volume):
    from MedQuantINT8Lib.inference.memory_estimate import network_shape_of
    from MedQuantINT8Lib.inference.windows import plan_windows
    from MedQuantINT8Lib.models.package import peek

    spec = peek(DEMO)[0]
    return plan_windows(network_shape_of(volume, spec), spec.window, spec.window.patch_size).count


def test_a_larger_scan_takes_longer_and_more_memory(volume):
    pytest.importorskip("onnx")
    keep_run(DEMO, EngineChoice(), REPORT, int(volume.data[0].size))
    larger = make_phantom(2000, (112, 96, 100), 5.0)[0]
    small, large = (forecast(DEMO, v, EngineChoice(), SegmentationOptions()) for v in (volume, larger))
    assert large.seconds > 2 * small.seconds and large.memory_bytes > small.memory_bytes > 0


def test_a_region_is_forecast_by_its_own_size(volume, tmp_path):
    pytest.importorskip("onnx")
    box = extent(volume.grid)
    half = (box[0], (box[0] + box[1]) / 2, (box[2] + box[3]) / 2, box[3], box[4], box[5])
    whole, part = SegmentationOptions(), SegmentationOptions(roi=half)
    assert forecast(DEMO, volume, EngineChoice(), part).seconds is None
    assert not (tmp_path / "runs.json").exists(), "a region that is dragged keeps nothing"
    keep_run(DEMO, EngineChoice(), REPORT, int(volume.data[0].size))
    full, less = (forecast(DEMO, volume, EngineChoice(), options) for options in (whole, part))
    assert less.seconds < full.seconds and less.memory_bytes < full.memory_bytes and not less.at_most
    seen = seen_part(volume, part)
    assert seen.data[0].size == pytest.approx(volume.data[0].size / 4, rel=0.1)
    # A run in a region tells of regions, and nothing of whole scans.
    keep_run(DEMO, EngineChoice(), {**REPORT, "windows": 1}, int(seen.data[0].size), part)
    assert forecast(DEMO, volume, EngineChoice(), part).seconds > less.seconds
    assert forecast(DEMO, volume, EngineChoice(), whole) == full
    with pytest.raises(InputError, match="holds no voxel"):
        forecast(DEMO, volume, EngineChoice(), SegmentationOptions(roi=(900, 910, 0, 1, 0, 1)))


def test_runs_of_another_kind_tell_nothing_of_usual_ones(volume):
    voxels = int(volume.data[0].size)
    checked = SegmentationOptions(check_share=1.0)
    keep_run(DEMO, EngineChoice(), REPORT, voxels, checked)
    assert forecast(DEMO, volume, EngineChoice(), SegmentationOptions()).seconds is None
    assert forecast(DEMO, volume, EngineChoice(), checked).seconds is not None
    usual = SegmentationOptions(overlap=0.7, memory_bytes=5, structures=("liver",))
    keep_run(DEMO, EngineChoice(), REPORT, voxels)
    assert forecast(DEMO, volume, EngineChoice(), usual).seconds is not None, "the number of windows tells the rest"


def test_memory_is_that_of_the_scan_with_its_spacing(volume):
    pytest.importorskip("onnx")
    finer = Volume(volume.data, volume.ijk_to_ras @ np.diag([0.5, 0.5, 0.5, 1]), "finer")
    coarse, fine = (forecast(DEMO, v, EngineChoice(), SegmentationOptions()).memory_bytes for v in (volume, finer))
    assert fine < coarse, "half the spacing is an eighth of the body"


def test_a_record_of_another_state_of_the_model_is_not_used(volume, tmp_path):
    model = tmp_path / "model.zip"
    model.write_bytes(resource("demo.zip").read_bytes())
    assert keep_run(str(model), EngineChoice(), REPORT, 1000) and find_run(str(model), EngineChoice())
    os.utime(model, ns=(1, 1))
    assert find_run(str(model), EngineChoice()) is None
    assert keep_run(str(model), EngineChoice(), {"engine": {}}, 1000) is None, "a report that does not tell is not kept"


def test_a_damaged_or_unwritable_record_spoils_nothing(volume, tmp_path, monkeypatch):
    (tmp_path / "runs.json").write_text("[")
    assert find_run(DEMO, EngineChoice()) is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "file" / "below"))
    assert keep_run(DEMO, EngineChoice(), REPORT, 1000) is not None and find_run(DEMO, EngineChoice()) is None


def test_the_gauge_tells_what_this_process_takes_and_nothing_of_one_that_is_gone():
    gauge = LoadGauge(os.getpid())
    gauge.read()
    np.ones((400, 400)) @ np.ones((400, 400))
    load = gauge.read()
    assert load.memory_bytes > 1 << 20 and load.free_bytes > 0 and 0 <= load.processor_share <= 1
    gone = LoadGauge(2**22 + 1).read()
    assert gone.memory_bytes is None and gone.processor_share is None


def test_structures_are_grouped_by_their_names_and_found_by_words():
    names = ["liver", "left kidney", "right kidney", "vertebrae L1", "rib left 3", "aorta", "lateral ventricle", "blob"]
    groups = {group: members for group, (_title, members) in structure_groups(names).items()}
    assert groups["organs"] == {"liver", "left kidney", "right kidney"} and groups["left"] == {
        "left kidney",
        "rib left 3",
    }
    assert groups["bones"] == {"vertebrae L1", "rib left 3"} and groups["brain"] == {"lateral ventricle"}
    assert not any("blob" in members for members in groups.values())
    assert structure_groups(["liver", "spleen"]) == {}, "a group of all is none"
    assert matching(names, "KID left") == ["left kidney"]


def test_settings_reach_what_the_caller_left_open_and_nothing_else():
    kept = {KEYS["threads"]: "3", KEYS["memoryGB"]: "1.5", KEYS["modelsFolder"]: "/m"}
    settings = Settings.read(kept.get)
    assert settings == Settings(modelsFolder="/m", threads=3, memoryGB=1.5)
    assert settings.choice(EngineChoice()).threads == 3 and settings.choice(EngineChoice(threads=1)).threads == 1
    assert settings.options(SegmentationOptions()).memory_bytes == 3 << 29
    assert settings.options(SegmentationOptions(memory_bytes=7)).memory_bytes == 7
    assert Settings.read({KEYS["threads"]: "many", KEYS["memoryGB"]: -1}.get) == Settings()


def test_folders_of_the_settings_hold_until_they_are_emptied(monkeypatch):
    monkeypatch.setenv("MEDQUANT_MODELS", "/before")
    monkeypatch.delenv("MEDQUANT_CACHE", raising=False)
    folders = Folders()
    assert folders.apply(Settings(modelsFolder="/a", enginesFolder="/b"))
    assert os.environ["MEDQUANT_MODELS"] == "/a" and os.environ["MEDQUANT_CACHE"] == "/b"
    assert not folders.apply(Settings(modelsFolder="/a", enginesFolder="/b"))
    assert folders.apply(Settings())
    assert os.environ["MEDQUANT_MODELS"] == "/before" and "MEDQUANT_CACHE" not in os.environ
