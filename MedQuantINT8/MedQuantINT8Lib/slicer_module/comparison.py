"""FP32 beside INT8, for a reader: what was measured, the regions where they differ, and a page to keep."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from ..evaluation.boundary import REGION_COLUMNS, region_labels, region_rows, regions_csv
from ..evaluation.reports.boundary_page import boundary_page, gains, verdict
from ..evaluation.reports.viewer import ViewerScan, viewer_module
from ..evaluation.viewing import viewer_pair
from ..files import write_json, write_text
from ..models.spec import ModelSpec
from ..models.task import TaskSpec
from . import scene


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        arrays: the label maps of FP32 and INT8, and the numbered regions where they differ; (K, J, I) each.
        report: as :func:`..worker.tasks.compare` says it.
    """

    volumeNode: Any
    spec: ModelSpec | TaskSpec
    arrays: tuple[NDArray[Any], ...]
    report: dict[str, Any]

    @property
    def meanDice(self) -> float | None:
        return self.report["mean_dice"]

    @property
    def structures(self) -> list[dict[str, Any]]:
        """Dice and milliliters of each: ``name``, ``dice``, ``ml`` (INT8), ``other_ml`` (FP32)."""
        return list(self.report["structures"])

    @property
    def regions(self) -> list[dict[str, Any]]:
        """The regions that differ, largest first: ``ml``, ``center_ras``, ``first`` (FP32), ``second`` (INT8)."""
        return list(self.report["differences"]["regions"])

    def rows(self) -> list[tuple[str, str, str]]:
        """The rows of the table of what INT8 gains and loses: quantity, FP32, INT8; in words."""
        return gains(self.report)

    @property
    def verdict(self) -> str:
        """Which structures change their volume by more than was allowed, in a sentence."""
        return verdict(self.report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as a page (``.html``), as JSON, or its regions as a table (``.csv``)."""
        if str(path).lower().endswith(".json"):
            write_json(path, self.report)
        elif str(path).lower().endswith(".csv"):
            write_text(path, regions_csv(self.regions))
        else:
            title = f"{self.spec.title or self.spec.name}: FP32 beside INT8 on {self.volumeNode.GetName()}"
            write_text(path, boundary_page(title, self.report, self._viewed()))

    def _viewed(self) -> ViewerScan | None:
        """What the page's viewer shows; None where no viewer is installed."""
        if not viewer_module():
            return None
        volume = replace(scene.volume_from_node(self.volumeNode), name=self.volumeNode.GetName())
        return viewer_pair(volume, self.arrays[0], self.arrays[1], self.spec.labels)


def add_differences(comparison: Comparison) -> Any | None:
    """A segmentation node with the largest regions as segments of their own, and the rest as one; None if none differ."""
    if not comparison.regions:
        return None
    numbers, labels = region_labels(comparison.report["differences"], comparison.arrays[2])
    name = f"{comparison.volumeNode.GetName()}: INT8 differs from FP32"
    return scene.add_segmentation(numbers, labels, comparison.volumeNode, name=name)


def add_table(comparison: Comparison) -> Any:
    """A table node with a row for each region."""
    return scene.add_table(
        REGION_COLUMNS,
        region_rows(comparison.regions),
        comparison.volumeNode,
        name=f"{comparison.volumeNode.GetName()}: regions that differ",
    )
