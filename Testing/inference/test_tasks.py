"""Tasks: several networks merged into one label map, in a box that another one finds, and of some structures alone."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import gpu_computing
import kernels_on_processor
from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
from MedQuantINT8Lib.errors import Cancelled, EngineError, InputError, PackageError
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference import network_run, pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.engine_pool import KeepingPool
from MedQuantINT8Lib.inference.ensemble import load_ensemble
from MedQuantINT8Lib.inference.label_merging import merge_labels
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.inference.shared_preprocessing import SharedPreprocessing
from MedQuantINT8Lib.inference.task_gpus import PartRun, PartsOnGpus
from MedQuantINT8Lib.inference.task_merging import Merging
from MedQuantINT8Lib.inference.task_model import TaskModel, load_model
from MedQuantINT8Lib.models.spec import Mirroring
from MedQuantINT8Lib.models.task import parse_task
from MedQuantINT8Lib.models.task_package import TaskPackage
from MedQuantINT8Lib.models.task_writing import write_task
from MedQuantINT8Lib.progress import Task
from task_packages import bands, spotted, task_spec, three_parts

CHOICE = EngineChoice("onnxruntime", "fp32", 1, "cpu")
OPTIONS = SegmentationOptions(check_ranges=False)


def segment(model, volume, options=OPTIONS, pool=None):
    return pipeline.segment(model, volume, CHOICE, options, Task(), pool=pool)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The task of three parts."""
    return three_parts(tmp_path_factory.mktemp("three"))


def independent(together, volume):
    """The label map of each part, run by itself."""
    maps = {}
    for name in ("dim", "bright", "brightest"):
        with load_ensemble(str(together / "packages" / name)) as ensemble:
            maps[name] = segment(ensemble, volume).result.labels
    return maps


def test_the_merged_map_is_that_of_independent_runs_merged_by_hand(together):
    volume = spotted()
    maps = independent(together, volume)
    by_hand = np.zeros(volume.data.shape[1:], int)
    # The values of the task by those of each part; a later part wins.
    for name, values in (("dim", {1: 4, 2: 3}), ("bright", {1: 2, 2: 1}), ("brightest", {1: 5})):
        for value, target in values.items():
            by_hand[maps[name] == value] = target
    with load_model(str(together)) as model:
        run = segment(model, volume)
    np.testing.assert_array_equal(run.result.labels, by_hand)
    assert set(np.unique(by_hand)) == {0, 1, 2, 3, 4, 5}
    assert [part["name"] for part in run.parts] == ["dim", "bright", "brightest"]
    assert run.result.windows == sum(part["windows"] for part in run.parts)
    # What the networks saw lies at two spacings, one of them coarser.
    assert run.parts[2]["windows"] < run.parts[0]["windows"]
    assert run.engine["bytes"] == sum(part["engine"]["bytes"] for part in run.parts)
    assert run.latency_ms["calls"] == sum(part["latency_ms"]["calls"] for part in run.parts)


def test_a_stated_order_decides_which_part_wins(together, tmp_path):
    volume = spotted()
    maps = independent(together, volume)
    with TaskPackage.load(together) as package:
        spec = replace(package.spec, merge_order=("brightest", "bright", "dim"))
        packages = {path: package.folder / path for path in spec.package_paths}
        write_task(tmp_path / "other way", spec, packages)
    with load_model(str(tmp_path / "other way")) as model:
        labels = segment(model, volume).result.labels
    np.testing.assert_array_equal(labels == 3, maps["dim"] == 2)
    np.testing.assert_array_equal(labels == 2, (maps["bright"] == 1) & (maps["dim"] == 0))


def test_values_are_mapped_by_what_the_task_says_and_others_are_background(together, tmp_path):
    volume = spotted()
    maps = independent(together, volume)
    parts = [
        {"name": "dim", "packages": ["packages/dim"], "labels": [{"value": 2, "name": "matter"}]},
        {"name": "bright", "packages": ["packages/bright"], "labels": [{"value": 1, "name": "matter"}]},
    ]
    spec = task_spec(["void", "matter"], parts)
    write_task(tmp_path / "task", spec, {path: together / path for path in spec.package_paths})
    with load_model(str(tmp_path / "task")) as model:
        run = segment(model, volume)
    np.testing.assert_array_equal(run.result.labels, np.where((maps["dim"] == 2) | (maps["bright"] == 1), 2, 0))
    assert any("no part of together gives void" in note for note in run.result.notes)


