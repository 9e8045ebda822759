"""What the commands do, as functions: quantize, build, segment and compare, from files to a result.

The command line and the demo call these; Slicer's logic does too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..engines import BuildOptions, choose_backend
from ..engines.base import (
    EngineBackend,
    Precision,
    UnsupportedNetwork,
    backend,
    backend_names,
    choose_instead,
    precisions_of,
    runs_on,
    unavailable_reason,
)
from ..engines.cuda import device as cuda
from ..engines.cuda.device import GpuError, GpuMemoryError
from ..engines.int8_or_float import prepare_faster
from ..engines.preparation import PreparedEngine, prepare
from ..errors import Cancelled, EngineError, InputError, MedQuantError
from ..imaging.patches import ForegroundFinder, draw_samples, foreground_by_intensity
from ..imaging.preprocessing import NetworkInput
from ..imaging.volume import Volume
from ..imaging.volume_files import read_volume
from ..inference.engine_pool import EngineShelf, NoShelf
from ..inference.ensemble import Ensemble, MeanEngine
from ..inference.memory_estimate import fitted, gpu_batch
from ..inference.range_check import check_ranges
from ..inference.segmenter import (
    SegmentationOptions,
    SegmentationResult,
    patch_for,
    plan_for,
    segment_volume,
    window_of,
)
from ..inference.segmenter import segment as segment_in_network_space
from ..models.package import ModelPackage
from ..progress import Task

if TYPE_CHECKING:
    from ..quantization.calibration import CalibrationOptions

Source = str | os.PathLike[str]
T = TypeVar("T")


@dataclass(frozen=True)
class EngineChoice:
    """Which engine to run on.

    Attributes:
        name: a backend's, or "auto".
        precision: "auto" is INT8 unless FP32 is faster here.
        threads: of the processor; 0 for all.
        device: "auto" for any, "cpu" for the processor alone, "gpu" for the NVIDIA GPU with most free memory, "gpu:1" for the second.
    """

    name: str = "auto"
    precision: Precision | Literal["auto"] = "int8"
    threads: int = 0
    device: str = "auto"

    def beside(self, precision: str) -> EngineChoice:
        """For a run that another is held against. FP32 that the engine (or no engine of that device) computes is left to what "auto" takes for it."""
        name, device = self.name, self.device
        if name != "auto":
            able = precision in precisions_of(backend(name))
        else:
            able = device == "auto" or any(
                precision in precisions_of(made) and not unavailable_reason(made)
                for made in map(backend, backend_names())
                if runs_on(made, device)
            )
        if not able:
            name, device = "auto", "auto"
        return replace(self, name=name, precision=precision, device=device)  # type: ignore[arg-type]


@dataclass
class SegmentationRun:
    """A segmentation with everything that a report says of it.

    Attributes:
        seconds: by stage, from reading the scan to the label map; "total" is wall time.
        engine: the engine's own report.
        ranges: whether the scan left the calibrated ranges (:mod:`..inference.range_check`); None if that was not looked at.
    """

    volume: Volume
    result: SegmentationResult
    seconds: dict[str, float]
    engine: dict[str, Any]
    latency_ms: dict[str, float] = field(default_factory=dict)
    network_input: NetworkInput | None = None
    ranges: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the maps."""
        counts = np.bincount(self.result.labels.ravel())
        return {
            "seconds": self.seconds,
            "engine": self.engine,
            "notes": self.result.notes,
            "windows": self.result.windows,
            "latency_ms": self.latency_ms,
            "ranges": self.ranges,
            # Counted here, so that a window need not look through a hundred million voxels.
            "voxels": {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value},
        }


def patches_of(
    network_input: NetworkInput, package: ModelPackage, patch: tuple[int, int, int], count: int = 2
) -> list[Any]:
    """Patches of a volume in network space, centred on foreground, for comparing engines."""
    rng = np.random.default_rng(0)
    samples = draw_samples(network_input, patch, package.spec.window.pad_value, {"foreground": count}, rng)
    return [sample.patch for sample in samples]


