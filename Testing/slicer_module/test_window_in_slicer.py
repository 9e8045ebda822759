"""Slicer's ctest says yes only where tests ran, none failed, and what was left out is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from places import TESTING

FILES = {
    "def test_a(): pass": [],
    "def test_a(): assert False": ["pytest ended with exit code 1", "no test ran"],
    "x = 1": ["pytest ended with exit code 5", "no test ran"],
    "import pytest\npytest.importorskip('no_such_package')\ndef test_a(): pass": [
        "pytest ended with exit code 5",
        "skipped: {file}: could not import 'no_such_package': No module named 'no_such_package'",
        "no test ran",
    ],
    "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('not today')": ["skipped: {file}::test_b: not today"],
    "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('this build of Slicer has no Sequences module')": [],
}


@pytest.mark.parametrize("text", FILES, ids=["passes", "fails", "empty", "skips itself", "skips one", "named"])
def test_a_run_counts_only_if_tests_ran_and_what_was_left_out_is_named(text, tmp_path):
    file = tmp_path / "test_made.py"
    file.write_text(text)
    code = (
        f"import sys; sys.path.insert(0, {str(TESTING)!r}); from pathlib import Path; import WindowInSlicer;"
        f"print(WindowInSlicer.run([Path({str(file)!r})], '--rootdir', {str(tmp_path)!r}, '--noconftest'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    problems = [text.replace("{file}", file.name) for text in FILES[text]]
    assert done.stdout.splitlines()[-1] == str(problems), done.stdout + done.stderr


def test_the_panels_tests_are_found_where_the_ctest_looks(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTING))
    import WindowInSlicer

    names = [path.name for path in WindowInSlicer.window_tests()]
    assert "test_window.py" in names and len(names) > 1 and "test_window_in_slicer.py" not in names