def test_a_package_that_is_not_as_the_task_says_is_refused_before_any_work(together, tmp_path):
    for labels, said in (([{"value": 7, "name": "white"}], "value 7"), ([], "no structure of the task")):
        parts = [{"name": "bright", "packages": ["packages/bright"], "labels": labels}]
        spec = task_spec(["white"], parts)
        with pytest.raises(PackageError, match=said):
            write_task(tmp_path / "task", spec, {"packages/bright": together / "packages/bright"})
        assert not (tmp_path / "task").exists()


# ---- some structures alone


def test_a_few_structures_take_at_most_a_third_of_the_windows(tmp_path):
    """Three of many structures: only the parts that have them are run, and only in the box around them."""
    names = [f"s{n}" for n in range(12)]
    limits = np.linspace(0.05, 0.9, 12)
    packages, parts = {}, []
    for part in range(4):
        own = dict(zip(names[3 * part : 3 * part + 3], limits[3 * part : 3 * part + 3], strict=True))
        packages[f"packages/p{part}"] = bands(tmp_path, f"p{part}", own).folder
        parts.append({"name": f"p{part}", "packages": [f"packages/p{part}"], "within": "where"})
    everything = dict(zip(names, limits, strict=True))
    packages["packages/coarse"] = bands(tmp_path, "coarse", everything, spacing=4.0).folder
    find = [{"name": "where", "packages": ["packages/coarse"], "box_of": "chosen", "margin_mm": 2}]
    write_task(tmp_path / "task", task_spec(names, parts, find=find), packages)
    data = np.zeros((32, 32, 64), np.float32)
    data[..., :] = np.linspace(0, 1, 64)
    volume = Volume(data, np.eye(4), "ramp")
    with load_model(str(tmp_path / "task")) as model:
        whole = segment(model, volume)
        few = segment(model, volume, replace(OPTIONS, structures=("s3", "s4", "s5")))
    assert [part["name"] for part in whole.parts] == ["p0", "p1", "p2", "p3"]
    assert [part["name"] for part in few.parts] == ["where", "p1"]
    assert 0 < 3 * few.result.windows <= whole.result.windows
    assert few.boxes[0]["found"] == ["s3", "s4", "s5"]
    # What is chosen is as in the whole run, where no later part paints over it.
    for value in (4, 5, 6):
        mask = whole.result.labels == value
        assert mask.any()
        np.testing.assert_array_equal(few.result.labels[mask], value)
    assert set(np.unique(few.result.labels)) == {0, 4, 5, 6}


def test_parts_of_which_nothing_was_chosen_need_not_be_there(together, tmp_path):
    parts = [
        {"name": "dim", "packages": ["packages/dim"]},
        {"name": "other", "installed": "nowhere", "labels": [{"value": 1, "name": "white"}]},
    ]
    spec = task_spec(["white", "grey", "shadow"], parts)
    write_task(tmp_path / "task", spec, {"packages/dim": together / "packages/dim"})
    with load_model(str(tmp_path / "task")) as model:
        assert segment(model, spotted(), replace(OPTIONS, structures=("grey",))).result.labels.any()
        with pytest.raises(InputError, match="other of the task together runs the model nowhere"):
            segment(model, spotted())


def test_a_structure_that_nothing_knows_is_refused_in_words(together):
    wanted = replace(OPTIONS, structures=("grey", "liver"))
    with load_model(str(together)) as model, pytest.raises(InputError, match="together does not know 'liver'"):
        segment(model, spotted(), wanted)
    with (
        load_model(str(together / "packages/dim")) as model,
        pytest.raises(InputError, match="dim does not know 'liver'"),
    ):
        segment(model, spotted(), wanted)


def test_structures_of_a_single_package_are_those_of_the_whole_run(together):
    with load_model(str(together / "packages/dim")) as model:
        whole = segment(model, spotted()).result.labels
        grey = segment(model, spotted(), replace(OPTIONS, structures=("grey",))).result.labels
    np.testing.assert_array_equal(grey, np.where(whole == 2, 2, 0))


# ---- find


@pytest.fixture
def finding(tmp_path):
    """Makes a task that finds a bright spot and looks for what is dim around it."""

    def make(**step) -> TaskModel:
        packages = {
            "packages/spot": bands(tmp_path, "spot", {"spot": 0.9}).folder,
            "packages/dim": bands(tmp_path, "dim", {"grey": 0.3}).folder,
        }
        parts = [{"name": "dim", "packages": ["packages/dim"], "within": "spot"}]
        find = [{"name": "spot", "packages": ["packages/spot"], "structures": ["spot"], "margin_mm": 3, **step}]
        write_task(tmp_path / "task", task_spec(["grey"], parts, find=find), packages)
        return load_model(str(tmp_path / "task"))

    return make


