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
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

#: A lock, acquired while something new takes the place of something old.
putting_in_place = threading.Lock()
#: Stands in a temporary folder while two folders are exchanged in two steps; holds the name of the one that is replaced.
EXCHANGE_NOTE = "exchange"
_folders: set[Path] = set()
_TOKEN = re.compile(r"(\d+)_(\d+)_([0-9a-f]{8})-")


@cache
def _machine() -> str:
    """Return the machine and, on Linux, the space of process numbers: a container counts for itself, also on a shared disk."""
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"


def _start_time(process: int) -> int | None:
    """Return when a process began, in the system's own ticks; 0 if it lives and the time is unknown; None if there is none."""
    if sys.platform.startswith("linux"):
        try:
            # The name in parentheses may hold spaces.
            fields = Path(f"/proc/{process}/stat").read_bytes().rsplit(b")", 1)[1].split()
            # One that has ended and that nobody has asked about, as where a container's first process does not, lives no more.
            return None if fields[0] in (b"Z", b"X") else int(fields[19])
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
    """Return a prefix for :func:`tempfile.mkdtemp` that names this process, such as ``.writing-4711_98765_0a1b2c3d-``."""
    return f"{kind}-{os.getpid()}_{_start_time(os.getpid()) or 0}_{_machine()}-"


def new_folder(kind: str, parent: str | os.PathLike[str] | None = None) -> Path:
    """Return a new temporary folder of this process, in ``parent`` or where temporary files lie; :func:`abandon` removes it too.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(tempfile.mkdtemp(prefix=owned_prefix(kind), dir=parent))
    _folders.add(folder)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder that :func:`new_folder` made."""
    shutil.rmtree(folder, ignore_errors=True)
    _folders.discard(folder)


def abandon() -> None:
    """Remove what this process was writing, because it ends now: nothing half-written is put in place any more.

    A folder with an exchange that was begun stays: :func:`.files.finish_interrupted` ends it in the next run.
    """
    # Never released: whoever is about to put something in place waits until the process is gone.
    putting_in_place.acquire(timeout=0.3)
    for folder in list(_folders):
        if not (folder / EXCHANGE_NOTE).exists():
            shutil.rmtree(folder, ignore_errors=True)


def owner_is_dead(name: str) -> bool:
    """Return whether the process that made a name of :func:`owned_prefix` ran on this machine and has ended."""
    match = _TOKEN.search(name)
    if match is None or match[3] != _machine():
        return False
    start_time = _start_time(int(match[1]))
    return start_time is None or (start_time != 0 and int(match[2]) != 0 and start_time != int(match[2]))


def leftovers(folder: Path, *kinds: str) -> list[Path]:
    """Return what dead processes left in a folder, by the kinds that :func:`owned_prefix` was called with."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(tuple(f"{kind}-" for kind in kinds))]
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
        folder = new_folder("medquant", place)
    except OSError:
        yield
        return
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = variable
        remove_folder(folder)
