"""``medquant evaluate``: FP32 and INT8 against manual labels, case by case and structure by structure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import write_json, write_text
from ..imaging.volume import Volume
from ..imaging.volume_files import read_volume
from ..inference import pipeline
from ..inference.engine_choice import EngineChoice
from ..inference.engine_pool import KeepingPool
from ..inference.segmentation_run import SegmentationRun
from ..inference.segmenter import SegmentationOptions
from ..inference.structure_dice import SMALL_ML, WorstStructures
from ..inference.task_model import LoadedModel, description_of
from ..models.spec import Label
from ..progress import Task
from ..system import machine
from .agreement import dice
from .datasets import Case, DataSet, label_map
from .reports.evaluation_page import page
from .reports.pages import require_templates
from .reports.viewer import ViewerScan
from .statistics import mean_of, require_scipy, wilcoxon
from .surface_distance import surface_agreement
from .viewing import WorstCases

PRECISIONS = ("fp32", "int8")
METRICS = ("dice", "nsd", "hd95", "ml_difference")
_WORST = 10


def evaluate(
    model: LoadedModel,
    data: DataSet,
    cases: Sequence[Case],
    choice: EngineChoice,
    options: SegmentationOptions,
    tolerance: float,
    task: Task,
    reader: Callable[[Any], Volume] = read_volume,
    worst: WorstCases | None = None,
) -> dict[str, Any]:
    """Run every case in FP32 and in INT8.

    Args:
        worst: gets what a page's viewer shows of the cases that lose most.
        tolerance: of the normalized surface Dice, in millimeters.

    Returns:
        ``rows`` (one a case, structure and precision; a metric is None where it is not defined: a structure that is absent in
        both label maps counts as nothing, not as 0), ``summary`` and what they were measured with. Rows of INT8 hold the
        ``agreement`` with FP32's own segmentation, too.

    Raises:
        InputError: model and data set have no structure in common.
    """
    require_scipy()
    require_templates()
    labels = shared_labels(description_of(model).labels, data)
    results: list[CaseScores] = []
    pool = KeepingPool()
    with task.stage("evaluating", len(cases)):
        for case in cases:
            scan = read_labeled(case, data, labels, reader)
            runs = run_case(model, scan.volume, choice, options, pool, task.check)
            results.append(score_case(scan, runs, labels, tolerance))
            if worst is not None:
                worst.offer(
                    dice_lost(results[-1].rows, case.name),
                    replace(scan.volume, name=case.name),
                    {**{p.upper(): run.result.labels for p, run in runs.items()}, "labels": scan.truth},
                )
            task.step()
    pool.clear()
    return evaluation_json(description_of(model).name, data, labels, tolerance, results)


@dataclass(frozen=True)
class LabeledScan:
    """A case that was read: its volume, and its labels (K, J, I) with the model's values."""

    case: str
    volume: Volume
    truth: NDArray[np.uint16]


@dataclass(frozen=True)
class CaseScores:
    """What is known of a case: a row for each structure and precision; seconds and engine by precision."""

    case: str
    rows: list[dict[str, Any]]
    seconds: dict[str, float]
    engine: dict[str, dict[str, Any]]


def read_labeled(
    case: Case, data: DataSet, labels: Sequence[Label], reader: Callable[[Any], Volume] = read_volume
) -> LabeledScan:
    """Read the scan and the label map of a case.

    Raises:
        InputError: one cannot be read, or they do not fit each other.
    """
    volume = reader(case.image if len(case.image) > 1 else case.image[0])
    truth = label_map(case, data, {label.name.lower(): label.value for label in labels}, reader)
    if truth.shape != volume.data.shape[1:]:
        raise InputError(
            f"{data.name}: the labels of {case.name} are {truth.shape} voxels, its scan {volume.data.shape[1:]}.",
            "Check the files.",
        )
    return LabeledScan(case.name, volume, truth)


def run_case(
    model: LoadedModel,
    volume: Volume,
    choice: EngineChoice,
    options: SegmentationOptions,
    pool: KeepingPool,
    check: Callable[[], None],
) -> dict[str, SegmentationRun]:
    """Segment a scan in each precision.

    Args:
        check: called in between; what it raises ends the case.
    """
    runs: dict[str, SegmentationRun] = {}
    for precision in PRECISIONS:
        runs[precision] = pipeline.segment(model, volume, choice.beside(precision), options, Task(), pool=pool)
        check()
    return runs


