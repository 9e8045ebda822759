"""Slicer's ctest: the window's tests (slicer_module/test_window.py) in the real application. See Testing/CMakeLists.txt."""

import unittest
from pathlib import Path


class WindowInSlicer(unittest.TestCase):
    def test_window(self) -> None:
        try:
            import pytest
        except ImportError:
            self.skipTest('pytest is not installed in Slicer: slicer.util.pip_install("pytest")')
        here = Path(__file__).resolve().parent
        tests = here / "slicer_module" / "test_window.py"
        options = ["-q", "-p", "no:cacheprovider", "-c", str(here.parent / "pyproject.toml")]
        self.assertEqual(pytest.main([str(tests), *options]), 0)
