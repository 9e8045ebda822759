"""nnU-Net's cascades, the mean of several configurations, and several data sets of nnU-Net at once, as one task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError, PackageError
from ..models.averaging import averaging_problem
from ..models.spec import Cleaning
from ..models.task_package import TaskPackage
from ..models.task_writing import merged_task, write_task
from ..progress import Task
from . import nnunet
from .base import ImportedModel, write
from .fields import read_described
from .nnunet_plans import configurations, previous_stage
from .nnunet_postprocessing import POSTPROCESSING_FILES, read_postprocessing
from .totalsegmentator import Resampling


@dataclass
class Stage:
    """A training that a task runs: its result folder, and its configuration where it has to be named."""

    folder: Path
    configuration: str
    models: list[ImportedModel] = field(default_factory=list)


@dataclass
class ImportedPart:
    """A part of a task: a training, and the training whose labels it takes as input, for a cascade.

    Attributes:
        averaged: further configurations of the data set, whose probabilities are averaged with the training's.
        cleaning: of the mean: the postprocessing that nnU-Net found for these configurations together.
    """

    name: str
    stage: Stage
    previous: Stage | None = None
    averaged: list[Stage] = field(default_factory=list)
    cleaning: tuple[Cleaning, ...] = ()

    @property
    def stages(self) -> list[Stage]:
        """The trainings in the order in which they run."""
        return [*([] if self.previous is None else [self.previous]), self.stage, *self.averaged]


@dataclass
class ImportedTask:
    """Several trainings of nnU-Net that are run as one task.

    Attributes:
        name: of the task.
        parts: each of a data set.
    """

    name: str
    parts: list[ImportedPart]

    @property
    def models(self) -> list[ImportedModel]:
        """The networks of all trainings, in the order in which they run; one a fold."""
        return [model for part in self.parts for stage in part.stages for model in stage.models]


def find_task(folder: Path, configuration: str | None = None) -> ImportedTask | None:
    """Return the task that a folder holds, its networks not read yet: a cascade beside its previous stage, or several data sets.

    None where the folder holds one training that works alone, which is a package.

    Args:
        folder: a result folder of nnU-Net, or one with several of them below it.
        configuration: of those trainings of a data set that are there, the one that is meant; several joined by commas are averaged, as
            nnU-Net's ensembles are.

    Raises:
        PackageError: a data set with several trainings of which none is named, one that lacks a named configuration, or plans that are
            damaged.
    """
    results = (
        [folder] if (folder / "plans.json").is_file() else sorted(path.parent for path in folder.rglob("plans.json"))
    )
    by_data_set: dict[Path, list[Path]] = {}
    for result in results:
        by_data_set.setdefault(result.parent, []).append(result)
    names = [name.strip() for name in (configuration or "").split(",") if name.strip()]
    choose = (
        partial(_choose_mean, names=names) if len(names) > 1 else partial(_choose_part, configuration=configuration)
    )
    parts = [choose(results) for results in by_data_set.values()]
    if not parts or (len(parts) == 1 and parts[0].previous is None and not parts[0].averaged):
        return None
    if len(parts) > 1:
        for part in parts:
            part.name = _file_name(part.stage.folder.parent.name)
    part_names = [part.name for part in parts]
    if repeated := next((name for name in part_names if part_names.count(name) > 1), None):
        raise PackageError(f"{folder.name} holds two data sets called {repeated}.", "Rename the folder of one.")
    name = parts[0].stage.folder.parent.name if len(parts) == 1 else folder.name
    return ImportedTask(_file_name(name), parts)


def _choose_part(results: list[Path], configuration: str | None) -> ImportedPart:
    """Choose what is run of a data set: the cascade, where only its two stages are there, or the training that is named."""
    stages = {path: _configuration_of(path, configuration if len(results) == 1 else None) for path in results}
    previous_of = {path: previous_stage(_plans(path), name) for path, name in stages.items()}
    chosen = [path for path in results if configuration in (None, stages[path])]
    cascades = [path for path in chosen if previous_of[path] is not None]
    if len(cascades) == 1 and {stages[path] for path in chosen} <= {stages[cascades[0]], previous_of[cascades[0]]}:
        chosen = cascades
    if len(chosen) != 1:
        names = ", ".join(path.name for path in results)
        raise PackageError(
            f"{results[0].parent.name} holds several trainings: {names}.",
            "Give one of these folders, or --configuration NAME; NAME,NAME averages several.",
        )
    stage = Stage(chosen[0], stages[chosen[0]])
    name = previous_of[chosen[0]]
    previous = None if name is None else _find_previous(chosen[0], name)
    return ImportedPart(stage.configuration, stage, previous)


def _choose_mean(results: list[Path], names: list[str]) -> ImportedPart:
    """Choose the trainings of a data set that are averaged: one of each named configuration."""
    stages = {path: _configuration_of(path, None) for path in results}
    chosen = list[Stage]()
    for name in names:
        there = [path for path in results if stages[path] == name]
        if len(there) != 1 or names.count(name) > 1:
            problem = "is named twice" if names.count(name) > 1 else f"has {len(there)} trainings there"
            raise PackageError(
                f"{results[0].parent.name}: the configuration {name} {problem}, and a mean takes one of each.",
                f"There are {', '.join(path.name for path in results)}.",
            )
        if previous_stage(_plans(there[0]), name) is not None:
            raise PackageError(
                f"{there[0].name} is the second stage of a cascade, which takes labels as input: it cannot be averaged with others here.",
                "Average configurations that take the scan alone, or import the cascade by itself.",
            )
        chosen.append(Stage(there[0], name))
    return ImportedPart("-".join(names), chosen[0], averaged=chosen[1:])


def _find_mean_postprocessing(stages: Sequence[Stage]) -> Path | None:
    """Find what nnUNetv2_find_best_configuration noted for an ensemble of trainings; for several sets of folds that of the most."""
    wanted = {stage.folder.name for stage in stages}
    files = list[Path]()
    for folder in sorted((stages[0].folder.parent / "ensembles").glob("ensemble___*")):
        if set(folder.name.split("___")[1:-1]) == wanted:
            files += [folder / name for name in POSTPROCESSING_FILES if (folder / name).is_file()][:1]
    return max(files, key=lambda file: len(file.parent.name)) if files else None


def _find_previous(cascade: Path, name: str) -> Stage | None:
    """Find the training of a cascade's previous stage beside it: of the same trainer and plans, else the only one of that name."""
    same = cascade.with_name("__".join([*cascade.name.split("__")[:-1], name]))
    others = [path for path in sorted(cascade.parent.glob(f"*__{name}")) if (path / "plans.json").is_file()]
    folder = same if same in others else others[0] if len(others) == 1 else None
    return None if folder is None else Stage(folder, name)


