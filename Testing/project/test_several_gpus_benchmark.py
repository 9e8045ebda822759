"""What benchmarks/several_gpus.py looks at in this project's code is there, so that a run on lent GPUs does not fail by a name that has moved."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.startswith("several_gpus")]:
        del sys.modules[name]


def test_every_call_of_the_timeline_is_wrapped_and_put_back(benchmarks):
    timeline = benchmarks("several_gpus_timeline")
    calls = {mark[:3] for kinds in (timeline.CALLS, timeline.ON_GPU) for marks in kinds.values() for mark in marks}

    def found():
        places = {}
        for module, owner, name in calls:
            place = importlib.import_module(f"MedQuantINT8Lib.{module}")
            places[module, owner, name] = getattr(getattr(place, owner) if owner else place, name)
        return places

    before = found()
    with timeline.recorded():
        assert all(found()[key] is not call for key, call in before.items())
    assert found() == before


def test_copies_are_counted_in_every_module_that_makes_them(benchmarks):
    counting = benchmarks("several_gpus_counting")
    modules = {module.__name__.rpartition(".")[2] for module in counting.copying_modules()}
    assert {"gpu_spread", "gpu_team", "gpu_strip_run", "gpu_label_merging"} <= modules
    before = [module.copy_between for module in counting.copying_modules()]
    with counting.counted(counting.Counter()):
        assert all(module.copy_between not in before for module in counting.copying_modules())
    assert [module.copy_between for module in counting.copying_modules()] == before
