"""Writing files whole or not at all, hashes, and storage errors in words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import StorageError
from .exchange import exchange
from .scratch import EXCHANGE_NOTE, leftovers, new_folder, putting_in_place, remove_folder

_WRITING, _NEW, _OLD = ".writing", "new", "old"

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
    errno.ENAMETOOLONG: ("the name is too long for that disk", "Choose a shorter name."),
    errno.ELOOP: ("its links lead in a circle", "Choose another path."),
    errno.EFBIG: (
        "the file would be larger than the system allows",
        "Raise the limit (ulimit -f) or choose another disk.",
    ),
    errno.EIO: ("the disk reported an error", "Choose another folder, and look after that disk."),
}


@contextmanager
def storage_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an :class:`OSError` raised inside into a :class:`StorageError` that names ``target``."""
    try:
        yield
    except OSError as error:
        reason, hint = _REASONS.get(error.errno or 0, (str(error), "Choose another folder."))
        raise StorageError(f"Cannot write {target}: {reason}.", hint) from error


#: What only the disk can be blamed for, wherever it is met.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


def storage_error(error: OSError) -> StorageError | None:
    """Return the error for a disk that is full, read-only or broken; None for what has other reasons."""
    if error.errno not in _DISK_ERRORS:
        return None
    reason, hint = _REASONS[error.errno]
    return StorageError(f"Cannot write {error.filename or 'a temporary file'}: {reason}.", hint)


def split_paths(text: str) -> list[str]:
    """Return the paths in a text that joins them by commas; a comma in the name of an existing file or folder does not part it."""
    if "," not in text or there(text):
        return [text]
    paths: list[str] = []
    parts = text.split(",")
    while parts:
        # The longest run of parts that names something; a part that names nothing stays alone, to be complained of.
        count = next((n for n in range(len(parts), 0, -1) if there(",".join(parts[:n]))), 1)
        paths.append(",".join(parts[:count]))
        parts = parts[count:]
    return paths


def there(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names something; no name is too long or odd to be asked."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
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

    The temporary name keeps every suffix of ``target``, because writers choose the format by it. What the block writes is
    brought to the disk before anything is renamed, so that a full disk is an error and not a file that is cut off. Further
    files that it writes beside the given path (the data file of a header) move with it, before it. A target that is a link
    stays one: what it points to is replaced. If the block raises, everything is removed and ``target`` is what it was before.

    Raises:
        StorageError: the folder cannot be made or written, or ``target`` is a folder.
    """
    target = Path(target)
    with storage_errors(target):
        real = followed(target)
        real.parent.mkdir(parents=True, exist_ok=True)
        if real.is_dir():
            raise OSError(errno.EISDIR, "is a directory")
        folder = scratch_beside(real)
    try:
        with storage_errors(target):
            yield folder / real.name
            paths = sorted(folder.iterdir(), key=lambda path: path.name == real.name)
            if folder / real.name not in paths:
                raise OSError(errno.EIO, "nothing was written")
            for path in paths:
                sync(path)
            with putting_in_place:
                for path in paths:
                    if (real.parent / path.name).is_dir():
                        raise OSError(errno.EISDIR, "is a directory")
                    path.replace(real.parent / path.name)
            sync(real.parent)
    finally:
        remove_folder(folder)


@contextmanager
def replacing_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder, as :func:`replacing` does a file: old and new are exchanged in one step.

    Where the system cannot do that, two renames are needed; a note beside the new folder lets :func:`finish_interrupted`
    end what a kill between them left.

    Raises:
        StorageError: the folder cannot be written, or ``target`` is a file.
    """
    target = Path(target)
    with storage_errors(target):
        real = followed(target)
        if real.exists() and not real.is_dir():
            raise OSError(errno.EEXIST, "is a file")
        real.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_beside(real)
    try:
        replacement = scratch / _NEW
        with storage_errors(target):
            replacement.mkdir()
            yield replacement
            for path in sorted(replacement.rglob("*")):
                sync(path)
            with putting_in_place:
                _put_in_place(replacement, real, scratch)
            sync(real.parent)
    except BaseException:
        if (scratch / _OLD).exists() and not real.exists():
            (scratch / _OLD).replace(real)
        raise
    finally:
        remove_folder(scratch)


def _put_in_place(replacement: Path, target: Path, scratch: Path) -> None:
    if not target.exists():
        replacement.replace(target)
    elif not exchange(replacement, target):
        (scratch / EXCHANGE_NOTE).write_text(target.name, encoding="utf-8", errors="surrogateescape")
        sync(scratch / EXCHANGE_NOTE)
        target.replace(scratch / _OLD)
        replacement.replace(target)


def finish_interrupted(folder: Path) -> None:
    """Remove what killed processes left in a folder while they wrote there, and end exchanges of folders that they began."""
    for scratch in leftovers(folder, _WRITING):
        with suppress(OSError):
            target = folder / (scratch / EXCHANGE_NOTE).read_text(encoding="utf-8", errors="surrogateescape")
            if not target.exists() and target.parent == folder and (scratch / _NEW).is_dir():
                (scratch / _NEW).rename(target)
        shutil.rmtree(scratch, ignore_errors=True)


def scratch_beside(target: Path) -> Path:
    """Return a new temporary folder on the disk of ``target``, in the same folder; what dead processes left there is removed."""
    finish_interrupted(target.parent)
    return new_folder(_WRITING, target.parent)


def followed(path: Path) -> Path:
    """Return the path that a link points to; any other path as it is.

    Raises:
        OSError: links that lead in a circle.
    """
    try:
        return path.resolve() if path.is_symlink() else path
    except RuntimeError as error:  # What resolve() raises for a circle before Python 3.13.
        raise OSError(errno.ELOOP, "links in a circle") from error


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk: what does not fit there is told now, not to whoever reads it.

    Raises:
        OSError: the disk is full, the quota used up, or the medium is gone.
    """
    if path.is_dir():
        if os.name != "nt":
            # Some file systems know no syncing of folders.
            with suppress(OSError), _open_folder(path) as number:
                os.fsync(number)
        return
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


@contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    number = os.open(folder, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


def free_name(preferred: str, used_names: set[str]) -> str:
    """Return ``preferred``, with a number in parentheses behind it if it is among ``used_names``."""
    name, number = preferred, 2
    while name in used_names:
        name, number = f"{preferred} ({number})", number + 1
    return name


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8), whole or not at all; raises :class:`StorageError` as :func:`replacing` does."""
    with replacing(target) as path:
        path.write_text(text, encoding="utf-8")


def parse_json(content: str | bytes, *, finite: bool = False) -> Any:
    """Return a JSON text as Python's values; bytes are UTF-8.

    Args:
        finite: NaN and infinities are refused, which Python's own reader takes although JSON has none.

    Raises:
        ValueError: it is no JSON or no UTF-8, or lies deeper than can be read; Python's own reader ends in a RecursionError there.
    """
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    try:
        return json.loads(text, parse_constant=_refuse_constant if finite else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return a JSON file (UTF-8) as Python's values.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or no UTF-8.
    """
    return parse_json(Path(path).read_text(encoding="utf-8"))


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write a value as an indented JSON file (UTF-8), whole or not at all; see :func:`write_text`."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
