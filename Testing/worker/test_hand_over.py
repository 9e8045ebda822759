"""Between a caller and its worker: whatever goes wrong is told, nobody waits for ever, and every choice arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import tiny
from MedQuantINT8Lib.errors import DependencyError, InputError, MedQuantError
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.region_run import keep_structures
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, SegmentationResult
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.worker.client import WorkerClient, to_json
from MedQuantINT8Lib.worker.jobs import BackgroundJob, BatchJob
from MedQuantINT8Lib.worker.submitted_job import WorkerError
from places import LIBRARY

SCAN = Volume(np.random.default_rng(0).random((12, 10, 9)).astype(np.float32), np.eye(4), "scan")
CHOICE = EngineChoice("onnxruntime", "fp32")


@pytest.fixture(scope="module")
def client():
    with WorkerClient() as made:
        yield made


@pytest.fixture
def model(tmp_path):
    return str(tiny.package(tmp_path / "made").folder)


def ended(job, seconds=60.0):
    end = time.monotonic() + seconds
    while not job.poll(0.05):
        assert time.monotonic() < end, "nobody tells that the job is over"
    return job


def test_numbers_of_numpy_are_numbers(client, model):
    options = SegmentationOptions(
        patch=tuple(np.array([8, 8, 8])), overlap=np.float32(0.25), batch=np.int64(1), check_ranges=np.bool_(False)
    )
    done = ended(client.submit(model, SCAN, CHOICE, options))
    assert done.error is None and (done.result.labels == (SCAN.data[0] > 0.5)).all()


def test_what_cannot_be_handed_over_ends_the_job_in_words(client, model):
    for value, words in (
        (object(), "A value cannot be handed over: <object object"),
        ({1: {2}}, "handed over"),
        (float, "handed over"),
    ):
        job = ended(client.begin("segment", [SCAN], model=model, choice=asdict(CHOICE), options={"batch": value}))
        assert isinstance(job.error, InputError) and words in str(job.error)
    looped = []
    looped.append(looped)
    with pytest.raises(InputError, match="handed over"):
        to_json({"a": looped})
    assert to_json({"a": np.arange(2), "b": Path("x"), "c": np.float64(0.5)}) == '{"a": [0, 1], "b": "x", "c": 0.5}'


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyError("x"), SystemExit(1)])
def test_any_exception_of_the_hand_over_ends_the_job(client, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(client._block, "array", fail)
    job = ended(client.begin("segment", [SCAN]))
    assert isinstance(job.error, WorkerError) and type(error).__name__ in str(job.error)


def test_a_result_that_cannot_be_read_ends_the_job(client, model, monkeypatch):
    real, calls = client._block.array, []

    def second_fails(*where):
        calls.append(where)
        if len(calls) > 1:
            raise MemoryError
        return real(*where)

    monkeypatch.setattr(client._block, "array", second_fails)
    job = ended(client.submit(model, SCAN, CHOICE, SegmentationOptions()))
    assert "not enough memory for the result" in str(job.error)


def test_a_worker_is_started_right_after_one_died(model):
    """The end of the first, which its threads tell when the second is being started, is no answer of the second's."""
    with WorkerClient() as made:
        made.start()
        process = made._process
        for _ in range(2):
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            made.start()
            assert made.ping()["event"] == "pong" and made._process is not process
            process = made._process


@pytest.mark.parametrize("own", ["$DECOY", "$DECOY:$PYTHONPATH"], ids=["instead of ours", "before ours"])
def test_a_launcher_that_sets_its_own_pythonpath_starts_this_library(model, tmp_path, own):
    """As Slicer's launcher may do; another library of our name lies where it looks first."""
    (tmp_path / "MedQuantINT8Lib").mkdir()
    (tmp_path / "MedQuantINT8Lib" / "__init__.py").write_text("raise SystemExit('the launcher found another library')")
    launcher = tmp_path / "PythonSlicer"
    launcher.write_text(f'#!/bin/sh\nDECOY={tmp_path}\nexport PYTHONPATH={own}\nexec {sys.executable} "$@"\n')
    launcher.chmod(0o755)
    with WorkerClient(str(launcher)) as started:
        assert started.segment(model, SCAN, CHOICE, SegmentationOptions(), Task()).labels.any()


