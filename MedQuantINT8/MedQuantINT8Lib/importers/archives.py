"""Zip files from elsewhere, unpacked where they cannot do harm."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import PackageError
from ..zip_files import ZipLimits, checked_members, opened_zip, unpack_members


@contextmanager
def as_folder(source: Path, what: str) -> Iterator[Path]:
    """The folder ``source`` as it is, or a zip unpacked into a temporary folder that is removed afterwards.

    A zip of a single folder gives that folder.

    Raises:
        PackageError: there is nothing, it is no zip, or one that may not be unpacked (see :mod:`..zip_files`).
        StorageError: the disk is full.
    """
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise PackageError(f"There is no {what} at {source}.", "Check the path.")
    scratch = Path(tempfile.mkdtemp(prefix="medquant-import-"))
    try:
        _unpack(source, scratch)
        entries = list(scratch.iterdir())
        yield entries[0] if len(entries) == 1 and entries[0].is_dir() else scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(source: Path, folder: Path) -> None:
    with opened_zip(source) as archive:
        unpack_members(archive, checked_members(archive, source, ZipLimits()), folder)
