"""A task on the disk: a folder (or zip) with task.json and the packages that it runs, or the names of installed models.

As model packages, tasks are data: loading one reads JSON, checks hashes and refuses everything else. task.json holds the SHA-256 of each
package's model.json, which holds those of the package's files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import PackageError
from ..files import finish_interrupted, replacing, replacing_folder, sha256_file, there, write_json
from ..outputs import check_output_package
from ..zip_files import ZipLimits, checked_members, opened_zip, read_member, unpack_members
from .package import KNOWN_FILES, MAX_JSON_BYTES, MODEL_JSON, ModelPackage, parsed_json, peek
from .spec import ModelSpec
from .task import TASK_JSON, Find, NamedValue, Part, Structure, TaskSpec, parse_task

#: What a task may hold beside task.json and its packages.
_BESIDE = ("LICENSE", "README.md")
_LIMITS = ZipLimits(1024, 64 << 30)
_ADVICE = "Get the task again."


@dataclass(frozen=True)
class TaskPackage:
    """A validated task that lies unpacked in ``folder``.

    Attributes:
        folder: where task.json is. For a task that came as a zip, a temporary folder that :meth:`close` removes.
        spec: what task.json says.
        hashes: SHA-256 of each package's model.json, by its path inside the task.
    """

    folder: Path
    spec: TaskSpec
    hashes: dict[str, str]
    temporary: bool = False

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
        if source.is_dir():
            return _load_folder(source, str(source), temporary=False)
        folder = Path(tempfile.mkdtemp(prefix="medquant-task-"))
        try:
            _unpack(source, folder)
            return _load_folder(folder, str(source), temporary=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def __enter__(self) -> TaskPackage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder if it is a temporary one, into which a zip was unpacked."""
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, target: str | os.PathLike[str]) -> None:
        """Write the task with its packages, whole or not at all, as a ``.zip`` or a folder."""
        target = Path(target)
        names = [TASK_JSON, *self._files()]
        if target.suffix == ".zip":
            with replacing(target) as path, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in names:
                    archive.write(self.folder / name, name)
        else:
            with replacing_folder(target) as folder:
                for name in names:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.folder / name, folder / name)

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
        return parse_task(_read_json(source / TASK_JSON, name), name)
    if not source.is_file():
        raise PackageError(f"There is no task at {source}.", "Give a task's folder or .zip.")
    with opened_zip(source, _ADVICE) as archive:
        members = checked_members(archive, source, _LIMITS)
        depth = _task_root([path for _, path in members])
        entry = next((e for e, path in members if path.name == TASK_JSON and len(path.parts) - 1 == depth), None)
        if entry is None:
            raise PackageError(f"{source} is no task.", "Give a task's folder or .zip.")
        return parse_task(parsed_json(read_member(archive, entry, MAX_JSON_BYTES), name), name)


def describe(path: str | os.PathLike[str]) -> ModelSpec | TaskSpec:
    """Return what a package or a task says of itself: name, title, modality, channels, labels, license.

    Raises:
        PackageError: neither is there, or the description does not fit.
    """
    return peek_task(path) if is_task(path) else peek(path)[0]


def write_task(
    target: str | os.PathLike[str], spec: TaskSpec, packages: Mapping[str, Path], itself: Path | None = None
) -> TaskPackage:
    """Write a task from its description and its packages.

    Args:
        target: a folder or a ``.zip``.
        packages: the folder or zip of each package, by its path inside the task: exactly those that ``spec`` names.
        itself: the task's folder that some of them come from, which may be written anew in its place.

    Returns:
        The task as it is loaded from there.

    Raises:
        PackageError: a package that is missing, damaged or not named, one whose channels or labels do not fit, or a target that is
            something else than a task.
        StorageError: the target cannot be written.
    """
    target = Path(target)
    if strangers := sorted(set(packages) ^ set(spec.package_paths)):
        raise PackageError(
            f"The task {spec.name} and its packages do not fit: {strangers[0]!r} is only in one of the two.",
            "Give each package that the task names.",
        )
    if target.suffix == ".zip":
        with tempfile.TemporaryDirectory(prefix="medquant-task-") as scratch:
            write_task(Path(scratch) / "task", spec, packages).save(target)
        return TaskPackage.load(target)
    others = [path for path in packages.values() if itself is None or itself not in Path(path).parents]
    check_output_package(target, others, itself, TASK_JSON)
    with replacing_folder(target) as folder:
        for path, source in packages.items():
            with ModelPackage.load(source) as package:
                package.save(folder / path)
        hashes = {f"{path}/{MODEL_JSON}": sha256_file(folder / path / MODEL_JSON) for path in sorted(packages)}
        # What the packages hold is compared with what the task says of them, as far as they lie inside it.
        value = parse_task(spec.to_json())
        write_json(folder / TASK_JSON, {**value.to_json(), "files": hashes})
        written = _load_folder(folder, str(target), temporary=False)
        for step in written.spec.sources:
            if step.packages:
                check_source(written.spec, step, [peek(folder / path)[0] for path in step.packages])
    return TaskPackage.load(target)


