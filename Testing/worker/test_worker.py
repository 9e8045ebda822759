"""The resident worker: the same result, progress, cancel, and nothing left whoever is killed when."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from MedQuantINT8Lib.errors import Cancelled, InputError, PackageError
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference import pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.worker.client import WorkerClient
from MedQuantINT8Lib.worker.shared_memory import SharedBlock
from MedQuantINT8Lib.worker.submitted_job import WorkerError
from places import LIBRARY

OPTIONS = SegmentationOptions()
CHOICE = EngineChoice("openvino", "int8")


@pytest.fixture(scope="module")
def client():
    with WorkerClient() as made:
        yield made


def gone(pid, seconds=15.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def shared_blocks(pid):
    """Blocks of shared memory that a process holds open: their inodes. None where the system does not tell."""
    folder, blocks = Path(f"/proc/{pid}/fd"), set()
    for descriptor in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if "memfd:medquant" in str(descriptor.readlink()):
                blocks.add(descriptor.stat().st_ino)
    return blocks


def held_anywhere(blocks):
    """Those of ``blocks`` that some process on this machine still holds open."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found |= blocks & shared_blocks(folder.name)
    return found


def test_the_worker_gives_what_the_library_gives_and_keeps_the_engine(client, int8_package, phantom):
    events = []
    done = client.segment(str(int8_package.folder), phantom[0], CHOICE, OPTIONS, Task(events.append))
    expected = pipeline.segment(int8_package, phantom[0], CHOICE, OPTIONS, Task()).result.labels
    assert np.array_equal(done.labels, expected) and done.labels.dtype == expected.dtype
    assert done.report["engine"]["description"]["verdict"] == "INT8"
    assert {"preprocessing", "segmenting"} <= {event.stage for event in events}
    assert client.ping()["engines"] == 1
    first, blocks = client.pid, shared_blocks(client.pid)
    again = client.segment(str(int8_package.folder), phantom[0], CHOICE, OPTIONS, Task())
    assert np.array_equal(again.labels, expected) and client.pid == first and client.ping()["engines"] == 1
    assert shared_blocks(first) == blocks and (blocks or not Path("/proc").is_dir())


def test_larger_volumes_after_smaller_ones_and_other_types(client, int8_package, phantom):
    volume = phantom[0]
    for data in (volume.data[:, :20], volume.data.astype(np.float32), np.repeat(volume.data, 2, axis=3)):
        given = Volume(np.ascontiguousarray(data), volume.ijk_to_ras, "part")
        done = client.segment(str(int8_package.folder), given, CHOICE, OPTIONS, Task())
        assert np.array_equal(done.labels, pipeline.segment(int8_package, given, CHOICE, OPTIONS, Task()).result.labels)


def test_errors_of_the_worker_are_the_librarys_errors(client, int8_package, phantom, tmp_path):
    flat = Volume(np.ones((4, 4, 4), np.int16), np.eye(4), "flat")
    with pytest.raises(InputError, match="everywhere"):
        client.segment(str(int8_package.folder), flat, CHOICE, OPTIONS, Task())
    with pytest.raises(PackageError, match="no model package"):
        client.segment(str(tmp_path / "none"), phantom[0], CHOICE, OPTIONS, Task())
    assert client.alive


def test_cancel_stops_the_run_and_not_the_worker(client, int8_package, phantom):
    task = Task(lambda event: task.cancel() if event.stage == "segmenting" else None)
    with pytest.raises(Cancelled):
        client.segment(str(int8_package.folder), phantom[0], CHOICE, SegmentationOptions(overlap=0.9), task)
    assert client.alive and client.segment(str(int8_package.folder), phantom[0], CHOICE, OPTIONS, Task()).labels.any()


def test_a_job_can_be_polled_and_a_second_one_waits_its_turn(client, int8_package, phantom):
    job = client.submit(str(int8_package.folder), phantom[0], CHOICE, OPTIONS)
    with pytest.raises(WorkerError, match="still at work"):
        client.submit(str(int8_package.folder), phantom[0], CHOICE, OPTIONS)
    end = time.monotonic() + 60
    while not job.poll() and time.monotonic() < end:
        time.sleep(0.02)
    assert job.result is not None and job.result.labels.any()


def test_a_killed_worker_is_told_and_started_again(client, int8_package, phantom):
    job = client.submit(str(int8_package.folder), phantom[0], CHOICE, SegmentationOptions(overlap=0.9))
    while job.progress is None:
        job.poll(0.05)
    killed = client.pid
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(WorkerError, match="killed"):
        job.wait(Task())
    assert client.segment(str(int8_package.folder), phantom[0], CHOICE, OPTIONS, Task()).labels.any()
    assert client.pid != killed


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_a_worker_leaves_nothing_of_what_it_unpacked(int8_package, phantom, tmp_path, monkeypatch, end):
    zipped, scratch = tmp_path / "model.zip", tmp_path / "scratch"
    int8_package.save(zipped)
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with WorkerClient() as made:
        job = made.submit(str(zipped), phantom[0], CHOICE, SegmentationOptions(overlap=0.9))
        while job.progress is None or job.progress.stage != "segmenting":
            job.poll(0.05)
        (own,) = scratch.iterdir()
        assert [path for path in own.iterdir() if path.name.startswith("medquant-package-")]
        if end == "killed":
            os.kill(made.pid, signal.SIGKILL)
            with pytest.raises(WorkerError, match="killed"):
                job.wait(Task())
            assert not any(scratch.iterdir())
    assert not any(scratch.iterdir())