def scan_with_spot(spot: bool = True) -> Volume:
    """Grey everywhere, with dark voxels here and there, and a bright block where ``spot`` says so; voxels of 1 x 2 x 1 mm."""
    data = np.full((20, 24, 30), 0.5, np.float32)
    data[::3, ::2, ::5] = 0.1
    if spot:
        data[8:12, 10:14, 14:20] = 1.0
    return Volume(data, np.diag([1.0, 2.0, 1.0, 1.0]), "spot")


def test_what_is_found_bounds_the_parts_and_the_box_is_reported(finding):
    volume = scan_with_spot()
    with finding() as model:
        run = segment(model, volume)
        whole = segment(model.ensemble(model.spec.parts[0]), volume).result.labels
    (box,) = run.boxes
    # The spot with 3 mm on each side: three voxels of 1 mm, two of 2 mm.
    assert (box["start"], box["stop"]) == ([11, 8, 5], [23, 16, 15])
    assert box["found"] == ["spot"] and box["size_mm"] == [12, 16, 10]
    expected = np.zeros_like(whole)
    expected[5:15, 8:16, 11:23] = whole[5:15, 8:16, 11:23]
    np.testing.assert_array_equal(run.result.labels, expected)
    assert any("the box around spot with 3 mm is 12 x 8 x 10 of 30 x 24 x 20 voxels" in n for n in run.result.notes)


def test_where_nothing_is_found_the_run_says_so_and_stops(finding):
    with finding() as model:
        run = segment(model, scan_with_spot(spot=False))
    assert not run.result.labels.any()
    assert [part["name"] for part in run.parts] == ["spot"]
    assert run.result.notes[0] == "spot found no spot: nothing else is run"


def test_where_nothing_is_found_the_whole_scan_is_taken_if_the_task_says_so(finding):
    volume = scan_with_spot(spot=False)
    with finding(nothing_found="whole_scan") as model:
        run = segment(model, volume)
        whole = segment(model.ensemble(model.spec.parts[0]), volume).result.labels
    np.testing.assert_array_equal(run.result.labels, whole)
    assert run.result.notes[0] == "spot found no spot: the whole scan is taken"


def test_a_step_that_is_not_run_hands_its_own_box_on(tmp_path):
    """The body is found every time, the organ only where not all structures are asked for: then its box lies in the body's."""
    packages = {
        "packages/body": bands(tmp_path, "body", {"body": 0.3}).folder,
        "packages/organ": bands(tmp_path, "organ", {"light": 0.6, "bright": 0.9}).folder,
    }
    find = [
        {"name": "body", "packages": ["packages/body"]},
        {"name": "organ", "packages": ["packages/organ"], "within": "body", "box_of": "chosen", "margin_mm": 1},
    ]
    parts = [{"name": "all", "packages": ["packages/organ"], "within": "organ"}]
    write_task(tmp_path / "task", task_spec(["light", "bright"], parts, find=find), packages)
    data = np.zeros((20, 20, 20), np.float32)
    data[4:16, 4:16, 4:16] = 0.4
    data[6:9, 6:9, 6:9], data[10:13, 10:13, 10:13] = 0.7, 1.0
    volume = Volume(data, np.eye(4), "body")
    with load_model(str(tmp_path / "task")) as model:
        whole = segment(model, volume)
        bright = segment(model, volume, replace(OPTIONS, structures=("bright",)))
    assert [(box["name"], box["start"]) for box in whole.boxes] == [("body", [4, 4, 4])]
    assert [(box["name"], box["start"]) for box in bright.boxes] == [("body", [4, 4, 4]), ("organ", [9, 9, 9])]
    np.testing.assert_array_equal(bright.result.labels == 2, data == 1.0)
    np.testing.assert_array_equal(whole.result.labels == 1, data == np.float32(0.7))


def test_nothing_as_large_as_the_scan_is_kept_of_a_part_that_is_done(together, monkeypatch):
    runs = []
    original = network_run.NetworkSetting.run

    def run(self, *arguments):
        runs.append(original(self, *arguments))
        return runs[-1]

    monkeypatch.setattr(network_run.NetworkSetting, "run", run)
    with load_model(str(together)) as model:
        segment(model, spotted())
    assert len(runs) == 3
    assert all(run.network_input is None and run.result.labels.size == 0 for run in runs)


