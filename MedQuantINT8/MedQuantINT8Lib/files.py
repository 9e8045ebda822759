"""Writing files whole or not at all, hashes, and storage errors in words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import StorageError

_REASONS = {
    errno.ENOSPC: ("there is no space left on the disk", "Free some space or choose another folder."),
    errno.EDQUOT: ("your disk quota is used up", "Free some space or choose another folder."),
    errno.EACCES: ("you may not write there", "Choose another folder or change its permissions."),
    errno.EPERM: ("you may not write there", "Choose another folder or change its permissions."),
    errno.EROFS: ("the disk is read-only", "Choose another folder."),
    errno.ENOENT: ("the folder does not exist and could not be made", "Choose an existing folder."),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "Choose another folder."),
    errno.EEXIST: ("a file of that name is in the way", "Choose another name."),
    errno.EISDIR: ("that is a folder", "Give the name of a file."),
}


@contextmanager
def storage_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an :class:`OSError` raised inside into a :class:`StorageError` that names ``target``."""
    try:
        yield
    except OSError as error:
        reason, hint = _REASONS.get(error.errno or 0, (str(error), "Choose another folder."))
        raise StorageError(f"Cannot write {target}: {reason}.", hint) from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    # hashlib.file_digest came with Python 3.11.
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file path beside ``target``; rename it over ``target`` if the block succeeds.

    The temporary name keeps every suffix of ``target``, because writers choose the format by it. If the block raises,
    the temporary file is removed and ``target`` is what it was before.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    target = Path(target)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise OSError(errno.EISDIR, "is a directory")
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        with storage_errors(target):
            yield folder / target.name
            (folder / target.name).replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """As :func:`replacing`, for a whole folder: the old folder, if any, is exchanged in one rename."""
    target = Path(target)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        made = scratch / "new"
        with storage_errors(target):
            made.mkdir()
            yield made
            if target.exists():
                target.replace(scratch / "old")
            made.replace(target)
    except BaseException:
        old = scratch / "old"
        if old.exists() and not target.exists():
            old.replace(target)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def free_name(wanted: str, taken: set[str]) -> str:
    """``wanted``, with a number behind it if it is among ``taken``."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted} ({number})", number + 1
    return name


def write_text(target: str | os.PathLike[str], text: str) -> None:
    with replacing(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
