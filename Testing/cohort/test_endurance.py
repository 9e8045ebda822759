"""What goes wrong around a case ends that case, with its reason: a full disk, a folder that is gone, a drive that stalls, a scan that changes."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cohorts
import tiny
from cohorts import cases_of, wait_for, write_scan, write_scans
from MedQuantINT8Lib.cli.pool_options import MOST_WORKERS, most_cases
from MedQuantINT8Lib.cohort import local_pool, segment_work
from MedQuantINT8Lib.cohort.case_settings import model_hash
from MedQuantINT8Lib.cohort.journal import JOURNAL
from MedQuantINT8Lib.cohort.local_pool import LocalPool
from MedQuantINT8Lib.cohort.pool import Order, can_take
from MedQuantINT8Lib.cohort.segment_work import SegmentSettings, SegmentWork
from MedQuantINT8Lib.cohort.work import StagedWorker
from MedQuantINT8Lib.errors import MedQuantError
from MedQuantINT8Lib.imaging.volume_files import ReadOptions
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.ensemble import load_ensemble
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.scratch import owner_is_dead
from MedQuantINT8Lib.system import library_environment, module_arguments


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.package(tmp_path_factory.mktemp("model")).folder)


@pytest.fixture
def worker(model, tmp_path):
    """A worker in this process, and its output folder."""
    (tmp_path / "out").mkdir()
    with load_ensemble(model) as ensemble:
        digest = model_hash(ensemble)
    settings = SegmentSettings(
        model, digest, EngineChoice(), SegmentationOptions(), ReadOptions(), str(tmp_path / "out")
    )
    staged = StagedWorker(lambda: SegmentWork(settings))
    yield staged, tmp_path / "out"
    staged.close()


def case(path, name="case"):
    return {"id": name, "channels": [str(path)]}


def test_a_scan_that_changes_while_it_is_read_is_a_failed_case(worker, tmp_path, monkeypatch):
    scan = write_scan(tmp_path / "a.nii.gz")
    read = segment_work.read_volume

    def slow(*how, **more):
        volume = read(*how, **more)
        write_scan(scan, 1)
        return volume

    with monkeypatch.context() as patch:
        patch.setattr(segment_work, "read_volume", slow)
        record = worker[0].run(case(scan))
    assert record["state"] == "failed" and record["stage"] == "reading"
    assert f"{scan} changed while it was read" in record["error"]
    assert worker[0].run(case(scan))["state"] == "done"


def test_an_output_folder_that_is_gone_is_not_made_again(worker, tmp_path):
    scan = write_scan(tmp_path / "a.nii.gz")
    shutil.rmtree(worker[1])
    record = worker[0].run(case(scan))
    assert record["state"] == "failed" and f"The output folder {worker[1]} is gone" in record["error"]
    assert not worker[1].exists()
    worker[1].mkdir()
    assert worker[0].run(case(scan))["state"] == "done"


def started(*arguments, limit=None):
    return subprocess.Popen(
        [sys.executable, *module_arguments("MedQuantINT8Lib.cli.main"), *map(str, arguments)],
        env=library_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )


@pytest.mark.skipif(os.name == "nt", reason="limits of files are POSIX's")
def test_a_disk_that_takes_no_more_is_a_failed_case(model, tmp_path):
    write_scan(tmp_path / "scans/a.nii.gz")
    write_scan(tmp_path / "scans/b.nii.gz", size=96)
    out = tmp_path / "out"
    # The engine is built before.
    assert started("segment", model, tmp_path / "scans/a.nii.gz", "-o", tmp_path / "a.nii.gz").wait() == 0
    limit = 60_000
    process = started(
        *("segment", model, tmp_path / "scans", "-o", out, "--type", "nii.gz"),
        limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    said, err = process.communicate(timeout=120)
    assert process.returncode == 8, err
    assert "b  writing: Cannot write" in said and "larger than the system allows" in said
    assert (out / "a.nii.gz").exists() and not (out / "b.nii.gz").exists() and not list(out.glob(".writing*"))


def test_a_case_that_ends_its_worker_is_reported_and_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(cohorts.__file__).parent))
    cases = [{"id": "poison" if n == 7 else str(n), "channels": [str(tmp_path)]} for n in range(20)]
    order = Order("cohorts:Poison", {"choice": {}})
    records = {record["id"]: record for record in LocalPool(["cpu"]).run(order, cases, lambda: None)}
    assert len(records) == 20 and [name for name, r in records.items() if r["state"] == "failed"] == ["poison"]
    assert records["poison"]["attempts"] == 2 and "ended its worker in network (SIGKILL" in records["poison"]["error"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes as Linux does")
def test_a_worker_that_stalls_is_given_up_and_the_others_go_on(model, tmp_path):
    count = 30
    write_scans(tmp_path / "scans", count)
    out = tmp_path / "out"
    process = started("segment", model, tmp_path / "scans", "-o", out, "--time-limit", "3")
    wait_for(lambda: len(cases_of(out / JOURNAL)) >= 3, process)
    # A stopped process stands for one that waits for a disk that does not answer.
    os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]), signal.SIGSTOP)
    said, err = process.communicate(timeout=120)
    assert process.returncode == 8, err
    lines = cases_of(out / JOURNAL)
    assert sorted(line["id"] for line in lines) == [f"s{n:04d}/ct" for n in range(count)]
    assert next(line["error"] for line in lines if line["state"] == "failed").startswith("There was no progress in ")
    assert f"{count - 1} of {count} cases done" in said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes as Linux does")
def test_a_process_that_ended_and_was_not_waited_for_owns_nothing(tmp_path):
    code = "from MedQuantINT8Lib.scratch import owned_prefix; print(owned_prefix('x'), flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=library_environment()
    )
    try:
        name = process.stdout.readline().strip()
        wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z")
        assert owner_is_dead(name)
    finally:
        process.communicate()


def processes_of(monkeypatch):
    """A list to which every process of a worker comes that is started from now on."""
    started, real = [], local_pool._Process.__init__

    def noted(process, *how):
        real(process, *how)
        started.append(process)

    monkeypatch.setattr(local_pool._Process, "__init__", noted)
    return started


def test_there_are_no_more_workers_than_cases_and_each_has_one_of_few(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(cohorts.__file__).parent))
    monkeypatch.setattr(local_pool, "cpu_count", lambda: 8)
    started, settings, shares = processes_of(monkeypatch), [], []
    real = local_pool._Worker.start

    def start(worker, kind, how, begun, beside):
        settings.append(how)
        shares.append(beside)
        real(worker, kind, how, begun, beside)

    monkeypatch.setattr(local_pool._Worker, "start", start)
    pool = LocalPool(["cpu"] * 64)
    assert pool.describe(2) == {"devices": ["cpu", "cpu"]} and pool.describe(0) == {"devices": []}
    cases = [{"id": str(n), "channels": [str(tmp_path)]} for n in range(2)]
    records = list(pool.run(Order("cohorts:Poison", {"choice": {}}), cases, lambda: None))
    assert len(records) == len(started) == 2
    assert pool.notes == ["2 of 64 workers ran, as there were 2 cases to run"]
    # Half of the processor each.
    assert [how["choice"]["threads"] for how in settings] == [4, 4]
    assert shares == [2, 2]


@pytest.mark.parametrize(
    ("waiting", "own", "idle", "takes"),
    [(0, 0, 0, False), (1, 0, 1, True), (1, 1, 1, False), (2, 1, 1, True), (9, 2, 0, True), (9, 3, 0, False)],
)
def test_a_worker_leaves_a_case_to_those_that_have_none(waiting, own, idle, takes):
    assert can_take(waiting, own, idle) is takes


def test_the_number_of_cases_is_bounded_by_that_of_files(tmp_path):
    for name in ("a b.nii.gz", "below/c.mha", "below/d.mha"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def bound(*scans, table=None):
        return most_cases(argparse.Namespace(scans=list(map(str, scans)), list=table))

    assert bound(tmp_path) == 3 and bound(tmp_path / "a b.nii.gz") == 1
    assert bound(tmp_path / "below", tmp_path / "a b.nii.gz", "missing.nrrd") == 4
    assert bound(tmp_path / "*.mha") == bound(table="cases.csv") == MOST_WORKERS


def test_workers_that_were_begun_early_are_those_that_run_and_none_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(cohorts.__file__).parent))
    pool, started = LocalPool(["cpu", "gpu:0", "cpu"]), processes_of(monkeypatch)
    pool.begin("cohorts:Poison", 2)
    # One for each device, as it is not known yet how many cases there are.
    assert [process.popen.poll() for process in started] == [None] * 2
    cases = [{"id": str(n), "channels": [str(tmp_path)]} for n in range(3)]
    records = list(pool.run(Order("cohorts:Poison", {"choice": {}}), cases, lambda: None))
    assert sorted(record["id"] for record in records) == ["0", "1", "2"] and len(started) == 3 and not pool.notes
    assert all(process.popen.poll() is not None and not Path(process.scratch).exists() for process in started)
    # One that is never run ends with the pool, and one whose caller is gone by itself.
    pool.begin("cohorts:Poison", 1)
    assert len(started) == 4
    pool.close()
    assert all(process.popen.poll() is not None and not Path(process.scratch).exists() for process in started)
    lonely = local_pool._Process(sys.executable, "segment", "gpu:0")
    lonely.popen.stdin.close()
    assert lonely.popen.wait(60) == 0
    lonely.abandon()


def test_where_one_worker_cannot_be_begun_none_is_left(monkeypatch):
    pool, started, real = LocalPool(["cpu", "gpu:0"]), [], local_pool._Process.__init__

    def second_fails(process, *how):
        if started:
            raise MedQuantError("A worker cannot be started.")
        real(process, *how)
        started.append(process)

    monkeypatch.setattr(local_pool._Process, "__init__", second_fails)
    with pytest.raises(MedQuantError, match="cannot be started"):
        pool.begin("segment", 2)
    assert started[0].popen.poll() is not None and not Path(started[0].scratch).exists()
