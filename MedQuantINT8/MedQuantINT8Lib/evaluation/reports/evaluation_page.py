"""The page of an evaluation: tables, Dice of FP32 against INT8, and Bland-Altman of the volumes, drawn as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .pages import document, escaped, table

_SIDE, _MARGIN = 340, 44
_COLORS = ("#3366cc", "#dc3912", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00", "#b82e2e")


def page(value: dict[str, Any]) -> str:
    summary, structures = value["summary"], list(value["summary"]["structures"])
    machine = value["machine"]
    head = f"{value['model']}: FP32 against INT8 on {len(value['cases'])} case(s) of {value['data']}"
    pairs = _pairs(value["rows"])
    dice = [(a["dice"], b["dice"], s) for s, a, b in pairs if a["dice"] is not None and b["dice"] is not None]
    volumes = [((a["ml"] + b["ml"]) / 2, b["ml"] - a["ml"], s) for s, a, b in pairs if a["ml"] or b["ml"]]
    return document(
        head,
        f"<h1>{escaped(head)}</h1><p>Normalized surface Dice at {value['tolerance_mm']:g} mm. Means over cases with 95 % bootstrap intervals; p of Wilcoxon's signed-rank test. "
        "A structure that is absent in both label maps counts as nothing.</p>"
        + _overall(summary["overall"])
        + f"<figure>{_scatter(dice, structures, 'Dice, FP32', 'Dice, INT8', diagonal=True)}<figcaption>Each case and structure; on the line nothing is lost.</figcaption></figure>"
        + f"<figure>{_scatter(volumes, structures, 'mean of both, ml', 'INT8 - FP32, ml', limits=True)}<figcaption>Bland-Altman of the volumes; dashed: mean and 1.96 standard deviations.</figcaption></figure>"
        + _structures(summary)
        + f"<p>{escaped(machine['processor'])}, {machine['cores']} cores; median seconds a case: FP32 {value['seconds']['fp32']:.2f}, INT8 {value['seconds']['int8']:.2f}; "
        f"{100 * value['engine']['int8']['int8_share']:.1f} % of the work in INT8 ({escaped(value['engine']['int8']['name'])}).</p>",
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


def _overall(overall: dict[str, Any]) -> str:
    titles = {"dice": "Dice", "nsd": "surface Dice", "hd95": "HD95, mm", "ml_difference": "volume off, ml"}
    rows = []
    for metric, title in titles.items():
        row = overall[metric]
        p = "–" if row["wilcoxon_p"] is None else f"{row['wilcoxon_p']:.3g}"
        rows.append([title, _number(row["fp32"]), _number(row["int8"]), _number(row["difference"]), p])
    return table(["Mean over structures", "FP32", "INT8", "FP32 - INT8", "p"], rows)


def _structures(summary: dict[str, Any]) -> str:
    rows = [
        [
            escaped(name),
            *(_number(metrics[m][p]) for m in ("dice", "nsd") for p in ("fp32", "int8")),
            _number(metrics["dice"]["difference"]),
        ]
        for name, metrics in summary["structures"].items()
    ]
    worst = ", ".join(escaped(name) for name in summary["worst"])
    head = ["Structure", "Dice FP32", "Dice INT8", "surface Dice FP32", "surface Dice INT8", "Dice lost"]
    return f"<h2>Structures</h2><p>Most lost: {worst}.</p>{table(head, rows)}"


def _scatter(
    points: Sequence[tuple[float, float, str]],
    names: Sequence[str],
    x: str,
    y: str,
    *,
    diagonal: bool = False,
    limits: bool = False,
) -> str:
    if not points:
        return "<p>nothing to draw</p>"
    xs, ys = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    if diagonal:
        low = min(float(xs.min()), float(ys.min()))
        horizontal = vertical = (max(0.0, low - 0.02), 1.0)
    else:
        most = max(1e-6, float(np.abs(ys).max()) * 1.2, 2.2 * float(ys.std()) + abs(float(ys.mean())))
        horizontal, vertical = (0.0, max(1e-6, float(xs.max()) * 1.05)), (-most, most)

    def place(a: float, b: float) -> tuple[float, float]:
        u = (a - horizontal[0]) / (horizontal[1] - horizontal[0] or 1)
        v = (b - vertical[0]) / (vertical[1] - vertical[0] or 1)
        return _MARGIN + u * (_SIDE - _MARGIN - 8), (_SIDE - _MARGIN) - v * (_SIDE - _MARGIN - 8)

    def line(a: tuple[float, float], b: tuple[float, float], dash: str = "") -> str:
        (x0, y0), (x1, y1) = place(*a), place(*b)
        return (
            f"<line x1='{x0:.1f}' y1='{y0:.1f}' x2='{x1:.1f}' y2='{y1:.1f}' stroke='#888' stroke-dasharray='{dash}'/>"
        )

    parts = [
        line((horizontal[0], vertical[0]), (horizontal[1], vertical[0])),
        line((horizontal[0], vertical[0]), (horizontal[0], vertical[1])),
    ]
    if diagonal:
        parts.append(line((horizontal[0], vertical[0]), (horizontal[1], vertical[1]), "4 3"))
    if limits:
        mean, deviation = float(ys.mean()), float(ys.std())
        parts += [
            line((horizontal[0], m), (horizontal[1], m), "4 3")
            for m in (mean - 1.96 * deviation, mean, mean + 1.96 * deviation)
        ]
    color = {name: _COLORS[n % len(_COLORS)] for n, name in enumerate(names)}
    for a, b, name in points:
        cx, cy = place(a, b)
        parts.append(
            f"<circle cx='{cx:.1f}' cy='{cy:.1f}' r='3' fill='{color.get(name, '#333')}' fill-opacity='.6'><title>{escaped(name)}: {a:.4f}, {b:.4f}</title></circle>"
        )
    for n, value in enumerate((horizontal[0], horizontal[1])):
        parts.append(
            f"<text x='{_MARGIN if not n else _SIDE - 8}' y='{_SIDE - _MARGIN + 16}' font-size='11' text-anchor='{'start' if not n else 'end'}'>{value:.3g}</text>"
        )
    for value in vertical:
        parts.append(
            f"<text x='{_MARGIN - 4}' y='{place(horizontal[0], value)[1] + 4:.0f}' font-size='11' text-anchor='end'>{value:.3g}</text>"
        )
    parts.append(f"<text x='{_SIDE / 2}' y='{_SIDE - 8}' font-size='12' text-anchor='middle'>{escaped(x)}</text>")
    parts.append(
        f"<text x='12' y='{_SIDE / 2}' font-size='12' text-anchor='middle' transform='rotate(-90 12 {_SIDE / 2})'>{escaped(y)}</text>"
    )
    return f"<svg role=img aria-label='{escaped(y)} against {escaped(x)}' width='{_SIDE}' height='{_SIDE}' viewBox='0 0 {_SIDE} {_SIDE}'>{''.join(parts)}</svg>"
