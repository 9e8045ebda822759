"""The boundary report as a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...inference.structure_dice import SMALL_ML, WorstStructures
from ..boundary import SHOWN_REGIONS
from .pages import Strong, Table, number, render
from .viewer import ViewerScan, viewer_values


def gains(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what is gained and lost: what, FP32, INT8; in words."""
    files, first, second = report["model"]["file_bytes"], *(report["runs"][p] for p in ("fp32", "int8"))

    def row(what: str, text: Callable[[dict[str, Any]], str]) -> tuple[str, str, str]:
        return what, text(first), text(second)

    worst = WorstStructures.of_rows(report["structures"])
    titles = ("least agreement, Dice", worst.large), (f"least agreement below {SMALL_ML:g} ml, Dice", worst.small)
    least = [(title, "1", f"{found[1]:.4f} ({found[0]})") for title, found in titles if found]
    return [
        ("network file, MB", f"{files['fp32'] / 1e6:.1f}", f"{files['int8'] / 1e6:.1f}"),
        row("engine", lambda run: str(run["engine"]["title"])),
        row("engine, MB", lambda run: f"{run['engine']['bytes'] / 1e6:.1f}"),
        row("time, s", lambda run: f"{run['seconds']['total']:.1f}"),
        row("in the network, s", lambda run: f"{run['seconds'].get('network', 0.0):.1f}"),
        row("memory, GB", lambda run: f"{run['peak_memory_bytes'] / 1e9:.2f}" if run["peak_memory_bytes"] else "–"),
        row("work in INT8", lambda run: f"{100 * run['engine']['description']['int8_mac_share']:.0f} %"),
        *least,
    ]


def verdict(report: dict[str, Any]) -> str:
    """Return what there is to look at, in a sentence."""
    names, limit = report["pointed_out"], report["volume_change_percent"]
    if names:
        return f"Structures that change their volume by more than {limit:g} % ({len(names)}): {', '.join(names)}."
    return f"No structure changes its volume by more than {limit:g} %."


def boundary_page(title: str, report: dict[str, Any], viewed: ViewerScan | None = None) -> str:
    """Return the page of a boundary report, as :func:`..boundary.examine` gives it.

    Args:
        viewed: what the page's viewer shows.

    Raises:
        DependencyError: Jinja2 is not installed.
    """
    differences = report["differences"]
    text = f"{differences['voxels']} voxels differ ({differences['ml']:.2f} ml)"
    if differences["boundary_share"] is not None:
        text += f", {100 * differences['boundary_share']:.1f} % of them within one voxel of a boundary"
    if differences["mean_margin"] is not None:
        text += f"; where they differ, FP32's label won by {differences['mean_margin']:.3f} in probability on average"
    return render(
        "boundary.html",
        title=title,
        kind="bad" if report["pointed_out"] else "good",
        verdict=verdict(report),
        dice=number(report["mean_dice"], 4),
        shown=viewer_values([viewed] if viewed else []),
        text=text,
        notes=report["runs"]["int8"]["notes"],
        gains=Table(["", "FP32", "INT8"], gains(report)),
        structures=Table(
            ["Structure", "Dice", "FP32, ml", "INT8, ml", "change, ml", "change, %"],
            [_structure(s) for s in report["structures"]],
        ),
        region_count=differences["region_count"],
        regions=Table(
            [
                "ml",
                "FP32",
                "INT8",
                "at (R, A, S) mm",
                "deepest voxel from a boundary, voxels",
                "at a boundary",
                "mean margin",
            ],
            [_region(r) for r in differences["regions"][:SHOWN_REGIONS]],
            4,
        ),
    )


def _structure(s: dict[str, Any]) -> list[str | Strong]:
    cells = [
        s["name"],
        number(s["dice"], 4),
        f"{s['other_ml']:.2f}",
        f"{s['ml']:.2f}",
        f"{s['ml'] - s['other_ml']:+.2f}",
        "–" if s["change_percent"] is None else f"{s['change_percent']:+.1f}",
    ]
    return [Strong(cell, "bad") if s["pointed_out"] else cell for cell in cells]


def _region(r: dict[str, Any]) -> list[str]:
    return [
        f"{r['ml']:.3f}",
        r["first"],
        r["second"],
        ", ".join(f"{c:.1f}" for c in r["center_ras"]),
        str(r["depth_voxels"]),
        f"{100 * r['boundary_share']:.0f} %",
        number(r["mean_margin"]),
    ]
