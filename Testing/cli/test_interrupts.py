"""Ctrl-C and SIGTERM at any moment: exit code 130, no traceback, nothing half-written, no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from MedQuantINT8Lib import scratch
from MedQuantINT8Lib.cli.interrupts import Interrupts, _descendants
from MedQuantINT8Lib.cli.progress_bar import Bar
from MedQuantINT8Lib.errors import Cancelled
from MedQuantINT8Lib.files import replacing, replacing_folder
from MedQuantINT8Lib.progress import Task
from places import LIBRARY

posix = pytest.mark.skipif(os.name != "posix", reason="signals between processes are POSIX's")


PROGRAM = """
import ctypes, subprocess, sys, tempfile, time
from pathlib import Path
sys.argv = ["medquant", "doctor", "--quiet"]
from MedQuantINT8Lib.cli import main as cli, doctor; from MedQuantINT8Lib import files
folder = Path({folder!r})
def work(args, task):
{body}
doctor.run = work
sys.exit(cli.main())
"""


def runs(process):
    """Whether a process lives; one that nobody asks for any more, in a container, has ended too."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def started(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(LIBRARY), **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


STUCK = """
    with files.replacing(folder / "result.txt") as path, files.replacing_folder(folder / "package") as made:
        path.write_text("half"); (made / "part").write_text("half"); Path(tempfile.mkdtemp(), "scratch").write_text("half")
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("at work", child.pid, flush=True)
        while True:
            ctypes.CDLL(None).sleep(600)
"""
PATIENT = """
    with task.stage("calculating"):
        print("at work 999999999", flush=True)
        while True:
            time.sleep(0.01)
            task.check()
"""


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("body", "said"), [(STUCK, "Canceled."), (PATIENT, "Canceled during 'calculating'.")])
def test_a_signal_ends_a_command_that_hears_and_one_that_does_not(number, body, said, tmp_path):
    (tmp_path / "temporary").mkdir()
    code = PROGRAM.format(folder=str(tmp_path), body=textwrap.indent(textwrap.dedent(body), "    "))
    process = started(code, TMPDIR=str(tmp_path / "temporary"))
    child = int(process.stdout.readline().split()[-1])
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, f"medquant: {said}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["temporary"] and not list((tmp_path / "temporary").iterdir())
    # It is told to end as well; on a busy machine it is on its way for a moment.
    end = time.monotonic() + 20
    while runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not runs(child)


@posix
def test_a_signal_while_modules_are_imported_is_no_traceback(tmp_path):
    code = """
        import sys, types
        sys.argv = ["medquant", "doctor"]
        from MedQuantINT8Lib.cli import main as cli
        class Slow:
            def find_spec(self, name, path=None, target=None):
                if name == "MedQuantINT8Lib.engines.availability":
                    print("at work", flush=True)
                    import time; time.sleep(600)
        sys.meta_path.insert(0, Slow())
        sys.exit(cli.main())
    """
    process = started(textwrap.dedent(code))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "medquant: Canceled.\n")


def test_inside_another_program_a_signal_only_cancels_the_task():
    before = signal.getsignal(signal.SIGINT)
    task = Task()
    with Interrupts(for_good=False) as interrupts:
        interrupts.watch_over(task, Bar(enabled=False))
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Cancelled):
            task.check()
        assert interrupts.asked
    assert signal.getsignal(signal.SIGINT) is before


def test_a_task_that_begins_after_the_signal_is_cancelled_at_once():
    task = Task()
    with Interrupts(for_good=False) as interrupts:
        signal.raise_signal(signal.SIGTERM)
        interrupts.watch_over(task, Bar(enabled=False))
    assert task.cancelled


def test_what_is_abandoned_is_removed_and_never_put_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "putting_in_place", threading.Lock())
    monkeypatch.setattr("MedQuantINT8Lib.files.putting_in_place", scratch.putting_in_place)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "model.json").write_text("old")
    written = threading.Event()
    go_on = threading.Event()

    def work():
        with replacing_folder(tmp_path / "package") as made, replacing(tmp_path / "file") as path:
            (made / "model.json").write_text("new")
            path.write_text("new")
            written.set()
            go_on.wait()

    threading.Thread(target=work, daemon=True).start()
    written.wait()
    scratch.abandon()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["package"]
    assert (tmp_path / "package" / "model.json").read_text() == "old"


def test_an_exchange_that_was_begun_is_left_to_the_next_run(tmp_path):
    folder = scratch.new_folder(".writing", tmp_path)
    (folder / scratch.EXCHANGE_NOTE).write_text("package")
    lock = scratch.putting_in_place
    try:
        scratch.abandon()
    finally:
        lock.release()
    assert folder.exists()
    scratch.remove_folder(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_processes_of_processes_are_found():
    code = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        grandchild = int(child.stdout.readline())
        found = _descendants(os.getpid())
        assert {child.pid, grandchild} <= set(found)
        os.kill(grandchild, signal.SIGKILL)
        child.kill()
