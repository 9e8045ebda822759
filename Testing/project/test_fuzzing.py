"""Some seeded damaged and hostile files before every reader; longer: make fuzz."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from places import TESTING

pytest.importorskip("torch", reason="checkpoints are read by torch")
FUZZ = TESTING / "Fuzzing" / "fuzz.py"


@pytest.mark.slow
def test_every_reader_answers_damage_in_words_soon_and_in_little_memory():
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--files", "40", "--seconds", "600"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_a_finding_is_found():
    """A driver that finds nothing anywhere proves nothing: readers that fail and that wait are told apart."""
    sys.path.insert(0, str(FUZZ.parent))
    import fuzz

    def endless(random, folder):
        time.sleep(60)

    faults = {"fails": lambda random, folder: [][0], "waits": endless}
    fuzz.READERS.update(faults)
    late, fuzz.LATE_SECONDS = fuzz.LATE_SECONDS, 1
    try:
        assert "IndexError" in fuzz.tried("fails", 0)
        assert "no answer" in fuzz.tried("waits", 0)
        assert fuzz.tried("data-set", 0) == ""
    finally:
        fuzz.LATE_SECONDS = late
        for name in faults:
            del fuzz.READERS[name]
