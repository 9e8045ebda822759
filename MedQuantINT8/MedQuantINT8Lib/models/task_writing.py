"""Tasks are written: from packages and a description, as a copy with other packages, and as the merge of several models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..files import replacing_folder, sha256_file, write_json
from ..outputs import check_output_package
from .package import MODEL_JSON, ModelPackage, peek
from .spec import ModelSpec
from .task import TASK_JSON, Find, Part, Structure, TaskSpec, check_source, parse_task
from .task_package import TaskPackage, load_folder, read_task_json


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
        written = load_folder(folder, str(target))
        for step in written.spec.sources:
            if step.packages:
                check_source(written.spec, step, [peek(folder / path)[0] for path in step.packages])
    return TaskPackage.load(target)


def with_packages(task: TaskPackage, target: str | os.PathLike[str], packages: Mapping[str, Path]) -> TaskPackage:
    """Write a copy of a task in which some packages, by their path inside the task, are replaced; :func:`write_task` says what is refused."""
    places = {path: task.folder / path for path in task.spec.package_paths} | dict(packages)
    return write_task(target, task.spec, places, task.folder)


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


def _inner_paths(name: str, sources: Sequence[Path], places: dict[str, Path]) -> tuple[str, ...]:
    """Return where the packages of a part lie in the task, and note there where they lie now."""
    paths = tuple(f"packages/{name}" + (f"-{n}" if len(sources) > 1 else "") for n in range(len(sources)))
    places.update(zip(paths, sources, strict=True))
    return paths


def note_package(package: str | os.PathLike[str]) -> Path | None:
    """Note in a task that one of its packages was written anew, by quantizing it say; return the task's folder.

    None where the package lies in no task that names it.
    """
    folder = Path(package).resolve()
    for task in folder.parents:
        if not (task / TASK_JSON).is_file():
            continue
        value = read_task_json(task / TASK_JSON, str(task / TASK_JSON))
        name = f"{folder.relative_to(task).as_posix()}/{MODEL_JSON}"
        if isinstance(value, dict) and name in (value.get("files") or {}):
            value["files"][name] = sha256_file(folder / MODEL_JSON)
            write_json(task / TASK_JSON, value)
            return task
    return None
