"""Writes the table of all networks into README.md and docs/results/index.md, and there the sentences on a GPU: python benchmarks/summary_table.py

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
from cuda_int8_page import best_of_torch, ratios, timed_networks  # noqa: E402
from gpu_networks import TIMED  # noqa: E402

RESULTS = ROOT / "docs" / "results"
#: The lines between which the table stands.
BEGIN, END = (
    "<!-- summary table: written by benchmarks/summary_table.py -->",
    "<!-- end of the summary table -->",
)
GPU_BEGIN, GPU_END = (
    "<!-- sentences on a GPU: written by benchmarks/summary_table.py -->",
    "<!-- end of the sentences on a GPU -->",
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


def gpu_sentences() -> list[str]:
    """This project's kernels beside PyTorch in words, and which networks were timed on another day than the others."""
    gpu = _read("gpu")
    rows = {name: gpu["baselines"][name]["batch_1"] for name in timed_networks(gpu)}
    own = {name: row["beside"]["int8"]["median_ms"] for name, row in rows.items()}
    mode, best = best_of_torch(rows["nnunet"])
    others = ", ".join(f"{TIMED[name].title} {own[name]:.2f}" for name in own if name != "nnunet")
    low, high = min(ratios(gpu)), max(ratios(gpu))
    low_fp32, high_fp32 = min(ratios(gpu, "fp32")), max(ratios(gpu, "fp32"))
    days: dict[str, list[str]] = {}
    for name, row in rows.items():
        days.setdefault(row["beside"].get("date", gpu["baselines"][name]["date"]), []).append(TIMED[name].title)
    apart = "; ".join(f"{', '.join(names)} {day}" for day, names in sorted(days.items()))
    return [
        f"On an NVIDIA H200 this project's own INT8 kernels take {own['nnunet']:.2f} ms for nnU-Net's network on such a patch, where PyTorch's best of all modes that were timed",
        f"({mode}) takes {best:.2f} ms and its FP32 {rows['nnunet']['fp32']['median_ms']:.1f} ms; {others} ms.",
        f"Against PyTorch's best that is {low:.1f} to {high:.1f} times faster over networks and batches of one and four, against its FP32 {low_fp32:.0f} to {high_fp32:.0f} times.",
        *([f"Rows keep the kernels of their day: {apart}."] if len(days) > 1 else []),
    ]


def with_table(text: str) -> str:
    """A page with the table, and the sentences where it has them, as they are now between their marks."""
    text = _between(text, BEGIN, END, table())
    return _between(text, GPU_BEGIN, GPU_END, gpu_sentences()) if GPU_BEGIN in text else text


def _between(text: str, begin: str, end: str, lines: list[str]) -> str:
    before, rest = text.split(begin)
    return "\n".join([before + begin, *lines, end + rest.split(end)[1]])


def main() -> None:
    for path in (ROOT / "README.md", RESULTS / "index.md"):
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
