"""Checks before any work starts: an output can be written, and it is none of the inputs.

One place for all commands, for the resident worker and for Slicer's logic.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .errors import InputError, PackageError
from .files import followed, scratch_beside, storage_errors

PathLike = str | os.PathLike[str]
#: A scan's header keeps its voxels in a file of their own.
_DETACHED = (".mhd", ".nhdr")
_HEADER_BYTES = 1 << 16


def check_output_file(target: PathLike, inputs: Iterable[PathLike | None] = (), companions: Sequence[str] = ()) -> None:
    """Refuse an output file that is an input, a folder, or cannot be written.

    Args:
        inputs: every file and folder that is read, links and detached headers included; None is left out.
        companions: names of further files that are written beside it.

    Raises:
        InputError: the output is one of the inputs: the same file by whatever name, link or hard link.
        StorageError: it is a folder, or nothing can be written there under that name.
    """
    path, sources = Path(target), list(inputs)
    for name in (path.name, *companions):
        _refuse_input(path.with_name(name), path, sources, "file")
    with storage_errors(path):
        real = followed(path)
        if real.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        _probe(real, (real.name, *companions))


def check_output_folder(target: PathLike, names: Sequence[str], inputs: Iterable[PathLike | None] = ()) -> None:
    """Refuse a folder that cannot be written, or in which one of the files to be written is an input.

    Args:
        names: the files that will be written into it.

    Raises:
        InputError, StorageError: as :func:`check_output_file`.
    """
    folder = Path(target)
    sources = list(inputs)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file.", "Give a folder for the output.")
    for name in names:
        check_output_file(folder / name, sources)


def check_output_package(
    target: PathLike,
    inputs: Iterable[PathLike | None] = (),
    itself: PathLike | None = None,
    description: str = "model.json",
) -> None:
    """Refuse a package (folder or .zip) that would take the place of an input, or of something that is no package.

    Args:
        itself: the package that is read, which may be written anew in its place.
        description: the file that says that a folder is a package, which the output may then replace.

    Raises:
        InputError: an input is the output or lies in it, or the folder would take the place of a file.
        PackageError: the folder holds other things than a package.
        StorageError: nothing can be written there, or the file would take the place of a folder.
    """
    path = Path(target)
    replaces_itself = itself is not None and _is_same(path, Path(itself))
    sources = [source for source in (*inputs, None if replaces_itself else itself) if source is not None]
    _refuse_input(path, path, sources, "package")
    if path.suffix == ".zip":
        check_output_file(path)
        return
    if path.is_dir():
        for source in _input_files(sources):
            if _lies_in(source, path):
                raise InputError(
                    f"The output {path} is a folder that holds the input {source}, which would be lost.",
                    "Choose another output.",
                )
        if any(path.iterdir()) and not (path / description).exists():
            raise PackageError(
                f"{path} is a folder with other things in it.", "Give a new folder or an existing package."
            )
    elif path.exists():
        raise InputError(
            f"The output {path} is a file, but a package is a folder or a .zip.",
            "Give a folder, or a name that ends in .zip.",
        )
    with storage_errors(path):
        _probe(followed(path), (path.name,))


def _probe(target: Path, names: Sequence[str]) -> None:
    """Write empty files of these names, in a temporary folder; folders on the way that are missing are made only in there."""
    existing = target.parent
    while not os.path.lexists(existing):
        existing = existing.parent
    scratch = scratch_beside(existing / target.name)
    try:
        probe_folder = scratch / target.parent.relative_to(existing)
        probe_folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (probe_folder / name).write_bytes(b"")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refuse_input(path: Path, target: Path, inputs: Iterable[PathLike | None], what: str) -> None:
    for source in _input_files(inputs):
        if _is_same(path, source):
            reason = (
                f"{path} is the {what} that is read"
                if str(source) == str(path)
                else f"{path} is {source} under another name"
            )
            raise InputError(f"The output {target} would replace an input: {reason}.", "Choose another output.")


def _input_files(inputs: Iterable[PathLike | None]) -> Iterator[Path]:
    """Yield the inputs, and the data file of each detached header among them."""
    for source in inputs:
        if source is None:
            continue
        path = Path(source)
        yield path
        if path.name.lower().endswith(_DETACHED) and path.is_file():
            yield from data_files(path)


def data_files(header: Path) -> list[Path]:
    """Return the files with voxels that a MetaImage or NRRD header of its own names, as far as its text says; none that are missing."""
    paths = []
    try:
        with open(header, "rb") as stream:
            text = stream.read(_HEADER_BYTES).decode("utf-8", errors="surrogateescape")
    except OSError:
        return []
    for line in text.splitlines():
        name, separator, value = line.partition("=" if header.suffix.lower() == ".mhd" else ":")
        if separator and name.strip().lower() in ("elementdatafile", "data file", "datafile") and value.strip():
            path = header.parent / value.strip()
            if "\0" not in value and path.is_file():
                paths.append(path)
    return paths


def _is_same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except (OSError, RuntimeError, ValueError):
        return False


def _lies_in(path: Path, folder: Path) -> bool:
    try:
        return any(_is_same(parent, folder) for parent in path.resolve().parents)
    except (OSError, RuntimeError):
        return False
