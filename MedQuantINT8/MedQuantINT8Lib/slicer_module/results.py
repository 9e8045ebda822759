"""What a segmentation brought: the structures with their volume and place, and what its reader should know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.spec import Label


@dataclass(frozen=True)
class StructureResult:
    """A structure that was segmented.

    Attributes:
        name, color: as the segment has them; the color from 0 to 255.
        segmentID: of its segment in the segmentation node.
        ml: its volume in milliliters, by its voxels.
    """

    name: str
    segmentID: str
    ml: float
    color: tuple[int, int, int]


@dataclass(frozen=True)
class RunResult:
    """What a run brought.

    Attributes:
        segmentationNode: where the segments are.
        structures: largest first.
        missing: names of the structures that were looked for, and of which there is nothing in the scan.
        warnings: what its reader should know, in words.
    """

    segmentationNode: Any
    structures: tuple[StructureResult, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]

    def center(self, segmentID: str) -> list[float] | None:
        """The middle of a segment in world coordinates (RAS, millimeters); None once it is gone."""
        node = self.segmentationNode
        if node.GetScene() is None or node.GetSegmentation().GetSegment(segmentID) is None:
            return None
        center = node.GetSegmentCenterRAS(segmentID)
        return None if center is None else [float(value) for value in center]


def segment_ids(segmentationNode: Any) -> list[str]:
    """The identifiers of a node's segments, in their order; none for None."""
    if segmentationNode is None:
        return []
    segmentation = segmentationNode.GetSegmentation()
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def run_result(
    segmentationNode: Any, labels: tuple[Label, ...], voxels: dict[int, int], voxel_ml: float, warnings: list[str]
) -> RunResult:
    """Put the result of a run together, right after its segments were added to the node as its last ones.

    Args:
        labels: the structures that were looked for, in the order in which their segments were added.
        voxels: how many voxels each value has.
        voxel_ml: milliliters of a voxel.
    """
    present = [label for label in labels if voxels.get(label.value)]
    ids = segment_ids(segmentationNode)[-len(present) :] if present else []
    segmentation = segmentationNode.GetSegmentation()
    structures = [
        StructureResult(
            segmentation.GetSegment(identifier).GetName(), identifier, voxels[label.value] * voxel_ml, label.color
        )
        for identifier, label in zip(ids, present, strict=True)
    ]
    return RunResult(
        segmentationNode,
        tuple(sorted(structures, key=lambda structure: -structure.ml)),
        tuple(label.name for label in labels if not voxels.get(label.value)),
        tuple(warnings),
    )


def voxel_ml(volumeNode: Any) -> float:
    """Milliliters of a volume node's voxel."""
    return float(np.prod(volumeNode.GetSpacing())) / 1000
