"""Zip files from elsewhere, read where they cannot do harm: what they may hold is decided before anything is unpacked."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from .errors import PackageError, StorageError
from .files import storage_errors

#: Weights hardly shrink. What grows this many times, and is not small, is there to fill a disk.
_MOST_GROWTH, _SMALL = 200, 64 << 20
_CHUNK = 1 << 20
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_METHOD_NAMES = {
    9: "Deflate64",
    zipfile.ZIP_BZIP2: "bzip2",
    zipfile.ZIP_LZMA: "LZMA",
    93: "Zstandard",
    95: "XZ",
    98: "PPMd",
}
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class ZipLimits:
    """How much a zip may hold: files, and bytes once it is unpacked."""

    files: int = 10_000
    total_bytes: int = 16 << 30


@contextmanager
def opened_zip(source: Path, advice: str = "Get it again.") -> Iterator[zipfile.ZipFile]:
    """Yield a zip file for reading; whatever is wrong with it is one error that names it.

    Raises:
        PackageError: no zip, a cut or damaged one, one that needs a password or another method than Deflate.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except UnicodeError as error:
        raise PackageError(f"{source.name} holds a file whose name is no UTF-8, though it says so.", advice) from error
    except NotImplementedError as error:
        raise PackageError(f"{source.name} is compressed in a way that is not read here ({error}).", _PACK) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, ValueError, OverflowError) as error:
        raise PackageError(
            f"{source.name} is no zip file, or it is damaged or cut off: {_plain(str(error))}.", advice
        ) from error


_PACK = "Unpack it by hand, and give the folder."


def checked_members(
    archive: zipfile.ZipFile, source: Path, limits: ZipLimits
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the files of a zip with their paths, if all of them may be unpacked.

    Raises:
        PackageError: too many or too much, one that grows out of proportion, an encrypted one, another method, a link, a
            path that leaves the zip or comes twice.
    """
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(archive.infolist()) > limits.files:
        raise PackageError(f"{source.name} holds {len(archive.infolist())} files; {limits.files} are allowed.", _PACK)
    if sum(entry.file_size for entry in entries) > limits.total_bytes:
        raise PackageError(f"{source.name} unpacks to more than {limits.total_bytes >> 30} GB.", _PACK)
    members, paths = [], set[str]()
    for entry in entries:
        path, quoted_path = PurePosixPath(entry.filename), repr(entry.filename[:200])
        if (
            ".." in path.parts
            or path.is_absolute()
            or "\\" in entry.filename
            or ":" in entry.filename
            or not path.parts
        ):
            raise PackageError(
                f"{source.name} holds the path {quoted_path}, which leaves the package.", "Do not use this file."
            )
        if not entry.filename.isprintable():
            raise PackageError(
                f"{source.name} holds the path {quoted_path}, which has control characters.", "Do not use this file."
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise PackageError(f"{source.name} holds the link {quoted_path}.", _PACK)
        if str(path).casefold() in paths:
            raise PackageError(f"{source.name} holds the path {quoted_path} twice.", "Do not use this file.")
        if entry.flag_bits & _ENCRYPTED:
            raise PackageError(f"{source.name} is encrypted: {quoted_path} needs a password.", _PACK)
        if entry.compress_type not in _METHODS:
            method = _METHOD_NAMES.get(entry.compress_type, f"method {entry.compress_type}")
            raise PackageError(
                f"{source.name} is compressed by {method}, which is not read here ({quoted_path}).", _PACK
            )
        if entry.file_size > _SMALL and entry.file_size > _MOST_GROWTH * max(1, entry.compress_size):
            raise PackageError(
                f"{source.name}: {quoted_path} would grow from {entry.compress_size / 1e6:.1f} MB to {entry.file_size / 1e9:.1f} GB.",
                "If you know where it comes from, unpack it by hand, and give the folder.",
            )
        paths.add(str(path).casefold())
        members.append((entry, path))
    return members


def unpack_members(
    archive: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, PurePosixPath]], folder: Path
) -> None:
    """Write checked members below a folder, under the paths that are given with them.

    Raises:
        PackageError: through :func:`opened_zip`, a damaged member.
        StorageError: the disk is full or cannot be written.
    """
    required_bytes = sum(entry.file_size for entry, _ in members)
    if required_bytes > (free := shutil.disk_usage(folder).free):
        raise StorageError(
            f"Unpacking needs {required_bytes / 1e9:.1f} GB in {folder.parent}, and {free / 1e9:.1f} GB are free.",
            "Free some space, or set TMPDIR to another disk.",
        )
    for entry, path in members:
        target = folder.joinpath(*path.parts)
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with _open_member(archive, entry) as packed, storage_errors(target), open(target, "wb") as unpacked:
            remaining_bytes = entry.file_size
            while chunk := packed.read(_CHUNK):
                remaining_bytes -= len(chunk)
                if remaining_bytes < 0:
                    raise zipfile.BadZipFile(f"{entry.filename!r} is longer than it says")
                unpacked.write(chunk)


def _open_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    """Return a file of a zip for reading; one whose header says that it lies outside of the zip is damage, too, not a fault of the disk."""
    try:
        return archive.open(entry)
    except OSError as error:
        raise zipfile.BadZipFile(f"{entry.filename!r} lies outside of the file") from error


def read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most_bytes: int) -> bytes:
    """Return one file of a zip, into memory; raises :class:`zipfile.BadZipFile` where it is larger than ``most_bytes``."""
    with _open_member(archive, entry) as packed:
        content = packed.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise zipfile.BadZipFile(f"{entry.filename!r} is too large")
    return content


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:160].rstrip(". ")