# ---- what parts share


def test_parts_that_agree_share_one_preprocessing(together, monkeypatch):
    counts = []
    original = SharedPreprocessing.__call__

    def call(self, volume, spec):
        result = original(self, volume, spec)
        counts.append(self.count)
        return result

    monkeypatch.setattr(SharedPreprocessing, "__call__", call)
    with load_model(str(together)) as model:
        segment(model, spotted())
    # "dim" and "bright" are prepared alike, "brightest" has another spacing.
    assert counts == [1, 1, 2]


def test_engines_are_kept_between_runs_while_memory_allows(together, monkeypatch):
    pool = KeepingPool()
    with load_model(str(together)) as model:
        first = segment(model, spotted(), pool=pool)
        assert len(pool) == 3
        second = segment(model, spotted(), pool=pool)
        np.testing.assert_array_equal(first.result.labels, second.result.labels)
        # With no memory to spare each makes room for the next.
        monkeypatch.setattr("MedQuantINT8Lib.inference.engine_pool.available_memory", lambda: 0)
        segment(model, spotted(), pool=pool)
        assert len(pool) == 1
    pool.clear()


def test_the_memory_of_the_largest_part_is_told(together):
    with load_model(str(together)) as model:
        notes = segment(model, spotted()).result.notes
    assert any(re.match(r"networks are run in turn; the largest, .* about \d+ MB", note) for note in notes), notes


def test_a_task_that_does_not_fit_is_refused_before_any_part_runs(together, monkeypatch):
    monkeypatch.setattr("MedQuantINT8Lib.inference.memory_estimate.available_memory", lambda: 1)
    runs = []
    monkeypatch.setattr(network_run, "_segment", lambda *a: runs.append(a))
    with load_model(str(together)) as model, pytest.raises(InputError, match="only 0.0 GB are free"):
        segment(model, spotted())
    assert runs == []


def test_margins_of_a_task_are_those_of_the_part_that_won(together):
    volume, options = spotted(), replace(OPTIONS, margins=True)
    with load_model(str(together)) as model:
        run = segment(model, volume, options)
    with load_ensemble(str(together / "packages" / "brightest")) as ensemble:
        alone = segment(ensemble, volume, options).result
    glow = run.result.labels == 5
    np.testing.assert_array_equal(run.result.margins[glow], alone.margins[glow])


def test_a_task_cannot_be_averaged_with_other_models(together):
    with pytest.raises(InputError, match="cannot be averaged"):
        load_model(f"{together},{together / 'packages/dim'}")


def test_the_merged_map_is_cleaned_as_the_task_says(together, tmp_path):
    with TaskPackage.load(together) as package:
        packages = {path: package.folder / path for path in package.spec.package_paths}
        spec = parse_task(package.spec.to_json() | {"cleaning": [{"kind": "largest", "labels": [5]}]})
    write_task(tmp_path / "cleaned", spec, packages)
    with load_model(str(together)) as model:
        before = segment(model, spotted()).result.labels
    with load_model(str(tmp_path / "cleaned")) as model:
        after = segment(model, spotted()).result.labels
    assert 0 < (after == 5).sum() < (before == 5).sum()
    np.testing.assert_array_equal(after[before != 5], before[before != 5])


def test_a_task_removes_parts_by_their_volume_in_cubic_millimeters(together, tmp_path):
    """Voxels of 8 mm3: parts of fewer than nine voxels go where 72 mm3 are asked for."""
    volume = spotted(matrix=np.diag([2.0, 2.0, 2.0, 1.0]))
    results = {}
    for name, cleaning in (("volume", {"volume": 72}), ("size", {"size": 9})):
        with TaskPackage.load(together) as package:
            packages = {path: package.folder / path for path in package.spec.package_paths}
            step = {"kind": "remove_small", "labels": [5], **cleaning}
            spec = parse_task(package.spec.to_json() | {"cleaning": [step]})
        write_task(tmp_path / name, spec, packages)
        with load_model(str(tmp_path / name)) as model:
            results[name] = segment(model, volume).result.labels
    with load_model(str(together)) as model:
        before = segment(model, volume).result.labels
    np.testing.assert_array_equal(results["volume"], results["size"])
    assert (results["volume"] != before).any()