def test_a_package_that_is_installed_but_cannot_be_imported_is_told_by_the_process_that_needs_it(
    model, tmp_path, monkeypatch
):
    (tmp_path / "onnxscript.py").write_text("import no_such_thing.at_all")
    (tmp_path / "lief.py").write_text("raise OSError('liblief.so: wrong ELF class')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    advice = {"": f"{sys.executable} -m pip install 'no_such_thing'", "/slicer": 'pip_install("no_such_thing")'}
    for home, words in advice.items():
        monkeypatch.setenv("SLICER_HOME", home) if home else monkeypatch.delenv("SLICER_HOME", raising=False)
        with WorkerClient() as started:
            job = ended(started.begin("quantize", [SCAN], imports={"json": "json>=1", "onnxscript": "onnxscript>=0.3"}))
            assert isinstance(job.error, DependencyError) and "onnxscript is installed, but" in str(job.error)
            assert "No module named 'no_such_thing'" in str(job.error) and words in str(job.error)
            job = ended(started.begin("quantize", [SCAN], imports={"lief": "lief>=0.16"}))
            assert "wrong ELF class" in str(job.error) and "lief>=0.16" in str(job.error)


class Given:
    """A worker's job that is done."""

    def __init__(self, error=None):
        self.error, self.result, self.progress, self.cancelled = error, None if error else "result", None, False

    def poll(self):
        return True

    def cancel(self):
        self.cancelled = True


def test_what_is_made_of_a_result_may_fail_in_any_way():
    def broken(result):
        raise RuntimeError("the scene was closed")

    job = BackgroundJob(Given(), broken)
    with pytest.raises(MedQuantError, match="RuntimeError: the scene was closed"):
        job.poll()
    batch = BatchJob(
        [
            ("a", lambda: BackgroundJob(Given(), broken)),
            ("b", lambda: BackgroundJob(Given(), lambda result: "done")),
            ("c", broken_start),
        ]
    )
    while not batch.poll():
        pass
    assert batch.value == ["done"] and [failure.name for failure in batch.failures] == ["a", "c"]
    single = BatchJob([("c", broken_start)])
    with pytest.raises(MedQuantError, match="ZeroDivisionError"):
        single.poll()


def broken_start():
    return 1 / 0


def test_a_file_gets_the_structures_that_were_asked_for():
    for values in (np.zeros((4, 5, 6), np.uint8), np.zeros((2, 2, 2), np.uint8)):
        values[:2] = np.arange(1, 3)[:, None, None]
        values[-1] = 3 if len(values) > 2 else 2
        result = SegmentationResult(values.copy(), np.eye(4), {}, 1, 0)
        keep_structures(result, [tiny.Label(1, "one", 1), tiny.Label(3, "three", 3)])
        np.testing.assert_array_equal(result.labels, np.where(np.isin(values, [1, 3]), values, 0))
        assert result.labels.dtype == values.dtype


LOADED = """
import sys
from MedQuantINT8Lib.engines.availability import examine_engines
found = examine_engines()
assert found["onnxruntime"]["available"] and found["onnxruntime"]["version"], found
print(sorted({"torch", "modelopt", "monai", "openvino", "onnx", "onnxruntime"} & set(sys.modules)))
"""


def test_asking_for_the_engines_loads_none_of_them():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(LIBRARY)}
    )
    assert done.stdout.strip() == "[]", done.stderr
    with open(LIBRARY / "MedQuantINT8Lib" / "slicer_module" / "logic_base.py", encoding="utf-8") as source:
        assert "examine_engines" in source.read()


def test_a_task_waits_for_its_result(client, model):
    assert client.segment(model, SCAN, CHOICE, SegmentationOptions(), Task()).labels.any()
