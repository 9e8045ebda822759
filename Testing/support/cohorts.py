"""Scans and models for tests of many cases: small enough that a case takes milliseconds."""

from __future__ import annotations

import json
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


def write_scans(folder: Path, count: int) -> list[Path]:
    """Write scans in TotalSegmentator's layout."""
    return [write_scan(folder / f"s{n:04d}" / "ct.nii.gz", n) for n in range(count)]


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
