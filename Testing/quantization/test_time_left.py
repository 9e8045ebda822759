"""Time left while a network is quantized: of all stages together, from the first patch on, by a clock that is not the real one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from MedQuantINT8Lib import progress
from MedQuantINT8Lib.imaging.phantom import make_phantom
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization import fold_networks, fp32_network, measurer
from MedQuantINT8Lib.quantization.accuracy_guard import Budget
from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, quantize_package
from scans import PHANTOM_SIZE, PHANTOM_SPACING


class Clock:
    """Seconds that pass only where a test says so, and what was said of the time left at which of them."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.events = []
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def task(self):
        return Task(lambda event: self.events.append((self.now, event)))

    def left(self, stage=None):
        return [event.seconds_left for _, event in self.events if stage in (None, event.stage)]


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_the_time_left_is_that_of_all_planned_stages(clock):
    task = clock.task()
    task.plan({"first": 4, "second": 2, "third": 6})
    with task.stage("first", 4):
        for _ in range(4):
            clock.now += 10
            task.step()
    assert clock.left() == [None, 110, 100, 90, 80]
    with task.stage("second", 1):
        assert clock.left()[-1] == 80
        clock.now += 20
        task.step()
    assert clock.left()[-1] == 60
    # What nobody planned adds its own time and says nothing of the speed.
    with task.stage("search", 3):
        clock.now += 100
        task.step()
        assert clock.left()[-1] == 260
    with task.stage("third", 6):
        assert clock.left()[-1] == 60


def test_without_a_plan_it_is_that_of_the_stage(clock):
    task = clock.task()
    with task.stage("only", 4):
        clock.now += 3
        task.step()
    assert clock.left() == [None, 9]


@pytest.mark.parametrize("scans", [1, 3])
def test_quantizing_says_the_time_left_within_a_factor_of_two(clock, monkeypatch, tmp_path, fp32_package, scans):
    """FP32 takes three seconds a patch, simulated INT8 four, and nothing else takes any."""
    pytest.importorskip("modelopt", reason="needs ModelOpt, which quantizes")

    def slow(module):
        load = module.float_session

        def loaded(model, precision):
            run = load(model, precision)

            def timed(names, inputs):
                clock.now += {"fp32": 3, "int8": 4}[precision]
                return run.run(names, inputs)

            return SimpleNamespace(run=timed)

        monkeypatch.setattr(module, "float_session", loaded)

    for module in (fp32_network, measurer, fold_networks):
        slow(module)
    options = CalibrationOptions(patches=6)
    sources = [lambda seed=seed: make_phantom(seed, PHANTOM_SIZE, PHANTOM_SPACING)[0] for seed in range(scans)]
    task = clock.task()
    sampler = PatchSampler(sources, fp32_package.spec, (32, 32, 32), options, task=task)
    policy = QuantizationPolicy(budget=Budget(0))
    package, _ = quantize_package(fp32_package, sampler, tmp_path / "int8", options, policy, task)
    package.close()
    first = next(n for n, (_, event) in enumerate(clock.events) if event.stage == "calibrating" and event.done == 1)
    said = [(event.seconds_left, clock.now - now) for now, event in clock.events[first:]]
    assert len(said) > 15 and clock.now > 60
    for left, actual in said:
        assert left is not None and actual / 2 <= left <= 2 * actual + 4, (left, actual)


def test_a_plan_that_is_made_inside_of_a_stage_leaves_the_stage_whole():
    """A study quantizes networks in turn, each with a plan of its own, within one stage of its own."""
    task = Task()
    with task.stage("networks", 2):
        for _ in range(2):
            task.plan({"calibrating": 3.0})
            with task.stage("calibrating", 1):
                task.step()
            task.step()
    assert set(task.seconds) == {"networks", "calibrating"}
