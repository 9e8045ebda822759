"""The boundary report: what a radiologist needs to accept or refuse an INT8 network on a scan.

FP32 beside INT8: which structures change their volume, in which regions the two differ, how far from a boundary those lie, and how
sure the FP32 network was there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..imaging.volume import Volume
from ..inference import pipeline
from ..inference.engine_choice import EngineChoice
from ..inference.engine_pool import EnginePool
from ..inference.region_run import chosen_labels
from ..inference.segmenter import SegmentationOptions
from ..inference.task_model import LoadedModel, description_of, file_bytes
from ..models.spec import Label
from ..progress import Task
from ..system import peak_memory, reset_peak_memory
from .agreement import StructureAgreement, agreement, mean_dice
from .differences import Differences, find_differences
from .reports.viewer import ViewerScan, viewer_module
from .viewing import viewer_pair

#: A structure whose volume changes by more than this share of it is pointed out, in percent.
VOLUME_CHANGE = 5.0
#: Regions that are named one by one in a segmentation and on a page; the others share one.
SHOWN_REGIONS = 30
REGION_COLUMNS = (
    "ml",
    "voxels",
    "FP32",
    "INT8",
    "R mm",
    "A mm",
    "S mm",
    "deepest voxel from a boundary",
    "share at a boundary",
    "mean margin",
)


@dataclass(frozen=True)
class Examination:
    """FP32 beside INT8 on one volume.

    Attributes:
        fp32, int8: label maps (K, J, I).
        differences: the regions where they differ, and the map of these.
        report: all of it that is JSON; "structures" hold ``change_percent`` and ``pointed_out``.
    """

    fp32: NDArray[Any]
    int8: NDArray[Any]
    differences: Differences
    report: dict[str, Any]

    def viewed(self, volume: Volume, labels: Sequence[Label]) -> ViewerScan | None:
        """Return what the viewer of a page shows of it; None where no viewer is installed."""
        return (
            viewer_pair(volume, self.fp32, self.int8, labels, differences=self.differences) if viewer_module() else None
        )


def examine(
    model: LoadedModel,
    volume: Volume,
    choice: EngineChoice,
    options: SegmentationOptions,
    task: Task,
    pool: EnginePool | None = None,
    change: float = VOLUME_CHANGE,
) -> Examination:
    """Segment a volume in FP32 and INT8, and look at what is different.

    Args:
        pool: keeps engines that are loaded; it is cleared before each run, so that each is measured as it runs in daily use.
        change: in percent, from which on a structure's change of volume is pointed out.
    """
    description = description_of(model)
    labels = chosen_labels(description.labels, options.structures, description.name)
    maps: dict[str, NDArray[Any]] = {}
    reports: dict[str, Any] = {}
    margins = None
    for precision in ("fp32", "int8"):
        if pool is not None:
            pool.clear()
        measured = reset_peak_memory()
        task.part = f"{precision.upper()}: "
        wanted = replace(options, margins=precision == "fp32")
        run = pipeline.segment(model, volume, choice.beside(precision), wanted, task, pool=pool)
        maps[precision] = run.result.labels
        margins = run.result.margins if run.result.margins is not None else margins
        # Margins are for this report alone: no run in daily use spends time on them.
        run.seconds["total"] -= run.seconds.pop("margins", 0.0)
        reports[precision] = {**run.to_json(), "peak_memory_bytes": peak_memory() if measured else None}
    task.part = ""
    with task.stage("looking for differences"):
        differences = find_differences(maps["fp32"], maps["int8"], labels, volume.grid, margins)
        rows = agreement(maps["int8"], maps["fp32"], labels, volume.grid.voxel_ml)
    structures = [structure_json(row, change) for row in rows]
    report = {
        "runs": reports,
        "model": {"file_bytes": {p: file_bytes(model, p) for p in ("fp32", "int8")}},
        "mean_dice": mean_dice(rows),
        "structures": structures,
        "volume_change_percent": change,
        "pointed_out": [s["name"] for s in structures if s["pointed_out"]],
        "differences": differences.to_json(),
    }
    return Examination(maps["fp32"], maps["int8"], differences, report)


def structure_json(row: StructureAgreement, change: float) -> dict[str, Any]:
    """Return a structure with its change of volume from FP32 (``other_ml``) to INT8 (``ml``); None where FP32 has none of it."""
    percent = 100 * (row.ml - row.other_ml) / row.other_ml if row.other_ml else None
    new = percent is None and row.ml > 0
    return {
        **row.to_json(),
        "change_percent": percent,
        "pointed_out": new or (percent is not None and abs(percent) > change),
    }


def region_title(region: dict[str, Any]) -> str:
    return f"{region['ml']:.3f} ml, {region['first']} in FP32, {region['second']} in INT8"


def region_labels(differences: Differences | dict[str, Any], numbers: NDArray[Any]) -> tuple[NDArray[Any], list[Label]]:
    """Return the numbered map and a label for each of the largest regions; the smaller ones become one."""
    summary = differences if isinstance(differences, dict) else differences.to_json()
    shown = summary["regions"][:SHOWN_REGIONS]
    labels = [Label(r["number"], region_title(r), r["number"], _color(n)) for n, r in enumerate(shown)]
    rest = summary["region_count"] - len(shown)
    if rest > 0:
        numbers = np.minimum(numbers, len(shown) + 1)
        labels.append(Label(len(shown) + 1, f"{rest} smaller regions", len(shown) + 1, (200, 200, 120)))
    return numbers, labels


def _color(rank: int) -> tuple[int, int, int]:
    """From red for the largest to yellow."""
    return 230, 40 + min(180, 8 * rank), 50


def region_rows(regions: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a row of :data:`REGION_COLUMNS` for each region."""
    return [
        [
            f"{r['ml']:.4f}",
            str(r["voxels"]),
            r["first"],
            r["second"],
            *(f"{c:.1f}" for c in r["center_ras"]),
            str(r["depth_voxels"]),
            f"{r['boundary_share']:.3f}",
            "" if r["mean_margin"] is None else f"{r['mean_margin']:.3f}",
        ]
        for r in regions
    ]


def regions_csv(regions: Sequence[dict[str, Any]]) -> str:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(REGION_COLUMNS)
    writer.writerows(region_rows(regions))
    return target.getvalue()
