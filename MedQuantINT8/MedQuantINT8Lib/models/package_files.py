"""What model packages and tasks have in common on the disk: a folder or zip of files, a description that lists their SHA-256."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import PackageError
from ..files import parse_json, replacing, replacing_folder, sha256_file

MAX_JSON_BYTES = 8 << 20

Spec = TypeVar("Spec")
Unpacked = TypeVar("Unpacked", bound="UnpackedFiles[Any]")


@dataclass(frozen=True)
class UnpackedFiles(Generic[Spec]):
    """Validated files that lie unpacked in ``folder``; as a context manager it closes itself.

    Attributes:
        folder: where the files are. For what came as a zip, a temporary folder that :meth:`close` removes.
        spec: what the description says.
        hashes: SHA-256 of the files, by their path in the folder, as the description lists them and as they were found.
    """

    folder: Path
    spec: Spec
    hashes: dict[str, str]
    temporary: bool = False

    def __enter__(self: Unpacked) -> Unpacked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder if it is a temporary one, into which a zip was unpacked."""
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def load_unpacked(
    source: Path, prefix: str, load: Callable[[Path, str, bool], Unpacked], unpack: Callable[[Path, Path], None]
) -> Unpacked:
    """Load a folder where it lies, and a zip from a temporary folder, which is removed if it cannot be loaded.

    Args:
        prefix: of the temporary folder's name.
        load: takes the folder, the name of ``source`` for messages, and whether the folder is a temporary one.
        unpack: takes ``source`` and the folder to fill.
    """
    if source.is_dir():
        return load(source, str(source), False)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        unpack(source, folder)
        return load(folder, str(source), True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def copy_files(folder: Path, names: Iterable[str], target: Path) -> None:
    """Write files of a folder, by their paths in it, as a ``.zip`` or a folder: whole or not at all.

    Raises:
        StorageError: the target cannot be written.
    """
    if target.suffix == ".zip":
        with replacing(target) as path, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(folder / name, name)
    else:
        with replacing_folder(target) as copy:
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, copy / name)


def check_hashes(folder: Path, hashes: Mapping[str, str], name: str, description: str, hint: str) -> None:
    """Compare the files of a folder with their SHA-256.

    Args:
        hashes: by the file's path in the folder.
        name: of the package or task, for messages.
        description: the name of the file that lists the hashes.
        hint: what to do where a file is wrong.

    Raises:
        PackageError: a file that is missing, reached through a link, or another one.
    """
    for file, expected in hashes.items():
        path = folder / file
        if any(part.is_symlink() for part in (path, *path.parents) if folder in part.parents) or not path.is_file():
            raise PackageError(f"{name}: the file {file} is missing.", hint)
        if sha256_file(path) != expected:
            raise PackageError(
                f"{name}: {file} is damaged or was changed (its SHA-256 is not the one in {description}).", hint
            )


def read_description(path: Path, name: str = "", kind: str = "package") -> Any:
    """Return what a JSON file of a package or task holds.

    Args:
        name: of the file in messages, by default its path.
        kind: of what it describes.

    Raises:
        PackageError: it is too large, or no JSON.
    """
    name, hint = name or str(path), f"Ask whoever made the {kind}."
    if path.stat().st_size > MAX_JSON_BYTES:
        raise PackageError(f"{name} is too large to be a description.", hint)
    return parsed_json(path.read_bytes(), name, hint)


def parsed_json(content: bytes, name: str, hint: str = "Ask whoever made the package.") -> Any:
    """Return what JSON text holds; NaN and infinities are refused, as JSON has none.

    Raises:
        PackageError: no JSON, or nested too deep for anything that is meant.
    """
    try:
        return parse_json(content, finite=True)
    except ValueError as error:
        raise PackageError(f"{name} is not valid JSON: {error}.", hint) from error
