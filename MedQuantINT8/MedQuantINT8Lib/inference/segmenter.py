"""The segment road, start to end: volume in, label map on the volume's own grid out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine
from ..engines.base import HasHead, head_of, on_each_gpu, pipeline_of
from ..engines.cuda.device import DeviceBuffer, GpuMemoryError
from ..errors import InputError
from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.region_of_interest import Region
from ..imaging.volume import Volume
from ..models.output_spec import Resampled
from ..models.pointwise_head import PointwiseHead
from ..models.spec import ModelSpec, Window
from ..progress import Task
from ..system import available_memory
from .gpu_mean import MeanNetwork
from .gpu_preparation import DeferredInput, data_of, deferred
from .gpu_road import GpuRoad, LabelKeeper
from .gpu_road_check import CheckEngine, check_patch_size, doubt_of
from .head_sink import HeadSink
from .mirroring import MirroredInference, MirroringChoice, mirror_axes_of
from .postprocessing import cleaned
from .score_reduction import BlendingMemory, ScorePath, ScoreReduction, blends_probabilities
from .sliding_window import InferBatch, Inference, SlidingWindow, SlidingWindowResult, as_inference, slide
from .windows import WindowPlan, check_patch, plan_windows

_GB = 1 << 30


@dataclass(frozen=True)
class SegmentationOptions:
    """The options of a segmentation: how the network is run.

    Attributes:
        patch: another patch size than the model's, along the tensor's axes.
        overlap: another overlap than the model's.
        batch: windows a call of the engine; 0 leaves it to the program: one on a processor, what fits on a GPU.
        skip_air: leave out windows that hold only air, where the model says what air is.
        memory_bytes: for blended scores; None takes half of what is free, at most 3 GB.
        check_ranges: look whether an INT8 run's scan leaves the calibrated ranges (:mod:`.range_check`).
        margins: also keep by how much each voxel's label won (:mod:`.margins`).
        mirroring: average over mirrored windows (:mod:`.mirroring`): True along all axes that the model allows, False not at all, or
            along these axes of the tensor; None does as the model says.
        structures: names of the structures that are wanted, the others being background; None for all. A task runs only the parts that
            have them.
        roi: the box that is segmented, everything outside being background: (least, largest) R, A, S in millimeters; None for all.
        resample: what is brought to the scan's grid, in place of what the model says (:class:`..models.spec.Output`): "logits",
            "probabilities", "masks" or "labels"; None does as the model says.
        check_share: the share of an INT8 run's windows that are run in FP32 as well (:mod:`.second_look`); None leaves it to the
            program: one of fifty, at most eight, and none beside a GPU.
        probabilities: also keep the probability of each class on the scan's grid, for a mean over networks that prepare it differently.
    """

    patch: tuple[int, int, int] | None = None
    overlap: float | None = None
    batch: int = 0
    skip_air: bool = False
    memory_bytes: int | None = None
    margins: bool = False
    check_ranges: bool = True
    mirroring: MirroringChoice = None
    structures: tuple[str, ...] | None = None
    roi: Region | None = None
    check_share: float | None = None
    resample: Resampled | None = None
    probabilities: bool = False

    def check(self) -> None:
        """Refuse choices that go with no run.

        Raises:
            InputError: a share that is none, one where nothing is to be looked at, or something that cannot be resampled.
        """
        if self.resample not in (None, *get_args(Resampled)):
            raise InputError(
                f"{self.resample!r} is nothing that can be resampled.",
                f"Give one of {', '.join(get_args(Resampled))}.",
            )
        if self.check_share is None:
            return
        if not 0 <= self.check_share <= 1:
            raise InputError(
                f"A share of {self.check_share} of the windows is not possible.",
                "Give one between 0 and 1, such as 0.05.",
            )
        if self.check_share and not self.check_ranges:
            raise InputError(
                "A second look was asked for together with none at all.", "Leave out --check-share or --no-range-check."
            )


@dataclass
class SegmentationResult:
    """A label map and how it came about.

    Attributes:
        labels: (K, J, I) on the input's own grid, uint8 or uint16.
        ijk_to_ras: the input's matrix.
        seconds: by stage; "network" is the time inside the engine.
        notes: decisions a user should know, in words: what was resampled and why, what was skipped.
        margins: (K, J, I) as :mod:`.margins` keeps them, where they were asked for.
        mirror_axes: of the tensor, along which windows were mirrored.
        probabilities: of each output channel, (C, K, J, I) in float32, where they were asked for.
        on_gpu: the label map (K, J, I) where a keeper took it over on the GPU that made it; ``labels`` is empty then.
    """

    labels: NDArray[Any]
    ijk_to_ras: NDArray[np.float64]
    seconds: dict[str, float]
    windows: int
    skipped_windows: int
    notes: list[str] = field(default_factory=list)
    margins: NDArray[np.uint8] | None = None
    mirror_axes: tuple[int, ...] = ()
    probabilities: NDArray[np.float32] | None = None
    on_gpu: DeviceBuffer | None = None

    @property
    def skipped_share(self) -> float:
        return self.skipped_windows / max(1, self.windows)

    @property
    def patches(self) -> int:
        """How many patches the network was given: each window that was not skipped, in all its mirrored forms."""
        return (self.windows - self.skipped_windows) << len(self.mirror_axes)


def spec_in_force(spec: ModelSpec, options: SegmentationOptions) -> ModelSpec:
    """Return the model's description with what the user wants to be resampled.

    Raises:
        InputError: the model cleans label maps in network space, and scores were asked for.
    """
    if options.resample is None or options.resample == spec.output.resample:
        return spec
    if options.resample not in ("masks", "labels") and any(step.where == "network" for step in spec.cleaning):
        raise InputError(
            f"{spec.name} cleans its label map before that is resampled, so its {options.resample} cannot be resampled.",
            "Resample labels or masks, or leave it as the model says.",
        )
    return replace(spec, output=replace(spec.output, resample=options.resample))


def window_of(spec: ModelSpec, options: SegmentationOptions) -> tuple[tuple[int, int, int], float]:
    """Return the patch size and overlap in force.

    Raises:
        InputError: a patch size or overlap that the network does not take.
    """
    patch = options.patch or spec.window.patch_size
    check_patch(patch, spec.window)
    overlap = spec.window.overlap if options.overlap is None else options.overlap
    if not 0 <= overlap < 1:
        raise InputError(f"An overlap of {overlap} is not possible.", "Give one of at least 0 and below 1.")
    return patch, overlap


def window_in_force(spec: ModelSpec, options: SegmentationOptions) -> Window:
    """The model's window with the overlap that was asked for; raises as :func:`window_of`."""
    overlap = window_of(spec, options)[1]
    return spec.window if options.overlap is None else replace(spec.window, overlap=overlap, overlaps=None)