def score_case(
    scan: LabeledScan, runs: Mapping[str, SegmentationRun], labels: Sequence[Label], tolerance: float
) -> CaseScores:
    """Hold the label maps of a case against its labels and, INT8's, against FP32's."""
    maps = {precision: run.result.labels for precision, run in runs.items()}
    rows = [
        {
            "case": scan.case,
            "structure": label.name,
            "precision": precision,
            **scores(maps[precision] == label.value, scan.truth == label.value, scan.volume, tolerance),
            "agreement": dice(maps["int8"] == label.value, maps["fp32"] == label.value)
            if precision == "int8"
            else None,
        }
        for precision in PRECISIONS
        for label in labels
    ]
    engine = {
        precision: {key: run.engine[key] for key in ("name", "bytes", "note", "fallback_layers", "fidelity")}
        | {"int8_share": run.engine["description"]["int8_mac_share"]}
        for precision, run in runs.items()
    }
    return CaseScores(scan.case, rows, {p: run.seconds["total"] for p, run in runs.items()}, engine)


def evaluation_json(
    model: str, data: DataSet, labels: Sequence[Label], tolerance: float, results: Sequence[CaseScores]
) -> dict[str, Any]:
    """Put the cases together, as :func:`evaluate` returns it.

    Raises:
        InputError: no structure of the model is in any label map.
    """
    rows, left_out = _annotated([row for result in results for row in result.rows], data)
    return {
        "model": model,
        "data": data.name,
        "cases": [result.case for result in results],
        "tolerance_mm": tolerance,
        "machine": machine(),
        "engine": results[-1].engine if results else {},
        "seconds": {p: float(np.median([result.seconds[p] for result in results])) for p in PRECISIONS},
        "left_out": left_out,
        "rows": rows,
        "summary": summary(rows, [label.name for label in labels if label.name not in left_out]),
    }


def dice_lost(rows: Sequence[dict[str, Any]], case: str) -> float:
    """By how much INT8's mean Dice is below FP32's in a case; 0 where there is no Dice."""
    means = []
    for precision in PRECISIONS:
        values = [
            row["dice"]
            for row in rows
            if row["case"] == case and row["precision"] == precision and row["dice"] is not None
        ]
        means.append(float(np.mean(values)) if values else 0.0)
    return means[0] - means[1]


def shared_labels(labels: Sequence[Label], data: DataSet) -> list[Label]:
    names = {name.lower() for name in data.structures.values()}
    for case in data.cases:
        if not isinstance(case.label, Path):
            names |= {name.lower() for name in case.label}
    shared = [label for label in labels if not names or label.name.lower() in names]
    if not shared:
        raise InputError(
            f"The model finds {', '.join(label.name for label in labels[:4])}; {data.name} labels {', '.join(sorted(names)[:4])}: nothing in common.",
            "Give a data set of that model, or a JSON description whose structures have the model's names.",
        )
    return shared


def _annotated(rows: list[dict[str, Any]], data: DataSet) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows without structures that no label map of the data set holds, and those structures: nobody drew them.

    Raises:
        InputError: no structure of the model is in any label map.
    """
    drawn = {row["structure"] for row in rows if row["true_ml"]}
    left_out = list(dict.fromkeys(row["structure"] for row in rows if row["structure"] not in drawn))
    if rows and not drawn:
        raise InputError(
            f"No label map of {data.name} holds one of the model's structures ({', '.join(left_out[:4])}).",
            "Describe the data set by a JSON file whose structures have the model's names.",
        )
    return [row for row in rows if row["structure"] in drawn], left_out


def scores(mask: Any, truth: Any, volume: Any, tolerance: float) -> dict[str, float | None]:
    """Return all metrics of one structure in one case; volumes in milliliters."""
    i, j, k = volume.grid.spacing
    surface = surface_agreement(mask, truth, (k, j, i), tolerance)
    ml, true_ml = (float(each.sum()) * volume.grid.voxel_ml for each in (mask, truth))
    return {
        "dice": dice(mask, truth),
        "nsd": surface.nsd if surface else None,
        "hd95": surface.hd95 if surface else None,
        "ml": ml,
        "true_ml": true_ml,
        "ml_difference": ml - true_ml if ml or true_ml else None,
    }


def summary(rows: Sequence[dict[str, Any]], structures: Sequence[str]) -> dict[str, Any]:
    """Means over cases with intervals, and FP32 minus INT8 in pairs; overall values are means over a case's structures."""

    # Sorted once: to look through all rows for each value would take the square of their number.
    values_by_key: dict[tuple[str, str | None, str, str], list[float]] = {}
    volumes_by_name: dict[str, list[float]] = {name: [] for name in structures}
    agreement_by_name: dict[str, list[float]] = {name: [] for name in structures}
    for row in rows:
        if row.get("true_ml"):
            volumes_by_name[row["structure"]].append(row["true_ml"])
        if row.get("agreement") is not None:
            agreement_by_name[row["structure"]].append(row["agreement"])
        for metric in METRICS:
            if row[metric] is not None:
                for structure in (None, row["structure"]):
                    values_by_key.setdefault((row["case"], structure, row["precision"], metric), []).append(row[metric])

    def value(case: str, structure: str | None, precision: str, metric: str) -> float | None:
        values = values_by_key.get((case, structure, precision, metric))
        return float(np.mean(values)) if values else None

    cases = list(dict.fromkeys(row["case"] for row in rows))

    def part(structure: str | None) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for metric in METRICS:
            pairs = [(value(c, structure, "fp32", metric), value(c, structure, "int8", metric)) for c in cases]
            both = [(a, b) for a, b in pairs if a is not None and b is not None]
            first, second = [a for a, _ in both], [b for _, b in both]
            difference = mean_of([a - b for a, b in both])
            metrics[metric] = {
                **{
                    p: (m.to_json() if (m := mean_of([v for v in side if v is not None])) else None)
                    for p, side in zip(PRECISIONS, zip(*pairs, strict=True), strict=True)
                },
                "difference": difference.to_json() if difference else None,
                "wilcoxon_p": wilcoxon(first, second),
            }
        return metrics

    by_structure = {name: part(name) for name in structures}
    lost = {
        name: metrics["dice"]["difference"]["mean"]
        for name, metrics in by_structure.items()
        if metrics["dice"]["difference"]
    }
    worst = sorted(lost, key=lambda name: -lost[name])[:_WORST]
    # Of the label maps that hold the structure.
    ml_by_name = {name: float(np.median(volumes)) if volumes else 0.0 for name, volumes in volumes_by_name.items()}
    return {
        "overall": part(None),
        "structures": by_structure,
        "worst": worst,
        "small": [name for name in structures if 0 < ml_by_name[name] < SMALL_ML],
        "agreement": _agreement(agreement_by_name, ml_by_name),
    }


