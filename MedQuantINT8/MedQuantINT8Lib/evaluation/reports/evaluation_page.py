"""The page of an evaluation: tables, Dice of FP32 against INT8, and Bland-Altman of the volumes, drawn as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...inference.structure_dice import SMALL_ML
from .pages import Strong, Table, render
from .scatter import difference_plot, equality_plot
from .viewer import ViewerScan, viewer_values


def page(value: dict[str, Any], viewed: Sequence[ViewerScan] = ()) -> str:
    """Return the page of what :func:`..dataset_evaluation.evaluate` gives.

    Args:
        viewed: the cases that the page's viewer shows.

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
        shown=viewer_values(viewed),
        structures=_structures(summary),
        agreement=_agreement(summary["agreement"]),
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


def _structures(summary: dict[str, Any]) -> Table:
    """Return the structures of at least 1 ml, and the smaller ones below a line of their own."""
    structures, agreement = summary["structures"], summary["agreement"]["structures"]
    small = [name for name in structures if name in summary["small"]]
    large = [name for name in structures if name not in small]
    head = [
        "Structure",
        "Dice FP32",
        "Dice INT8",
        "surface Dice FP32",
        "surface Dice INT8",
        "Dice lost",
        "INT8 with FP32",
    ]
    rows: list[list[str | Strong]] = [
        [
            name,
            *(_number(structures[name][m][p]) for m in ("dice", "nsd") for p in ("fp32", "int8")),
            _number(structures[name]["dice"]["difference"]),
            _number(agreement.get(name)),
        ]
        for name in (*large, *small)
    ]
    if small:
        rows.insert(len(large), [Strong(f"below {SMALL_ML:g} ml"), *("" for _ in head[1:])])
    return Table(head, rows)


def _agreement(agreement: dict[str, Any]) -> str:
    """Return the structures in which INT8 agrees least with FP32, in a sentence; empty where nothing was found."""
    parts = [
        f"{where}{agreement[key]['name']} with Dice {agreement[key]['dice']:.4f}"
        for key, where in (("worst", ""), ("worst_small", f"of those below {SMALL_ML:g} ml in "))
        if agreement[key]
    ]
    return f"INT8 agrees least with FP32 in {', '.join(parts)}." if parts else ""
