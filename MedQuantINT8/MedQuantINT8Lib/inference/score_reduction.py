"""From the class scores of one volume to its label map: which way they go, as the model asks and memory allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MedQuantError
from ..imaging.label_resampling import Axes, Decision, Largest, Painted
from ..imaging.preprocessing import NetworkInput
from ..imaging.regions import Regions, activate, logit_cut
from ..models.spec import ModelSpec
from ..thread_pool import Threads
from .blending import ActivatingSink, LabelSink, RegionSink, ScoreSink, Sink
from .head_sink import HeadSink
from .margins import MarginSink, SlabMarginSink
from .postprocessing import cleaned
from .resampling_sink import ResamplingSink
from .windows import WindowPlan

#: From so many voxels on threads share the copying of a label map.
_SHARED_VOXELS = 1 << 22

_GB = 1 << 30


@dataclass(frozen=True)
class BlendingMemory:
    """The memory plan of blending: how the scores of overlapping windows are carried while they are blended.

    Attributes:
        dtype: of carried scores: float32, or float16 where that would take more than ``budget``.
        budget: bytes that blended scores may take.
        needed: bytes that carried scores take, in as many columns as the budget asks for.
        columns: in how many columns the volume is run.
        note: what the user should know of it, or an empty string.
        channels: of what is blended: scores, or features where the last layer comes after (:mod:`.head_sink`).
    """

    dtype: Any
    budget: int
    needed: int
    note: str = ""
    columns: int = 1
    channels: int = 0

    @classmethod
    def within(cls, budget: int, free: int, plan: WindowPlan, channels: int) -> BlendingMemory:
        """What fits into ``budget`` bytes, on a computer with ``free`` bytes of memory.

        Raises:
            MedQuantError: not even one column at a time fits into the memory that is free.
        """
        dtype: Any = np.float32
        note = ""
        if plan.carried_bytes(channels, 4) > budget:
            dtype = np.float16
            note = "blended in 16-bit floating point: 32 bit would take more memory than allowed"
        itemsize = np.dtype(dtype).itemsize
        columns = plan.columns_within(channels, itemsize, budget)
        needed = max(column.plan.carried_bytes(channels, itemsize) for column in columns)
        if needed > budget and needed > free:
            raise MedQuantError(
                f"Blending needs {needed / _GB:.1f} GB of memory, but only {free / _GB:.1f} GB are free.",
                "Close other programs, or choose a smaller patch (--patch) or overlap (--overlap).",
            )
        return cls(dtype, budget, needed, note, len(columns), channels)


@dataclass(frozen=True)
class Streamed:
    """How scores reach the scan's grid while windows are still blended.

    Attributes:
        axes: the interpolation along each axis of the tensor.
        slowest: the axis along which slabs of finished scores follow one another.
    """

    axes: Axes
    slowest: int

    @classmethod
    def of(cls, network_input: NetworkInput, memory: BlendingMemory, plan: WindowPlan, classes: int) -> Streamed | None:
        """The way of a volume; None where its scores have to be kept first, or do not fit in slabs either."""
        axes = network_input.back_axes()
        if axes is None or memory.columns > 1:
            return None
        slowest = plan.order[0]
        shape, planes = plan.volume_shape, plan.longest_step(slowest)
        if memory.channels < classes:
            needed = HeadSink.bytes_needed(memory.channels, classes, shape, slowest, planes)
        else:
            needed = ResamplingSink.bytes_needed(classes, shape, slowest, planes)
        return cls(axes, slowest) if needed + memory.needed <= memory.budget else None

    def sink(self, shape: tuple[int, int, int], classes: int, rule: ScoreRule, values: NDArray[Any]) -> ResamplingSink:
        """What takes the finished blocks."""
        return ResamplingSink(shape, classes, self.axes, rule.decision(values), self.slowest, rule.prepare)


@dataclass(frozen=True)
class ScorePath:
    """Which way the class scores of one volume go, decided before its first window is run.

    Attributes:
        by_window: probabilities of each window by itself are blended, as packages had it that do not say what is resampled.
        scores_wanted: the model asks for scores, not labels, to be brought to the scan's grid.
        resample_scores: they are, since memory allows it.
        streamed: how they are, slab by slab while windows are blended; None where all of them are kept first.
        activates: finished blocks of logits become probabilities before they are reduced to labels.
        normalized: finished blocks are divided by the sum of the weights, for whatever is no argmax.
        note: how the result came to the scan's grid, or an empty string where the network works on that grid.
        scores_note: what is said in its place where scores are resampled on a GPU, whatever the computer's memory allows.
    """

    by_window: bool
    scores_wanted: bool
    resample_scores: bool
    activates: bool
    normalized: bool
    note: str = ""
    streamed: Streamed | None = None
    scores_note: str = ""

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        network_input: NetworkInput,
        memory: BlendingMemory,
        plan: WindowPlan,
        asked: str = "the model",
    ) -> ScorePath:
        """The way that a model asks for, or labels instead of scores where scores would not fit into the memory.

        Args:
            asked: who asks for the way, for its note.
        """
        output = spec.output
        by_window = blends_probabilities(spec)
        size = spec.output_channels * int(np.prod(network_input.shape[1:])) * 4
        # Masks of regions that may overlap cannot be told from a label map; masks of classes can.
        masks = (
            output.resample == "masks" and output.regions and not any(step.where == "network" for step in spec.cleaning)
        )
        wanted = network_input.resampled and (masks or output.resample not in ("masks", "labels"))
        streamed = Streamed.of(network_input, memory, plan, spec.output_channels) if wanted else None
        resample_scores = wanted and (streamed is not None or size + memory.needed <= memory.budget)
        # Softmax does not change which class is the largest; sigmoids end at 1, where several may be equal.
        before_decision = output.regions or output.activation == "sigmoid"
        activates = before_decision and not by_window and not output.activated and not resample_scores
        return cls(
            by_window,
            wanted,
            resample_scores,
            activates,
            resample_scores or output.regions or activates,
            _how_resampled(resample_scores, wanted, spec, size, asked) if network_input.resampled else "",
            streamed,
            _how_resampled(True, wanted, spec, size, asked),
        )

    @classmethod
    def of_all_scores(cls, spec: ModelSpec) -> ScorePath:
        """The way of scores that are all kept, for :meth:`ScoreReduction.probabilities`."""
        return cls(
            blends_probabilities(spec), scores_wanted=True, resample_scores=True, activates=False, normalized=True
        )


@dataclass(frozen=True)
class ScoreRule:
    """What becomes of class scores before labels are made of them on the scan's grid.

    Attributes:
        activation: what makes probabilities of them; None where they stay as they are.
        mask_cuts: of regions, above which a score counts as 1, else 0; None where scores stay as they are.
        regions: with the cuts that hold on the scan's grid; None where the largest score decides.
    """

    activation: str | None
    mask_cuts: dict[int, np.float32] | None
    regions: Regions | None

    @classmethod
    def of(cls, spec: ModelSpec, regions: Regions | None) -> ScoreRule:
        """The rule of a model whose scores are resampled."""
        output = spec.output
        # Thresholds of a softmax are of probabilities, whatever is resampled.
        probabilities = output.resample in ("probabilities", "masks") or (
            output.regions and output.activation == "softmax"
        )
        activation = output.activation if probabilities and not output.activated else None
        if regions is None:
            return cls(activation, None, None)
        mask_cuts = None
        if output.resample == "masks":
            mask_cuts = dict(zip(regions.channels, regions.cuts, strict=True))
            half = np.nextafter(np.float32(0.5), np.float32(0))
            regions = replace(regions, cuts=np.full(len(regions.channels), half, np.float32))
        if output.resample == "logits" and not output.activated and output.activation == "sigmoid":
            cuts = np.array([logit_cut(output, channel) for channel in regions.channels], np.float32)
            regions = replace(regions, cuts=cuts)
        return cls(activation, mask_cuts, regions)

    def prepare(self, scores: NDArray[Any]) -> None:
        """Change scores (C, n0, n1, n2) in place."""
        if self.activation is not None:
            activate(scores, self.activation)
        for channel, cut in (self.mask_cuts or {}).items():
            scores[channel] = scores[channel] > cut

    def decision(self, values: NDArray[Any]) -> Decision:
        """What makes labels of prepared scores."""
        return Largest(values) if self.regions is None else Painted(self.regions)


class ScoreReduction:
    """Takes the finished blocks of scores of one volume, and gives its label map.

    Attributes:
        spec, path: the model, and the way its scores go.
        values: the label value of each output channel.
        regions: the regions that are painted, or None where the largest score decides.
        normalized: whether blocks have to be divided by the sum of the weights.
        rule: what becomes of scores that are resampled.
        margins: keeps by how much each voxel's label won; None where that was not asked for.
    """

    def __init__(
        self,
        spec: ModelSpec,
        shape: tuple[int, int, int],
        path: ScorePath,
        *,
        margins: bool = False,
    ) -> None:
        self.spec, self.path = spec, path
        dtype = np.uint8 if max(label.value for label in spec.labels) < 256 else np.uint16
        self.values = _label_values(spec, dtype)
        self.regions = Regions.of(spec, dtype) if spec.output.regions else None
        self.rule = ScoreRule.of(spec, self.regions)
        self._grid_labels: NDArray[Any] | None = None
        self._shape = shape
        self.margins = self._margin_sink(shape) if margins else None
        self.normalized = path.normalized or margins

    @cached_property
    def receiver(self) -> Sink:
        """Where the sliding window gives its blocks."""
        receiver: Sink = self._sink if self.margins is None else self.margins
        return ActivatingSink(receiver, self.spec.output.activation) if self.path.activates else receiver

    @cached_property
    def _sink(self) -> Any:
        """What takes blocks; its memory is asked for only where scores come to the processor."""
        shape = self._shape
        if self.path.streamed is not None:
            return self.path.streamed.sink(shape, self.spec.output_channels, self.rule, self.values)
        if self.path.resample_scores:
            return ScoreSink(self.spec.output_channels, shape)
        return LabelSink(shape, self.values) if self.regions is None else RegionSink(shape, self.regions)

    def _margin_sink(self, shape: tuple[int, int, int]) -> MarginSink:
        output, path = self.spec.output, self.path
        thresholds = output.thresholds or (output.threshold,) * self.spec.output_channels
        probabilities = output.activated or path.activates or path.by_window
        activation = None if probabilities else output.activation
        cuts, sink = None if self.regions is None else thresholds, self._sink
        if isinstance(sink, ResamplingSink):
            return SlabMarginSink(sink, shape, activation, cuts)
        return MarginSink(sink, shape, activation, cuts)

    def take_labels(self, labels: NDArray[Any]) -> None:
        """Take over a label map (n0, n1, n2) in network space that was made elsewhere, as if it had come in blocks."""
        own = self._sink.labels

        def copy(planes: range) -> None:
            some = slice(planes.start, planes.stop)
            own[some] = labels[some]

        with Threads(None if labels.size >= _SHARED_VOXELS else 1) as threads:
            threads.share(copy, len(labels))

    def take_grid_labels(self, labels: NDArray[Any]) -> None:
        """Take over a label map (K, J, I) on the scan's own grid that was made elsewhere."""
        self._grid_labels = labels

    def labels(self, network_input: NetworkInput) -> NDArray[Any]:
        """The label map (K, J, I) on the scan's own grid, once all blocks have come."""
        spec, output = self.spec, self.spec.output
        if self._grid_labels is not None:
            return self._grid_labels
        if not self.path.resample_scores:
            # In network space arrays lie as the tensor does; parts and holes do not depend on the axes' order.
            steps = [step for step in spec.cleaning if step.where == "network"]
            labels = cleaned(self._sink.labels, steps, 1000 * network_input.grid.voxel_ml)
            return network_input.restore(labels, nearest={"labels": True, "masks": False}.get(output.resample or ""))
        regions = self.rule.regions
        if isinstance(self._sink, ResamplingSink):
            resampled = self._sink.resampled
            return network_input.place_resampled(
                regions.painted(resampled) if regions is not None and regions.nested else resampled
            )
        scores = self._sink.scores
        self.rule.prepare(scores)
        if regions is None:
            return network_input.restore_from_scores(scores, self.values)
        return network_input.restore_regions(scores, regions)

    def probabilities(self, network_input: NetworkInput) -> NDArray[np.float32]:
        """The probability of each channel on the scan's own grid, (C, K, J, I), once all blocks have come (:meth:`ScorePath.of_all_scores`).

        What was cropped away has those of a voxel in which nothing is: 1 for the background of a softmax, 0 for all others.
        """
        output = self.spec.output

        def probable(scores: NDArray[Any]) -> None:
            if not (output.activated or self.path.by_window):
                activate(scores, output.activation)

        before = output.resample == "probabilities" or not network_input.resampled
        probabilities = network_input.restore_probabilities(
            self._sink.scores, probable if before else None, (lambda _: None) if before else probable
        )
        if self.regions is None and output.activation == "softmax":
            probabilities[0][~network_input.cropped()] = 1
        return probabilities

    def labels_of(self, probabilities: NDArray[np.float32]) -> NDArray[Any]:
        """The label map (K, J, I) of probabilities (C, K, J, I)."""
        return labels_of(self.spec, probabilities)