def _agreement(values_by_name: dict[str, list[float]], ml_by_name: dict[str, float]) -> dict[str, Any]:
    """Dice of INT8 with FP32 by structure, means over cases with intervals, and the structures that agree least."""
    means = {name: interval for name, values in values_by_name.items() if (interval := mean_of(values))}
    worst = WorstStructures.of((name, interval.mean, ml_by_name[name]) for name, interval in means.items())
    return {"structures": {name: interval.to_json() for name, interval in means.items()}, **worst.to_json()}


#: What is written into the folder of results.
FILES = ("evaluation.json", "evaluation.csv", "evaluation.html")


def write_results(value: dict[str, Any], folder: Path, viewed: Sequence[ViewerScan] = ()) -> None:
    """Write evaluation.json, evaluation.csv and evaluation.html, whose viewer shows the cases of ``viewed``."""
    write_json(folder / "evaluation.json", value)
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["case", "structure", "precision", "dice", "nsd", "hd95", "ml", "true_ml", "ml_difference", "agreement"]
    )
    writer.writeheader()
    writer.writerows(value["rows"])
    write_text(folder / "evaluation.csv", text.getvalue())
    write_text(folder / "evaluation.html", page(value, viewed))


def lines_of(value: dict[str, Any]) -> list[str]:
    """For a terminal."""
    overall = value["summary"]["overall"]
    lines = [f"{value['model']} on {len(value['cases'])} case(s) of {value['data']}"]
    for metric, title in (
        ("dice", "Dice"),
        ("nsd", f"NSD at {value['tolerance_mm']:g} mm"),
        ("hd95", "HD95, mm"),
        ("ml_difference", "volume, ml off"),
    ):
        values = overall[metric]
        if values["difference"] is None:
            continue
        p = "" if values["wilcoxon_p"] is None else f"  p = {values['wilcoxon_p']:.3g}"
        difference = values["difference"]
        lines.append(
            f"  {title:16} FP32 {_interval(values['fp32'])}  INT8 {_interval(values['int8'])}  FP32 - INT8 {difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f}){p}"
        )
    worst = value["summary"]["agreement"]
    for key, title in (
        ("worst", "INT8 agrees least with FP32 in"),
        ("worst_small", f"of those below {SMALL_ML:g} ml in"),
    ):
        if worst[key]:
            lines.append(f"  {title} {worst[key]['name']}: Dice {worst[key]['dice']:.4f}")
    lost = value["summary"]["structures"][value["summary"]["worst"][0]]["dice"] if value["summary"]["worst"] else None
    if lost:
        lines.append(
            f"  INT8 loses most in {value['summary']['worst'][0]}: Dice {lost['difference']['mean']:+.4f} ({lost['fp32']['mean']:.4f} in FP32)"
        )
    if value["left_out"]:
        lines.append(f"  left out, as no label map has them: {', '.join(value['left_out'])}")
    lines.append(f"  seconds a case   FP32 {value['seconds']['fp32']:.2f}  INT8 {value['seconds']['int8']:.2f}")
    return lines


def _interval(interval: dict[str, Any]) -> str:
    return f"{interval['mean']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"
