"""The journal survives what a run does not: cut lines, a full disk, a folder that went and came back."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil

import pytest

from cohorts import cases_of
from MedQuantINT8Lib.cohort.driver import CohortOptions, _check_journal
from MedQuantINT8Lib.cohort.journal import JOURNAL, Journal, Plan, locked, start_over
from MedQuantINT8Lib.errors import InputError, StorageError

PLAN = Plan("segment", {"model": "abc", "engine": "auto", "overlap": None})


def record(name, state="done"):
    return {"id": name, "scan": [f"{name}.nii.gz"], "state": state, "error": "", "seconds": {}}


def begun(folder, *names):
    journal = Journal(folder)
    journal.begin(PLAN, names, {})
    return journal


def test_a_line_that_was_cut_off_is_not_read_and_does_no_harm(tmp_path):
    journal = begun(tmp_path, "a", "b")
    journal.add(record("a"))
    with open(tmp_path / JOURNAL, "ab") as stream:
        stream.write(b'{"event": "case", "id": "b", "sta')
    again = Journal(tmp_path)
    assert list(again.records) == ["a"] and again.claimed == {"a", "b"} and again.plan == PLAN
    again.add(record("b"))
    assert list(Journal(tmp_path).records) == ["a", "b"]


def test_the_last_line_of_a_case_counts(tmp_path):
    journal = begun(tmp_path, "a")
    journal.add(record("a", "failed"))
    journal.add(record("a"))
    assert Journal(tmp_path).records["a"]["state"] == "done"
    assert len(cases_of(tmp_path / JOURNAL)) == 2


def test_lines_of_a_full_disk_are_written_with_the_next(tmp_path, monkeypatch):
    journal = begun(tmp_path, "a", "b")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        journal.add(record("a"))
        assert Journal(tmp_path).records == {}
    journal.add(record("b"))
    assert list(Journal(tmp_path).records) == ["a", "b"]


def test_a_folder_that_went_gets_the_whole_journal_again(tmp_path):
    journal = begun(tmp_path / "out", "a", "b")
    journal.add(record("a"))
    shutil.rmtree(tmp_path / "out")
    journal.add(record("b"))
    with pytest.raises(StorageError, match="does not exist"):
        journal.close()
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    journal.close()
    assert list(Journal(tmp_path / "out").records) == ["a", "b"]


def test_another_plan_is_refused_in_words(tmp_path):
    journal = begun(tmp_path, "a")
    journal.add(record("a"))
    _check_journal(journal, PLAN, CohortOptions())
    other = Plan("segment", {"model": "abc", "engine": "openvino", "overlap": 0.5})
    with pytest.raises(InputError, match="engine auto then, openvino now; overlap null then, 0.5 now"):
        _check_journal(journal, other, CohortOptions())
    with pytest.raises(InputError, match="cases of medquant segment"):
        _check_journal(journal, Plan("evaluate", {}), CohortOptions())
    with pytest.raises(InputError, match="is there already"):
        _check_journal(journal, PLAN, CohortOptions(resume=False))
    with pytest.raises(InputError, match="no journal"):
        _check_journal(Journal(tmp_path / "new"), PLAN, CohortOptions(resume=True))
    start_over(tmp_path)
    assert Journal(tmp_path).plan is None and (tmp_path / "cohort-1.jsonl").exists()


def test_a_run_that_ended_before_its_first_case_binds_nobody(tmp_path):
    journal = begun(tmp_path, "a")
    other = Plan("segment", {"model": "abc", "engine": "openvino", "overlap": None})
    _check_journal(journal, other, CohortOptions())
    journal.begin(other, ["a"], {})
    again = Journal(tmp_path)
    assert again.plan == other and again.claimed == {"a"}


def test_what_is_no_journal_is_refused(tmp_path):
    (tmp_path / JOURNAL).write_text("shopping list\n")
    with pytest.raises(InputError, match="no journal of a cohort"):
        Journal(tmp_path)
    (tmp_path / JOURNAL).write_text(json.dumps({"event": "run", "format": 99}) + "\n")
    with pytest.raises(InputError, match="another version"):
        Journal(tmp_path)


def _hold(folder, ready, leave):
    with locked(folder):
        ready.set()
        leave.wait(30)


@pytest.mark.skipif(os.name == "nt", reason="no locks there")
def test_two_runs_do_not_share_a_folder_and_a_killed_one_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, leave))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(InputError, match="Another run"), locked(tmp_path):
            pass
    finally:
        other.kill()
        other.join()
    with locked(tmp_path):
        pass
