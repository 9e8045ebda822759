"""Slicer's ctest: the panel's tests (slicer_module/test_window*.py) in the real application. See Testing/CMakeLists.txt."""

import unittest
from pathlib import Path
from typing import Any

#: How the reason of a test begins that may be skipped: it names what this build of Slicer lacks.
NAMED = ("this build of Slicer has no ", "needs ModelOpt")


class Outcomes:
    """A plugin of pytest's that notes what became of the tests: how many passed, and what was left out and why."""

    def __init__(self) -> None:
        self.passed = 0
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        self._note(report)

    def pytest_collectreport(self, report: Any) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")

    def problems(self, code: int) -> list[str]:
        """What keeps this run from counting: failures, tests that were left out without a name, or nothing that ran."""
        found = [] if code == 0 else [f"pytest ended with exit code {int(code)}"]
        found += [f"skipped: {text}" for text in self.skipped if not text.split(": ", 1)[1].startswith(NAMED)]
        return found if self.passed else [*found, "no test ran"]


def window_tests() -> list[Path]:
    """The files of tests of the panel."""
    folder = Path(__file__).resolve().parent / "slicer_module"
    return [path for path in sorted(folder.glob("test_window*.py")) if path.name != "test_window_in_slicer.py"]


def run(tests: list[Path], *options: str) -> list[str]:
    """Run files of tests in this process; their problems."""
    import pytest

    outcomes = Outcomes()
    settings = Path(__file__).resolve().parent.parent / "pyproject.toml"
    code = pytest.main([*map(str, tests), "-q", "-p", "no:cacheprovider", "-c", str(settings), *options], [outcomes])
    return outcomes.problems(code)


class WindowInSlicer(unittest.TestCase):
    def test_window(self) -> None:
        try:
            import pytest  # noqa: F401
        except ImportError:
            self.skipTest('pytest is not installed in Slicer: slicer.util.pip_install("pytest")')
        self.assertEqual(run(window_tests()), [])