def quantize(
    model: Source,
    scans: Sequence[Source | Sequence[Source]],
    target: Source,
    calibration: CalibrationOptions,
    policy: Any,
    task: Task,
    *,
    by_network: bool = False,
    labels: Sequence[Source] = (),
    reader: Callable[[Any], Volume] = read_volume,
) -> tuple[ModelPackage, Any]:
    """Calibrate a package on scans from files, one in memory at a time, and write it with its INT8 network.

    Args:
        by_network: find foreground by a first FP32 pass over each scan, instead of by intensity.
        labels: label maps of the scans, with the model's label values, for the accuracy budget; or none.
    """
    from ..quantization.calibration import PatchSampler
    from ..quantization.latency import engine_stopwatch
    from ..quantization.quantize import calibration_patch, quantize_package

    with ModelPackage.load(model) as package:
        sources: list[Callable[[], Volume]] = [lambda scan=scan: reader(scan) for scan in scans]  # type: ignore[misc]
        find = foreground_by_network(package, task) if by_network else foreground_by_intensity
        references: list[Callable[[], Volume]] = [lambda path=path: reader(path) for path in labels]  # type: ignore[misc]
        patch = calibration_patch(package)
        sampler = PatchSampler(sources, package.spec, patch, calibration, find, task, references)
        return quantize_package(
            package, sampler, target, calibration, policy, task, engine_stopwatch(package.spec.window.patch_size)
        )


def foreground_by_network(package: ModelPackage, task: Task) -> ForegroundFinder:
    """Foreground as the FP32 network itself finds it: every voxel that it gives a label."""

    def find(network_input: NetworkInput) -> NDArray[np.bool_]:
        # The volume as its own original: the labels come back in network space.
        inside = replace(network_input, original=network_input.grid, steps=())
        patch = patch_for(inside, package.spec, SegmentationOptions())

        def labels_by(choice: EngineChoice) -> NDArray[Any]:
            prepared = prepare(
                package,
                choose_backend(choice.name, "fp32", choice.device),
                BuildOptions("fp32", patch, device=choice.device),
                (),
                task,
            )
            try:
                return segment_in_network_space(
                    inside, package.spec, prepared.engine, SegmentationOptions(), task
                ).labels
            finally:
                prepared.close()

        labels, _ = _first_that_can(EngineChoice(precision="fp32"), labels_by)
        return network_input.to_kji(labels) > 0

    return find


def build(
    package: ModelPackage, choice: EngineChoice, options: SegmentationOptions, scan: Source | Volume | None, task: Task
) -> PreparedEngine:
    """Build (or find) the engine of a package; with a scan it is compared with the simulation.

    Where the engine was left to the program, others are tried as in :func:`segment`; the note says so.
    """
    prepared, notes = _first_that_can(choice, lambda wanted: _build(package, wanted, options, scan, task))
    prepared.note = "; ".join([*notes, *filter(None, [prepared.note])])
    return prepared


def _build(
    package: ModelPackage, choice: EngineChoice, options: SegmentationOptions, scan: Source | Volume | None, task: Task
) -> PreparedEngine:
    from ..imaging.preprocessing import preprocess

    made = choose_backend(choice.name, choice.precision, choice.device)
    _check_network(package, choice)
    options = _with_batch(options, package, made, choice)
    patches: list[Any] = []
    patch = window_of(package.spec, options)[0]
    if scan is not None:
        network_input = preprocess(scan if isinstance(scan, Volume) else read_volume(scan), package.spec)
        patch = patch_for(network_input, package.spec, options)
        patches = patches_of(network_input, package, patch)
    return _prepare(package, made, choice, options, patch, patches, task)


def _with_batch(
    options: SegmentationOptions, package: ModelPackage, made: EngineBackend, choice: EngineChoice
) -> SegmentationOptions:
    """Windows a call, where they were left to the program: one on a processor, what fits on a GPU."""
    if options.batch:
        return options
    batch = 1
    if getattr(made, "needs_gpu", False) and not package.spec.window.whole_volume:
        try:
            gpu = cuda.choose_gpu(choice.device)
        except MedQuantError:
            # An engine that does without cuda-python tells nothing of the GPU's memory.
            return replace(options, batch=batch)
        # By all the memory that the GPU has: an engine is built for a batch, and what is free changes from run to run.
        batch = gpu_batch(package, choice.precision, options, gpu.total_bytes)
    return replace(options, batch=batch)


