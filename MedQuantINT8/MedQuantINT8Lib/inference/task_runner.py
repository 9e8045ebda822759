"""A task's run: what bounds the parts is found first, then the parts are run in turn and their label maps merged into one."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.region_of_interest import (
    Box,
    at_least_two,
    box_in_words,
    box_json,
    box_slices,
    cut_volume,
    mask_box,
    whole_box,
)
from ..imaging.volume import Volume
from ..models.spec import ModelSpec
from ..models.task import Find, Part
from ..progress import Task
from ..system import cpu_count
from .configurations import allows_mirroring, check_mirroring
from .engine_pool import EnginePool, SingleUsePool
from .label_merging import THREADS, merge_margins
from .margins import ONE
from .memory_estimate import MemoryEstimate, estimate, fitted
from .postprocessing import cleaned
from .region_run import box_notes
from .segmentation_run import SegmentationRun, latency_of, parts_json, summed_seconds, worst_ranges
from .segmenter import SegmentationOptions, SegmentationResult, spec_in_force
from .shared_preprocessing import SharedPreprocessing, preprocessing_key
from .task_engine import merged_engine
from .task_gpus import OnOneGpu, PartRun, PartsOnGpus, RunPart
from .task_merging import MergedLabels
from .task_model import TaskModel
from .task_plan import PlannedFind, PlannedPart, TaskPlan, plan_task

#: Stands for a label map that was merged, or looked at, and let go of.
_NOTHING: NDArray[Any] = np.zeros((0, 0, 0), np.uint8)


@dataclass(frozen=True)
class TaskContext:
    """What a task is run with.

    Attributes:
        run_part: segments with one part.
        precision: that was asked for; "auto" counts as INT8 where memory is estimated.
        pool: keeps loaded engines, or closes each when its part is done.
        task: takes progress, and says whether the run shall stop.
        gpus: where several GPUs are used, what runs a part on each alone. ``run_part`` then spreads a part's windows over all.
    """

    run_part: RunPart
    precision: str
    pool: EnginePool
    task: Task
    gpus: tuple[OnOneGpu, ...] = ()


def run_task(model: TaskModel, volume: Volume, options: SegmentationOptions, context: TaskContext) -> SegmentationRun:
    """Segment a volume with a task.

    Args:
        options: ``structures`` says which parts are run at all; everything else reaches every part.

    Returns:
        The merged label map on the volume's own grid, with each part's windows, seconds and engine.

    Raises:
        InputError: a structure that the task does not know, a model that is not installed, or too little memory for a part.
        PackageError: a package that is damaged, or is not as the task says.
    """
    return _TaskRun(model, volume, options, context).run()


class _TaskRun:
    """One run of a task on one volume."""

    def __init__(self, model: TaskModel, volume: Volume, options: SegmentationOptions, context: TaskContext) -> None:
        self._model, self._volume, self._context = model, volume, context
        self._options = replace(options, roi=None, structures=None)
        self._plan: TaskPlan = plan_task(model, options.structures)
        self._shared = SharedPreprocessing()
        self._whole = whole_box(volume.grid)
        #: Boxes of steps of find by name; None where nothing was found and the run stops.
        self._boxes: dict[str, Box | None] = {}
        self._cuts: dict[Box, Volume] = {}
        #: Label maps (K, J, I) of the whole volume by the step that gave them, for the parts that take them as input.
        self._stages: dict[str, NDArray[Any]] = {}
        self._runs: list[tuple[str, SegmentationRun]] = []
        self._notes: list[str] = list(self._plan.notes)
        self._reported_boxes: list[dict[str, Any]] = []
        most = max(label.value for label in model.spec.labels)
        k, j, i = volume.data.shape[1:]
        self._shape, self._dtype = (k, j, i), np.uint8 if most <= 255 else np.uint16
        # Label maps of several GPUs come faster than few threads merge them.
        gpus = len(context.gpus)
        threads = min(cpu_count(), 8 * gpus) if gpus > 1 else THREADS
        self._merged = MergedLabels(self._shape, self._dtype, threads)
        self._margins = np.full(self._shape, ONE, np.uint8) if options.margins else None
        self._prefix = context.task.part

    def run(self) -> SegmentationRun:
        began = time.perf_counter()
        self._prepare()
        try:
            for position, item in enumerate(self._plan.find):
                self._find(item, self._next_spec(position))
            # Each on a GPU by itself is faster than spread over all; those that are left over are spread.
            beside = self._parts_beside()
            for position, part in enumerate(self._plan.parts):
                if position >= beside:
                    self._part(part, self._next_spec(len(self._plan.find) + position))
            labels = self._merged.end()
        finally:
            self._merged.close()
            self._shared.close()
            self._context.task.part = self._prefix
        merging = time.perf_counter()
        if self._model.spec.cleaning:
            cleaned(labels, self._model.spec.cleaning, 1000 * self._volume.grid.voxel_ml)
        seconds = summed_seconds(self._runs)
        seconds["cleaning"] = time.perf_counter() - merging
        seconds["total"] = time.perf_counter() - began
        return self._result(labels, seconds)

    def _prepare(self) -> None:
        """Load the packages that will be run, and tell how much memory the largest takes, before any work."""
        sources = self._plan.sources
        ensembles = {source.name: self._model.ensemble(source) for source in sources}
        for ensemble in ensembles.values():
            check_mirroring(ensemble, self._options)
        if self._options.mirroring is True and not any(map(allows_mirroring, ensembles.values())):
            raise InputError(
                f"No network of {self._model.spec.name} allows mirroring: none was trained for it.",
                "Segment without mirroring.",
            )
        for group in (group for ensemble in ensembles.values() for group in ensemble.groups):
            spec_in_force(group[0].spec, self._options)
        bounded = {item.part.name for item in self._plan.parts if item.within is not None}
        for source in sources:
            if source.name not in bounded:
                # What a box bounds is looked at when the box is known.
                fitted(self._model.ensemble(source).first, self._context.precision, self._volume, self._options)
        needs = {source.name: self._memory(source, self._volume) for source in sources}
        name = max(needs, key=lambda key: needs[key].total)
        most = " at most" if name in bounded else ""
        self._notes.append(f"networks are run in turn; the largest, {name}, takes{most} {needs[name].in_words()}")
        gpus = max(1, len(self._context.gpus))
        self._context.pool.reserve(gpus * sum(len(ensemble.groups) for ensemble in ensembles.values()))

    def _memory(self, source: Find | Part, volume: Volume) -> MemoryEstimate:
        return estimate(self._model.ensemble(source).first, self._context.precision, volume, self._options)

    def _next_spec(self, position: int) -> tuple[str | None, ModelSpec] | None:
        """Return where the run after that position looks, and what it asks of its input; None for the last one."""
        planned: tuple[PlannedFind | PlannedPart, ...] = (*self._plan.find, *self._plan.parts)
        if position + 1 >= len(planned):
            return None
        item = planned[position + 1]
        if isinstance(item, PlannedFind):
            return item.within, self._model.ensemble(item.step).first.spec
        return item.within, self._model.ensemble(item.part).first.spec

    def _box_of(self, within: str | None) -> Box | None:
        """Return the box of a step of find, or of the outer one where the step was not run; None where nothing was found."""
        return self._whole if within is None else self._boxes[within]

    def _segment(
        self,
        source: Find | Part,
        within: str | None,
        box: Box,
        following: tuple[str | None, ModelSpec] | None,
    ) -> SegmentationRun:
        """Run one network on a box of the volume."""
        spec = self._model.ensemble(source).first.spec
        self._shared.keep = following is not None and (
            following[0] == within and preprocessing_key(following[1]) == preprocessing_key(spec)
        )
        self._context.task.part = f"{self._prefix}{source.name}: "
        part = self._part_run(source, box)
        run = self._context.run_part(part.ensemble, part.volume, part.options, self._shared, part.keeper)
        self._note(source, box, run)
        return run

    def _part_run(self, source: Find | Part, box: Box) -> PartRun:
        """Return what one network is run on, and how; makes room in memory for it."""
        ensemble = self._model.ensemble(source)
        if box not in self._cuts:
            # One cut at a time, so that what was preprocessed of it is known again.
            self._cuts = {box: cut_volume(self._volume, box)}
        part = self._cuts[box]
        if isinstance(source, Part) and source.previous is not None:
            part = with_label_map(part, self._stages[source.previous][box_slices(box)])
        self._context.pool.make_room(self._memory(source, part).total)
        wants_margins = self._options.margins and isinstance(source, Part)
        options = replace(self._options, margins=wants_margins)
        if options.mirroring is True and not allows_mirroring(ensemble):
            options = replace(options, mirroring=False)
            self._notes.append(f"{source.name} is not mirrored: its network was not trained for it")
        return PartRun(source.name, ensemble, part, options, self._merged if isinstance(source, Part) else None)

    def _note(self, source: Find | Part, box: Box, run: SegmentationRun) -> None:
        """Keep what a report says of a run."""
        if box != self._whole:
            self._notes += box_notes(self._model.ensemble(source).first.spec, source.name)
        self._notes += [f"{source.name}: {note}" for note in run.result.notes if note not in self._volume.notes]
        self._runs.append((source.name, run))
        # As large as the scan, and of no use to the parts that follow.
        run.network_input = None

    def _find(self, item: PlannedFind, following: tuple[str | None, ModelSpec] | None) -> None:
        step = item.step
        outer = self._box_of(item.within)
        if outer is None:
            self._boxes[step.name] = None
            self._stages[step.name] = np.zeros(self._shape, self._dtype)
            return
        run = self._segment(step, item.within, outer, following)
        labels, run.result.labels = run.result.labels, _NOTHING
        if any(planned.part.previous == step.name for planned in self._plan.parts):
            self._stages[step.name] = np.zeros(self._shape, labels.dtype)
            self._stages[step.name][box_slices(outer)] = labels
        looked_in = {planned.within for planned in self._plan.find} | {part.within for part in self._plan.parts}
        if step.name not in looked_in:
            # A cascade's first stage: nobody looks in the box around what it found.
            self._boxes[step.name] = outer
            return
        present = np.bincount(labels.ravel(), minlength=65536)[: 1 + max(value.value for value in item.values)]
        found = [value for value in item.values if present[value.value]]
        names = ", ".join(value.name for value in found)
        absent = [value.name for value in item.values if not present[value.value]]
        if not found:
            stops = step.nothing_found == "stop"
            self._boxes[step.name] = None if stops else outer
            what = "nothing else is run" if stops else "the whole scan is taken"
            self._notes.insert(0, f"{step.name} found no {' and no '.join(absent)}: {what}")
            self._reported_boxes.append({"name": step.name, "found": [], **box_json(outer, self._volume.grid)})
            return
        mask = np.isin(labels, [value.value for value in found])
        inner = mask_box(mask, self._volume.grid.spacing, step.margin_mm)
        i, j, k = ((start + a, start + b) for (start, _), (a, b) in zip(outer, inner, strict=True))
        box = at_least_two((i, j, k), self._volume.grid.size)
        self._boxes[step.name] = box
        words = box_in_words(box, self._volume.grid)
        self._notes.append(f"{step.name}: the box around {names} with {step.margin_mm:g} mm is {words}")
        if absent and step.box_of == "chosen":
            self._notes.append(f"{step.name} found no {' and no '.join(absent)}; the box is not drawn around it")
        self._reported_boxes.append(
            {"name": step.name, "found": [value.name for value in found], **box_json(box, self._volume.grid)}
        )

    def _parts_beside(self) -> int:
        """Run as many parts as go up evenly on several GPUs, each on one of them; how many of the plan's parts that were."""
        gpus = len(self._context.gpus)
        count = len(self._plan.parts) // gpus * gpus if gpus > 1 else 0
        boxes = [(item, self._box_of(item.within)) for item in self._plan.parts[:count]]
        planned = [(item, box) for item, box in boxes if box is not None]
        if planned:
            parts = [self._part_run(item.part, box) for item, box in planned]

            def take(number: int, run: SegmentationRun) -> None:
                item, box = planned[number]
                self._note(item.part, box, run)
                self._merge(item, box, run)

            PartsOnGpus(self._context.gpus, self._context.task).run(parts, take)
            self._notes.append(f"{len(parts)} parts were run on {gpus} GPUs, each on one of them")
        return count

    def _part(self, item: PlannedPart, following: tuple[str | None, ModelSpec] | None) -> None:
        box = self._box_of(item.within)
        if box is not None:
            self._merge(item, box, self._segment(item.part, item.within, box, following))

    def _merge(self, item: PlannedPart, box: Box, run: SegmentationRun) -> None:
        """Paint what a part found into the label map of the whole; on the processor that is done while the next part is run."""
        result = run.result
        if self._margins is not None and result.margins is not None:
            merge_margins(self._margins[box_slices(box)], result.margins, result.labels, item.targets)
        labels = result.labels if result.on_gpu is None else result.on_gpu
        # As large as the scan.
        result.labels, result.margins, result.on_gpu = _NOTHING, None, None
        self._merged.paint(labels, box, item.targets)

    def _result(self, labels: NDArray[Any], seconds: dict[str, float]) -> SegmentationRun:
        runs = self._runs
        windows = sum(run.result.windows for _, run in runs)
        skipped = sum(run.result.skipped_windows for _, run in runs)
        notes = [*self._volume.notes, *self._notes]
        result = SegmentationResult(labels, self._volume.ijk_to_ras, seconds, windows, skipped, notes, self._margins)
        calls = [call for _, run in runs for call in run.calls_ms]
        return SegmentationRun(
            self._volume,
            result,
            seconds,
            merged_engine([(name, run.engine, run.result.windows) for name, run in runs]),
            latency_of(calls),
            ranges=worst_ranges(runs),
            calls_ms=calls,
            parts=parts_json(runs),
            boxes=self._reported_boxes,
        )


def with_label_map(volume: Volume, labels: NDArray[Any]) -> Volume:
    """Return a volume with a label map (K, J, I) on its grid as a further channel, the last."""
    dtype = np.result_type(volume.data.dtype, labels.dtype)
    data = np.concatenate([volume.data.astype(dtype, copy=False), labels[None].astype(dtype, copy=False)])
    return Volume(data, volume.ijk_to_ras, volume.name, volume.notes)


def default_pool(pool: EnginePool | None) -> EnginePool:
    """Return the pool, or one that closes each engine when its part is done."""
    return SingleUsePool() if pool is None else pool
