"""What takes long is made once a run, also where pytest-xdist runs the tests in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path ``name`` in a folder that the run's processes share; the first to ask has ``make`` write it, the others wait.

    ``make`` is called with a path that does not exist yet. If it fails, the next process tries.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        target = base / "shared" / name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            make(target)
        return target
    from filelock import FileLock

    # Each process has a folder of its own below the run's.
    target = base.parent / "shared" / name
    target.parent.mkdir(exist_ok=True)
    with FileLock(f"{target}.lock"):
        done = target.with_name(f"{name}.done")
        if not done.exists():
            make(target)
            done.touch()
    return target
