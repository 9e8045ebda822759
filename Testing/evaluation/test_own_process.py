"""A command in a process of its own that ends badly: what it says reaches the caller, a signal by its name."""

from __future__ import annotations

import pytest

from MedQuantINT8Lib.errors import Cancelled, EngineError, InputError
from MedQuantINT8Lib.evaluation import own_process


def run(monkeypatch, code):
    monkeypatch.setattr(own_process, "module_arguments", lambda module: ["-c", f"import os, sys; {code}"])
    return own_process.run_command(["segment", "model"], lambda: None)


def test_a_library_that_ends_the_process_is_told_by_the_signal_and_its_last_words(monkeypatch):
    with pytest.raises(EngineError) as caught:
        run(monkeypatch, "print('free(): invalid pointer', file=sys.stderr, flush=True); os.abort()")
    assert "'medquant segment'" in str(caught.value) and "SIGABRT: free(): invalid pointer" in str(caught.value)
    assert "medquant segment" in caught.value.hint


def test_a_process_that_the_system_ended_may_have_lacked_memory(monkeypatch):
    with pytest.raises(EngineError, match="SIGKILL: the system ended it, which may be for lack of memory"):
        run(monkeypatch, "os.kill(os.getpid(), 9)")


@pytest.mark.parametrize(("code", "kind"), [(InputError.exit_code, InputError), (Cancelled.exit_code, Cancelled)])
def test_an_error_of_the_command_is_raised_as_its_kind(monkeypatch, code, kind):
    with pytest.raises(kind, match=r"^The scan is empty\.$"):
        run(monkeypatch, f"print('medquant: The scan is empty.', file=sys.stderr); sys.exit({code})")


def test_what_it_prints_last_is_its_result(monkeypatch):
    assert run(monkeypatch, "print('a note'); print('{\"seconds\": 2}')") == {"seconds": 2}
