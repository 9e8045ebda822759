"""The segment road from files to a result: segment a scan, and build the engine that does it.

The command line, the worker, the demo and the evaluation all segment by way of this module.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from ..engines import BuildOptions, choose_backend
from ..engines.base import needs_gpu
from ..engines.preparation import PreparedEngine, is_prepared
from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.volume import Volume
from ..imaging.volume_files import read_volume
from ..models.package import ModelPackage
from ..models.spec import ModelSpec
from ..progress import Task
from .engine_choice import EngineChoice, with_fallback
from .engine_pool import EnginePool
from .ensemble import Ensemble
from .network_engines import check_network, engines_key, patches_of, prepare_engine, prepare_engines, with_batch
from .network_run import NetworkSetting
from .region_run import box_notes, chosen_labels, keep_structures, run_in_region
from .segmentation_run import SegmentationRun
from .segmenter import SegmentationOptions, patch_for, spec_in_force, window_of
from .shared_preprocessing import preprocessing_key
from .task_model import LoadedModel, description_of, labels_of
from .task_runner import TaskContext, default_pool, run_task

__all__ = ["SegmentationRun", "build", "load_ahead", "segment"]

Source = str | os.PathLike[str]


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
    check_network(package, choice)
    options = with_batch(options, package, engine_backend, choice)
    patches: list[Any] = []
    patch = window_of(package.spec, options)[0]
    if scan is not None:
        network_input = preprocess(scan if isinstance(scan, Volume) else read_volume(scan), package.spec)
        patch = patch_for(network_input, package.spec, options)
        patches = patches_of(network_input, package, patch)
    first, *others = choice.on_each_gpu()
    prepared = prepare_engine(package, engine_backend, first, options, patch, patches, task)
    try:
        for other in others:
            # Of another kind of GPU an engine has other files.
            prepare_engine(package, engine_backend, other, options, patch, patches, task).close()
    except BaseException:
        prepared.close()
        raise
    return prepared


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
    setting = NetworkSetting(choice, task, pool, network_input is not None)

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
    options = with_batch(options, model.first, engine_backend, choice)
    patch = window_of(spec_in_force(spec, options), options)[0]
    build = BuildOptions(choice.precision, patch, options.batch, one.device, one.threads)
    if not all(is_prepared(member, engine_backend, build) for member in model.packages):
        return False
    key = engines_key(model, engine_backend, one, patch, options.batch)
    pool.acquire(key, lambda: prepare_engines(model.packages, engine_backend, one, options, patch, (), Task()))
    pool.release(key)
    return True
