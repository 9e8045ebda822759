"""Which networks of a task a run needs: all of them, or those that give the structures that were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..models.task import Find, NamedValue, Part
from .ensemble import Ensemble
from .region_run import chosen_labels
from .task_model import LoadedModel, TaskModel


@dataclass(frozen=True)
class PlannedFind:
    """A step of find that is run.

    Attributes:
        values: of its label map, around which the box is drawn, with their names.
        within: the step in whose box it looks; None takes the whole scan.
    """

    step: Find
    values: tuple[NamedValue, ...]
    within: str | None = None


@dataclass(frozen=True)
class PlannedPart:
    """A part that is run.

    Attributes:
        targets: which value of the merged label map each value of the part's becomes; those that were not chosen are left out.
        within: the step of find in whose box it is run; None takes the whole scan.
    """

    part: Part
    targets: dict[int, int]
    within: str | None


@dataclass(frozen=True)
class TaskPlan:
    """What a run of a task does: steps of find in their order, then parts in the order in which they are painted."""

    find: tuple[PlannedFind, ...]
    parts: tuple[PlannedPart, ...]
    notes: tuple[str, ...] = ()

    @property
    def sources(self) -> list[Find | Part]:
        """Everything that is run, in its order."""
        return [*(item.step for item in self.find), *(item.part for item in self.parts)]


def plan_task(model: TaskModel, structures: Sequence[str] | None) -> TaskPlan:
    """Plan a run of a task; packages are looked at, not loaded.

    Args:
        structures: the names that were chosen; None for all.

    Raises:
        InputError: a name that the task does not know, or a model that is not installed.
        PackageError: a package that is not as the task says.
    """
    spec = model.spec
    labels = chosen_labels(spec.labels, structures, spec.name)
    if not labels:
        raise InputError(f"No structure of {spec.name} was chosen.", "Choose one, or leave the choice out for all.")
    values = {label.name: label.value for label in labels}
    parts = list[PlannedPart]()
    for part in spec.in_merge_order(spec.parts):
        # A part that says what it gives is not looked at where nothing of that was chosen: it may not even be installed.
        if part.labels and not any(item.name in values for item in part.labels):
            continue
        targets = {item.value: values[item.name] for item in model.named_values(part) if item.name in values}
        if targets:
            parts.append(PlannedPart(part, targets, part.within))
    given = {value for part in parts for value in part.targets.values()}
    notes = []
    if missing := [name for name, value in values.items() if value not in given]:
        notes.append(f"no part of {spec.name} gives {', '.join(missing)}")
    chosen = set(values) if len(values) < len(spec.structures) else None
    return _with_find(model, parts, chosen, notes)


def planned_ensembles(model: LoadedModel, structures: Sequence[str] | None) -> list[Ensemble]:
    """Return everything that a run of some structures runs, loaded: the model itself, or the parts and steps of a task."""
    if isinstance(model, Ensemble):
        return [model]
    return [model.ensemble(source) for source in plan_task(model, structures).sources]


def _with_find(model: TaskModel, parts: list[PlannedPart], chosen: set[str] | None, notes: list[str]) -> TaskPlan:
    """Add the steps of find that the parts need, and take out of the parts those that this run does not have."""
    planned = dict[str, PlannedFind]()
    steps = {step.name: step for step in model.spec.find}

    def plan(name: str | None) -> str | None:
        """Plan a step, and those in whose box it looks; return the name of the one whose box counts."""
        if name is None or name in planned:
            return name
        step = steps[name]
        outer = plan(step.within)
        if step.box_of == "chosen" and chosen is None:
            return outer
        named = model.named_values(step)
        wanted = chosen if step.box_of == "chosen" else set(step.structures) or None
        if wanted is not None and step.box_of == "chosen" and not wanted <= {item.name for item in named}:
            unknown = sorted(wanted - {item.name for item in named})
            notes.append(f"{name} does not know {', '.join(unknown)}: the parts take the whole scan")
            return outer
        values = tuple(item for item in named if wanted is None or item.name in wanted)
        planned[name] = PlannedFind(step, values, outer)
        return name

    for item in parts:
        plan(item.part.previous)
    bounded = tuple(PlannedPart(item.part, item.targets, plan(item.within)) for item in parts)
    order = [step.name for step in model.spec.find]
    find = tuple(planned[name] for name in sorted(planned, key=order.index))
    return TaskPlan(find, bounded, tuple(notes))