def whole_volume_patch(shape: tuple[int, int, int], spec: ModelSpec) -> tuple[int, int, int]:
    """The patch that holds the whole of a volume in network space, padded up to the model's multiples."""
    a, b, c = (-(-size // multiple) * multiple for size, multiple in zip(shape, spec.window.multiples, strict=True))
    return a, b, c


def patch_for(network_input: NetworkInput, spec: ModelSpec, options: SegmentationOptions) -> tuple[int, int, int]:
    """The patch size that this volume is run with."""
    if spec.window.whole_volume and options.patch is None:
        a, b, c = network_input.shape[1:]
        return whole_volume_patch((a, b, c), spec)
    return window_of(spec, options)[0]


def plan_for(network_input: NetworkInput, spec: ModelSpec, options: SegmentationOptions) -> WindowPlan:
    """Return the plan of a run: where its windows lie."""
    window = window_in_force(spec, options)
    a, b, c = network_input.shape[1:]
    slices = 0 if network_input.axis_order == "KJI" else 2
    return plan_windows((a, b, c), window, patch_for(network_input, spec, options), slices)


def segment(
    network_input: NetworkInput,
    spec: ModelSpec,
    engine: Engine,
    options: SegmentationOptions = SegmentationOptions(),
    task: Task | None = None,
    keeper: LabelKeeper | None = None,
) -> SegmentationResult:
    """Segment a preprocessed volume.

    Args:
        keeper: takes over a label map that a GPU made on the scan's grid, in place of its coming down.

    Raises:
        Cancelled: within one batch of windows after ``task.cancel()``.
        MedQuantError: not enough memory; says how much is missing.
        InputError: mirroring that the model does not allow.
    """
    return _segment(network_input, spec, engine, options, task or Task(), None, keeper)


def _segment(
    network_input: NetworkInput,
    spec: ModelSpec,
    engine: Engine,
    options: SegmentationOptions,
    task: Task,
    on_gpu: bool | None,
    keeper: LabelKeeper | None = None,
) -> SegmentationResult:
    """As :func:`segment`; ``on_gpu`` says whether what can run on the engine's GPU does, None that it does where it is trusted."""
    spec = spec_in_force(spec, options)
    axes = mirror_axes_of(spec, options.mirroring)
    window = window_in_force(spec, options)
    plan = plan_for(network_input, spec, options)
    free = available_memory()
    budget = options.memory_bytes if options.memory_bytes is not None else min(3 * _GB, free // 2)
    head = _head_apart(engine, spec, options)
    channels = spec.output_channels if head is None else head.features
    memory = BlendingMemory.within(budget, free, plan, channels)
    path = (
        ScorePath.of_all_scores(spec)
        if options.probabilities
        else ScorePath.of(spec, network_input, memory, plan, asked="you" if options.resample else "the model")
    )
    reduction = ScoreReduction(spec, plan.volume_shape, path, margins=options.margins)
    notes: list[str] = []
    batch, result = max(1, options.batch), None
    road = GpuRoad(engine, network_input, plan, window, reduction, axes, keeper)
    wants_scores = options.margins or options.probabilities
    if on_gpu is not False and road.fits(skip_air=options.skip_air, margins=wants_scores):
        checked = on_gpu is None and (road.resamples or road.places or road.prepares or road.averages)
        if doubt := _doubt_of_any(engine, spec) if checked else "":
            notes.append(f"warning: nothing was resampled, normalized or averaged on the GPU: {doubt}")
            road.prepares = road.places = False
        if not doubt or not (road.resamples or road.averages):
            result = road.run(batch, notes, task)
            if result is None and on_gpu:
                raise GpuMemoryError("The GPU has not enough free memory to segment its test volume.")
    if result is not None:
        notes[:0] = [note for note in (path.scores_note if road.resamples else path.note,) if note]
    else:
        notes[:0] = [note for note in (memory.note, path.note) if note]
        sliding = SlidingWindow(
            plan,
            window,
            channels,
            # The mirrored forms of a window go through the network together, as far as the batch goes.
            batch_size=max(1, batch >> len(axes)),
            carried_dtype=memory.dtype,
            carried_bytes=memory.budget,
            normalized=reduction.normalized or head is not None,
            skip_air=options.skip_air,
        )
        inference, receiver = _inference(engine, probabilities=path.by_window), reduction.receiver
        if head is not None and isinstance(engine, HasHead):
            inference, receiver = engine.infer_features, HeadSink(head, receiver, plan.order[0])
        if axes:
            inference = MirroredInference(as_inference(inference), axes, batch, task.check)
        result = slide(data_of(network_input, task), inference, receiver, sliding, task)
    probabilities = None
    with task.stage("restoring the grid"):
        if options.probabilities:
            probabilities = reduction.probabilities(network_input)
        labels = cleaned(
            reduction.labels(network_input) if probabilities is None else reduction.labels_of(probabilities),
            [step for step in spec.cleaning if step.where == "scan"][road.cleaned :],
            1000 * network_input.original.voxel_ml,
        )
    if result.columns > 1:
        notes.append(
            f"run in {result.columns} columns to save memory: {result.windows} windows instead of {plan.count}"
        )
    if options.skip_air and result.skipped:
        notes.append(f"{result.skipped} of {result.windows} windows held only air and were skipped")
    if axes:
        notes.append(
            f"each window was run in {1 << len(axes)} mirrored forms (tensor axes {', '.join(map(str, axes))}), whose scores were averaged"
        )
    seconds = _seconds(task, result)
    margins = None
    if reduction.margins is not None:
        seconds["margins"] = reduction.margins.seconds
        seconds["blending"] = max(0.0, seconds["blending"] - reduction.margins.seconds)
        margins = network_input.restore(reduction.margins.margins)
    return SegmentationResult(
        labels,
        network_input.original.ijk_to_ras,
        seconds,
        result.windows,
        result.skipped,
        notes,
        margins,
        axes,
        probabilities,
        road.kept,
    )


def _doubt_of_any(engine: Engine, spec: ModelSpec) -> str:
    """Return why one of an engine's GPUs is not trusted with a model's scores, or an empty string where all are."""
    return next(filter(None, (doubt_of(one, spec, _segment_to_check) for one in on_each_gpu(engine))), "")


def _segment_to_check(volume: Volume, spec: ModelSpec, engine: CheckEngine, on_gpu: bool) -> NDArray[Any]:
    """Return the labels (K, J, I) of a test volume; see :mod:`.gpu_road_check`."""
    network_input = preprocess(volume, spec)
    engine.look_at(network_input.data)
    if on_gpu:
        network_input = deferred(volume, spec, preprocess)
        mean = isinstance(engine.gpu_network, MeanNetwork)
        if network_input.back_axes() is None and not mean and not isinstance(network_input, DeferredInput):
            raise InputError("the test volume would not be resampled by this model")
    patch = check_patch_size(network_input.shape[1:], spec)
    spec = replace(spec, window=replace(spec.window, patch_size=patch))
    options = SegmentationOptions(batch=2, mirroring=False)
    return _segment(network_input, spec, engine, options, Task(), on_gpu).labels


def segment_volume(
    volume: Volume,
    spec: ModelSpec,
    make_engine: Callable[[NetworkInput], Engine],
    options: SegmentationOptions = SegmentationOptions(),
    task: Task | None = None,
    prepare: Callable[[Volume, ModelSpec], NetworkInput] = preprocess,
    keeper: LabelKeeper | None = None,
) -> SegmentationResult:
    """As :func:`segment`, from a volume.

    Args:
        make_engine: may look at the volume in network space.
        prepare: brings it there.
    """
    task = task or Task()
    # A task may go on from volume to volume: what is told of this one is this one's.
    task.seconds.clear()
    began = time.perf_counter()
    with task.stage("preprocessing"):
        network_input = prepare(volume, spec)
    engine = make_engine(network_input)
    result = segment(network_input, spec, engine, options, task, keeper)
    result.seconds["total"] = time.perf_counter() - began
    return result


def _seconds(task: Task, result: SlidingWindowResult) -> dict[str, float]:
    seconds = dict(task.seconds)
    segmenting = seconds.pop("segmenting", 0.0)
    return {**seconds, "network": result.network_seconds, "blending": max(0.0, segmenting - result.network_seconds)}


def _head_apart(engine: Engine, spec: ModelSpec, options: SegmentationOptions) -> PointwiseHead | None:
    """The network's last layer, where features are blended and it is applied to the result; None where scores are blended.

    Air that is not run counts as scores of zero, which are no features' scores; and probabilities of windows are no linear map.
    """
    head = None if options.skip_air or blends_probabilities(spec) else head_of(engine)
    return head if head is not None and head.classes == spec.output_channels else None


def _inference(engine: Any, *, probabilities: bool) -> InferBatch | Inference:
    """The engine as the sliding window takes it; with ``probabilities`` it gives these of a sigmoid, in place of its scores."""
    pipeline = pipeline_of(engine)
    if pipeline is not None:
        return _ActivatedPipeline(pipeline) if probabilities else pipeline
    return (lambda batch: _sigmoid(engine.infer(batch))) if probabilities else engine.infer


def _sigmoid(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    probabilities: NDArray[np.float32] = np.reciprocal(1 + np.exp(-np.clip(scores, -60, 60)))
    return probabilities


class _ActivatedPipeline:
    """A pipeline whose scores are turned into the probabilities of a sigmoid."""

    def __init__(self, pipeline: Inference) -> None:
        self._pipeline, self.ahead = pipeline, pipeline.ahead
        self.submit, self.drain = pipeline.submit, pipeline.drain

    def collect(self) -> NDArray[np.float32]:
        return _sigmoid(self._pipeline.collect())
