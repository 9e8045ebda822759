"""Slicer's ctest: the window's tests (test_window.py) in the real application. See Testing/CMakeLists.txt."""

import sys
import unittest
from pathlib import Path


class WindowInSlicer(unittest.TestCase):
    def test_window(self) -> None:
        try:
            import pytest
        except ImportError:
            self.skipTest('pytest is not installed in Slicer: slicer.util.pip_install("pytest")')
        here = Path(__file__).resolve().parent
        sys.path.insert(0, str(here))
        self.assertEqual(
            pytest.main([str(here / "test_window.py"), "-q", "-p", "no:cacheprovider", "--rootdir", str(here)]), 0
        )
