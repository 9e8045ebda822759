"""A task on the disk: a folder (or zip) with task.json and the packages that it runs, or the names of installed models.

As model packages, tasks are data: loading one reads JSON, checks hashes and refuses everything else. task.json holds the SHA-256 of each
package's model.json, which holds those of the package's files.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import PackageError
from ..files import finish_interrupted, there
from ..zip_files import ZipLimits, checked_members, opened_zip, read_member, unpack_members
from .package import KNOWN_FILES, MODEL_JSON, ModelPackage, peek
from .package_files import (
    MAX_JSON_BYTES,
    UnpackedFiles,
    check_hashes,
    copy_files,
    load_unpacked,
    parsed_json,
    read_description,
)
from .spec import ModelSpec
from .task import TASK_JSON, TaskSpec, parse_task

#: What a task may hold beside task.json and its packages.
_BESIDE = ("LICENSE", "README.md")
_LIMITS = ZipLimits(1024, 64 << 30)
_HINT, _ASK = "Get the task again.", "Ask whoever made the task."


@dataclass(frozen=True)
class TaskPackage(UnpackedFiles[TaskSpec]):
    """A validated task: what task.json says, and SHA-256 of each package's model.json."""

    @staticmethod
    def load(path: str | os.PathLike[str]) -> TaskPackage:
        """Load and validate a task; its packages are checked when they are loaded.

        Args:
            path: the folder, the ``.zip`` or the ``task.json`` inside a folder.

        Raises:
            PackageError: missing or damaged files, a wrong hash, an unknown schema version, a field that does not fit, or a zip entry
                that climbs out of the task.
        """
        source = Path(path)
        if not there(source):
            finish_interrupted(source.parent)
        if source.name == TASK_JSON:
            source = source.parent
        return load_unpacked(source, "medquant-task-", load_folder, _unpack)

    def save(self, target: str | os.PathLike[str]) -> None:
        """Write the task with its packages, whole or not at all, as a ``.zip`` or a folder."""
        copy_files(self.folder, [TASK_JSON, *self._files()], Path(target))

    def _files(self) -> Iterator[str]:
        for path in self.spec.package_paths:
            with ModelPackage.load(self.folder / path) as package:
                yield from (f"{path}/{name}" for name in (MODEL_JSON, *sorted(package.hashes)))


def is_task(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a task at a path: a folder with task.json, that file itself, or a zip that holds it before any package."""
    source = Path(path)
    try:
        if source.name == TASK_JSON:
            return source.is_file()
        if source.is_dir():
            return (source / TASK_JSON).is_file() and not (source / MODEL_JSON).is_file()
        if not zipfile.is_zipfile(source):
            return False
        with zipfile.ZipFile(source) as archive:
            return _task_root(PurePosixPath(name) for name in archive.namelist()) is not None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _task_root(paths: Iterator[PurePosixPath] | Sequence[PurePosixPath]) -> int | None:
    """Return how many folders of a zip lie around task.json (0 or 1), or None where there is no task."""
    depths = [len(path.parts) - 1 for path in paths if path.name == TASK_JSON and len(path.parts) <= 2]
    return min(depths, default=None)


def peek_task(path: str | os.PathLike[str]) -> TaskSpec:
    """Return what a task says of itself, without unpacking it or looking at its packages.

    Raises:
        PackageError: no task, or a description that does not fit.
    """
    source = Path(path)
    name = f"{source}: {TASK_JSON}"
    if source.name == TASK_JSON and source.is_file():
        source = source.parent
    if source.is_dir() and (source / TASK_JSON).is_file():
        return parse_task(read_task_json(source / TASK_JSON, name), name)
    if not source.is_file():
        raise PackageError(f"There is no task at {source}.", "Give a task's folder or .zip.")
    with opened_zip(source, _HINT) as archive:
        members = checked_members(archive, source, _LIMITS)
        depth = _task_root([path for _, path in members])
        entry = next((e for e, path in members if path.name == TASK_JSON and len(path.parts) - 1 == depth), None)
        if entry is None:
            raise PackageError(f"{source} is no task.", "Give a task's folder or .zip.")
        return parse_task(parsed_json(read_member(archive, entry, MAX_JSON_BYTES), name, _ASK), name)


def describe(path: str | os.PathLike[str]) -> ModelSpec | TaskSpec:
    """Return what a package or a task says of itself: name, title, modality, channels, labels, license.

    Raises:
        PackageError: neither is there, or the description does not fit.
    """
    return peek_task(path) if is_task(path) else peek(path)[0]


def read_task_json(path: Path, name: str) -> Any:
    """Return what a task.json holds; ``name`` is its name in messages.

    Raises:
        PackageError: it is a link, too large, or no JSON.
    """
    if path.is_symlink():
        raise PackageError(f"{name} is a link.", _HINT)
    return read_description(path, name, "task")


def load_folder(folder: Path, name: str, temporary: bool = False) -> TaskPackage:
    """Load and validate the task in a folder; errors as :meth:`TaskPackage.load`.

    Args:
        name: of the task in messages.
        temporary: whether :meth:`TaskPackage.close` removes the folder.
    """
    if not (folder / TASK_JSON).is_file():
        raise PackageError(f"{name} is no task: it has no {TASK_JSON}.", "Give a task's folder or .zip.")
    value = read_task_json(folder / TASK_JSON, f"{name}: {TASK_JSON}")
    spec = parse_task(value, f"{name}: {TASK_JSON}")
    expected = {f"{path}/{MODEL_JSON}" for path in spec.package_paths}
    files = value.get("files") or {}
    if not isinstance(files, dict) or set(files) != expected or not all(isinstance(d, str) for d in files.values()):
        raise PackageError(
            f"{name}: {TASK_JSON}: 'files' must list the SHA-256 of each package's {MODEL_JSON}, and nothing else.",
            _ASK,
        )
    check_hashes(folder, files, name, TASK_JSON, _HINT)
    return TaskPackage(folder, spec, dict(files), temporary)


def _unpack(source: Path, folder: Path) -> None:
    """Unpack a zip: only task.json, the packages that it names and known names, no links, no climbing paths, bounded size."""
    spec = peek_task(source)
    packages = {PurePosixPath(path) for path in spec.package_paths}
    with opened_zip(source, _HINT) as archive:
        members = checked_members(archive, source, _LIMITS)
        depth = _task_root([path for _, path in members]) or 0
        if depth and len({path.parts[0] for _, path in members}) > 1:
            raise PackageError(f"{source} holds more than one folder.", "A task is a zip of one folder.")
        inner = [(entry, PurePosixPath(*path.parts[depth:])) for entry, path in members]
        for entry, path in inner:
            of_package = path.parent in packages and path.name in (MODEL_JSON, *KNOWN_FILES)
            if not of_package and str(path) not in (TASK_JSON, *_BESIDE):
                raise PackageError(
                    f"{source} holds {entry.filename!r}, which the task may not hold.",
                    f"It may hold {TASK_JSON}, {', '.join(_BESIDE)} and the packages that {TASK_JSON} names.",
                )
        unpack_members(archive, inner, folder)