def check_source(spec: TaskSpec, source: Find | Part, packages: Sequence[ModelSpec]) -> tuple[NamedValue, ...]:
    """Compare what a task says of a part, or of a step of find, with the packages that it runs.

    Returns:
        The names of the values of their label map: for a part, those of the task's structures.

    Raises:
        PackageError: another number of channels, or a value or name that the packages do not have.
    """
    where = f"{source.name} of the task {spec.name}"
    first = packages[0]
    previous = isinstance(source, Part) and source.previous is not None
    if first.scans == len(spec.channels) and len(first.channels) - first.scans != int(previous):
        raise PackageError(
            f"{where} takes {len(first.channels) - first.scans} label map(s) beside the scan, but "
            + ("its 'previous' gives one." if previous else "it has no 'previous' that gives one."),
            "Correct the task's task.json.",
        )
    if first.scans != len(spec.channels):
        raise PackageError(
            f"{where} takes {first.scans} channel(s), but the task gives {len(spec.channels)}.",
            "Correct the task's task.json.",
        )
    values = {label.value for label in first.labels}
    if stranger := next((item for item in source.labels if item.value not in values), None):
        raise PackageError(
            f"{where} names the value {stranger.value} ({stranger.name}), which its model {first.name} does not give.",
            "Correct the task's task.json, or install the model that belongs to it.",
        )
    named = source.labels or tuple(NamedValue(label.value, label.name) for label in first.labels)
    known = {item.name for item in named} if isinstance(source, Find) else {s.name for s in spec.structures}
    asked = source.structures if isinstance(source, Find) else tuple(item.name for item in named)
    if unknown := next((name for name in asked if name not in known), None):
        raise PackageError(
            f"{where} needs {unknown!r}, which "
            + (
                f"its model {first.name} does not find." if isinstance(source, Find) else "is no structure of the task."
            ),
            "Correct the task's task.json, or install the model that belongs to it.",
        )
    return named


def merged_task(
    name: str,
    parts: Mapping[str, Sequence[Path]],
    previous: Mapping[str, tuple[str, Sequence[Path]]] | None = None,
    **wording: str,
) -> tuple[TaskSpec, dict[str, Path]]:
    """Return a task that merges packages by the names of their labels, the later part winning, and where its packages lie.

    Structures get the values 1, 2, ... in the order in which they come; a name that several parts give is one structure.

    Args:
        name: of the task.
        parts: the packages of each part (several are averaged, as the folds of one training), by the part's name.
        previous: of parts that are a cascade's second stage, the name and the packages of the first, by the part's name.
        wording: fields of :class:`TaskSpec` that hold text (title, description, license, citation, source_url, version, modality), in
            place of those of the first part.

    Raises:
        PackageError: no package, one that cannot be read, or parts with different channels.
    """
    structures: dict[str, Structure] = {}
    task_parts, find, places = list[Part](), list[Find](), dict[str, Path]()
    first: ModelSpec | None = None
    for part, sources in parts.items():
        spec = peek(sources[0])[0]
        first = first or spec
        for label in spec.labels:
            structure = Structure(len(structures) + 1, label.name, label.color, label.terminology)
            structures.setdefault(label.name, structure)
        stage, stage_sources = (previous or {}).get(part, (None, ()))
        if stage is not None:
            find.append(Find(stage, _inner_paths(stage, stage_sources, places), nothing_found="whole_scan"))
        task_parts.append(Part(part, _inner_paths(part, sources, places), previous=stage))
    if first is None:
        raise PackageError(f"The task {name} has no part.", "Give at least one package.")
    texts = {key: getattr(first, key) for key in ("version", "modality", "license", "citation", "source_url")}
    spec_fields: dict[str, Any] = {**texts, **wording}
    task = TaskSpec(
        name=name,
        channels=first.channels[: first.scans],
        find=tuple(find),
        structures=tuple(structures.values()),
        parts=tuple(task_parts),
        **spec_fields,
    )
    for step in task.sources:
        check_source(task, step, [peek(places[path])[0] for path in step.packages])
    return task, places


