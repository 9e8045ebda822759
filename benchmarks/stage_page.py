"""The record of ``stages.py`` and its page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Stages in the order in which a scan goes through them; two of them are the network.
STAGES = ("reading", "reorienting and cropping", "resampling", "normalizing", "network", "blending", "last layer", "back to the scan", "looking at ranges", "writing", "the rest")  # fmt: skip
NETWORK = ("network", "last layer")
#: Commands whose start is timed, and what it is meant to stay below, in seconds.
STARTS = {
    "python -c pass": (["-c", "pass"], None),
    "python -c 'import numpy'": (["-c", "import numpy"], None),
    "medquant --help": (["-m", "MedQuantINT8Lib.cli", "--help"], 0.25),
    "medquant doctor": (["-m", "MedQuantINT8Lib.cli", "doctor"], 2.0),
}


def machines(record: dict[str, Any]) -> list[str]:
    """What the rows ran on: one sentence for all, or one for those of each machine."""
    rows: dict[str, list[str]] = {}
    for name, row in record["rows"].items():
        machine = row.get("machine") or record["machine"]
        features = ", ".join(machine["features"])
        words = f"{machine['processor']}, {machine['cores']} cores ({features}), Python {machine['python']}"
        rows.setdefault(words, []).append(name)
    if len(rows) == 1:
        return [f"Machine: {words}." for words in rows]
    return ["Machines:", "", *(f"- {words}: {'; '.join(names)}." for words, names in rows.items()), ""]


def page(record: dict[str, Any]) -> str:
    lines = [
        "# Where the time of a segmentation goes",
        "",
        "Made by `benchmarks/stages.py`; do not edit. From the file to the written label map, in one process with the engine loaded; medians.",
        *machines(record),
        "Each cell: wall time / processor time of all threads, in milliseconds. Share: everything but the network and its last layer, which is applied to blended windows where it is wide; of wall time / of processor time.",
    ]
    if record.get("note"):
        lines += ["", record["note"]]
    names = list(record["rows"])
    lines += ["", f"| stage | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for stage in STAGES:
        cells = [
            " / ".join(f"{1e3 * s:.0f}" for s in record["rows"][name]["stages"].get(stage, (0, 0))) for name in names
        ]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    totals = [
        " / ".join(
            f"{1e3 * sum(stage[clock] for stage in record['rows'][name]['stages'].values()):.0f}" for clock in (0, 1)
        )
        for name in names
    ]
    lines.append(f"| all | {' | '.join(totals)} |")
    shares = [
        " / ".join(f"{100 * share_beside(record['rows'][name], clock):.1f} %" for clock in (0, 1)) for name in names
    ]
    lines.append(f"| **beside the network** | {' | '.join(shares)} |")
    lines.append(f"| windows | {' | '.join(str(record['rows'][name]['windows']) for name in names)} |")
    noted = [f"- {name}: {'; '.join(notes)}." for name in names if (notes := record["rows"][name].get("notes"))]
    if noted:
        lines += ["", "What the program notes of its runs:", "", *noted]
    if record.get("starts"):
        lines += [
            "",
            "## How long commands take to start",
            "",
            "From the start of the process to its end; medians.",
            "",
            "| command | seconds | bar |",
            "| --- | ---: | ---: |",
        ]
        lines += [
            f"| `{name}` | {seconds:.3f} | {STARTS[name][1] or ''} |" for name, seconds in record["starts"].items()
        ]
    return "\n".join([*lines, ""])


def share_beside(row: dict[str, Any], clock: int = 1) -> float:
    """The share of wall time (0) or of processor time (1) that is not the network's."""
    total = sum(seconds[clock] for seconds in row["stages"].values())
    network = sum(row["stages"][name][clock] for name in NETWORK if name in row["stages"])
    return float(1 - network / total)


def merge(record: dict[str, Any], other: dict[str, Any], order: Iterable[str]) -> None:
    """Put what another run measured into a record, its rows in the order of all rows' names."""
    for measured in (record, other):
        for row in measured.get("rows", {}).values():
            row.setdefault("machine", measured.get("machine"))
    rows = record.get("rows", {}) | other.get("rows", {})
    record |= {key: value for key, value in other.items() if key not in ("rows", "note") or key not in record}
    record["rows"] = {known: rows[known] for known in order if known in rows}


def write(file: Path, record: dict[str, Any]) -> None:
    file.write_text(json.dumps(record, indent=2) + "\n")
    file.with_suffix(".md").write_text(page(record))