def _plans(folder: Path) -> Any:
    return read_described(folder / "plans.json", "result folder of nnU-Net v2")


def _configuration_of(folder: Path, configuration: str | None) -> str:
    """Return the configuration that a result folder's name states, or the only one of its plans."""
    names, last = configurations(_plans(folder)), folder.name.split("__")[-1]
    if configuration is not None:
        return configuration
    return last if last in names or len(names) != 1 else names[0]


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-") or "nnunet"


def understand_task(
    imported: ImportedTask, folds: Sequence[int | str] | None = None, resampling: Resampling | None = None
) -> ImportedTask:
    """Read the networks of a task that :func:`find_task` found; arguments and errors as :func:`.nnunet.understand`."""
    for part in imported.parts:
        for stage in part.stages:
            stage.models = nnunet.understand(
                stage.folder, folds=folds, configuration=stage.configuration, resampling=resampling
            )
        if part.previous is not None:
            for model in part.previous.models:
                if model.spec.cleaning:
                    model.notes.append("the postprocessing is left out: nnU-Net gives a cascade the labels as they are")
                    _leave_out_cleaning(model)
        if part.averaged:
            _read_mean(part)
    return imported


def _read_mean(part: ImportedPart) -> None:
    """Take the postprocessing of the mean in the place of each network's own, and refuse networks that cannot be averaged.

    Raises:
        PackageError: says why they cannot.
    """
    stages = [part.stage, *part.averaged]
    models = [model for stage in stages for model in stage.models]
    file = _find_mean_postprocessing(stages)
    for model in models:
        if model.spec.cleaning:
            model.notes.append(
                "the postprocessing is left out: nnU-Net averages first, and then does that of the ensemble"
            )
            _leave_out_cleaning(model)
    first = models[0].spec
    if file is not None:
        part.cleaning = read_postprocessing(file, [label.value for label in first.labels])
        models[0].notes.append(f"the mean is cleaned as {file.parent.name}/{file.name} says")
    for model in models[1:]:
        if reason := averaging_problem(first, model.spec):
            raise PackageError(
                f"{model.spec.name} and {first.name} cannot be averaged: {reason}.", "Import them alone."
            )


def _leave_out_cleaning(model: ImportedModel) -> None:
    """Take a network's postprocessing away, on both sides of the comparison with nnU-Net."""
    model.spec = replace(model.spec, cleaning=())
    if isinstance(model.original, partial):
        model.original = partial(model.original.func, replace(model.original.args[0], postprocessing=None))


def write_imported_task(imported: ImportedTask, target: Path, task: Task, *, dynamic: bool = False) -> TaskPackage:
    """Export the networks of a task, compare each with nnU-Net, and write the task: whole, or not at all.

    Raises:
        PackageError: a network that cannot be exported or does not do what nnU-Net does, or parts that take different channels.
        StorageError: the target cannot be written.
    """
    with TemporaryDirectory(prefix="medquant-task-") as scratch:
        places: dict[int, list[Path]] = {}
        for number, stage in enumerate(stage for part in imported.parts for stage in part.stages):
            places[id(stage)] = []
            for fold, model in enumerate(stage.models):
                place = Path(scratch) / f"{number}-{fold}"
                write(model, place, task, dynamic=dynamic)
                places[id(stage)].append(place)
                task.check()
        several = len(imported.parts) > 1
        previous = {
            part.name: (
                f"{part.name}-{part.previous.configuration}" if several else part.previous.configuration,
                places[id(part.previous)],
            )
            for part in imported.parts
            if part.previous is not None
        }
        parts = {
            part.name: [place for stage in (part.stage, *part.averaged) for place in places[id(stage)]]
            for part in imported.parts
        }
        title = ", ".join(dict.fromkeys(part.stage.models[0].spec.title for part in imported.parts))
        spec, packages = merged_task(imported.name, parts, previous, title=title)
        values = {structure.name: structure.value for structure in spec.structures}
        cleaning = [
            replace(step, labels=tuple(sorted(values[names[value]] for value in step.labels)))
            for part in imported.parts
            for names in [{label.value: label.name for label in part.stage.models[0].spec.labels}]
            for step in part.cleaning
        ]
        return write_task(target, replace(spec, cleaning=tuple(cleaning)), packages)


def check_alone(imported: ImportedTask, **given: Any) -> None:
    """Refuse options that describe one network.

    Raises:
        InputError: one was given; names it.
    """
    for name, value in given.items():
        if value:
            raise InputError(
                f"--{name} is for one network, and {imported.name} is a task of several.",
                "Leave it out, or import one result folder alone.",
            )
