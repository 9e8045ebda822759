"""The segment road from files to a result: segment a scan, and build the engine that does it.

The command line, the worker, the demo and the evaluation all segment by way of this module.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..engines import BuildOptions, choose_backend
from ..engines.base import EngineBackend, Precision, needs_gpu
from ..engines.cuda import device as cuda
from ..engines.cuda.device import GpuMemoryError
from ..engines.int8_or_float import prepare_faster
from ..engines.preparation import PreparedEngine, is_prepared, prepare
from ..errors import Cancelled, InputError, MedQuantError
from ..imaging.patches import draw_samples
from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.volume import Volume
from ..imaging.volume_files import read_volume
from ..models.package import ModelPackage
from ..models.spec import ModelSpec
from ..progress import Task
from .configurations import check_mirroring, segment_by_mean
from .engine_choice import EngineChoice, with_fallback
from .engine_pool import EnginePool
from .ensemble import Ensemble, MeanEngine
from .gpu_preparation import DeferredInput, deferred
from .gpu_road import LabelKeeper
from .gpu_road_check import EngineVerdicts
from .lazy_patches import LazyPatches
from .memory_estimate import fitted, gpu_batch
from .range_check import STRIDE, check_ranges
from .region_run import box_notes, chosen_labels, keep_structures, run_in_region
from .segmentation_run import SegmentationRun, latency_of
from .segmenter import (
    SegmentationOptions,
    SegmentationResult,
    patch_for,
    plan_for,
    segment_volume,
    spec_in_force,
    window_of,
)
from .shared_preprocessing import SharedPreprocessing, preprocessing_key
from .spread_engine import SpreadEngine
from .task_model import LoadedModel, description_of, labels_of
from .task_runner import TaskContext, default_pool, run_task
from .timed_engine import TimedEngine

__all__ = ["SegmentationRun", "build", "load_ahead", "patches_of", "segment"]

Source = str | os.PathLike[str]


def patches_of(
    network_input: NetworkInput, package: ModelPackage, patch: tuple[int, int, int], count: int = 2
) -> list[Any]:
    """Patches of a volume in network space, centered on foreground, for comparing engines."""
    rng = np.random.default_rng(0)
    samples = draw_samples(network_input, patch, package.spec.window.pad_value, {"foreground": count}, rng)
    return [sample.patch for sample in samples]


def build(
    package: ModelPackage, choice: EngineChoice, options: SegmentationOptions, scan: Source | Volume | None, task: Task
) -> PreparedEngine:
    """Build (or find) the engine of a package; with a scan it is compared with the simulation.

    Where the engine was left to the program, others are tried as in :func:`segment`; the note says so.
    """
    prepared, notes = with_fallback(choice.checked(), lambda wanted: _build(package, wanted, options, scan, task))
    prepared.note = "; ".join([*notes, *filter(None, [prepared.note])])
    return prepared


def _build(
    package: ModelPackage, choice: EngineChoice, options: SegmentationOptions, scan: Source | Volume | None, task: Task
) -> PreparedEngine:
    engine_backend = choose_backend(choice.name, choice.precision, choice.device)
    _check_network(package, choice)
    options = _with_batch(options, package, engine_backend, choice)
    patches: list[Any] = []
    patch = window_of(package.spec, options)[0]
    if scan is not None:
        network_input = preprocess(scan if isinstance(scan, Volume) else read_volume(scan), package.spec)
        patch = patch_for(network_input, package.spec, options)
        patches = patches_of(network_input, package, patch)
    first, *others = choice.on_each_gpu()
    prepared = _prepare(package, engine_backend, first, options, patch, patches, task)
    try:
        for other in others:
            # Of another kind of GPU an engine has other files.
            _prepare(package, engine_backend, other, options, patch, patches, task).close()
    except BaseException:
        prepared.close()
        raise
    return prepared


def _with_batch(
    options: SegmentationOptions, package: ModelPackage, engine_backend: EngineBackend, choice: EngineChoice
) -> SegmentationOptions:
    """Windows a call, where they were left to the program: one on a processor, what fits on a GPU."""
    if options.batch:
        return options
    batch = 1
    if needs_gpu(engine_backend) and not package.spec.window.whole_volume:
        try:
            total = min(cuda.choose_gpu(one.device).total_bytes for one in choice.on_each_gpu())
        except MedQuantError:
            # An engine that does without cuda-python tells nothing of the GPU's memory.
            return replace(options, batch=batch)
        # By all the memory that the GPU has: an engine is built for a batch, and what is free changes from run to run.
        batch = gpu_batch(package, choice.precision, options, total)
    return replace(options, batch=batch)


def _prepare(
    package: ModelPackage,
    engine_backend: EngineBackend,
    choice: EngineChoice,
    options: SegmentationOptions,
    patch: tuple[int, int, int],
    patches: Sequence[Any],
    task: Task,
) -> PreparedEngine:
    precision: Precision = "int8" if choice.precision == "auto" else choice.precision
    build = BuildOptions(precision, patch, options.batch, choice.device, choice.threads)
    return (prepare_faster if choice.precision == "auto" else prepare)(package, engine_backend, build, patches, task)


def segment(
    model: ModelPackage | LoadedModel,
    volume: Volume,
    choice: EngineChoice,
    options: SegmentationOptions,
    task: Task,
    read_seconds: float = 0.0,
    pool: EnginePool | None = None,
    network_input: NetworkInput | None = None,
) -> SegmentationRun:
    """Segment a volume with a package, the mean of several, or a task, on the chosen engine, which is built if it is not there yet.

    Where the engine was left to the program and a GPU's memory is too small, the processor does it; where the first choice has no kernel
    for something in the network, the next engine does. The notes say so.

    Args:
        pool: gives engines that are loaded already, and keeps them afterwards; by default they are closed.
        network_input: the volume in network space, where it was preprocessed ahead for a single package or the mean of several.

    Raises:
        InputError: choices that do not go together.
    """
    options.check()
    choice = choice.checked()
    loaded = Ensemble([model]) if isinstance(model, ModelPackage) else model
    wanted = chosen_labels(labels_of(loaded), options.structures, description_of(loaded).name)
    setting = _Setting(choice, task, pool, network_input is not None)

    def prepare(part: Volume, spec: ModelSpec) -> NetworkInput:
        # A region of the volume is brought into network space by itself, and so it is for another network of a mean.
        if network_input is None or part is not volume or not isinstance(loaded, Ensemble):
            return preprocess(part, spec)
        same = preprocessing_key(spec) == preprocessing_key(loaded.first.spec)
        return network_input if same else preprocess(part, spec)

    def run(part: Volume, inner: SegmentationOptions) -> SegmentationRun:
        if isinstance(loaded, Ensemble):
            segmentation = setting.run(loaded, part, replace(inner, structures=None), prepare)
            if inner.structures is not None:
                keep_structures(segmentation.result, wanted)
            if part is not volume:
                segmentation.result.notes += box_notes(loaded.first.spec, loaded.first.spec.name)
            return segmentation
        context = TaskContext(setting.run, choice.precision, default_pool(pool), task, setting.on_each_gpu())
        return run_task(loaded, part, inner, context)

    began = time.perf_counter()
    segmentation = run_in_region(volume, options, run)
    segmentation.seconds["reading"] = read_seconds
    segmentation.seconds["total"] = read_seconds + time.perf_counter() - began
    return segmentation


def load_ahead(model: LoadedModel, choice: EngineChoice, options: SegmentationOptions, pool: EnginePool) -> bool:
    """Load into a pool what the first scan of several will be run with, where it is known before: the engines of one network, or of the mean of
    several with the same input, which were built before, on one GPU. Whether they were loaded.

    Raises:
        MedQuantError: as :func:`segment` would.
    """
    choice = choice.checked()
    if not isinstance(model, Ensemble) or len(model.groups) > 1 or choice.precision == "auto":
        return False
    spec, (one, *others) = model.first.spec, choice.on_each_gpu()
    engine_backend = choose_backend(choice.name, choice.precision, choice.device)
    if others or spec.window.whole_volume or not needs_gpu(engine_backend):
        return False
    options = _with_batch(options, model.first, engine_backend, choice)
    patch = window_of(spec_in_force(spec, options), options)[0]
    build = BuildOptions(choice.precision, patch, options.batch, one.device, one.threads)
    if not all(is_prepared(member, engine_backend, build) for member in model.packages):
        return False
    key = _engines_key(model, engine_backend, one, patch, options.batch)
    pool.acquire(key, lambda: _prepare_all(model.packages, engine_backend, one, options, patch, (), Task()))
    pool.release(key)
    return True


def _engines_key(
    ensemble: Ensemble, engine_backend: EngineBackend, choice: EngineChoice, patch: tuple[int, int, int], batch: int
) -> Any:
    """Return what a pool knows the engines of an ensemble on one device by."""
    hashes = tuple(tuple(sorted(member.hashes.items())) for member in ensemble.packages)
    return hashes, engine_backend.name, choice, patch, batch


@dataclass(frozen=True)
class _Setting:
    """What every network of a run is run with; ``prepared`` says that the volume is in network space already."""

    choice: EngineChoice
    task: Task
    pool: EnginePool | None
    prepared: bool = False

    def on_each_gpu(self) -> tuple[Callable[[Task], Any], ...]:
        """Return, where the choice is of several GPUs, what gives :meth:`run` on each of them alone, with a task of its own."""
        choices = self.choice.on_each_gpu()
        return tuple(partial(self._alone, choice) for choice in choices) if len(choices) > 1 else ()

    def _alone(self, choice: EngineChoice, task: Task) -> Any:
        return replace(self, choice=choice, task=task).run

    def run(
        self,
        ensemble: Ensemble,
        volume: Volume,
        options: SegmentationOptions,
        prepare: Callable[[Volume, ModelSpec], NetworkInput] = preprocess,
        keeper: LabelKeeper | None = None,
    ) -> SegmentationRun:
        """Segment a volume with one network or the mean of several, on the first engine that can.

        Args:
            keeper: as :func:`.segmenter.segment` takes it, for a label map that a GPU makes of one network, or of several that meet there.
        """
        if len(ensemble.groups) > 1:
            check_mirroring(ensemble, options)
            return segment_by_mean(
                ensemble, volume, options, lambda group, inner: self.run(group, volume, inner, prepare)
            )

        def attempt(wanted: EngineChoice) -> SegmentationRun:
            setting = replace(self, choice=wanted)
            try:
                return _segment(ensemble, volume, options, setting, prepare, keeper)
            except GpuMemoryError:
                if self.pool is None or not len(self.pool):
                    raise
                # Engines that are kept for later runs take the memory that this one needs.
                self.pool.clear()
                return _segment(ensemble, volume, options, setting, prepare, keeper)

        run, notes = with_fallback(self.choice, attempt)
        run.result.notes[:0] = notes
        return run


def _segment(
    ensemble: Ensemble,
    volume: Volume,
    options: SegmentationOptions,
    setting: _Setting,
    prepare: Callable[[Volume, ModelSpec], NetworkInput],
    keeper: LabelKeeper | None,
) -> SegmentationRun:
    choice, task = setting.choice, setting.task
    engine_backend = choose_backend(choice.name, choice.precision, choice.device)
    spec = spec_in_force(ensemble.first.spec, options)
    for member in ensemble.packages:
        _check_network(member, choice)
    options = _with_batch(options, ensemble.first, engine_backend, choice)
    options, memory_notes = fitted(ensemble.first, choice.precision, volume, options)
    # What is there already need not be computed once more.
    on_gpu = needs_gpu(engine_backend) and not setting.prepared
    preparation = _deferring(prepare) if on_gpu else prepare
    pool = default_pool(setting.pool)
    #: Of each GPU, the engines of the ensemble; one set where it is one device.
    sets: list[list[PreparedEngine]] = []
    keys: list[Any] = []
    inputs: list[NetworkInput] = []
    calls: list[float] = []

    def make_engine(network_input: NetworkInput) -> Any:
        if isinstance(network_input, DeferredInput) and options.check_ranges and choice.precision != "fp32":
            network_input.wanted_later(STRIDE if options.check_share is None else 1)
        patch = patch_for(network_input, spec, options)
        # Drawing patches costs a pass over the volume: only where the engine has yet to be compared with the simulation.
        patches = LazyPatches(lambda: patches_of(network_input, ensemble.first, patch))
        choices = choice.on_each_gpu()
        pool.reserve(len(choices))
        for one in choices:
            keys.append(_engines_key(ensemble, engine_backend, one, patch, options.batch))
            make = partial(_prepare_all, ensemble.packages, engine_backend, one, options, patch, patches, task)
            sets.append(pool.acquire(keys[-1], make))
        inputs.append(network_input)
        timed = [
            TimedEngine(MeanEngine([item.engine for item in engines]), calls, EngineVerdicts(engines[0]))
            for engines in sets
        ]
        return timed[0] if len(timed) == 1 else SpreadEngine(timed)

    began = time.perf_counter()
    try:
        result = segment_volume(volume, spec, make_engine, options, task, preparation, keeper)
        result.notes[:0] = [*volume.notes, *memory_notes]
        engines = sets[0]
        engine = _engine_report(engines[0])
        ranges = None
        if options.check_ranges and engine["precision"] == "int8":
            ranges = _ranges(ensemble.first, inputs[0], options, result, task, engines[0])
        if len(engines) > 1:
            engine["members"] = [_engine_report(item) for item in engines]
    except (Cancelled, InputError):
        _end(pool.release, keys)
        raise
    except BaseException:
        _end(pool.drop, keys)
        raise
    _end(pool.release, keys)
    seconds = {"reading": 0.0, **{k: v for k, v in result.seconds.items() if k != "total"}}
    seconds["total"] = time.perf_counter() - began
    if ranges is not None:
        ranges["share_of_time"] = seconds["ranges"] / seconds["total"]
    calls_ms = _calls_ms(calls, result, max(1, options.batch))
    return SegmentationRun(volume, result, seconds, engine, latency_of(calls_ms), inputs[0], ranges, calls_ms)


def _deferring(prepare: Callable[[Volume, ModelSpec], NetworkInput]) -> Callable[[Volume, ModelSpec], NetworkInput]:
    """What works out how a volume comes to network space, and leaves it to the GPU where that can."""
    return prepare.deferred if isinstance(prepare, SharedPreprocessing) else partial(deferred, prepare=prepare)


def _end(how: Callable[[Any], None], keys: list[Any]) -> None:
    for key in keys:
        how(key)


def _prepare_all(packages: Sequence[ModelPackage], *how: Any) -> list[PreparedEngine]:
    """The engines of an ensemble; those that are there are closed where one fails."""
    engines: list[PreparedEngine] = []
    try:
        for member in packages:
            engines.append(_prepare(member, *how))
    except BaseException:
        for item in engines:
            item.close()
        raise
    return engines


def _calls_ms(calls: list[float], result: SegmentationResult, batch: int) -> list[float]:
    """Return the milliseconds of each call; their mean where calls overlap (on a GPU) and cannot be timed one by one."""
    if not calls:
        number = -(-max(1, result.patches) // batch)
        return [1e3 * result.seconds["network"] / number] * number
    return [1e3 * call for call in calls]


def _ranges(
    package: ModelPackage,
    network_input: NetworkInput,
    options: SegmentationOptions,
    result: SegmentationResult,
    task: Task,
    prepared: PreparedEngine,
) -> dict[str, Any] | None:
    """Look at the scan's ranges, and at some windows in FP32; beside a GPU only where that was asked for."""
    with task.stage("looking at ranges"):
        check = check_ranges(
            package,
            network_input,
            plan_for(network_input, package.spec, options),
            tensors=options.check_share is not None or not needs_gpu(prepared.backend),
            infer=prepared.engine.infer,
            share=options.check_share,
        )
    if check is None:
        return None
    result.seconds["ranges"] = check.seconds
    result.notes[:0] = check.warnings
    if options.check_share and check.skipped:
        result.notes.append(f"no window was run in FP32 as well: {check.skipped}")
    return check.to_json()


def _check_network(package: ModelPackage, choice: EngineChoice) -> None:
    """Complain before any work where the package has no network of the precision asked for."""
    if choice.precision != "auto":
        package.onnx_path(choice.precision)


def _engine_report(prepared: PreparedEngine) -> dict[str, Any]:
    description = prepared.describe()
    return {
        "name": prepared.backend.name,
        "title": prepared.backend.title,
        "precision": prepared.options.precision,
        "choice": prepared.choice.to_json() if prepared.choice else None,
        "real_int8": prepared.backend.real_int8,
        "bytes": prepared.entry.bytes,
        "cached": prepared.cached,
        "build_seconds": prepared.entry.record.get("build_seconds"),
        "note": prepared.note,
        "fallback_layers": list(prepared.fallback),
        "fidelity": prepared.fidelity.to_json() if prepared.fidelity else None,
        "description": description.to_json(),
    }