def _prepare(
    package: ModelPackage,
    made: EngineBackend,
    choice: EngineChoice,
    options: SegmentationOptions,
    patch: tuple[int, int, int],
    patches: Sequence[Any],
    task: Task,
) -> PreparedEngine:
    precision: Precision = "int8" if choice.precision == "auto" else choice.precision
    build = BuildOptions(precision, patch, options.batch, choice.device, choice.threads)
    return (prepare_faster if choice.precision == "auto" else prepare)(package, made, build, patches, task)


def segment(
    package: ModelPackage | Ensemble,
    volume: Volume,
    choice: EngineChoice,
    options: SegmentationOptions,
    task: Task,
    read_seconds: float = 0.0,
    shelf: EngineShelf | None = None,
) -> SegmentationRun:
    """Segment a volume with a package, or the mean of several, on the chosen engine, which is built if it is not there yet.

    Where the engine was left to the program and a GPU's memory is too small, the processor does it; where the first choice has no kernel
    for something in the network, the next engine does. The notes say so.

    Args:
        shelf: lends engines that are loaded already, and keeps them afterwards; by default they are closed.
    """

    def attempt(wanted: EngineChoice) -> SegmentationRun:
        try:
            return _segment(package, volume, wanted, options, task, read_seconds, shelf)
        except GpuMemoryError:
            if shelf is None or not len(shelf):
                raise
            # Engines that are kept for later runs take the memory that this one needs.
            shelf.clear()
            return _segment(package, volume, wanted, options, task, read_seconds, shelf)

    run, notes = _first_that_can(choice, attempt)
    run.result.notes[:0] = notes
    return run


def _first_that_can(choice: EngineChoice, attempt: Callable[[EngineChoice], T]) -> tuple[T, list[str]]:
    """What ``attempt`` gives for the choice, or for the next engine that can where the choice was left to the program; and what to tell the user.

    Raises:
        EngineError: the engine was asked for by name, or none is left: what went wrong with the first.
    """
    notes: list[str] = []
    tried: list[str] = []
    first: EngineError | None = None
    wanted = choice
    while True:
        try:
            return attempt(wanted), notes
        except (GpuError, UnsupportedNetwork) as error:
            first = first or error
            if choice.name != "auto":
                raise
            try:
                tried.append(
                    choose_backend(wanted.name, wanted.precision, wanted.device).name
                    if wanted.name == "auto"
                    else wanted.name
                )
                other = choose_instead(choice.precision, error, tried, choice.device)
            except EngineError:
                raise first from error
            wanted = replace(
                choice, name=other.name, device=choice.device if getattr(other, "needs_gpu", False) else "cpu"
            )
            notes.append(f"run on {'the processor' if isinstance(error, GpuError) else other.title}: {error}")


