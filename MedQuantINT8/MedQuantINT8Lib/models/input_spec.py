"""From a scan to what the network takes: the steps of preprocessing, as ``model.json`` states them (:mod:`.spec`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from .value_types import NATIVE, Count, Name, NotNegative, Orientation, Positive, Share

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
Padding = Literal["constant", "edge", "reflect", "wrap"]


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
    anchor: whether resampling keeps the center of the first voxel ("centers"), the outer edges ("edges", nnU-Net), or the centers of the
        outermost voxels ("corners", SciPy's zoom and TotalSegmentator: as many voxels as the spacing asks for, rounded). "monai" is what MONAI's Spacing does: the center of the first voxel, or, where the scan's axes are
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
