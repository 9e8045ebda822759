"""The engines of one network, or of the mean of several: which batch they are built for, and how they are built or found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..engines import BuildOptions
from ..engines.base import EngineBackend, Precision, needs_gpu
from ..engines.cuda import device as cuda
from ..engines.int8_or_float import prepare_faster
from ..engines.preparation import PreparedEngine, prepare
from ..errors import MedQuantError
from ..imaging.patches import draw_samples
from ..imaging.preprocessing import NetworkInput
from ..models.package import ModelPackage
from ..progress import Task
from .engine_choice import EngineChoice
from .ensemble import Ensemble
from .memory_estimate import gpu_batch
from .segmenter import SegmentationOptions


def patches_of(
    network_input: NetworkInput, package: ModelPackage, patch: tuple[int, int, int], count: int = 2
) -> list[Any]:
    """Return patches (C, A0, A1, A2) of a volume in network space, centered on foreground, for comparing engines."""
    rng = np.random.default_rng(0)
    samples = draw_samples(network_input, patch, package.spec.window.pad_value, {"foreground": count}, rng)
    return [sample.patch for sample in samples]


def check_network(package: ModelPackage, choice: EngineChoice) -> None:
    """Complain before any work where the package has no network of the precision that was asked for.

    Raises:
        PackageError: it has none.
    """
    if choice.precision != "auto":
        package.onnx_path(choice.precision)


def with_batch(
    options: SegmentationOptions, package: ModelPackage, engine_backend: EngineBackend, choice: EngineChoice
) -> SegmentationOptions:
    """Return the options with a number of windows a call, where that was left to the program: one on a processor, what fits on a GPU."""
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


def prepare_engine(
    package: ModelPackage,
    engine_backend: EngineBackend,
    choice: EngineChoice,
    options: SegmentationOptions,
    patch: tuple[int, int, int],
    patches: Sequence[Any],
    task: Task,
) -> PreparedEngine:
    """Return the engine of a package, built or found, of INT8 or FP32 where the precision was left to the program.

    Args:
        patches: as :func:`..engines.preparation.prepare` takes them.

    Raises:
        EngineError: the network cannot be built, or is computed wrongly.
    """
    precision: Precision = "int8" if choice.precision == "auto" else choice.precision
    build = BuildOptions(precision, patch, options.batch, choice.device, choice.threads)
    return (prepare_faster if choice.precision == "auto" else prepare)(package, engine_backend, build, patches, task)


def prepare_engines(packages: Sequence[ModelPackage], *how: Any) -> list[PreparedEngine]:
    """Return the engines of an ensemble (:func:`prepare_engine`); those that are there are closed where one fails."""
    engines: list[PreparedEngine] = []
    try:
        for member in packages:
            engines.append(prepare_engine(member, *how))
    except BaseException:
        for item in engines:
            item.close()
        raise
    return engines


def engines_key(
    ensemble: Ensemble, engine_backend: EngineBackend, choice: EngineChoice, patch: tuple[int, int, int], batch: int
) -> Any:
    """Return what a pool knows the engines of an ensemble on one device by."""
    hashes = tuple(tuple(sorted(member.hashes.items())) for member in ensemble.packages)
    return hashes, engine_backend.name, choice, patch, batch