def note_package(package: str | os.PathLike[str]) -> Path | None:
    """Note in a task that one of its packages was written anew, by quantizing it say; return the task's folder.

    None where the package lies in no task that names it.
    """
    folder = Path(package).resolve()
    for task in folder.parents:
        if not (task / TASK_JSON).is_file():
            continue
        value = _read_json(task / TASK_JSON, str(task / TASK_JSON))
        name = f"{folder.relative_to(task).as_posix()}/{MODEL_JSON}"
        if isinstance(value, dict) and name in (value.get("files") or {}):
            value["files"][name] = sha256_file(folder / MODEL_JSON)
            write_json(task / TASK_JSON, value)
            return task
    return None


def _inner_paths(name: str, sources: Sequence[Path], places: dict[str, Path]) -> tuple[str, ...]:
    """Return where the packages of a part lie in the task, and note there where they lie now."""
    paths = tuple(f"packages/{name}" + (f"-{n}" if len(sources) > 1 else "") for n in range(len(sources)))
    places.update(zip(paths, sources, strict=True))
    return paths


def with_packages(task: TaskPackage, target: str | os.PathLike[str], packages: Mapping[str, Path]) -> TaskPackage:
    """Write a copy of a task in which some packages, by their path inside the task, are replaced; :func:`write_task` says what is refused."""
    places = {path: task.folder / path for path in task.spec.package_paths} | dict(packages)
    return write_task(target, task.spec, places, task.folder)


def _read_json(path: Path, name: str) -> Any:
    if path.is_symlink():
        raise PackageError(f"{name} is a link.", _ADVICE)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise PackageError(f"{name} is too large to be a description.", "Ask whoever made the task.")
    return parsed_json(path.read_bytes(), name)


def _load_folder(folder: Path, name: str, *, temporary: bool) -> TaskPackage:
    if not (folder / TASK_JSON).is_file():
        raise PackageError(f"{name} is no task: it has no {TASK_JSON}.", "Give a task's folder or .zip.")
    value = _read_json(folder / TASK_JSON, f"{name}: {TASK_JSON}")
    spec = parse_task(value, f"{name}: {TASK_JSON}")
    expected = {f"{path}/{MODEL_JSON}" for path in spec.package_paths}
    files = value.get("files") or {}
    if not isinstance(files, dict) or set(files) != expected or not all(isinstance(d, str) for d in files.values()):
        raise PackageError(
            f"{name}: {TASK_JSON}: 'files' must list the SHA-256 of each package's {MODEL_JSON}, and nothing else.",
            "Ask whoever made the task.",
        )
    for file, digest in files.items():
        path = folder / file
        if any(part.is_symlink() for part in (path, *path.parents) if folder in part.parents) or not path.is_file():
            raise PackageError(f"{name}: the file {file} is missing.", _ADVICE)
        if sha256_file(path) != digest:
            raise PackageError(
                f"{name}: {file} is damaged or was changed (its SHA-256 is not the one in {TASK_JSON}).", _ADVICE
            )
    return TaskPackage(folder, spec, dict(files), temporary)


def _unpack(source: Path, folder: Path) -> None:
    """Unpack a zip: only task.json, the packages that it names and known names, no links, no climbing paths, bounded size."""
    spec = peek_task(source)
    packages = {PurePosixPath(path) for path in spec.package_paths}
    with opened_zip(source, _ADVICE) as archive:
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
