"""The days of measured rows: where rows of several runs stand in one file, each keeps its own."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any


def today() -> str:
    return time.strftime("%Y-%m-%d")


def dated(record: dict[str, Any]) -> Any:
    """Return the rows of a file of results, by their names or one after the other; those that do not say their day have the file's last."""
    rows = record["rows"]
    for row in rows.values() if isinstance(rows, dict) else rows:
        row.setdefault("date", record["date"].split(" to ")[-1])
    return rows


def days_of(rows: Iterable[dict[str, Any]]) -> str:
    """Return the first and the last day of rows, or the one that is both; today where there is none."""
    days = {row["date"] for row in rows} or {today()}
    return " to ".join(sorted({min(days), max(days)}))
