"""FP32 beside INT8, for a reader: what was measured, the regions where they differ, and a page to keep."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import mrml
from .files import write_json, write_text
from .model_spec import Label, ModelSpec
from .pages import document, escaped, table

#: Regions that get a segment of their own; the others share one.
SHOWN_REGIONS = 30


@dataclass(frozen=True)
class Comparison:
    """What comparing gave.

    Attributes:
        arrays: the label maps of FP32 and INT8, and the numbered regions where they differ; (K, J, I) each.
        report: as :func:`.worker_tasks.compare` says it.
    """

    volumeNode: Any
    spec: ModelSpec
    arrays: tuple[NDArray[Any], ...]
    report: dict[str, Any]

    @property
    def meanDice(self) -> float | None:
        return self.report["mean_dice"]

    @property
    def structures(self) -> list[dict[str, Any]]:
        """Dice and millilitres of each: ``name``, ``dice``, ``ml`` (INT8), ``other_ml`` (FP32)."""
        return list(self.report["structures"])

    @property
    def regions(self) -> list[dict[str, Any]]:
        """The regions that differ, largest first: ``ml``, ``center_ras``, ``first`` (FP32), ``second`` (INT8)."""
        return list(self.report["differences"]["regions"])

    def rows(self) -> list[tuple[str, str, str]]:
        """What is gained and lost: what, FP32, INT8; in words."""
        files, first, second = self.report["model"]["file_bytes"], *(self.report["runs"][p] for p in ("fp32", "int8"))

        def row(what: str, text: Callable[[dict[str, Any]], str]) -> tuple[str, str, str]:
            return what, text(first), text(second)

        return [
            ("network file, MB", f"{files['fp32'] / 1e6:.1f}", f"{files['int8'] / 1e6:.1f}"),
            row("engine, MB", lambda run: f"{run['engine']['bytes'] / 1e6:.1f}"),
            row("time, s", lambda run: f"{run['seconds']['total']:.1f}"),
            row("in the network, s", lambda run: f"{run['seconds'].get('network', 0.0):.1f}"),
            row("memory, GB", lambda run: f"{run['peak_memory_bytes'] / 1e9:.2f}" if run["peak_memory_bytes"] else "–"),
            row("work in INT8", lambda run: f"{100 * run['engine']['description']['int8_mac_share']:.0f} %"),
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as a page (``.html``) or as JSON."""
        if str(path).lower().endswith(".json"):
            write_json(path, self.report)
        else:
            write_text(path, _page(self))


def region_title(region: dict[str, Any]) -> str:
    return f"{region['ml']:.3f} ml, {region['first']} in FP32, {region['second']} in INT8"


def add_differences(comparison: Comparison) -> Any | None:
    """A segmentation node with the largest regions as segments of their own, and the rest as one; None if none differ."""
    numbers = comparison.arrays[2]
    regions = comparison.regions[:SHOWN_REGIONS]
    if not regions:
        return None
    labels = [Label(r["number"], region_title(r), r["number"], _color(n)) for n, r in enumerate(regions)]
    rest = comparison.report["differences"]["region_count"] - len(regions)
    if rest > 0:
        # Numbers beyond the last shown one stand for smaller and smaller regions: they become one.
        numbers = np.minimum(numbers, len(regions) + 1)
        labels.append(Label(len(regions) + 1, f"{rest} smaller regions", len(regions) + 1, (200, 200, 120)))
    name = f"{comparison.volumeNode.GetName()}: INT8 differs from FP32"
    return mrml.add_segmentation(numbers, labels, comparison.volumeNode, name=name)


def _color(rank: int) -> tuple[int, int, int]:
    """From red for the largest to yellow."""
    return 230, 40 + min(180, 8 * rank), 50


def _page(comparison: Comparison) -> str:
    found = comparison.report["differences"]
    share = "" if found["boundary_share"] is None else f", {100 * found['boundary_share']:.1f} % of them within one voxel of a boundary"
    dice = "–" if comparison.meanDice is None else f"{comparison.meanDice:.4f}"
    title = f"{comparison.spec.title or comparison.spec.name}: FP32 beside INT8 on {comparison.volumeNode.GetName()}"
    structures = [
        [escaped(s["name"]), "–" if s["dice"] is None else f"{s['dice']:.4f}", f"{s['other_ml']:.2f}", f"{s['ml']:.2f}", f"{s['ml'] - s['other_ml']:+.2f}"]
        for s in comparison.structures
    ]
    regions = [
        [f"{r['ml']:.3f}", escaped(r["first"]), escaped(r["second"]), ", ".join(f"{c:.1f}" for c in r["center_ras"]), str(r["depth_voxels"])]
        for r in comparison.regions[:SHOWN_REGIONS]
    ]
    return document(
        title,
        f"<h1>{escaped(title)}</h1><p>Mean Dice between the two: <b>{dice}</b>. {found['voxels']} voxels differ ({found['ml']:.2f} ml){share}.</p>"
        + table(["", "FP32", "INT8"], [list(row) for row in comparison.rows()])
        + "<h2>Structures</h2>"
        + table(["Structure", "Dice", "FP32, ml", "INT8, ml", "change, ml"], structures)
        + f"<h2>Where they differ</h2><p>The largest of {found['region_count']} regions.</p>"
        + table(["ml", "FP32", "INT8", "at (R, A, S) mm", "deepest voxel from a boundary, voxels"], regions, 4),
    )
