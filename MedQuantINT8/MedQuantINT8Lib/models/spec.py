"""``model.json``: the single description of a network, as typed Python.

The parser (:mod:`.spec_parser`) and the published ``Resources/model.schema.json`` are derived from the annotations of these classes
(:mod:`.records`). Everything about geometry is written in the order of the network's own spatial axes (``axis_order`` says what they are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from .colors import color_of
from .records import AT_LEAST_ONE
from .value_types import (
    NATIVE,
    Axis,
    Byte,
    Connectivity,
    Count,
    FileName,
    LabelValue,
    Name,
    NotNegative,
    Orientation,
    Positive,
    Probability,
    Share,
)

SCHEMA_VERSION = "1.4"
SUPPORTED_SCHEMA_VERSIONS = ("1.0", "1.1", "1.2", "1.3", "1.4")

AxisOrder = Literal["IJK", "KJI"]
Interpolation = Literal["linear", "bspline", "nearest", "nnunet", "area", "exact"]
Anchor = Literal["centers", "edges", "monai", "monai_extent", "corners"]
CropKind = Literal["none", "nonzero", "threshold"]
NormalizationKind = Literal[
    "window", "minmax", "percentile", "zscore", "nnunet_ct", "linear", "sigmoid", "tanh", "clip", "clip_percentile", "threshold", "truncate",
    "spread",
]  # fmt: skip
MaskKind = Literal["all", "nonzero", "above_mean", "nonzero_filled"]
Comparison = Literal[">", ">=", "<", "<=", "!="]
FitKind = Literal["crop", "crop_share", "pad", "pad_multiple"]
Step = Literal["crop", "reorient", "resample", "normalize", "fit"]
Activation = Literal["softmax", "sigmoid"]
Placement = Literal["monai", "nnunet"]
Resampled = Literal["logits", "probabilities", "masks", "labels"]
Decision = Literal["largest", "threshold"]
Padding = Literal["constant", "edge", "reflect", "wrap"]
CleaningKind = Literal["largest", "remove_small", "fill_holes"]


@dataclass(frozen=True)
class Channel:
    """One input channel: what the user has to give.

    one_hot: none for a scan. Else the channel is a label map of these values, such as the labels of a cascade's previous stage, and stands
        for as many channels of the network's input: each is 1 where the map has its value, and 0 elsewhere. Label maps come after
        scans; they are laid out as scans are, by nearest neighbor unless ``geometry`` says how, and are not normalized.
    """

    name: Name
    one_hot: tuple[Count, ...] = ()


@dataclass(frozen=True)
class Crop:
    """Foreground crop: a box around the voxels that are not 0, or above ``threshold``, in any channel, plus a margin.

    It is done first, on the scan's own voxels, unless the model's ``order`` says otherwise.

    margin: voxels on each side.
    comparison: of a voxel with ``threshold``, where the kind is "threshold".
    margins: voxels on each side along the tensor's axes, which stand for ``margin``; or None.
    multiples: the box is made larger up to multiples of these along the tensor's axes, first at its end (MONAI's k_divisible).
    channels: numbers of the input channels in which foreground is looked for; none means all.
    beyond: what happens where the margin leaves the volume: it is cut at the border ("cut"), or the volume is padded ("pad"). Where
        ``multiples`` do, the volume is padded in any case.
    padding, pad_value: how it is padded, as the sliding window does.
    look_at: whether foreground is looked for in the voxels as the steps before made them ("current"), or in those of the scan ("scan").
    """

    kind: CropKind = "none"
    threshold: float = 0.0
    margin: int = 0
    comparison: Comparison = ">"
    margins: tuple[int, int, int] | None = None
    multiples: tuple[Count, Count, Count] = (1, 1, 1)
    channels: tuple[int, ...] = ()
    beyond: Literal["cut", "pad"] = "cut"
    padding: Padding = "constant"
    pad_value: float = 0.0
    look_at: Literal["current", "scan"] = "current"


@dataclass(frozen=True)
class Fit:
    """A crop or padding to a size, around the middle of the volume, along the tensor's axes.

    kind: "crop" to at most ``size`` voxels; "crop_share" to ``share`` of the volume, rounded up; "pad" to at least ``size`` voxels;
        "pad_multiple" to multiples of ``size``. Half a voxel goes to the beginning when cropped, to the end when padded.
    size: None along an axis leaves it as it is.
    padding, pad_value: how it is padded, as the sliding window does.
    at_end: all of the padding comes after the volume, none before it.
    """

    kind: FitKind
    size: tuple[Count | None, Count | None, Count | None] = (None, None, None)
    share: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    padding: Padding = "constant"
    pad_value: float = 0.0
    at_end: bool = False


@dataclass(frozen=True)
class Normalization:
    """One step of intensity normalization, applied to each channel by itself unless ``over`` says otherwise.

    kind:
        ``window``: ``low``..``high`` to 0..1, clipped if ``clip``.
        ``minmax``: the volume's minimum..maximum to 0..1; ``low`` or ``high``, where given, stand for them.
        ``percentile``: the volume's percentiles ``low``..``high`` (0 to 100) to 0..1, clipped if ``clip``.
        ``zscore``: subtract the mean, divide by the standard deviation, over the voxels of ``mask``; ``mean`` or ``std``, where
        given, stand for them. A standard deviation of 0 counts as 1. With the mask "nonzero" voxels of 0 stay 0.
        ``nnunet_ct``: clip to ``low``..``high``, subtract ``mean``, divide by ``std`` (nnU-Net's scheme for CT).
        ``linear``: 0..1 to ``low``..``high``, what lies outside as well.
        ``sigmoid``: the logistic function; ``tanh``: ``high`` times tanh of the value over ``high`` (Auto3DSeg's schemes).
        ``clip``: to ``low``..``high``, of which one may be missing; ``clip_percentile``: to the volume's percentiles ``low``..``high``.
        ``threshold``: what is not above ``low`` (or, if that is missing, not below ``high``) becomes ``fill``.
        ``truncate``: the fraction is dropped, as a conversion to whole numbers does.
        ``spread``: subtract the minimum, divide by the standard deviation of a sample (Auto3DSeg's scheme for PET).
    mask:
        voxels for the statistics of ``zscore``: ``all``; ``nonzero``, those that are not 0 in the channel; ``above_mean``;
        ``nonzero_filled``, those that are not 0 in any channel, with the holes between them (nnU-Net's use_mask_for_norm).
        Voxels outside of ``nonzero`` become 0, those outside of ``nonzero_filled``, which are 0, stay so.
    channels: numbers of the input channels that the step is for; none means all.
    over: whether minimum, maximum, percentiles, mean and standard deviation are those of each channel by itself, or of all channels
        at once ("all": MONAI's channel_wise of False).
    """

    kind: NormalizationKind
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: Positive | None = None
    clip: bool = True
    mask: MaskKind = "all"
    channels: tuple[int, ...] = ()
    over: Literal["channel", "all"] = "channel"
    fill: float = 0.0

    NEEDED_BY_KIND: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "window": ("low", "high"),
        "percentile": ("low", "high"),
        "nnunet_ct": ("low", "high", "mean", "std"),
        "linear": ("low", "high"),
        "tanh": ("high",),
    }

    def problem(self) -> str | None:
        """Return what is wrong with the limits, or None."""
        low, high, kind = self.low, self.high, self.kind
        if kind in ("clip", "clip_percentile", "threshold") and low is None and high is None:
            return f"of kind {kind} needs 'low' or 'high'"
        falling = kind == "linear" and low != high
        if low is not None and high is not None and low >= high and not falling:
            return "needs 'low' below 'high'"
        if kind in ("percentile", "clip_percentile") and not ((low or 0) >= 0 and (high or 0) <= 100):
            return "needs percentiles from 0 to 100"
        return None


@dataclass(frozen=True)
class SplineResampling:
    """A spline that keeps the outer edges of the volume, as nnU-Net's plans describe it.

    order: of the spline: 0 (nearest), 1 (linear) or 3 (cubic, clipped to the range of what is resampled).
    order_z: between slices, where slices are resampled one by one: 0 or 1.
    separate_z: whether they are, across the longest side of a voxel; None leaves it to ``threshold``.
    threshold: of the longest side of a voxel over the shortest; above it slices are resampled one by one.
    """

    order: Literal[0, 1, 3] = 3
    order_z: Literal[0, 1] = 0
    separate_z: bool | None = None
    threshold: Positive = 3.0


@dataclass(frozen=True)
class Geometry:
    """How a volume is laid before the network.

    axis_order: "IJK" if the tensor is (N, C, I, J, K), as nibabel and MONAI hold images; "KJI" if it is (N, C, K, J, I),
        as SimpleITK, Slicer and nnU-Net do.
    orientation: three letters, the directions towards which I, J and K grow (RAS convention, as nibabel's axcodes), or
        "native" to take the voxels as they lie in the file (nnU-Net).
    spacing: millimeters along the tensor's axes, or None (for all, or along an axis) to keep the volume's own.
    reorient: whether the volume is turned before it is resampled, or afterwards ("last": spacing is then along the file's axes,
        and the first voxel that is kept is the file's).
    tolerance: an axis whose spacing deviates by at most this share is not resampled (Auto3DSeg: 0.25).
    size: voxels along the tensor's axes for networks that see the whole volume resized, or None (for all, or along an axis).
    interpolation: "nnunet" is a spline along each axis by outer edges, inside slices only (nearest between them) where voxels are
        more than three times as long along one axis as along the others; class scores follow the same rule on their way back.
    spline, score_spline, label_spline: for "nnunet", the splines of scans (cubic if None), of class scores (linear if None) and of label
        maps among the channels (linear if None: a voxel gets the largest of the values whose mask is at least half there).
    anchor: whether resampling keeps the center of the first voxel ("centers") or the outer edges ("edges",
        nnU-Net, TotalSegmentator). "monai" is what MONAI's Spacing does: the center of the first voxel, or, where the scan's axes are
        not exactly at right angles, the middle of the volume; "monai_extent" is the same with its scale_extent. With ``size`` or
        ``longest`` it is the edges, or, with "corners", the centers of the outermost voxels.
    tolerance_mm: stands for ``tolerance``, in millimeters (MONAI: 0.001); or None.
    min_spacing, max_spacing: an axis whose own spacing lies between these and ``spacing`` is not resampled; None along an axis, or
        for all, says nothing.
    diagonal: the axes of the new grid are R, A and S themselves, whatever the scan's are.
    outside: what lies outside of the scan when it is resampled linearly: its outermost voxels ("border"), or 0 ("zeros").
    longest: voxels along the longest axis of a volume that is resized as a whole, the others in proportion; or None.
    resize: how a volume is resized to ``size`` or ``longest``: as it is resampled, or as torch's interpolate does ("torch"), which
        knows the interpolations "area" (means of what a voxel covers) and "exact" (nearest, by centers) as well. Scores go back the
        same way.
    anti_aliasing: it is smoothed before it is resized to fewer voxels, by a Gaussian of (factor - 1) / 2 voxels (MONAI's Resize).
    """

    axis_order: AxisOrder = "IJK"
    orientation: Orientation = "RAS"
    spacing: tuple[Positive | None, Positive | None, Positive | None] | None = None
    size: tuple[Count | None, Count | None, Count | None] | None = None
    anchor: Anchor = "centers"
    interpolation: Interpolation = "linear"
    tolerance: Share = 0.001
    reorient: Literal["first", "last"] = "first"
    spline: SplineResampling | None = None
    score_spline: SplineResampling | None = None
    label_spline: SplineResampling | None = None
    tolerance_mm: NotNegative | None = None
    min_spacing: tuple[NotNegative | None, NotNegative | None, NotNegative | None] | None = None
    max_spacing: tuple[NotNegative | None, NotNegative | None, NotNegative | None] | None = None
    diagonal: bool = False
    outside: Literal["border", "zeros"] = "border"
    longest: Count | None = None
    resize: Literal["resample", "torch"] = "resample"
    anti_aliasing: bool = False

    @property
    def resampled(self) -> bool:
        """Whether there is a spacing or size to go to."""
        return self.spacing is not None or self.size is not None or self.longest is not None


@dataclass(frozen=True)
class Window:
    """The sliding window.

    patch_size: voxels along the tensor's axes.
    multiples: the patch may grow to any multiple of these (for whole-volume mode).
    whole_volume: run the volume in one piece, padded up to ``multiples``, if the network's graph is dynamic.
    placement: "monai" (fixed steps, last window moved in) or "nnunet" (steps spread evenly).
    pad_value: what stands outside a volume that is smaller than the patch, after normalization.
    padding: how such a volume is filled up to the patch: with ``pad_value`` ("constant"), by its outermost voxels ("edge"), by its
        mirror image without the border itself ("reflect"), or by itself again ("wrap").
    overlaps: an overlap for each axis of the tensor, which stands for ``overlap``; or None.
    sigma: the standard deviation of the Gaussian along each axis, as a share of the patch.
    air_threshold: windows whose normalized values all lie at or below it can be skipped; None forbids skipping.
    """

    patch_size: tuple[Count, Count, Count]
    multiples: tuple[Count, Count, Count] = (1, 1, 1)
    overlap: Share = 0.5
    whole_volume: bool = False
    blend: Literal["gaussian", "constant"] = "gaussian"
    placement: Placement = "monai"
    pad_value: float = 0.0
    air_threshold: float | None = None
    padding: Padding = "constant"
    overlaps: tuple[Share, Share, Share] | None = None
    sigma: tuple[Positive, Positive, Positive] = (0.125, 0.125, 0.125)


@dataclass(frozen=True)
class Mirroring:
    """Averaging over mirrored windows: a window is also run reversed along axes, and the scores, turned back, are averaged.

    axes: of the tensor, along which a window may be reversed; with n of them a window is run 2 to the power of n times. None: it must
        not be (the network knows left from right, say).
    on: whether it is done where the user does not say.
    """

    axes: tuple[Axis, ...] = ()
    on: bool = False


@dataclass(frozen=True)
class Output:
    """What the network's output channels mean.

    softmax: channel c is the label with ``channel`` c; the largest wins. sigmoid: each channel is a region of its own,
    painted in the order of the labels where its probability is above ``threshold``; regions may overlap.
    activated: the graph already ends in the activation (its output is probabilities, not logits).
    resample: what is brought from network space to the scan's grid, where the two differ: "logits", the network's scores as they are
        blended (nnU-Net); "probabilities", after the activation; "masks", each structure's mask by linear interpolation, the largest
        winning; "labels", the label map by nearest neighbor (MONAI's bundles do any of the last three). With any of them windows are
        blended as the network gives them. None: logits for softmax; for sigmoid probabilities, each window's by itself.
    decision: "largest": the label of the largest score wins, channel 0 being background; "threshold": regions as above. None:
        "largest" for softmax, "threshold" for sigmoid.
    thresholds: one for each output channel, which stand for ``threshold``.
    inclusive: a probability that equals its threshold lies in the region (MONAI), or does not (nnU-Net).
    paint: in which order regions are painted: "order", that of the labels; "nested", the same, but a region that lies with its larger
        part inside a larger one is painted after it, so that it does not vanish.
    """

    activation: Activation = "softmax"
    activated: bool = False
    threshold: Probability = 0.5
    resample: Resampled | None = None
    decision: Decision | None = None
    thresholds: tuple[Probability, ...] = ()
    inclusive: bool = False
    paint: Literal["order", "nested"] = "order"

    @property
    def regions(self) -> bool:
        """Whether each channel is a region of its own."""
        return (self.decision or ("threshold" if self.activation == "sigmoid" else "largest")) == "threshold"


@dataclass(frozen=True)
class Cleaning:
    """What is done with the label map at its end.

    kind: "largest" keeps of each structure its ``count`` largest parts; "remove_small" removes parts of fewer than ``size`` voxels, or
        of less than ``volume``; "fill_holes" gives a structure what it encloses on all sides, whatever stood there.
    labels: values of the structures; none means all.
    connectivity: how voxels of one part (for holes: of what is around them) touch: by faces (1), by faces and edges (2), or by faces,
        edges and corners (3).
    together: the structures are one when parts are looked for ("largest" and "remove_small").
    where: on the grid of the scan, or in network space before labels or masks are resampled.
    volume: cubic millimeters, which stand for ``size``; or None.
    equal: of parts that are equally large, "largest" keeps the first ones up to ``count``, or (nnU-Net) all.
    whole: "remove_small" compares a structure with all its parts, not part by part, unless the map holds no value above 1 (MONAI's
        RemoveSmallObjects of a label map).
    """

    kind: CleaningKind = "largest"
    labels: tuple[Count, ...] = ()
    count: Count = 1
    size: int = 0
    connectivity: Connectivity = 3
    together: bool = False
    where: Literal["scan", "network"] = "scan"
    volume: NotNegative | None = None
    equal: Literal["first", "all"] = "first"
    whole: bool = False

    def problem(self) -> str | None:
        """Return which fields do not go together, or None."""
        if self.whole and (self.kind != "remove_small" or self.together):
            return "may have 'whole' only where the kind is remove_small and 'together' is false"
        if self.volume is not None and self.kind != "remove_small":
            return "may have 'volume' only where the kind is remove_small"
        return None

    def in_words(self, names: Mapping[int, str]) -> str:
        """Return what the step does, with the names of the labels by their values."""
        joined = " + ".join if self.together else ", ".join
        of = joined(names.get(value, str(value)) for value in self.labels) or (
            "all structures together" if self.together else "each structure"
        )
        touching = {1: "faces", 2: "faces and edges", 3: "faces, edges and corners"}[self.connectivity]
        least = f"{self.size} voxels" if self.volume is None else f"{self.volume:g} mm3"
        what = {
            "largest": "keeps the largest part of" if self.count == 1 else f"keeps the {self.count} largest parts of",
            "remove_small": f"removes {'what is' if self.whole else 'parts'} below {least} of",
            "fill_holes": "fills holes of",
        }[self.kind]
        space = " in network space" if self.where == "network" else ""
        return f"{what} {of} (voxels touch by {touching}){space}"


@dataclass(frozen=True)
class Code:
    """A coded term: scheme (SCT for SNOMED CT), code value, meaning."""

    scheme: Name
    value: Name
    meaning: Name


@dataclass(frozen=True)
class Terminology:
    """DICOM segment description: category and type, with an optional modifier (such as Left)."""

    category: Code
    type: Code
    modifier: Code | None = None


@dataclass(frozen=True)
class Label:
    """One structure. ``value`` stands in the label map, ``channel`` is the network's output channel."""

    value: LabelValue
    name: Name
    channel: int
    color: tuple[Byte, Byte, Byte] = (128, 174, 128)
    terminology: Terminology | None = None

    @classmethod
    def left_out(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the color of the label's value, for a description that gives none, so that structures can be told apart."""
        return {"color": color_of(given["value"])}


@dataclass(frozen=True)
class ModelSpec:
    """The whole of model.json, without the file hashes.

    order: the steps of preprocessing in their order, where it is not the usual one (:func:`usual_order`): "crop", "reorient",
        "resample", once each where the model has them; "normalize" once for each step of ``normalization`` and "fit" once for each of
        ``fits``, which are taken in turn.
    """

    name: FileName
    version: Name
    modality: Name
    channels: Annotated[tuple[Channel, ...], AT_LEAST_ONE]
    geometry: Geometry
    normalization: tuple[Normalization, ...]
    window: Window
    output: Output
    labels: Annotated[tuple[Label, ...], AT_LEAST_ONE]
    license: Name
    citation: str = ""
    source_url: str = ""
    title: str = ""
    description: str = ""
    crop: Crop = field(default_factory=Crop)
    normalize_in: Literal["network", "input"] = "network"
    cleaning: tuple[Cleaning, ...] = ()
    order: tuple[Step, ...] = ()
    fits: tuple[Fit, ...] = ()
    mirroring: Mirroring = field(default_factory=Mirroring)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of preprocessing in their order."""
        return self.order or usual_order(self.geometry, self.crop, self.normalization, self.normalize_in)

    @property
    def scans(self) -> int:
        """How many of the channels are scans; label maps come after them."""
        return sum(not channel.one_hot for channel in self.channels)

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: one for a scan, as many as values for a label map."""
        return sum(len(channel.one_hot) or 1 for channel in self.channels)

    @property
    def output_channels(self) -> int:
        """Channels of the network's output: background included for softmax, one a region for sigmoid."""
        return max(label.channel for label in self.labels) + 1

    def to_json(self) -> dict[str, Any]:
        """Return the dictionary that model.json holds (without ``files``)."""
        value = {"schema": "medquant-model", "schema_version": SCHEMA_VERSION, **asdict(self)}
        return as_lists(value)


def usual_order(
    geometry: Geometry, crop: Crop, normalization: Sequence[Normalization], normalize_in: str
) -> tuple[Step, ...]:
    """Return the order of a model that does not say one: crop, reorientation, normalization (of the input), resampling, normalization (in
    network space); with ``reorient`` "last" reorientation comes after resampling."""
    turn: list[Step] = [] if geometry.orientation == NATIVE else ["reorient"]
    resample: list[Step] = ["resample"] if geometry.resampled else []
    space: list[Step] = turn + resample if geometry.reorient == "first" else resample + turn
    normalize: list[Step] = ["normalize"] * len(normalization)
    place = len(space) if normalize_in == "network" else len(turn) if geometry.reorient == "first" else 0
    cut: list[Step] = [] if crop.kind == "none" else ["crop"]
    return tuple(cut + space[:place] + normalize + space[place:])


def as_lists(value: Any) -> Any:
    """Return nested dictionaries and tuples with lists in place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