def test_a_part_averages_packages_of_different_spacing(tmp_path):
    limits = {"low": 0.3, "high": 0.7}
    made = {
        f"packages/{name}": bands(tmp_path, name, limits, spacing=spacing).folder
        for name, spacing in (("fine", None), ("coarse", 2.0))
    }
    spec = task_spec(["low", "high"], [{"name": "mean", "packages": list(made)}])
    write_task(tmp_path / "task", spec, made)
    with load_model(str(tmp_path / "task")) as model, load_ensemble(",".join(map(str, made.values()))) as ensemble:
        ours, alone = segment(model, spotted()), segment(ensemble, spotted())
    np.testing.assert_array_equal(ours.result.labels, alone.result.labels)
    assert any("the probabilities of fine and coarse were averaged" in note for note in ours.result.notes)
    other = bands(tmp_path, "other", {"low": 0.3, "other": 0.7}, spacing=3.0)
    with pytest.raises(PackageError, match="mean of the task together runs other and fine, which cannot be averaged"):
        write_task(
            tmp_path / "bad",
            task_spec(["low", "high"], [{"name": "mean", "packages": ["packages/fine", "packages/other"]}]),
            {"packages/fine": made["packages/fine"], "packages/other": other.folder},
        )


def test_axes_that_a_later_part_does_not_allow_are_refused_before_any_is_run(tmp_path, monkeypatch):
    made = {
        f"packages/{name}": bands(tmp_path, name, {name: 0.5}, mirroring=Mirroring(axes)).folder
        for name, axes in (("first", (0, 1)), ("second", (1,)))
    }
    parts = [{"name": name, "packages": [f"packages/{name}"]} for name in ("first", "second")]
    write_task(tmp_path / "task", task_spec(["first", "second"], parts), made)
    with load_model(str(tmp_path / "task")) as model:
        monkeypatch.setattr(network_run, "_segment", lambda *_: pytest.fail("a network was run"))
        with pytest.raises(InputError, match="second does not allow mirroring along axis 0"):
            segment(model, spotted(), SegmentationOptions(mirroring=(0,)))


