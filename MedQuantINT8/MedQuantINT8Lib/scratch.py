"""Temporary names that say who made them, and what is left of processes that were killed.

A process that is killed leaves its temporary files. Every temporary name of this program therefore carries the process
that made it (number and start time) and the machine, so that a later run can tell a dead process's leftovers from what
another run is writing at this moment. Only the former are removed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_TOKEN = re.compile(r"(\d+)_(\d+)_([0-9a-f]{8})-")


@cache
def _machine() -> str:
    """The machine and, on Linux, the space of process numbers: a container counts for itself, also on a shared disk."""
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"


def _started(process: int) -> int | None:
    """When a process began, in the system's own ticks; 0 if it lives and that is not told; None if there is no such process."""
    if sys.platform.startswith("linux"):
        try:
            # The name in parentheses may hold spaces.
            return int(Path(f"/proc/{process}/stat").read_bytes().rsplit(b")", 1)[1].split()[19])
        except FileNotFoundError:
            return None
        except (OSError, IndexError, ValueError):
            return 0
    if sys.platform == "win32":
        return 0
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return 0


def owned_prefix(kind: str) -> str:
    """A prefix for :func:`tempfile.mkdtemp` that names this process, such as ``.writing-4711_98765_0a1b2c3d-``."""
    return f"{kind}-{os.getpid()}_{_started(os.getpid()) or 0}_{_machine()}-"


def owner_is_dead(name: str) -> bool:
    """Whether the process that made a name of :func:`owned_prefix` ran on this machine and has ended."""
    found = _TOKEN.search(name)
    if found is None or found[3] != _machine():
        return False
    began = _started(int(found[1]))
    return began is None or (began != 0 and int(found[2]) != 0 and began != int(found[2]))


def leftovers(folder: Path, *kinds: str) -> list[Path]:
    """What dead processes left in a folder, by the kinds that :func:`owned_prefix` was called with."""
    try:
        with os.scandir(folder) as found:
            names = [entry.name for entry in found if entry.name.startswith(tuple(f"{kind}-" for kind in kinds))]
    except OSError:
        return []
    return [folder / name for name in names if owner_is_dead(name)]


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Everything temporary of this process, and of those that it starts, lies in one folder, which goes with it.

    What a killed run left in the same place is removed first. Where no temporary folder can be made, nothing changes:
    whoever needs one says so.
    """
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    try:
        place = Path(tempfile.gettempdir())
        for path in leftovers(place, "medquant"):
            shutil.rmtree(path, ignore_errors=True)
        folder = tempfile.mkdtemp(prefix=owned_prefix("medquant"), dir=place)
    except OSError:
        yield
        return
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(folder, ignore_errors=True)
