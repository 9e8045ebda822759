"""One network, or the mean of several, run on a volume: its engines are acquired, run and released."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..engines import choose_backend
from ..engines.base import needs_gpu
from ..engines.cuda.device import GpuMemoryError
from ..engines.preparation import PreparedEngine
from ..errors import Cancelled, InputError
from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.volume import Volume
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
from .memory_estimate import fitted
from .network_engines import check_network, engines_key, patches_of, prepare_engines, with_batch
from .range_check import STRIDE, check_ranges
from .segmentation_run import SegmentationRun, latency_of
from .segmenter import SegmentationOptions, SegmentationResult, patch_for, plan_for, segment_volume, spec_in_force
from .shared_preprocessing import SharedPreprocessing
from .spread_engine import SpreadEngine
from .task_runner import default_pool
from .timed_engine import TimedEngine


@dataclass(frozen=True)
class NetworkSetting:
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
    setting: NetworkSetting,
    prepare: Callable[[Volume, ModelSpec], NetworkInput],
    keeper: LabelKeeper | None,
) -> SegmentationRun:
    choice, task = setting.choice, setting.task
    engine_backend = choose_backend(choice.name, choice.precision, choice.device)
    spec = spec_in_force(ensemble.first.spec, options)
    for member in ensemble.packages:
        check_network(member, choice)
    options = with_batch(options, ensemble.first, engine_backend, choice)
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
            keys.append(engines_key(ensemble, engine_backend, one, patch, options.batch))
            make = partial(prepare_engines, ensemble.packages, engine_backend, one, options, patch, patches, task)
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
