"""The self-test as a page."""

from __future__ import annotations

from typing import Any

from .pages import Table, number, render

_HEAD = (
    "",
    "Network",
    "Precision",
    "ms",
    "p95 ms",
    "engine MB",
    "INT8 share",
    "error against FP32",
    "other labels",
    "worst structure",
    "below 1 ml",
    "real against simulated",
    "Why",
)


def selftest_page(value: dict[str, Any]) -> str:
    """Return the page of what :func:`..selftest.run_selftest` gives.

    Raises:
        DependencyError: Jinja2 is not installed.
    """
    shown = {key: value[key] for key in ("engine", "version", "device", "machine", "date", "passed")}
    rows = Table(_HEAD, [_row(row) for row in value["rows"]], 3)
    return render("selftest.html", title="MedQuantINT8 self-test", rows=rows, **shown)


def _row(row: dict[str, Any]) -> list[str]:
    return [
        "PASS" if row["passed"] else "FAIL",
        row["network"],
        row["precision"],
        *(_figures(row) if "median_ms" in row else ["–"] * 9),
        row["reason"],
    ]


def _figures(row: dict[str, Any]) -> list[str]:
    fidelity = row.get("fidelity")
    return [
        f"{row['median_ms']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{row['engine_mb']:.1f}",
        f"{100 * row['int8_share']:.1f} %",
        f"{row['relative_error']:.2g}",
        f"{100 * row['other_labels']:.3f} %",
        *(_structure(row.get(key)) for key in ("worst", "worst_small")),
        number(fidelity["relative_error"] if fidelity else None, 4),
    ]


def _structure(structure: dict[str, Any] | None) -> str:
    return "–" if structure is None else f"{structure['name']} {structure['dice']:.3f}"
