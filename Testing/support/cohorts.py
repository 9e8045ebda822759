"""Scans and models for tests of many cases: small enough that a case takes milliseconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


def write_scan(path: Path, seed: int = 0, size: int = 16) -> Path:
    """Write a scan of random values from 0 to 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).random((size, size, size)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    return path


def write_scans(folder: Path, count: int, size: int = 16) -> list[Path]:
    """Write scans in TotalSegmentator's layout."""
    return [write_scan(folder / f"s{n:04d}" / "ct.nii.gz", n, size) for n in range(count)]


def lines_of(journal: Path) -> list[dict[str, Any]]:
    """The lines of a journal that are whole."""
    values = []
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
        try:
            values.append(json.loads(line))
        except ValueError:
            continue
    return values


def cases_of(journal: Path) -> list[dict[str, Any]]:
    """The lines of cases in a journal."""
    return [value for value in lines_of(journal) if value["event"] == "case"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
    """Wait for something that a process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.002)


class Poison:
    """A work whose cases called poison end their process."""

    def __init__(self, settings):
        pass

    def read(self, case, task):
        return case

    def run(self, case, task):
        if "poison" in case["id"]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return case

    def finish(self, case, task):
        return {"ran": True}

    def close(self):
        pass


class OnGpu(Poison):
    """Notes which GPU Ray has given to its process; the case named "deadly" ends the process the first time."""

    def __init__(self, settings):
        self.settings = settings

    def run(self, loaded, task):
        marker = Path(self.settings["output"]) / "died"
        if loaded["id"] == "deadly" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        return loaded

    def finish(self, result, task):
        return {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "device": self.settings["choice"]["device"]}
