"""``model.json``: the single description of a network, as typed Python.

The parser (:mod:`.spec_parser`) and the published ``Resources/model.schema.json`` are derived from the annotations of these classes
(:mod:`.records`). Everything about geometry is written in the order of the network's own spatial axes (``axis_order`` says what they are).
What comes before the network is in :mod:`.input_spec`, what comes after it in :mod:`.output_spec`; all of it is imported from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from .input_spec import (
    Channel,
    Crop,
    Fit,
    Geometry,
    Normalization,
    Padding,
    SplineResampling,
    Step,
    usual_order,
)
from .output_spec import Cleaning, Code, Label, Output, Terminology
from .record_files import FileForm, record_json
from .records import AT_LEAST_ONE
from .value_types import NATIVE, Axis, Count, FileName, Name, Positive, Share

__all__ = [
    "MODEL_FORM",
    "NATIVE",
    "Channel",
    "Cleaning",
    "Code",
    "Crop",
    "Fit",
    "Geometry",
    "Label",
    "Mirroring",
    "ModelSpec",
    "Normalization",
    "Output",
    "Padding",
    "SplineResampling",
    "Step",
    "Terminology",
    "Window",
    "usual_order",
]

MODEL_FORM = FileForm(
    "medquant-model",
    ("1.0", "1.1", "1.2", "1.3", "1.4"),
    hint="Correct the package's model.json.",
    update_hint="Update MedQuantINT8, or export the package for this version.",
)

Placement = Literal["monai", "nnunet"]


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
        return record_json(self, MODEL_FORM)