def blends_probabilities(spec: ModelSpec) -> bool:
    """Whether probabilities of each window by itself are blended."""
    output = spec.output
    return output.activation == "sigmoid" and output.resample is None and not output.activated


def labels_of(spec: ModelSpec, probabilities: NDArray[np.float32]) -> NDArray[Any]:
    """Return a model's label map (K, J, I) of the probabilities of its output channels (C, K, J, I): the largest, or regions painted."""
    dtype = np.uint8 if max(label.value for label in spec.labels) < 256 else np.uint16
    if spec.output.regions:
        return Regions.of(spec, dtype).paint(lambda channel: probabilities[channel])
    sink = LabelSink(probabilities.shape[1:], _label_values(spec, dtype))
    sink((0, 0, 0), probabilities)
    return sink.labels


def _how_resampled(by_scores: bool, wanted: bool, spec: ModelSpec, size: int, asked: str) -> str:
    asked = f"as {asked} {'ask' if asked == 'you' else 'asks'}"
    if by_scores and spec.output.resample == "masks":
        return f"regions' masks were resampled to the scan's grid, {asked}"
    if by_scores:
        return "class scores were resampled to the scan's grid before the largest was chosen"
    if wanted:
        return f"labels, not class scores, were resampled to the scan's grid: the scores would take {size / _GB:.1f} GB"
    way = "masks by linear interpolation" if spec.output.resample == "masks" else "nearest neighbor"
    return f"labels were resampled to the scan's grid, {asked}: {way}"


def _label_values(spec: ModelSpec, dtype: Any) -> NDArray[Any]:
    values = np.zeros(spec.output_channels, dtype)
    for label in spec.labels:
        values[label.channel] = label.value
    return values