def test_a_cancelled_job_that_is_left_does_not_hold_up_the_next(client, int8_package, phantom):
    left = client.submit(str(int8_package.folder), phantom[0], CHOICE, SegmentationOptions(overlap=0.9))
    while left.progress is None:
        left.poll(0.05)
    left.cancel()
    assert client.segment(str(int8_package.folder), phantom[0], CHOICE, OPTIONS, Task()).labels.any()
    assert isinstance(left.error, Cancelled)


def test_comparing_and_building_in_the_worker(client, int8_package, phantom):
    from dataclasses import asdict

    request = {"model": str(int8_package.folder), "choice": asdict(CHOICE), "options": asdict(OPTIONS)}
    found = client.begin("compare", [phantom[0]], **request).wait(Task())
    fp32, int8, regions = found.arrays
    assert np.array_equal(regions > 0, fp32 != int8) and found.report["differences"]["voxels"] == int(
        (fp32 != int8).sum()
    )
    assert found.report["mean_dice"] > 0.9 and set(found.report["runs"]) == {"fp32", "int8"}
    built = client.begin("build", [phantom[0]], **request).wait(Task()).report
    assert built["verdict"] == "INT8" and built["fidelity"]["trusted"]


def test_idle_engines_are_freed(int8_package, phantom):
    with WorkerClient(idle_seconds=0.3) as made:
        made.segment(str(int8_package.folder), phantom[0], CHOICE, OPTIONS, Task())
        end = time.monotonic() + 20
        while made.ping().get("engines") != 0 and time.monotonic() < end:
            time.sleep(0.1)
        assert made.ping()["engines"] == 0
        pid = made.pid
    assert gone(pid)


def test_a_python_without_the_package_is_told(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'No module named numpy' >&2\nexit 1\n")
    fake.chmod(0o755)
    with WorkerClient(str(fake)) as made, pytest.raises(WorkerError, match=r"No module named numpy.*doctor"):
        made.start()
    with WorkerClient(str(tmp_path / "none")) as made, pytest.raises(WorkerError, match="cannot be started"):
        made.start()


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr("MedQuantINT8Lib.worker.client.__version__", "9.9.9")
    with WorkerClient() as made, pytest.raises(WorkerError, match=r"9\.9\.9 is needed"):
        made.start()


PARENT = """
import sys, time
import numpy as np
from MedQuantINT8Lib.worker.client import WorkerClient
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.imaging.volume import Volume
client = WorkerClient()
client.start()
volume = Volume(np.random.default_rng(0).normal(size=(120, 120, 120)).astype(np.float32), np.diag([4.0, 4, 4, 1]), "noise")
if sys.argv[2] == "busy":
    job = client.submit(sys.argv[1], volume, EngineChoice("openvino", "int8"), SegmentationOptions(overlap=0.8))
print(client.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("state", ["idle", "busy"])
@pytest.mark.parametrize("victims", ["parent", "both"])
def test_nothing_is_left_when_the_parent_is_killed(int8_package, tmp_path, state, victims):
    environment = {
        **os.environ,
        "PYTHONPATH": str(LIBRARY),
        "MEDQUANT_CACHE": str(tmp_path / "engines"),
        "TMPDIR": str(tmp_path),
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(int8_package.folder), state],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(parent.stdout.readline())
    time.sleep(1.5 if state == "busy" else 0.1)
    blocks = shared_blocks(worker)
    if victims == "both":
        os.kill(worker, signal.SIGKILL)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone(worker)
    assert not held_anywhere(blocks)
    if victims == "parent":
        assert not list(tmp_path.glob("medquant-*"))
    records = list((tmp_path / "engines").rglob("engine.json"))
    assert all(json.loads(path.read_text())["files"] for path in records)


def test_a_shared_block_grows_and_old_views_stay_valid():
    block = SharedBlock()
    first = block.array(0, (4,), np.int32)
    first[:] = [1, 2, 3, 4]
    large = block.array(64, (1 << 20,), np.uint8)
    large[-1] = 9
    assert block.array(0, (4,), np.int32).tolist() == [1, 2, 3, 4] == first.tolist()
    other = SharedBlock(str(os.dup(int(block.address))))
    assert other.array(64, (1 << 20,), np.uint8)[-1] == 9
    other.close()
    block.close()
