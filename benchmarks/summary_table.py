"""Writes the table of all networks into README.md and docs/results/index.md: python benchmarks/summary_table.py

Its figures come from the measured pages' JSON files in docs/results; run it after one of them was measured again. A test compares both
files with what this script would write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]
from cuda_int8_page import best_of_torch  # noqa: E402

RESULTS = ROOT / "docs" / "results"
#: The lines between which the table stands.
BEGIN, END = (
    "<!-- summary table: written by benchmarks/summary_table.py -->",
    "<!-- end of the summary table -->",
)
_HEAD = (
    "| network | INT8 share of work | file, INT8 / FP32 | processor, FP32 / INT8 time | H200, ms a patch | times PyTorch's best | times PyTorch FP32 | agreement, INT8 with FP32 | Dice to labels, FP32 | INT8 |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def table() -> list[str]:
    """One row for each network that was measured."""
    return [*_HEAD, *_study(), *_pretrained(), *_labelled()]


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _row(name: str, *cells: str) -> str:
    return f"| {' | '.join([name, *cells])} |"


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else f"{value:{form}}"


def _over(first: float | None, second: float) -> float | None:
    return None if first is None else first / second


def _study() -> list[str]:
    """The study's seven: speed at the study's size on a processor and a GPU, Dice as narrowed and trained."""
    trained = {row["network"]: row["summary"]["dice"] for row in _read("trained")["rows"]}
    gpu = _read("gpu")
    lines = []
    for row in _read("networks")["rows"]:
        name = row["network"]
        beside = gpu["baselines"][name]["batch_1"]
        milliseconds = beside["beside"]["int8"]["median_ms"]
        dice = trained[name]
        lines.append(
            _row(
                f"{row['title']}, study's size",
                f"{100 * row['int8_share']:.0f} %",
                _number(row["int8_mb"] / row["fp32_mb"], ".2f"),
                _number(row["ratio"], ".1f"),
                _number(milliseconds, ".2f"),
                _number(best_of_torch(beside)[1] / milliseconds, ".1f"),
                _number(_over(beside.get("fp32", {}).get("median_ms"), milliseconds), ".1f"),
                "–",
                _number(dice["fp32"]["mean"]),
                _number(dice["int8"]["mean"]),
            )
        )
    return lines


def _pretrained() -> list[str]:
    """Pretrained networks on real scans; those that were measured with the guard's present cures as these left them."""
    lines = []
    resisting = {name: entry for name, entry in _read("resisting")["rows"].items() if entry["effort"] == "normal"}
    for name, entry in {**_read("results"), **resisting}.items():
        row = entry["row"]
        lines.append(
            _row(
                name.replace("_", " "),
                f"{100 * row['int8']['int8_share']:.0f} %",
                _number(row["size_ratio"], ".2f"),
                _number(row["fp32"]["latency_ms"] / row["int8"]["latency_ms"], ".1f"),
                *["–"] * 3,
                _number(row["agreement"]),
                _number(row["dice_fp32"]),
                _number(row["dice_int8"]),
            )
        )
    return lines


def _labelled() -> list[str]:
    """Pretrained networks against manual labels of whole brains, with the guard as it is by default."""
    rows: dict[str, list[Any]] = {}
    for row in _read("labelled")["rows"]:
        if row["agreement"] == 0.99:
            rows.setdefault(row["network"], []).append(row)
    lines = []
    for name, cases in rows.items():
        share = sum(case["int8_mac_share"] for case in cases) / len(cases)
        dice = [sum(case["dice"][precision] for case in cases) / len(cases) for precision in ("fp32", "int8")]
        title = f"{name.replace('_', ' ')}, {len(cases)} labeled brains"
        if any(case.get("simulated") for case in cases):
            title += ", simulated"
        lines.append(_row(title, f"{100 * share:.0f} %", *["–"] * 6, *map(_number, dice)))
    return lines


def with_table(text: str) -> str:
    """A page with the table as it is now between its two marks."""
    before, rest = text.split(BEGIN)
    return "\n".join([before + BEGIN, *table(), END + rest.split(END)[1]])


def main() -> None:
    for path in (ROOT / "README.md", RESULTS / "index.md"):
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
