"""The segment road, start to end: volume in, label map on the volume's own grid out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine
from ..engines.base import gpu_network_of, pipeline_of
from ..errors import InputError, MedQuantError
from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.regions import Regions, activate, logit_cut, probability_cut
from ..imaging.volume import Volume
from ..models.spec import ModelSpec, Window
from ..progress import Task
from ..system import available_memory
from .blending import ActivatingSink, LabelSink, RegionSink, ScoreSink
from .margins import MarginSink
from .postprocessing import cleaned
from .sliding_window import Inference, SlidingWindowResult, slide
from .windows import WindowPlan, check_patch, plan_windows

_GB = 1 << 30


@dataclass(frozen=True)
class SegmentationOptions:
    """How to run.

    Attributes:
        patch: another patch size than the model's, along the tensor's axes.
        overlap: another overlap than the model's.
        batch: windows a call of the engine; 0 leaves it to the program: one on a processor, what fits on a GPU.
        skip_air: leave out windows that hold only air, where the model says what air is.
        memory_bytes: for blended scores; None takes half of what is free, at most 3 GB.
        check_ranges: look whether an INT8 run's scan leaves the calibrated ranges (:mod:`.range_check`).
        margins: also keep by how much each voxel's label won (:mod:`.margins`).
    """

    patch: tuple[int, int, int] | None = None
    overlap: float | None = None
    batch: int = 0
    skip_air: bool = False
    memory_bytes: int | None = None
    margins: bool = False
    check_ranges: bool = True


@dataclass
class SegmentationResult:
    """A label map and how it came about.

    Attributes:
        labels: (K, J, I) on the input's own grid, uint8 or uint16.
        ijk_to_ras: the input's matrix.
        seconds: by stage; "network" is the time inside the engine.
        notes: decisions a user should know, in words: what was resampled and why, what was skipped.
        margins: (K, J, I) as :mod:`.margins` keeps them, where they were asked for.
    """

    labels: NDArray[Any]
    ijk_to_ras: NDArray[np.float64]
    seconds: dict[str, float]
    windows: int
    skipped_windows: int
    notes: list[str] = field(default_factory=list)
    margins: NDArray[np.uint8] | None = None

    @property
    def skipped_share(self) -> float:
        return self.skipped_windows / max(1, self.windows)


def window_of(spec: ModelSpec, options: SegmentationOptions) -> tuple[tuple[int, int, int], float]:
    """The patch size and overlap in force.

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
        a, b, c = network_input.data.shape[1:]
        return whole_volume_patch((a, b, c), spec)
    return window_of(spec, options)[0]


def plan_for(network_input: NetworkInput, spec: ModelSpec, options: SegmentationOptions) -> WindowPlan:
    """Where the windows of a run lie."""
    window = window_in_force(spec, options)
    a, b, c = network_input.data.shape[1:]
    return plan_windows((a, b, c), window, patch_for(network_input, spec, options))


