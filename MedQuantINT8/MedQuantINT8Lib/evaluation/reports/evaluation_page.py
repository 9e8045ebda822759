"""The page of an evaluation: tables, Dice of FP32 against INT8, and Bland-Altman of the volumes, drawn as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .pages import Table, render
from .scatter import difference_plot, equality_plot


def page(value: dict[str, Any]) -> str:
    """The page of what :func:`..dataset_evaluation.evaluate` gives.

    Raises:
        DependencyError: Jinja2 is not installed.
    """
    summary, structures = value["summary"], list(value["summary"]["structures"])
    pairs = _pairs(value["rows"])
    dice = [(a["dice"], b["dice"], s) for s, a, b in pairs if a["dice"] is not None and b["dice"] is not None]
    volumes = [((a["ml"] + b["ml"]) / 2, b["ml"] - a["ml"], s) for s, a, b in pairs if a["ml"] or b["ml"]]
    return render(
        "evaluation.html",
        title=f"{value['model']}: FP32 against INT8 on {len(value['cases'])} case(s) of {value['data']}",
        tolerance_mm=f"{value['tolerance_mm']:g}",
        overall=_overall(summary["overall"]),
        dice=equality_plot(dice, structures, "Dice, FP32", "Dice, INT8"),
        volumes=difference_plot(volumes, structures, "mean of both, ml", "INT8 - FP32, ml"),
        worst=summary["worst"],
        structures=_structures(summary["structures"]),
        machine=value["machine"],
        seconds=value["seconds"],
        engine=value["engine"]["int8"],
    )


def _pairs(rows: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    rows_by_key = {(r["case"], r["structure"], r["precision"]): r for r in rows}
    return [
        (s, a, rows_by_key[c, s, "int8"])
        for (c, s, p), a in rows_by_key.items()
        if p == "fp32" and (c, s, "int8") in rows_by_key
    ]


def _number(interval: dict[str, Any] | None) -> str:
    return "–" if interval is None else f"{interval['mean']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def _overall(overall: dict[str, Any]) -> Table:
    titles = {"dice": "Dice", "nsd": "surface Dice", "hd95": "HD95, mm", "ml_difference": "volume off, ml"}
    rows = []
    for metric, title in titles.items():
        row = overall[metric]
        p = "–" if row["wilcoxon_p"] is None else f"{row['wilcoxon_p']:.3g}"
        rows.append([title, _number(row["fp32"]), _number(row["int8"]), _number(row["difference"]), p])
    return Table(["Mean over structures", "FP32", "INT8", "FP32 - INT8", "p"], rows)


def _structures(structures: dict[str, Any]) -> Table:
    rows = [
        [
            name,
            *(_number(metrics[m][p]) for m in ("dice", "nsd") for p in ("fp32", "int8")),
            _number(metrics["dice"]["difference"]),
        ]
        for name, metrics in structures.items()
    ]
    head = ["Structure", "Dice FP32", "Dice INT8", "surface Dice FP32", "surface Dice INT8", "Dice lost"]
    return Table(head, rows)
