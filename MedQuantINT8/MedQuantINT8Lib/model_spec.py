"""``model.json``: the single description of a network, as typed, validated Python.

The published form is ``Resources/model.schema.json``; the tests hold this module and that schema to the same answers.
Everything about geometry is written in the order of the network's own spatial axes (``axis_order`` says what they are).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = "1.3"

#: The orientation that takes voxels as they lie in the file.
NATIVE = "native"
AxisOrder = Literal["IJK", "KJI"]
Interpolation = Literal["linear", "bspline", "nearest", "nnunet"]
Anchor = Literal["centers", "edges"]
CropKind = Literal["none", "nonzero", "threshold"]
NormalizationKind = Literal["window", "minmax", "percentile", "zscore", "nnunet_ct", "linear", "sigmoid", "tanh"]
MaskKind = Literal["all", "nonzero", "above_mean", "nonzero_filled"]
Activation = Literal["softmax", "sigmoid"]
Placement = Literal["monai", "nnunet"]
Resampled = Literal["logits", "probabilities", "masks", "labels"]
Decision = Literal["largest", "threshold"]
Padding = Literal["constant", "edge", "reflect", "wrap"]
CleaningKind = Literal["largest", "remove_small", "fill_holes"]


@dataclass(frozen=True)
class Channel:
    """One input channel: what the user has to give."""

    name: str


@dataclass(frozen=True)
class Crop:
    """Foreground crop before resampling: a box around voxels that are not 0, or above ``threshold``, plus ``margin``
    voxels on each side, cut at the border of the volume."""

    kind: CropKind = "none"
    threshold: float = 0.0
    margin: int = 0


@dataclass(frozen=True)
class Normalization:
    """One step of intensity normalisation, applied to each channel by itself.

    kind:
        ``window``: ``low``..``high`` to 0..1, clipped if ``clip``.
        ``minmax``: the volume's minimum..maximum to 0..1; ``low`` or ``high``, where given, stand for them.
        ``percentile``: the volume's percentiles ``low``..``high`` (0 to 100) to 0..1, clipped if ``clip``.
        ``zscore``: subtract the mean, divide by the standard deviation, over the voxels of ``mask``.
        ``nnunet_ct``: clip to ``low``..``high``, subtract ``mean``, divide by ``std`` (nnU-Net's scheme for CT).
        ``linear``: 0..1 to ``low``..``high``, what lies outside as well.
        ``sigmoid``: the logistic function; ``tanh``: ``high`` times tanh of the value over ``high`` (Auto3DSeg's schemes).
    mask:
        voxels for the statistics of ``zscore``: ``all``; ``nonzero``, those that are not 0 in the channel; ``above_mean``;
        ``nonzero_filled``, those that are not 0 in any channel, with the holes between them (nnU-Net's use_mask_for_norm).
        Voxels outside of ``nonzero`` become 0, those outside of ``nonzero_filled``, which are 0, stay so.
    channels: numbers of the input channels that the step is for; none means all.
    """

    kind: NormalizationKind
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None
    clip: bool = True
    mask: MaskKind = "all"
    channels: tuple[int, ...] = ()


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
    threshold: float = 3.0


@dataclass(frozen=True)
class Geometry:
    """How a volume is laid before the network.

    axis_order: "IJK" if the tensor is (N, C, I, J, K), as nibabel and MONAI hold images; "KJI" if it is (N, C, K, J, I),
        as SimpleITK, Slicer and nnU-Net do.
    orientation: three letters, the directions towards which I, J and K grow (RAS convention, as nibabel's axcodes), or
        "native" to take the voxels as they lie in the file (nnU-Net).
    spacing: millimetres along the tensor's axes, or None to keep the volume's own.
    reorient: whether the volume is turned before it is resampled, or afterwards ("last": spacing is then along the file's axes,
        and the first voxel that is kept is the file's).
    tolerance: an axis whose spacing deviates by at most this share is not resampled (Auto3DSeg: 0.25).
    size: voxels along the tensor's axes for networks that see the whole volume resized, or None.
    interpolation: "nnunet" is a spline along each axis by outer edges, inside slices only (nearest between them) where voxels are
        more than three times as long along one axis as along the others; class scores follow the same rule on their way back.
    spline, score_spline: for "nnunet", the splines of scans (cubic if None) and of class scores (linear if None).
    anchor: whether resampling keeps the centre of the first voxel ("centers", MONAI) or the outer edges ("edges",
        nnU-Net, TotalSegmentator). With ``size`` it is always the edges.
    """

    axis_order: AxisOrder = "IJK"
    orientation: str = "RAS"
    spacing: tuple[float, float, float] | None = None
    size: tuple[int, int, int] | None = None
    anchor: Anchor = "centers"
    interpolation: Interpolation = "linear"
    tolerance: float = 0.001
    reorient: Literal["first", "last"] = "first"
    spline: SplineResampling | None = None
    score_spline: SplineResampling | None = None


@dataclass(frozen=True)
class Window:
    """The sliding window.

    patch_size: voxels along the tensor's axes.
    multiples: the patch may grow to any multiple of these (for whole-volume mode).
    whole_volume: run the volume in one piece, padded up to ``multiples``, if the network's graph is dynamic.
    placement: "monai" (fixed steps, last window moved in) or "nnunet" (steps spread evenly).
    pad_value: what stands outside a volume that is smaller than the patch, after normalisation.
    padding: how such a volume is filled up to the patch: with ``pad_value`` ("constant"), by its outermost voxels ("edge"), by its
        mirror image without the border itself ("reflect"), or by itself again ("wrap").
    overlaps: an overlap for each axis of the tensor, which stands for ``overlap``; or None.
    sigma: the standard deviation of the Gaussian along each axis, as a share of the patch.
    air_threshold: windows whose normalised values all lie at or below it can be skipped; None forbids skipping.
    """

    patch_size: tuple[int, int, int]
    multiples: tuple[int, int, int] = (1, 1, 1)
    overlap: float = 0.5
    whole_volume: bool = False
    blend: Literal["gaussian", "constant"] = "gaussian"
    placement: Placement = "monai"
    pad_value: float = 0.0
    air_threshold: float | None = None
    padding: Padding = "constant"
    overlaps: tuple[float, float, float] | None = None
    sigma: tuple[float, float, float] = (0.125, 0.125, 0.125)


@dataclass(frozen=True)
class Output:
    """What the network's output channels mean.

    softmax: channel c is the label with ``channel`` c; the largest wins. sigmoid: each channel is a region of its own,
    painted in the order of the labels where its probability is above ``threshold``; regions may overlap.
    activated: the graph already ends in the activation (its output is probabilities, not logits).
    resample: what is brought from network space to the scan's grid, where the two differ: "logits", the network's scores as they are
        blended (nnU-Net); "probabilities", after the activation; "masks", each structure's mask by linear interpolation, the largest
        winning; "labels", the label map by nearest neighbour (MONAI's bundles do any of the last three). With any of them windows are
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
    threshold: float = 0.5
    resample: Resampled | None = None
    decision: Decision | None = None
    thresholds: tuple[float, ...] = ()
    inclusive: bool = False
    paint: Literal["order", "nested"] = "order"

    @property
    def regions(self) -> bool:
        """Whether each channel is a region of its own."""
        return (self.decision or ("threshold" if self.activation == "sigmoid" else "largest")) == "threshold"


@dataclass(frozen=True)
class Cleaning:
    """What is done with the label map at its end.

    kind: "largest" keeps of each structure its ``count`` largest parts; "remove_small" removes parts of fewer than ``size`` voxels;
        "fill_holes" gives a structure what it encloses on all sides, whatever stood there.
    labels: values of the structures; none means all.
    connectivity: how voxels of one part (for holes: of what is around them) touch: by faces (1), or by faces, edges and corners (3).
    together: the structures are one when parts are looked for ("largest" and "remove_small").
    where: on the grid of the scan, or in network space before labels or masks are resampled.
    """

    kind: CleaningKind = "largest"
    labels: tuple[int, ...] = ()
    count: int = 1
    size: int = 0
    connectivity: int = 3
    together: bool = False
    where: Literal["scan", "network"] = "scan"


@dataclass(frozen=True)
class Code:
    """A coded term: scheme (SCT for SNOMED CT), code value, meaning."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Terminology:
    """DICOM segment description: category and type, with an optional modifier (such as Left)."""

    category: Code
    type: Code
    modifier: Code | None = None


@dataclass(frozen=True)
class Label:
    """One structure. ``value`` stands in the label map, ``channel`` is the network's output channel."""

    value: int
    name: str
    channel: int
    color: tuple[int, int, int] = (128, 174, 128)
    terminology: Terminology | None = None


@dataclass(frozen=True)
class ModelSpec:
    """The whole of model.json, without the file hashes."""

    name: str
    version: str
    modality: str
    channels: tuple[Channel, ...]
    geometry: Geometry
    normalization: tuple[Normalization, ...]
    window: Window
    output: Output
    labels: tuple[Label, ...]
    license: str
    citation: str = ""
    source_url: str = ""
    title: str = ""
    description: str = ""
    crop: Crop = field(default_factory=Crop)
    normalize_in: Literal["network", "input"] = "network"
    cleaning: tuple[Cleaning, ...] = ()

    @property
    def output_channels(self) -> int:
        """Channels of the network's output: background included for softmax, one a region for sigmoid."""
        return max(label.channel for label in self.labels) + 1

    def to_json(self) -> dict[str, Any]:
        """The dictionary that model.json holds (without ``files``)."""
        value = {"schema": "medquant-model", "schema_version": SCHEMA_VERSION, **asdict(self)}
        return _listed(value)



def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
