"""Zip files from elsewhere, unpacked where they cannot do harm."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import PackageError

_MAXIMUM_BYTES = 16 << 30


@contextmanager
def as_folder(source: Path, what: str) -> Iterator[Path]:
    """A folder as it is, or a zip unpacked into a temporary one that is removed afterwards.

    A zip of a single folder gives that folder.

    Raises:
        PackageError: nothing there, no zip, or one with links, or with paths that leave it.
    """
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise PackageError(f"There is no {what} at {source}.", "Check the path.")
    scratch = Path(tempfile.mkdtemp(prefix="medquant-import-"))
    try:
        _unpack(source, scratch)
        inside = list(scratch.iterdir())
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(source: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > _MAXIMUM_BYTES:
                raise PackageError(f"{source.name} unpacks to more than {_MAXIMUM_BYTES >> 30} GB.", "Unpack it by hand.")
            for entry in entries:
                path = PurePosixPath(entry.filename)
                if ".." in path.parts or path.is_absolute() or "\\" in entry.filename or ":" in entry.filename:
                    raise PackageError(f"{source.name} holds the path {entry.filename!r}, which leaves it.", "Do not use this file.")
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise PackageError(f"{source.name} holds the link {entry.filename!r}.", "Unpack it by hand.")
                archive.extract(entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise PackageError(f"{source.name} is no zip file, or it is cut off: {error}.", "Get it again.") from error
