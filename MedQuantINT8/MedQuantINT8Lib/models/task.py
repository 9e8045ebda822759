"""``task.json``: several networks that segment a scan together, as typed Python.

As with ``model.json`` (:mod:`.spec`), the parser and the published ``Resources/task.schema.json`` are derived from the annotations of
these classes (:mod:`.records`). How a task lies on the disk is told in :mod:`.task_package`, how it is run in
:mod:`..inference.task_runner`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from ..errors import PackageError
from .averaging import averaging_problem
from .colors import color_of
from .input_spec import Channel
from .output_spec import Cleaning, Label, Terminology
from .record_files import FileForm, file_schema, parse_file, record_json
from .records import AT_LEAST_ONE, NOT_EMPTY, Rule, shown
from .spec import ModelSpec
from .value_types import Byte, FileName, LabelValue, Name, NotNegative

TASK_JSON = "task.json"
TASK_FORM = FileForm(
    "medquant-task",
    ("1.0",),
    hint="Correct the task's task.json.",
    update_hint="Update MedQuantINT8, or write the task for this version.",
)
_PATH = "[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"


def _path_problem(text: str) -> str | None:
    if re.fullmatch(_PATH, text):
        return None
    return f"is {shown(text)} but must be a path inside the task, of letters, digits, '.', '_' and '-' between slashes"


#: The folder of a package inside the task, such as "packages/organs".
PackagePath = Annotated[str, NOT_EMPTY, Rule({"pattern": f"^{_PATH}$"}, _path_problem)]


@dataclass(frozen=True)
class Structure:
    """A structure of the task: ``value`` stands in the merged label map."""

    value: LabelValue
    name: Name
    color: tuple[Byte, Byte, Byte] = (128, 174, 128)
    terminology: Terminology | None = None

    @classmethod
    def left_out(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the color of the structure's value, for a description that gives none."""
        return {"color": color_of(given["value"])}


@dataclass(frozen=True)
class NamedValue:
    """The name that a value of a package's label map has in the task."""

    value: LabelValue
    name: Name


@dataclass(frozen=True)
class Find:
    """A run before the parts: the box around what it segments bounds the parts that are ``within`` it.

    packages: folders inside the task, each a model package; several are averaged, as the folds of one training or as configurations that prepare a scan differently.
    installed: the name of an installed model, in place of ``packages``.
    labels: names of the values of its label map; none means those that the package gives.
    structures: whose union the box is drawn around, by these names; none means all.
    box_of: "structures" in every run; or "chosen": those structures that the user chose, in a run of fewer than all. Runs of all
        structures, and of one that this step does not know, then take the whole scan, and nothing is looked for.
    margin_mm: by which the box is made larger on each side.
    nothing_found: whether the run then ends with an empty label map ("stop"), or the parts take the whole scan ("whole_scan").
    within: the name of an earlier step, in whose box this one looks.
    """

    name: FileName
    packages: tuple[PackagePath, ...] = ()
    installed: FileName | None = None
    labels: tuple[NamedValue, ...] = ()
    structures: tuple[Name, ...] = ()
    box_of: Literal["structures", "chosen"] = "structures"
    margin_mm: NotNegative = 0.0
    nothing_found: Literal["stop", "whole_scan"] = "stop"
    within: FileName | None = None

    def problem(self) -> str | None:
        """Return what is wrong with its source or its names, or None."""
        return _source_problem(self) or _labels_problem(self.labels)


@dataclass(frozen=True)
class Part:
    """A network (or the mean of several) that gives some of the task's structures.

    packages, installed: as in a step of ``find``.
    labels: which structure of the task each value of its label map becomes; values that are not named are background. None means that
        each of the package's labels becomes the structure of its name.
    within: the name of the step of ``find`` in whose box the part is run; None takes the whole scan.
    previous: the name of the step of ``find`` whose label map is the last channel of the part's input, as a cascade's second stage takes
        that of the first; None for a part that takes the scan alone.
    """

    name: FileName
    packages: tuple[PackagePath, ...] = ()
    installed: FileName | None = None
    labels: tuple[NamedValue, ...] = ()
    within: FileName | None = None
    previous: FileName | None = None

    def problem(self) -> str | None:
        """Return what is wrong with its source or its values, or None."""
        return _source_problem(self) or _labels_problem(self.labels)


def _source_problem(source: Find | Part) -> str | None:
    if bool(source.packages) == (source.installed is not None):
        return "needs 'packages' or 'installed', and not both"
    if len(set(source.packages)) != len(source.packages):
        return "names a package twice"
    return None


def _labels_problem(labels: Sequence[NamedValue]) -> str | None:
    return "uses a value twice in 'labels'" if len({item.value for item in labels}) != len(labels) else None


