"""What a cohort leaves beside its outputs: ``cohort.csv``, a row a case, and ``cohort.html``, a page with what to look at first."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DependencyError
from ..evaluation.reports.pages import Strong, Table, counted, number, render
from ..files import write_text
from .cases import Skipped
from .driver import CohortResult
from .journal import DONE, Record
from .outliers import Distribution, Outlier, distributions, outliers, volumes

CSV, PAGE = "cohort.csv", "cohort.html"
_WIDTH, _HEIGHT, _EDGE = 420, 26, 8
_STAGES = ("hashing", "reading", "preprocessing", "network", "blending", "restoring the grid", "writing")


def write_results(folder: Path, title: str, result: CohortResult, skipped: Sequence[Skipped]) -> CohortResult:
    """Write ``cohort.csv`` and ``cohort.html``; the result, with a note where Jinja2 is missing and there is no page.

    Raises:
        StorageError: they cannot be written.
    """
    write_text(folder / CSV, csv_text(result.records))
    try:
        text = page(title, result, skipped)
    except DependencyError as error:
        return replace(result, notes=(*result.notes, f"{PAGE} was not written: {error}"))
    write_text(folder / PAGE, text)
    return result


def csv_text(records: Sequence[Record]) -> str:
    """Return a row a case: how it ended, where, how long it took, milliliters of each structure, Dice where there were labels."""
    structures = list(volumes(records))
    scored = list(dict.fromkeys(name for record in records for name in record.get("dice", {})))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "id", "state", "scan", "output", "seconds", "engine", "precision",
            *(f"{name} (ml)" for name in structures),
            *(f"{name} (Dice)" for name in scored),
            "warnings", "error",
        ]
    )  # fmt: skip
    for record in records:
        engine, ml, dice = record.get("engine", {}), record.get("ml", {}), record.get("dice", {})
        writer.writerow(
            [
                record["id"], record["state"], " + ".join(record["scan"]), record.get("output", ""),
                f"{record['seconds'].get('total', 0):.3f}", engine.get("name", ""), engine.get("precision", ""),
                *(ml.get(name, "") for name in structures),
                *("" if dice.get(name) is None else f"{dice[name]:.4f}" for name in scored),
                "; ".join(record.get("warnings", [])), record.get("error", ""),
            ]
        )  # fmt: skip
    return text.getvalue().encode("utf-8", "replace").decode("utf-8")


def table_lines(records: Sequence[Record]) -> list[str]:
    """Return the cases that failed, a line each, for a terminal."""
    width = max((len(record["id"]) for record in records), default=0)
    return [f"  {record['id']:<{width}}  {record.get('stage', '')}: {record['error']}" for record in records]


def page(title: str, result: CohortResult, skipped: Sequence[Skipped]) -> str:
    """Return the page of a cohort.

    Raises:
        DependencyError: Jinja2 is not installed.
    """
    records = result.records
    done = [record for record in records if record["state"] == DONE]
    out = outliers(records)
    warned = [[r["id"], text] for r in done for text in r["warnings"]]
    return render(
        "cohort.html",
        title=_clean(title),
        summary=f"{len(done)} of {counted(len(records), 'case')} done, {len(result.failed)} failed, {len(skipped)} left out.",
        notes=list(map(_clean, result.notes)),
        failed=Table(
            ["Case", "Stage", "Reason"],
            [[Strong(_clean(r["id"])), r.get("stage", ""), _clean(r["error"])] for r in result.failed],
            3,
            stack=True,
        ),
        outliers=Table(["Case", "What", "Structure", "ml", "Detail"], [_outlier(item) for item in out], 5, stack=True),
        volumes=Table(
            ["Structure", "Cases", "Least", "Lower quartile", "Median", "Upper quartile", "Most"],
            [_row(row) for row in distributions(records)],
        ),
        strips=strips(records, {(item.id, item.structure) for item in out}),
        seconds=Table(["Stage", "Median, s", "Most, s"], _seconds(done)),
        skipped=Table(
            ["What", "Reason"], [[_clean(item.path), _clean(item.reason)] for item in skipped], 2, stack=True
        ),
        warnings=Table(["Case", "Warning"], [list(map(_clean, row)) for row in warned], 2, stack=True),
    )


def _clean(text: str) -> str:
    """Return a text without what UTF-8 cannot hold, as names of files may have it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _outlier(item: Outlier) -> list[str | Strong]:
    return [Strong(_clean(item.id)), item.kind, item.structure, number(item.ml, 2), item.detail]


def _row(row: Distribution) -> list[str]:
    values = (row.least, row.lower_quartile, row.median, row.upper_quartile, row.most)
    shown = [f"{value:.2f}" for value in values] if row.present else ["–"] * 5
    return [row.structure, f"{row.present} of {row.cases}", *shown]


def _seconds(done: Sequence[Record]) -> list[list[str]]:
    import statistics

    rows = []
    for stage in (*_STAGES, "total"):
        values = [record["seconds"][stage] for record in done if stage in record["seconds"]]
        if values:
            rows.append([stage, f"{statistics.median(values):.2f}", f"{max(values):.2f}"])
    return rows


@dataclass(frozen=True)
class StripDot:
    """A case in a strip: its place in pixels, whether it stands out, and what a pointer shows."""

    x: float
    odd: bool
    title: str


@dataclass(frozen=True)
class Strip:
    """The volumes of one structure along a logarithmic axis, in pixels; empty structures have no dot."""

    structure: str
    dots: Sequence[StripDot]
    median: float
    low: str
    high: str
    width: int = _WIDTH
    height: int = _HEIGHT


def strips(records: Sequence[Record], odd: set[tuple[str, str]]) -> list[Strip]:
    """Return a strip for each structure that any case has.

    Args:
        odd: id and structure of those that stand out.
    """
    result = []
    for name, pairs in volumes(records).items():
        present = [(case, ml) for case, ml in pairs if ml > 0]
        if not present:
            continue
        values = sorted(ml for _, ml in present)
        low, high = math.log(values[0]), math.log(values[-1])

        def place(ml: float, low: float = low, high: float = high) -> float:
            share = 0.5 if high <= low else (math.log(ml) - low) / (high - low)
            return _EDGE + share * (_WIDTH - 2 * _EDGE)

        dots = [StripDot(place(ml), (case, name) in odd, _clean(f"{case}: {ml:.2f} ml")) for case, ml in present]
        median = place(values[len(values) // 2])
        result.append(Strip(name, dots, median, f"{values[0]:.3g} ml", f"{values[-1]:.3g} ml"))
    return result
