"""Which engine and precision a run takes: decided once and kept, told, and never in the way of a result."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

import tiny
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines import cache, choices, int8_or_float, ranking, registry
from MedQuantINT8Lib.engines import preparation as prepare
from MedQuantINT8Lib.engines.base import BuildOptions, UnsupportedNetwork
from MedQuantINT8Lib.engines.cuda.driver import GpuError, GpuMemoryError
from MedQuantINT8Lib.errors import EngineError
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference import engine_choice, pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.engine_pool import KeepingPool
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.progress import Task

OPTIONS = SegmentationOptions(check_ranges=False)
SCAN = Volume(np.random.default_rng(0).random((12, 10, 9)).astype(np.float32), np.eye(4), "scan")
PATCHES = [SCAN.data[:, :8, :8, :8]]


class Card(tiny.TinyBackend):
    """An engine on a GPU."""

    name, title, needs_gpu = "card", "Card", True


@pytest.fixture
def package(tmp_path):
    return tiny.package(tmp_path / "made")


@pytest.fixture(autouse=True)
def engines(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "engines"))
    made = {"card": Card(), "tiny": tiny.TinyBackend()}
    monkeypatch.setattr(
        registry, "_REGISTRY", {**dict.fromkeys(made, ""), "onnxruntime": registry._REGISTRY["onnxruntime"]}
    )
    real = registry.backend
    for module in (registry, engine_choice):
        monkeypatch.setattr(module, "backend", lambda name: made.get(name) or real(name))
    monkeypatch.setattr(tiny.TinyBackend, "failures", [])
    monkeypatch.setattr(tiny.TinyBackend, "built", [])
    return made


def timed(monkeypatch, int8, fp32):
    monkeypatch.setattr(int8_or_float, "_time_in_turn", lambda *_: {"int8_ms": int8, "fp32_ms": fp32})


def fails(where, *errors):
    tiny.TinyBackend.failures.extend((where, error) for error in errors)


def auto(package, **changes):
    options = replace(BuildOptions("int8", (8, 8, 8)), **changes)
    return int8_or_float.prepare_faster(package, tiny.TinyBackend(), options, PATCHES, Task())


@pytest.mark.parametrize(
    ("int8", "fp32", "taken"), [(10, 20, "int8"), (10, 10, "int8"), (10, 9, "int8"), (10, 8, "fp32"), (20, 10, "fp32")]
)
def test_fp32_is_taken_only_where_it_is_clearly_faster(package, monkeypatch, int8, fp32, taken):
    timed(monkeypatch, int8, fp32)
    made = auto(package)
    assert (
        made.options.precision == made.choice.precision == taken
        and f"{int8} ms a patch against {fp32} ms" in made.choice.reason
    )
    assert (made.note == made.choice.reason) == (taken == "fp32")


def test_short_runs_are_timed_often_and_the_shortest_counts(monkeypatch):
    clock, calls = [0.0], {"fp32": 0, "int8": 0}

    class Engine:
        def __init__(self, name, times):
            self.name, self.times = name, times

        def infer(self, batch):
            calls[self.name] += 1
            clock[0] += self.times[min(calls[self.name], len(self.times)) - 1]

    monkeypatch.setattr(int8_or_float.time, "perf_counter", lambda: clock[0])
    # The first call is not counted; one of INT8's is disturbed.
    found = int8_or_float._time_in_turn(
        Engine("fp32", [0.001, 0.004, 0.003]), Engine("int8", [0.0001, 0.9, 0.002]), PATCHES[0]
    )
    assert found == {"fp32_ms": 3.0, "int8_ms": 2.0} and 20 < calls["int8"] == calls["fp32"] <= 51
    calls.update(fp32=0, int8=0)
    assert int8_or_float._time_in_turn(Engine("fp32", [5.0]), Engine("int8", [6.0]), PATCHES[0]) == {
        "fp32_ms": 5000.0,
        "int8_ms": 6000.0,
    }
    assert calls == {"fp32": 4, "int8": 4}


def test_the_choice_is_kept_whatever_is_built_later(package, monkeypatch):
    timed(monkeypatch, 10, 20)
    first = auto(package)
    timed(monkeypatch, 20, 10)
    for change in ({}, {"threads": 1}, {"batch": 2}):
        again = auto(package, **change)
        assert again.options.precision == "int8" and again.choice == first.choice
    assert cache.clear() >= 3 and auto(package).choice == first.choice
    with_other_weights = tiny.package(package.folder.parent / "other", bright=0.25)
    assert auto(with_other_weights).options.precision == "fp32"


def test_the_command_tells_the_choice(package, monkeypatch, tmp_path, capsys):
    import SimpleITK as sitk

    timed(monkeypatch, 10, 25)
    sitk.WriteImage(sitk.GetImageFromArray(SCAN.data[0]), str(tmp_path / "s.nrrd"))
    arguments = [
        "segment",
        str(package.folder),
        str(tmp_path / "s.nrrd"),
        "-o",
        str(tmp_path / "o.nrrd"),
        "-q",
        "--engine",
        "tiny",
    ]
    assert main(arguments) == 0
    assert (
        "precision: INT8, 2.5 times as fast as FP32 here: 10 ms a patch against 25 ms (decided 2"
        in capsys.readouterr().out
    )
    assert main(["build", str(package.folder), "--scan", str(tmp_path / "s.nrrd"), "-q", "--engine", "tiny"]) == 0
    assert "precision: INT8, 2.5 times as fast" in capsys.readouterr().out
    monkeypatch.setattr(
        choices,
        "find",
        lambda *_: choices.Choice("fp32", "FP32, because INT8 is slower here", decided="2026-11-29T00:00:00"),
    )
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("because INT8 is slower here") == 1


def test_json_holds_the_choice(package, monkeypatch, tmp_path, capsys, engines):
    import SimpleITK as sitk

    timed(monkeypatch, 10, 25)
    sitk.WriteImage(sitk.GetImageFromArray(SCAN.data[0]), str(tmp_path / "s.nrrd"))
    arguments = [
        "segment",
        str(package.folder),
        str(tmp_path / "s.nrrd"),
        "-o",
        str(tmp_path / "o.nrrd"),
        "-q",
        "--engine",
        "tiny",
    ]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["choice"]["times"] == {"int8_ms": 10, "fp32_ms": 25}


def test_auto_gives_fp32s_result_where_int8_fails_its_comparison_and_int8_insists(package, monkeypatch):
    monkeypatch.setattr(tiny.TinyBackend, "wrong", True)
    choice = EngineChoice("tiny", "auto")
    run = pipeline.segment(package, SCAN, choice, OPTIONS, Task())
    assert run.engine["precision"] == "fp32" and np.array_equal(run.result.labels, SCAN.data[0] > 0.5)
    assert (
        "INT8 cannot be used here" in run.engine["note"]
        and "computes the INT8 network of tiny wrongly" in run.engine["note"]
    )
    before = len(tiny.TinyBackend.built)
    assert pipeline.segment(package, SCAN, choice, OPTIONS, Task()).engine["precision"] == "fp32"
    assert len(tiny.TinyBackend.built) == before, "what failed is not built anew for every scan"
    with pytest.raises(EngineError, match="wrongly"):
        pipeline.segment(package, SCAN, replace(choice, precision="int8"), OPTIONS, Task())
    monkeypatch.setattr(tiny.TinyBackend, "wrong", False)
    choices.forget_failures()
    assert pipeline.segment(package, SCAN, choice, OPTIONS, Task()).engine["choice"]["failed"] is False


def test_auto_gives_a_result_where_int8_cannot_be_built_or_fp32_cannot_be_timed(package, monkeypatch):
    fails("build", EngineError("Tiny has no room for INT8."))
    made = auto(package)
    assert made.options.precision == "fp32" and "no room for INT8" in made.note
    choices.forget_failures()
    real = tiny.TinyBackend.build

    def build(self, network, folder, options):
        if options.precision == "fp32":
            raise EngineError("no FP32 today")
        real(self, network, folder, options)

    cache.clear()
    monkeypatch.setattr(tiny.TinyBackend, "build", build)
    made = auto(package)
    assert made.options.precision == "int8" and made.choice is None


@pytest.mark.parametrize("where", ["build", "load", "run"])
@pytest.mark.parametrize("error", [GpuMemoryError("no room"), GpuError("it was lost")])
def test_a_gpu_that_fails_gives_way_to_the_processor(package, where, error):
    choice = EngineChoice("auto", "int8")
    fails(where, error)
    run = pipeline.segment(package, SCAN, choice, OPTIONS, Task())
    assert run.engine["name"] == "tiny" and run.result.notes[0] == f"run on the processor: {error}"
    assert (run.result.labels == (SCAN.data[0] > 0.5)).mean() > 0.95
    fails(where, error)
    with pytest.raises(GpuError):
        pipeline.segment(package, SCAN, replace(choice, name="card"), OPTIONS, Task())
    fails(where, error)
    with pytest.raises(GpuError):
        # Who asked for the GPU is not given the processor.
        pipeline.segment(package, SCAN, replace(choice, device="gpu"), OPTIONS, Task())


def test_building_gives_way_too_and_several_engines_are_tried(package):
    choice = EngineChoice("auto", "int8")
    fails("build", GpuMemoryError("no room"))
    built = pipeline.build(package, choice, OPTIONS, SCAN, Task())
    assert built.backend.name == "tiny" and built.note.startswith("run on the processor: no room")
    cache.clear()
    fails("build", UnsupportedNetwork("no kernel 1"), UnsupportedNetwork("no kernel 2"))
    run = pipeline.segment(package, SCAN, choice, OPTIONS, Task())
    assert run.engine["name"] == "onnxruntime" and len(run.result.notes) == 2
    cache.clear()
    fails("build", UnsupportedNetwork("no kernel 1"), GpuMemoryError("no room"), GpuMemoryError("never"))
    with pytest.raises(UnsupportedNetwork, match="no kernel 1"):
        pipeline.segment(package, SCAN, choice, OPTIONS, Task())


def test_memory_that_kept_engines_hold_is_freed_before_the_gpu_is_left(package, tmp_path):
    pool, choice = KeepingPool(), EngineChoice("auto", "int8", device="gpu")
    other = tiny.package(tmp_path / "other", bright=0.3)
    pipeline.segment(other, SCAN, choice, OPTIONS, Task(), pool=pool)
    fails("load", GpuMemoryError("no room"))
    run = pipeline.segment(package, SCAN, choice, OPTIONS, Task(), pool=pool)
    assert run.engine["name"] == "card" and not run.result.notes and len(pool) == 1


def test_an_engine_that_failed_is_not_lent_again(package):
    pool, choice = KeepingPool(), EngineChoice("tiny", "int8")
    pipeline.segment(package, SCAN, choice, OPTIONS, Task(), pool=pool)
    assert len(pool) == 1
    fails("run", EngineError("it broke"))
    with pytest.raises(EngineError, match="it broke"):
        pipeline.segment(package, SCAN, choice, OPTIONS, Task(), pool=pool)
    assert len(pool) == 0
    assert pipeline.segment(package, SCAN, choice, OPTIONS, Task(), pool=pool).result.labels.any()


def test_a_kept_engine_outlives_a_cache_that_is_cleared(package):
    pool, choice = KeepingPool(), EngineChoice("tiny", "int8")
    first = pipeline.segment(package, SCAN, choice, OPTIONS, Task(), pool=pool)
    cache.clear()
    again = pipeline.segment(package, SCAN, choice, OPTIONS, Task(), pool=pool)
    assert (
        np.array_equal(again.result.labels, first.result.labels) and again.engine["bytes"] == first.engine["bytes"] > 0
    )
    pool.clear()
    assert pipeline.segment(package, SCAN, choice, OPTIONS, Task(), pool=pool).result.labels.any()


def test_an_entry_that_lost_its_files_is_built_anew(package):
    options = BuildOptions("fp32", (8, 8, 8))
    entry = prepare.prepare(package, tiny.TinyBackend(), options).entry
    shutil.rmtree(entry.folder)
    assert entry.update(more=1).record["more"] == 1 and not entry.folder.exists()
    entry = prepare.prepare(package, tiny.TinyBackend(), options).entry
    (entry.folder / "network.onnx").unlink()
    assert not prepare.prepare(package, tiny.TinyBackend(), options).cached
    assert prepare.prepare(package, tiny.TinyBackend(), options).cached
    (entry.folder / "engine.json").unlink()
    assert not prepare.prepare(package, tiny.TinyBackend(), options).cached


def test_listing_and_clearing_leave_what_is_no_engine(package):
    prepare.prepare(package, tiny.TinyBackend(), BuildOptions("fp32", (8, 8, 8)))
    times = cache.cache_root() / "tensorrt" / "card.timing"
    times.parent.mkdir()
    times.write_bytes(b"times")
    assert len(cache.entries()) == 1 and cache.clear() == 1 and times.is_file()


def test_an_update_of_this_program_builds_anew(package, monkeypatch):
    options = BuildOptions("fp32", (8, 8, 8))
    prepare.prepare(package, tiny.TinyBackend(), options)
    assert prepare.prepare(package, tiny.TinyBackend(), options).cached
    monkeypatch.setattr(prepare, "__version__", "99.0")
    assert not prepare.prepare(package, tiny.TinyBackend(), options).cached


class Racer(tiny.TinyBackend):
    def __init__(self, name, outcomes):
        self.name, self.outcomes = name, outcomes

    def device_name(self, device):
        return "a card"


def test_a_failed_trial_is_tried_again_later_and_a_time_is_kept(monkeypatch):
    tries = []

    def tried(made):
        tries.append(made.name)
        outcome = made.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(ranking, "_time_patch", tried)
    one, other = Racer("one", [RuntimeError("the GPU was busy")]), Racer("other", [5.0])
    assert [made.name for made in ranking.fastest_first([one, other])] == ["other", "one"] and tries == ["one", "other"]
    kept = json.loads((cache.cache_root() / "ranking.json").read_text())
    failure = next(value for value in kept.values() if isinstance(value, dict))
    assert failure["failed"] == "RuntimeError: the GPU was busy" and abs(failure["time"] - time.time()) < 60
    one.outcomes[0] = 2.0
    assert ranking.fastest_first([one, other])[0].name == "other" and len(tries) == 2, "not tried again at once"
    now = time.time()
    monkeypatch.setattr(ranking.time, "time", lambda: now + 3600)
    assert [made.name for made in ranking.fastest_first([one, other])] == ["one", "other"] and tries[2:] == ["one"]


@pytest.mark.parametrize(
    "kept", [1e9, {"failed": "x", "time": "yesterday"}, True, "fast", -1.0, {"failed": "x", "time": 1e12}]
)
def test_what_earlier_versions_or_others_wrote_does_not_count(kept):
    assert ranking._valid(kept) is None


def test_damaged_choices_are_as_none(package):
    for text in ("", "[]", '{"a": 1}', "{"):
        (cache.cache_root()).mkdir(parents=True, exist_ok=True)
        (cache.cache_root() / "choices.json").write_text(text)
        assert choices.find(package, tiny.TinyBackend(), "cpu") is None
        choices.forget_failures()
        kept = choices.keep(package, tiny.TinyBackend(), "cpu", choices.Choice("int8", "because"))
        assert choices.find(package, tiny.TinyBackend(), "cpu") == kept and kept.decided


def test_a_choice_by_engines_of_an_earlier_format_counts_no_more(package, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(choices, "FORMAT", choices.FORMAT - 1)
        choices.keep(package, tiny.TinyBackend(), "cpu", choices.Choice("fp32", "FP32, because INT8 is slower here"))
        assert choices.find(package, tiny.TinyBackend(), "cpu")
    assert choices.find(package, tiny.TinyBackend(), "cpu") is None
