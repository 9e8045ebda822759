"""A reader that waits for the next file: it reads what one that is started then would read, and none is left."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from cohorts import write_scan
from MedQuantINT8Lib.imaging import reading_process
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.system import library_environment, module_arguments

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux's files in memory")


@pytest.fixture
def ahead(monkeypatch):
    """Readers are kept ahead; gives all that were started."""
    started, real = [], reading_process._started

    def noted(inherited, *arguments):
        started.append(real(inherited, *arguments))
        return started[-1]

    monkeypatch.setattr(reading_process, "_started", noted)
    monkeypatch.setattr(reading_process, "_keeps_ahead", False)
    monkeypatch.setattr(reading_process, "_ahead", [])
    yield started
    for reader in reading_process._ahead:
        reader.process.stdin.close()
        assert reader.process.wait(60) == 0
        os.close(reader.number)


def test_files_are_read_by_the_reader_that_waits(ahead, tmp_path):
    paths = [write_scan(tmp_path / f"{n}.nrrd", n) for n in range(2)]
    expected = [read_volume(path).data for path in paths]
    assert len(ahead) == 2
    reading_process.keep_reader_ahead()
    for number, path in enumerate(paths, 3):
        np.testing.assert_array_equal(read_volume(path).data, expected[number - 3])
        # The one that waited was used, and the next one waits.
        assert len(ahead) == number + 1 and ahead[number - 1].poll() == 0 and ahead[number].poll() is None


def test_one_that_has_died_is_not_asked(ahead, tmp_path):
    path = write_scan(tmp_path / "a.nrrd")
    expected = read_volume(path).data
    reading_process.keep_reader_ahead()
    ahead[1].kill()
    ahead[1].wait()
    np.testing.assert_array_equal(read_volume(path).data, expected)


def test_one_whose_caller_is_gone_ends():
    reader = subprocess.Popen(
        [sys.executable, *module_arguments("MedQuantINT8Lib.imaging.itk_reader"), "ahead"],
        stdin=subprocess.PIPE,
        env=library_environment(),
    )
    reader.stdin.close()
    assert reader.wait(60) == 0
