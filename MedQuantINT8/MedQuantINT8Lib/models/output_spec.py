"""From the network's scores to a label map: decision, cleaning and structures, as ``model.json`` states them (:mod:`.spec`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .colors import color_of
from .value_types import Byte, Connectivity, Count, LabelValue, Name, NotNegative, Probability

Activation = Literal["softmax", "sigmoid"]
Resampled = Literal["logits", "probabilities", "masks", "labels"]
Decision = Literal["largest", "threshold"]
CleaningKind = Literal["largest", "remove_small", "fill_holes"]


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