def segment(
    network_input: NetworkInput,
    spec: ModelSpec,
    engine: Engine,
    options: SegmentationOptions = SegmentationOptions(),
    task: Task | None = None,
) -> SegmentationResult:
    """Segment a preprocessed volume.

    Raises:
        Cancelled: within one batch of windows after ``task.cancel()``.
        MedQuantError: not enough memory; says how much is missing.
    """
    task = task or Task()
    window = window_in_force(spec, options)
    plan = plan_for(network_input, spec, options)
    budget = options.memory_bytes if options.memory_bytes is not None else min(3 * _GB, available_memory() // 2)
    run = _Run(network_input, spec, plan, budget, options.margins)
    result = run.on_gpu(engine, window, max(1, options.batch), task) if run.fits_gpu(engine, options) else None
    if result is None:
        result = slide(
            network_input.data,
            run.inference(engine),
            spec.output_channels,
            plan,
            window,
            run.receiver,
            batch_size=max(1, options.batch),
            carried_dtype=run.carried,
            carried_bytes=run.carried_bytes,
            normalized=run.normalized,
            skip_air=options.skip_air,
            task=task,
        )
    with task.stage("restoring the grid"):
        labels = cleaned(run.labels(), [step for step in spec.cleaning if step.where == "scan"])
    if result.columns > 1:
        run.notes.append(
            f"run in {result.columns} columns to save memory: {result.windows} windows instead of {plan.count}"
        )
    if options.skip_air and result.skipped:
        run.notes.append(f"{result.skipped} of {result.windows} windows held only air and were skipped")
    seconds = _seconds(task, result)
    margins = None
    if run.margins is not None:
        seconds["margins"] = run.margins.seconds
        seconds["blending"] = max(0.0, seconds["blending"] - run.margins.seconds)
        margins = network_input.restore(run.margins.margins)
    return SegmentationResult(
        labels, network_input.original.ijk_to_ras, seconds, result.windows, result.skipped, run.notes, margins
    )


def segment_volume(
    volume: Volume,
    spec: ModelSpec,
    make_engine: Callable[[NetworkInput], Engine],
    options: SegmentationOptions = SegmentationOptions(),
    task: Task | None = None,
) -> SegmentationResult:
    """As :func:`segment`, from a volume; ``make_engine`` may look at the volume in network space."""
    task = task or Task()
    # A task may go on from volume to volume: what is told of this one is this one's.
    task.seconds.clear()
    began = time.perf_counter()
    with task.stage("preprocessing"):
        network_input = preprocess(volume, spec)
    engine = make_engine(network_input)
    result = segment(network_input, spec, engine, options, task)
    result.seconds["total"] = time.perf_counter() - began
    return result


def _seconds(task: Task, result: SlidingWindowResult) -> dict[str, float]:
    seconds = dict(task.seconds)
    segmenting = seconds.pop("segmenting", 0.0)
    return {**seconds, "network": result.network_seconds, "blending": max(0.0, segmenting - result.network_seconds)}


class _Run:
    """What becomes of the scores of one volume: labels at once, or kept for resampling, as the model says and memory allows."""

    def __init__(
        self, network_input: NetworkInput, spec: ModelSpec, plan: WindowPlan, budget: int, margins: bool = False
    ) -> None:
        self._input, self._spec, self._plan = network_input, spec, plan
        self.notes: list[str] = []
        classes, output = spec.output_channels, spec.output
        dtype = np.uint8 if max(label.value for label in spec.labels) < 256 else np.uint16
        self._values = _label_values(spec, dtype)
        self._regions = Regions.of(spec, dtype) if output.regions else None
        #: Probabilities of each window by itself, as packages had it that do not say what is resampled.
        self._by_window = output.activation == "sigmoid" and output.resample is None and not output.activated
        shape = plan.volume_shape
        self.carried: Any = np.float32
        if plan.carried_bytes(classes, 4) > budget:
            self.carried = np.float16
            self.notes.append("blended in 16-bit floating point: 32 bit would take more memory than allowed")
        itemsize = np.dtype(self.carried).itemsize
        columns = plan.columns_within(classes, itemsize, budget)
        needed = max(column.plan.carried_bytes(classes, itemsize) for column in columns)
        if needed > budget and needed > available_memory():
            raise MedQuantError(
                f"Blending needs {needed / _GB:.1f} GB of memory, but only {available_memory() / _GB:.1f} GB are free.",
                "Close other programs, or choose a smaller patch (--patch) or overlap (--overlap).",
            )
        self.carried_bytes = budget
        scores = classes * int(np.prod(shape)) * 4
        # Masks of regions that may overlap cannot be told from a label map; masks of classes can.
        masks = (
            output.resample == "masks" and output.regions and not any(step.where == "network" for step in spec.cleaning)
        )
        wanted = network_input.resampled and (masks or output.resample not in ("masks", "labels"))
        self._resample_scores = wanted and scores + needed <= budget
        if network_input.resampled:
            self.notes.append(_how_resampled(self._resample_scores, wanted, spec, scores))
        # Softmax does not change which class is the largest; sigmoids end at 1, where several may be equal.
        before_decision = output.regions or output.activation == "sigmoid"
        activates = not self._by_window and not output.activated and (before_decision and not self._resample_scores)
        self.normalized = self._resample_scores or output.regions or activates
        if self._resample_scores:
            self.sink: Any = ScoreSink(classes, shape)
        elif self._regions is not None:
            self.sink = RegionSink(shape, self._regions)
        else:
            self.sink = LabelSink(shape, self._values)
        self.receiver: Any = self.sink
        self.margins: MarginSink | None = None
        if margins:
            thresholds = None if self._regions is None else output.thresholds or (output.threshold,) * classes
            activation = None if output.activated or activates or self._by_window else output.activation
            self.margins = MarginSink(self.sink, shape, activation, thresholds)
            self.receiver, self.normalized = self.margins, True
        if activates:
            self.receiver = ActivatingSink(self.receiver, output.activation)

    def fits_gpu(self, engine: Engine, options: SegmentationOptions) -> bool:
        """Whether the whole window can run where the network does: a network on a GPU, and labels (not scores) wanted, which the
        kernels there can make: the class of the largest score, or sigmoid regions of one threshold painted in the channels' order."""
        output, regions = self._spec.output, self._regions
        if gpu_network_of(engine) is None or self._resample_scores or options.skip_air or options.margins:
            return False
        padded = any(n < p for n, p in zip(self._plan.volume_shape, self._plan.patch, strict=True))
        if padded and self._spec.window.padding != "constant":
            return False
        if regions is None:
            return output.activation == "softmax" or output.activated
        same = len(set(output.thresholds)) <= 1 and list(regions.channels) == sorted(regions.channels)
        return same and not regions.nested and (output.activation == "sigmoid" or output.activated)

    def _gpu_reduction(self) -> Any:
        from .gpu_sliding_window import Reduction

        values, output = self._values.astype(np.uint16), self._spec.output
        if self._regions is None:
            return Reduction(values, None, False)
        channel = self._regions.channels[0]
        if self._by_window or output.activated:
            return Reduction(values, float(probability_cut(output, channel)), self._by_window)
        return Reduction(values, logit_cut(output, channel), False)

    def on_gpu(self, engine: Any, window: Any, batch: int, task: Task) -> SlidingWindowResult | None:
        """The sliding window on the engine's GPU; the labels are taken over as if they had come through the sink.

        None if the GPU's memory is too small for the scores: then they are blended in the computer's.
        """
        from ..engines.cuda.device import GpuMemoryError
        from .gpu_sliding_window import GpuSlidingWindow

        spec, data = self._spec, self._input.data
        try:
            runner = GpuSlidingWindow(
                engine.gpu, engine.gpu_network, data.shape[0], spec.output_channels, self._plan, window, batch
            )
        except GpuMemoryError as error:
            self.notes.append(f"blended on the processor: {error}")
            return None
        began = time.perf_counter()
        try:
            found = runner.run(data, self._gpu_reduction(), task=task)
        finally:
            runner.close()
        self.sink.labels[...] = found
        self.notes.append("windows were cut, blended and reduced to labels on the GPU")
        return SlidingWindowResult(self._plan.count, 0, "float32", 1, time.perf_counter() - began)

    def inference(self, engine: Any) -> Any:
        """The engine as the sliding window takes it: where regions are blended as probabilities, these."""
        pipeline = pipeline_of(engine)
        if pipeline is not None:
            return _Activated(pipeline) if self._by_window else pipeline
        return (lambda batch: _sigmoid(engine.infer(batch))) if self._by_window else engine.infer

    def labels(self) -> NDArray[Any]:
        spec, output = self._spec, self._spec.output
        if not self._resample_scores:
            # In network space arrays lie as the tensor does; parts and holes do not depend on the axes' order.
            found = cleaned(self.sink.labels, [step for step in spec.cleaning if step.where == "network"])
            return self._input.restore(found, nearest={"labels": True, "masks": False}.get(output.resample or ""))
        # Thresholds of a softmax are of probabilities, whatever is resampled.
        probabilities = output.resample in ("probabilities", "masks") or (
            output.regions and output.activation == "softmax"
        )
        if probabilities and not output.activated:
            activate(self.sink.scores, output.activation)
        if self._regions is None:
            return self._input.restore_from_scores(self.sink.scores, self._values)
        regions = self._regions
        if output.resample == "masks":
            for channel, cut in zip(regions.channels, regions.cuts, strict=True):
                self.sink.scores[channel] = self.sink.scores[channel] > cut
            half = np.nextafter(np.float32(0.5), np.float32(0))
            regions = replace(regions, cuts=np.full(len(regions.channels), half, np.float32))
        if output.resample == "logits" and not output.activated and output.activation == "sigmoid":
            cuts = np.array([logit_cut(output, channel) for channel in regions.channels], np.float32)
            regions = replace(regions, cuts=cuts)
        return self._input.restore_regions(self.sink.scores, regions)


def _how_resampled(by_scores: bool, wanted: bool, spec: ModelSpec, scores: int) -> str:
    if by_scores and spec.output.resample == "masks":
        return "regions' masks were resampled to the scan's grid, as the model asks"
    if by_scores:
        return "class scores were resampled to the scan's grid before the largest was chosen"
    if wanted:
        return (
            f"labels, not class scores, were resampled to the scan's grid: the scores would take {scores / _GB:.1f} GB"
        )
    way = "masks by linear interpolation" if spec.output.resample == "masks" else "nearest neighbor"
    return f"labels were resampled to the scan's grid, as the model asks: {way}"


def _sigmoid(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    made: NDArray[np.float32] = np.reciprocal(1 + np.exp(-np.clip(scores, -60, 60)))
    return made


class _Activated:
    """Probabilities of a pipeline's scores."""

    def __init__(self, pipeline: Inference) -> None:
        self._pipeline, self.ahead = pipeline, pipeline.ahead
        self.submit, self.drain = pipeline.submit, pipeline.drain

    def collect(self) -> NDArray[np.float32]:
        return _sigmoid(self._pipeline.collect())


def _label_values(spec: ModelSpec, dtype: Any) -> NDArray[Any]:
    values = np.zeros(spec.output_channels, dtype)
    for label in spec.labels:
        values[label.channel] = label.value
    return values