@pytest.mark.skipif(kernels_on_processor.COMPILER is None, reason="needs a C++ compiler")
class TestOnSeveralGpus:
    """Parts on GPUs that are none, by a network in NumPy; see gpu_computing.py."""

    @pytest.fixture
    def driver(self, monkeypatch, tmp_path):
        monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
        return gpu_computing.install_kernels(monkeypatch)

    @staticmethod
    def run(folder, device, task=None, pool=None, volume=None):
        choice = EngineChoice("cuda_int8", "fp16", device=device)
        with load_model(str(folder)) as model:
            return pipeline.segment(model, volume or spotted(), choice, OPTIONS, task or Task(), pool=pool)

    def test_each_part_runs_on_one_gpu_and_the_last_on_all(self, together, driver):
        one, events = self.run(together, "gpu:1"), []
        several = self.run(together, "gpu:all", Task(events.append))
        np.testing.assert_array_equal(several.result.labels, one.result.labels)
        assert set(np.unique(one.result.labels)) == {0, 1, 2, 3, 4, 5}
        # In the task's order, whichever ended first, and nothing is counted twice.
        for what in ("name", "windows"):
            assert [part[what] for part in several.parts] == [part[what] for part in one.parts]
        assert "2 parts were run on 2 GPUs, each on one of them" in several.result.notes
        spread = [note for note in several.result.notes if "windows were spread over gpu:0, gpu:1" in note]
        assert len(spread) == 1 and spread[0].startswith("brightest: ")
        assert not any("each on one" in note or "spread" in note for note in one.result.notes)
        assert any(event.stage == "dim: segmenting" for event in events)
        assert not driver.memory

    def test_parts_that_come_to_the_scan_s_grid_on_a_gpu_are_merged_there(self, driver, tmp_path, monkeypatch):
        limits = {"low": 0.2, "middle": 0.4, "high": 0.6, "top": 0.8}
        packages = {
            f"packages/{name}": bands(tmp_path, name, {name: limit}, spacing=2.0).folder
            for name, limit in limits.items()
        }
        parts = [{"name": name, "packages": [f"packages/{name}"]} for name in limits]
        write_task(tmp_path / "task", task_spec(list(limits), parts), packages)
        volume = spotted()
        choice = EngineChoice("onnxruntime", "fp32", device="cpu")
        with load_model(str(tmp_path / "task")) as model:
            expected = pipeline.segment(model, volume, choice, OPTIONS, Task()).result.labels
        assert set(np.unique(expected)) == {0, 1, 2, 3, 4}
        monkeypatch.setattr(
            "MedQuantINT8Lib.inference.task_merging.merge_labels", lambda *_: pytest.fail("merged here")
        )
        for device in ("gpu:1", "gpu:all"):
            labels = self.run(tmp_path / "task", device, volume=volume).result.labels
            assert labels.dtype == expected.dtype and (labels != expected).mean() < 2e-3
        assert not driver.memory

    def test_a_gpu_that_is_slow_holds_nobody_up_for_ever(self):
        """Parts are taken in their order, also where one GPU is far ahead of the other."""

        def on(slow):
            def run(name, volume, options, shared, keeper):
                time.sleep(0.02 if slow else 0)
                return SimpleNamespace(name=name, network_input=None)

            return lambda task: run

        names = [f"part{n}" for n in range(12)]
        spec = SimpleNamespace(
            channels=1, input_channels=1, scans=1, steps=(), geometry=0, crop=0, normalization=(), fits=()
        )
        ensembles = [SimpleNamespace(first=SimpleNamespace(spec=spec)) for _ in names]
        parts = [PartRun(name, ensemble, spotted(), OPTIONS) for name, ensemble in zip(names, ensembles, strict=True)]
        taken = []
        PartsOnGpus([on(False), on(True)], Task()).run(parts, lambda number, run: taken.append((number, run.name)))
        assert taken == [(n, ensemble) for n, ensemble in enumerate(ensembles)]

    def test_a_process_that_stays_loads_each_network_once(self, together, driver, monkeypatch):
        pool, loads = KeepingPool(), []
        load = CudaInt8Backend.load
        monkeypatch.setattr(
            CudaInt8Backend, "load", lambda *arguments: loads.append(arguments[2].device) or load(*arguments)
        )
        labels = [self.run(together, "gpu:0,1", pool=pool).result.labels for _ in range(2)]
        np.testing.assert_array_equal(*labels)
        assert sorted(loads) == ["gpu:0", "gpu:0", "gpu:1", "gpu:1"] and len(pool) == 4
        pool.clear()
        assert not len(pool) and not driver.memory

    def test_a_run_that_is_cancelled_when_an_engine_is_loaded_closes_it(self, together, driver, monkeypatch):
        task, load = Task(), CudaInt8Backend.load

        def loads(*arguments):
            task.cancel()
            return load(*arguments)

        monkeypatch.setattr(CudaInt8Backend, "load", loads)
        with pytest.raises(Cancelled):
            self.run(together, "gpu:0", task)
        assert not driver.memory

    def test_a_part_that_fails_or_a_cancelled_task_ends_all(self, together, driver, monkeypatch):
        real = network_run._segment

        def fails(ensemble, volume, options, setting, *more):
            if setting.choice.device == "gpu:1":
                raise EngineError("The card fell out.")
            return real(ensemble, volume, options, setting, *more)

        with monkeypatch.context() as patch:
            patch.setattr(network_run, "_segment", fails)
            with pytest.raises(EngineError, match="fell out"):
                self.run(together, "gpu:0,1")
        task = Task(lambda event: task.cancel() if event.stage.endswith("segmenting") else None)
        with pytest.raises(Cancelled):
            self.run(together, "gpu:0,1", task)
        assert not driver.memory


@pytest.mark.parametrize(
    ("labels_of", "merged_of"), [(np.uint8, np.uint8), (np.uint8, np.uint16), (np.uint16, np.uint16)]
)
@pytest.mark.parametrize(
    "targets",
    [
        {1: 1, 2: 2, 3: 3},
        {1: 101, 2: 102, 3: 103},
        {1: 9, 2: 4, 3: 200},
        {2: 7},
        {1: 2, 2: 1, 3: 3},
    ],
)
def test_a_part_is_painted_over_what_is_there_and_its_background_is_not(labels_of, merged_of, targets):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (25, 6, 7)).astype(labels_of)
    labels[:9] = 0
    merged = rng.integers(0, 256, labels.shape).astype(merged_of)
    merged[8:17] = 1
    expected = merged.copy()
    for value, target in targets.items():
        expected[labels == value] = target
    merge_labels(merged, labels, targets)
    assert merged.dtype == merged_of and np.array_equal(merged, expected)
    merge_labels(merged, np.zeros_like(labels), targets)
    assert np.array_equal(merged, expected)


def test_a_merge_that_fails_is_not_lost():
    merging = Merging()
    merging.add(lambda: None)
    merging.add(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merging.end()
    merging.close()