def _segment(
    package: ModelPackage | Ensemble,
    volume: Volume,
    choice: EngineChoice,
    options: SegmentationOptions,
    task: Task,
    read_seconds: float = 0.0,
    shelf: EngineShelf | None = None,
) -> SegmentationRun:
    made = choose_backend(choice.name, choice.precision, choice.device)
    ensemble = package if isinstance(package, Ensemble) else Ensemble([package])
    spec = ensemble.first.spec
    for member in ensemble.packages:
        _check_network(member, choice)
    options = _with_batch(options, ensemble.first, made, choice)
    options, memory_notes = fitted(ensemble.first, choice.precision, volume, options)
    shelf = NoShelf() if shelf is None else shelf
    prepared: list[PreparedEngine] = []
    keys: list[Any] = []
    inputs: list[NetworkInput] = []
    calls: list[float] = []

    def make_engine(network_input: NetworkInput) -> Any:
        patch = patch_for(network_input, spec, options)
        # Drawing patches costs a pass over the volume: only where the engine has yet to be compared with the simulation.
        patches = _LazyPatches(lambda: patches_of(network_input, ensemble.first, patch))
        hashes = tuple(tuple(sorted(member.hashes.items())) for member in ensemble.packages)
        keys.append((hashes, made.name, choice, patch, options.batch))
        prepared.extend(
            shelf.borrow(
                keys[0],
                lambda: _prepare_all(ensemble.packages, made, choice, options, patch, patches, task),
            )
        )
        inputs.append(network_input)
        return _Timed(MeanEngine([item.engine for item in prepared]), calls)

    began = time.perf_counter()
    try:
        result = segment_volume(volume, spec, make_engine, options, task)
        result.notes[:0] = [*volume.notes, *memory_notes]
        engine = _engine_report(prepared[0])
        ranges = None
        if options.check_ranges and engine["precision"] == "int8":
            on_gpu = getattr(prepared[0].backend, "needs_gpu", False)
            ranges = _ranges(ensemble.first, inputs[0], options, result, task, tensors=not on_gpu)
        if len(prepared) > 1:
            engine["members"] = [_engine_report(item) for item in prepared]
    except (Cancelled, InputError):
        _end(shelf.give_back, keys)
        raise
    except BaseException:
        _end(shelf.drop, keys)
        raise
    _end(shelf.give_back, keys)
    seconds = {"reading": read_seconds, **{k: v for k, v in result.seconds.items() if k != "total"}}
    seconds["total"] = read_seconds + time.perf_counter() - began
    latency = _latency(calls, result, max(1, options.batch))
    return SegmentationRun(volume, result, seconds, engine, latency, inputs[0], ranges)


def _end(how: Callable[[Any], None], keys: list[Any]) -> None:
    for key in keys:
        how(key)


def _prepare_all(packages: Sequence[ModelPackage], *how: Any) -> list[PreparedEngine]:
    """The engines of an ensemble; those that are there are closed where one fails."""
    made: list[PreparedEngine] = []
    try:
        for member in packages:
            made.append(_prepare(member, *how))
    except BaseException:
        for item in made:
            item.close()
        raise
    return made


def _latency(calls: list[float], result: SegmentationResult, batch: int) -> dict[str, float]:
    """Milliseconds of one call; their mean where calls overlap (on a GPU) and cannot be timed one by one."""
    if not calls:
        number = -(-max(1, result.windows - result.skipped_windows) // batch)
        mean = 1e3 * result.seconds["network"] / number
        return {"median": mean, "p95": mean, "calls": float(number)}
    return {
        "median": 1e3 * float(np.median(calls)),
        "p95": 1e3 * float(np.percentile(calls, 95)),
        "calls": float(len(calls)),
    }


def _ranges(
    package: ModelPackage,
    network_input: NetworkInput,
    options: SegmentationOptions,
    result: SegmentationResult,
    task: Task,
    *,
    tensors: bool,
) -> dict[str, Any] | None:
    with task.stage("looking at ranges"):
        found = check_ranges(
            package, network_input.data, plan_for(network_input, package.spec, options), tensors=tensors
        )
    if found is None:
        return None
    result.seconds["ranges"] = found.seconds
    if found.warning:
        result.notes.insert(0, found.warning)
    return found.to_json()


class _LazyPatches(Sequence[Any]):
    """Patches that are drawn when they are first looked at; always counts as given."""

    def __init__(self, draw: Callable[[], list[Any]]) -> None:
        self._draw = draw
        self._patches: list[Any] | None = None

    def _all(self) -> list[Any]:
        if self._patches is None:
            self._patches = self._draw()
        return self._patches

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]


class _Timed:
    """An engine that notes how long each call takes."""

    def __init__(self, engine: Any, calls: list[float]) -> None:
        self._engine, self._calls = engine, calls

    def infer(self, batch: Any) -> Any:
        began = time.perf_counter()
        result = self._engine.infer(batch)
        self._calls.append(time.perf_counter() - began)
        return result

    @property
    def gpu_network(self) -> Any:
        return self._engine.gpu_network

    @property
    def gpu(self) -> Any:
        return self._engine.gpu

    @property
    def pipeline(self) -> Any:
        return self._engine.pipeline

    def describe(self) -> Any:
        return self._engine.describe()

    def close(self) -> None:
        self._engine.close()


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
