"""The files that a case is read from: which they are, their hash, and that they stay as they are while they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import sha256_file
from ..outputs import data_files
from .journal import Record


def input_files(case: dict[str, Any]) -> list[Path]:
    """Return every file that a case is read from, its label map included; of a DICOM folder the files in it.

    Raises:
        InputError: a path that is not there.
    """
    paths: list[Path] = []
    masks = [path for _, path in case.get("masks", ())]
    for text in (*case["channels"], *case.get("more_folders", ()), *filter(None, [case.get("labels")]), *masks):
        path = Path(text)
        if path.is_dir():
            paths += sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        elif path.is_file():
            paths += [path, *(data_files(path) if path.name.lower().endswith((".mhd", ".nhdr")) else [])]
        else:
            raise InputError(
                f"There is no scan at {path}." if not path.exists() else f"{path} is no file.", "Check it."
            )
    return paths


def stamps(files: Sequence[Path]) -> list[list[int]]:
    """Return size and time of change of each file.

    Raises:
        OSError: one is not there.
    """
    return [[status.st_size, status.st_mtime_ns] for status in (file.stat() for file in files)]


def input_hash(files: Sequence[Path]) -> str:
    """Return the SHA-256 of all files of a case, in their order; names do not count."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(sha256_file(file)))
    return digest.hexdigest()


@contextmanager
def unchanged_files(case: dict[str, Any]) -> Iterator[Record]:
    """Yield what the journal says of a case's files, before they are read.

    Raises:
        InputError: a file is not there; or one was changed, added or taken away by the end of the block.
    """
    files = input_files(case)
    before = stamps(files)
    yield {"input_sha256": input_hash(files), "input_files": before}
    now = input_files(case)
    changed = next((file for file, old, new in zip(files, before, stamps(now), strict=False) if old != new), None)
    if now != files or changed is not None:
        raise InputError(
            f"{changed or case['channels'][0]} changed while it was read.",
            "Wait until whatever writes it has ended, and run the command again.",
        )