@dataclass(frozen=True)
class TaskSpec:
    """The whole of task.json, without the file hashes.

    channels: what the user has to give; every package takes the same.
    structures: of the merged label map.
    find: steps that are run before the parts, in this order.
    parts: networks whose label maps are merged.
    merge_order: names of all parts in the order in which their structures are painted, where it is not that of ``parts``: a later
        part paints over an earlier one.
    cleaning: what is done with the merged label map at its end.
    """

    name: FileName
    version: Name
    modality: Name
    channels: Annotated[tuple[Channel, ...], AT_LEAST_ONE]
    structures: Annotated[tuple[Structure, ...], AT_LEAST_ONE]
    parts: Annotated[tuple[Part, ...], AT_LEAST_ONE]
    license: Name
    find: tuple[Find, ...] = ()
    merge_order: tuple[FileName, ...] = ()
    cleaning: tuple[Cleaning, ...] = ()
    citation: str = ""
    source_url: str = ""
    title: str = ""
    description: str = ""

    @property
    def labels(self) -> tuple[Label, ...]:
        """The structures as the labels of a model, for whatever writes or shows a label map; ``channel`` means nothing."""
        return tuple(Label(s.value, s.name, s.value, s.color, s.terminology) for s in self.structures)

    @property
    def sources(self) -> tuple[Find | Part, ...]:
        """Everything that runs a network: the steps of ``find``, then the parts."""
        return (*self.find, *self.parts)

    @property
    def package_paths(self) -> tuple[str, ...]:
        """The folders of all packages inside the task, each once."""
        return tuple(dict.fromkeys(path for source in self.sources for path in source.packages))

    @property
    def installed_names(self) -> tuple[str, ...]:
        """The installed models that the task runs, each once."""
        return tuple(dict.fromkeys(source.installed for source in self.sources if source.installed))

    def in_merge_order(self, parts: Iterable[Part]) -> list[Part]:
        """Return parts in the order in which they are painted."""
        order = self.merge_order or tuple(part.name for part in self.parts)
        return sorted(parts, key=lambda part: order.index(part.name))

    def to_json(self) -> dict[str, Any]:
        """Return the dictionary that task.json holds (without ``files``)."""
        return record_json(self, TASK_FORM)


def parse_task(value: Any, where: str = TASK_JSON) -> TaskSpec:
    """Parse and validate what task.json holds.

    Raises:
        PackageError: names the field, what is wrong with it and what it may be.
    """
    spec = parse_file(TaskSpec, TASK_FORM, value, where)
    if problem := _inconsistency(spec):
        raise PackageError(f"{where}: {problem}.", TASK_FORM.hint)
    return spec


def _inconsistency(spec: TaskSpec) -> str | None:
    """Return what is wrong between several fields, in words that begin with the field's name; None if nothing is."""
    for what in ("value", "name"):
        values = [getattr(structure, what) for structure in spec.structures]
        if len(set(values)) != len(values):
            return f"'structures' use a {what} twice"
    # The parser looks at the largest value of all at once.
    if max(structure.value for structure in spec.structures) > 65535:
        return "'structures' have a value above 65535"
    names = [source.name for source in spec.sources]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        return f"the name {shown(repeated)} is used twice among 'find' and 'parts'"
    known = {structure.name for structure in spec.structures}
    for part in spec.parts:
        if stranger := next((item.name for item in part.labels if item.name not in known), None):
            return f"the part {part.name} gives {shown(stranger)}, which is none of 'structures'"
    return _find_problem(spec) or _merge_problem(spec)


def _find_problem(spec: TaskSpec) -> str | None:
    earlier: set[str] = set()
    for step in spec.find:
        if step.within is not None and step.within not in earlier:
            return f"'within' of {step.name} is {shown(step.within)}, which is no earlier step of 'find'"
        earlier.add(step.name)
        names = {item.name for item in step.labels}
        if step.labels and (stranger := next((name for name in step.structures if name not in names), None)):
            return f"the step {step.name} looks for {shown(stranger)}, which is not among its 'labels'"
    for part in spec.parts:
        if part.within is not None and part.within not in earlier:
            return f"'within' of {part.name} is {shown(part.within)}, which is no step of 'find'"
        if part.previous is not None and part.previous not in earlier:
            return f"'previous' of {part.name} is {shown(part.previous)}, which is no step of 'find'"
        if any(step.name == part.previous and step.box_of == "chosen" for step in spec.find):
            return f"'previous' of {part.name} is {shown(part.previous)}, which is not run every time"
    return None


def _merge_problem(spec: TaskSpec) -> str | None:
    if spec.merge_order and sorted(spec.merge_order) != sorted(part.name for part in spec.parts):
        return "'merge_order' must name every part once"
    values = {structure.value for structure in spec.structures}
    if stranger := next((value for step in spec.cleaning for value in step.labels if value not in values), None):
        return f"'cleaning' names the value {stranger}, which no structure has"
    if any(step.where == "network" for step in spec.cleaning):
        return "'cleaning' of a task is done on the grid of the scan, not in network space"
    return None


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
    for other in packages[1:]:
        if replace(other, name=first.name, version=first.version) != first and (
            reason := averaging_problem(first, other)
        ):
            raise PackageError(
                f"{where} runs {other.name} and {first.name}, which cannot be averaged: {reason}.",
                "Give a part packages of one training, or nnU-Net's configurations of one data set.",
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


def task_schema() -> dict[str, Any]:
    """Return the JSON Schema of task.json."""
    return file_schema(TaskSpec, TASK_FORM, {})
