"""The first screen of a report: three figures of what was gained, and what was lost with the worst structure by name."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from ...inference.structure_dice import SMALL_ML, WorstStructures
from .pages import Strong, Table, counted, number

#: From this mean Dice on, and this of the worst structure, INT8 is said to segment as FP32 does. The first is the agreement that
#: ``medquant quantize`` asks for by default; the second is between what two readers, or one twice, agree on for small structures.
SAME_MEAN, SAME_WORST = 0.99, 0.95


def by_precision(report: dict[str, Any], key: Any) -> dict[str, float]:
    """Return the mean of a figure over the scans, for each precision that was run; None is left out."""
    values_by_precision: dict[str, list[float]] = {}
    for run in report["runs"]:
        if (value := key(run)) is not None:
            values_by_precision.setdefault(run["precision"], []).append(value)
    return {precision: fmean(values) for precision, values in values_by_precision.items()}


def gained(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Speed of the network, time of a scan, size of the file: number, what it is, and "good", "bad" or neither."""
    items: list[tuple[str, str, str]] = []
    call = by_precision(report, lambda run: run["latency_ms"].get("median"))
    if len(call) == 2:
        ratio = call["fp32"] / call["int8"]
        word = "as fast: a call of the network" if ratio < 1.05 else "faster: a call of the network"
        items.append(
            (f"{ratio:.1f} ×", f"{word} takes {call['int8']:.0f} ms instead of {call['fp32']:.0f} ms", _kind(ratio))
        )
    scan = by_precision(report, lambda run: run["seconds"]["total"])
    if len(scan) == 2:
        items.append(
            (
                f"{scan['int8']:.1f} s",
                f"for a whole scan, instead of {scan['fp32']:.1f} s in FP32",
                _kind(scan["fp32"] / scan["int8"]),
            )
        )
    sizes = report["sizes"]
    if small := sizes.get("int8_bytes"):
        text = f"the size: the network's file has {small / 1e6:.2f} MB instead of {sizes['fp32_bytes'] / 1e6:.2f} MB"
        items.append((f"{100 * small / sizes['fp32_bytes']:.0f} %", text, _kind(sizes["fp32_bytes"] / small)))
    return items


def _kind(ratio: float) -> str:
    return "good" if ratio >= 1.05 else "bad" if ratio < 0.95 else ""


def lost(report: dict[str, Any]) -> dict[str, Any] | None:
    """Agreement with FP32, its worst structure, the largest change of a volume, and Dice with labels if there are any.

    Returns:
        what the page says in words; ``verdict`` alone where there is nothing to compare, and None where nothing was compared.
    """
    pairs = [item for item in report["agreement"] if item["first"] == "int8" and item["second"] == "fp32"]
    if not pairs:
        return None
    rows = [row for item in pairs for row in item["structures"] if row["dice"] is not None]
    if not rows:
        verdict = "Neither FP32 nor INT8 found any of the model's structures: there is nothing to compare."
        return {"verdict": verdict, "worst": ""}
    mean = fmean(item["mean_dice"] for item in pairs if item["mean_dice"] is not None)
    worst = WorstStructures.of_rows(rows)
    name, dice = worst.first or ("", 0.0)
    same = mean >= SAME_MEAN and min(row["dice"] for row in rows) >= SAME_WORST
    verdict = (
        "Nothing that can be seen: INT8 segments as FP32 does."
        if same
        else "INT8 differs from FP32: look at the structures below."
    )
    changed = max(
        (row for row in rows if row["other_ml"]), key=lambda row: abs(row["ml"] / row["other_ml"] - 1), default=None
    )
    truth = {
        item["first"]: item["mean_dice"]
        for item in report["agreement"]
        if item["second"] == "labels" and item["mean_dice"] is not None
    }
    return {
        "verdict": verdict,
        "same": same,
        "mean": number(mean),
        "structures": counted(len({row["name"] for row in rows}), "structure"),
        "worst": name,
        "worst_dice": number(dice),
        "small": worst.small[0] if worst.small and worst.large else "",
        "small_dice": number(worst.small[1]) if worst.small else "",
        "changed": changed["name"] if changed else "",
        "change": number(100 * abs(changed["ml"] / changed["other_ml"] - 1), 1) if changed else "",
        "truth": truth if {"fp32", "int8"} <= set(truth) else None,
    }


def structures(agreements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a table a scan: Dice of each pair that was compared, and milliliters; beside it the scan's ``name``, the ``worst`` structures and what is ``absent`` from the mean."""
    shown = []
    for scan in dict.fromkeys(item["scan"] for item in agreements):
        items = [item for item in agreements if item["scan"] == scan]
        volumes: dict[str, dict[str, float]] = {}
        for item in items:
            for side, key in ((item["first"], "ml"), (item["second"], "other_ml")):
                volumes.setdefault(side, {row["name"]: row[key] for row in item["structures"]})
        head = [
            "Structure",
            *(f"Dice {_side(item['first'])} – {_side(item['second'])}" for item in items),
            *(f"{_side(side)}, ml" for side in volumes),
        ]
        columns = [{row["name"]: row["dice"] for row in item["structures"]} for item in items]
        large, small = _by_size(list(columns[0]), list(volumes.values()))
        rows: list[list[str | Strong]] = [
            [
                name,
                *(number(column.get(name)) for column in columns),
                *(_ml(values[name]) for values in volumes.values()),
            ]
            for name in (*large, *small)
        ]
        if small:
            rows.insert(len(large), [Strong(f"below {SMALL_ML:g} ml"), *("" for _ in head[1:])])
        rows.append([Strong("mean"), *(number(item["mean_dice"]) for item in items), *("" for _ in volumes)])
        absent = sorted({name for item in items for name in item.get("left_out", ())})
        shown.append({"name": scan, "table": Table(head, rows), "worst": _worst(items), "absent": ", ".join(absent)})
    return shown


def _by_size(names: list[str], volumes: list[dict[str, float]]) -> tuple[list[str], list[str]]:
    """Return the names of the structures of at least 1 ml in one of the segmentations, or in none at all, and of the smaller ones."""
    small = [name for name in names if 0 < max(values[name] for values in volumes) < SMALL_ML]
    return [name for name in names if name not in small], small


def _worst(items: list[dict[str, Any]]) -> list[str]:
    """Return the structure that agrees least in each pair that was compared, in sentences."""
    sentences = []
    for item in items:
        if text := WorstStructures.of_rows(item["structures"]).text:
            sentences.append(f"{_side(item['first'])} – {_side(item['second'])}, {text}.")
    return sentences


def _side(name: str) -> str:
    return {"int8": "INT8", "fp32": "FP32"}.get(name, name)


def _ml(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
