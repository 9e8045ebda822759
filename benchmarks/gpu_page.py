"""Writes docs/results/gpu.json and gpu.md from what the GPU benchmarks printed: python gpu_page.py FILE ...

Each FILE holds lines of JSON, from gpu_baselines.py, gpu_road.py, nnunet_peers.py, mlperf_kits19.py, gpu_window.py,
cuda_int8.py or experiments/cuda_real.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "MedQuantINT8")]
TARGET = ROOT / "docs" / "results" / "gpu.json"
#: Costliest steps of a network that are kept.
KEPT = 12
#: Where no network was timed in a mode that searches.
_SEARCHED = "max-autotune was begun for all of them; its search was over for none after 470 seconds on 8 processor cores, with one GPU for all."


def page(value: dict[str, Any]) -> str:
    from cuda_int8_page import days_of, section
    from gpu_networks import TIMED
    from torch_modes import MODES

    lines = [
        "# On an NVIDIA GPU",
        "",
        f"Made by `benchmarks/gpu_page.py`; do not edit. Runs of {value['date']}.",
        "",
        *section(value),
    ]
    if window := value.get("window"):
        lines += [
            "## The sliding window on the GPU",
            "",
            f"{window['gpu']}{', ' * ('date' in window)}{window.get('date', '')}: {' x '.join(map(str, window['voxels'][::-1]))}, {window['classes']} classes, {window['windows']} windows of 96 x 96 x 96, a network of one small kernel. "
            f"Volume up, labels down, everything between: {window['whole_s']:.2f} s, of which the network {window['network_alone_s']:.2f} s; {window['beside_network_s']:.2f} s beside it. "
            f"GPU memory {window['gpu_memory_gb']:.2f} GB ({window['ring_gb']:.2f} GB of it for scores). Labels equal those of the processor's sliding window (Testing/engines/cuda/test_gpu.py).",
            "",
        ]
    if overlap := (window or {}).get("overlap"):
        lines += [
            "Where scores have to come down to the computer's memory (to be resampled, or for want of memory on the GPU), copies and blending run beside the network: "
            f"{overlap['windows']} windows in {overlap['beside_s']:.3f} s, of which {overlap['network_and_copies_s']:.3f} s are the network and its copies; one after the other they take {overlap['after_s']:.3f} s.",
            "",
        ]
    rows = [value["baselines"][n] for n in TIMED if n in value.get("baselines", {})]
    # What was timed on another GPU stands in the JSON file alone.
    rows = [row for row in rows if row["gpu"] == rows[0]["gpu"]]
    if rows:
        modes = [
            mode
            for mode in MODES
            if any("median_ms" in r.get(f"batch_{b}", {}).get(mode, {}) for r in rows for b in (1, 4))
        ]
        lines += [
            "## What a GPU user has in PyTorch: the figures to beat",
            "",
            f"{rows[0]['gpu']}, PyTorch {rows[0]['torch']}, {days_of(rows)}; networks of the study's size, random weights, 96 x 96 x 96; milliseconds a call, median (95th percentile) of 20. Recorded is `torch.compile`",
            'with mode "reduce-overhead"; max-autotune is recorded as well, and frozen means that weights are constants to the compiler (timed while other work had the processor). A dash is a mode that was not run for a network; where it cannot run there, the error stands.',
            *([] if any("autotune" in mode for mode in modes) else [_SEARCHED]),
            "",
            f"| network | batch | {' | '.join(MODES[mode].title for mode in modes)} |",
            "| --- | ---: |" + " ---: |" * len(modes),
        ]
        for r in rows:
            for batch in (1, 4):
                if found := r.get(f"batch_{batch}"):
                    cells = [_cell(found.get(mode)) for mode in modes]
                    lines.append(f"| {TIMED[r['network']].title} | {batch} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def add_baselines(known: dict[str, Any], row: dict[str, Any]) -> None:
    """Add what was timed of a network to what is known of it from the same GPU and version of PyTorch; of others nothing is kept.

    A later run's times of a mode replace earlier ones, as do its times beside the engine, which may have become faster meanwhile.
    """
    before = known.get(row["network"], {})
    for one in (before, row):
        for batch in (key for key in one if key.startswith("batch_")):
            for found in one[batch].values():
                if isinstance(found, dict) and not found_out(found):
                    found.setdefault("date", one["date"])
    if any(before.get(key) != row[key] for key in ("gpu", "torch")):
        known[row["network"]] = row
        return
    before["date"] = row["date"]
    for batch in (key for key in row if key.startswith("batch_")):
        before.setdefault(batch, {}).update({mode: found for mode, found in row[batch].items() if not found_out(found)})


def days_of_runs(value: Any) -> str:
    """The first and the last day of all runs whose figures are kept, not that on which they were put together."""
    days: set[str] = set()

    def look(found: Any) -> None:
        if isinstance(found, dict):
            days.update(day for day in (found.get("date"),) if isinstance(day, str))
            for inner in found.values():
                look(inner)

    look({key: inner for key, inner in value.items() if key != "date"})
    return " to ".join(sorted({min(days), max(days)}))


def found_out(found: Any) -> bool:
    """Whether there was no time for a mode."""
    return isinstance(found, dict) and "left_out" in found


def _cell(found: dict[str, Any] | None) -> str:
    if not found or found_out(found):
        return "–"
    return found["error"].split(":")[0] if "error" in found else f"{found['median_ms']:.1f} ({found['p95_ms']:.1f})"


def main() -> None:
    value = json.loads(TARGET.read_text()) if TARGET.exists() else {"baselines": {}}
    for name in sys.argv[1:]:
        for line in Path(name).read_text().splitlines():
            if not line.startswith("{"):
                continue
            row = json.loads(line)
            if "cuda_int8" in row:
                # The page names three; a few more for whoever looks for what to do next.
                row["batch_1"]["steps"] = sorted(row["batch_1"]["steps"], key=lambda step: -step["ms"])[:KEPT]
                row["batch_4"].pop("steps", None)
                value.setdefault("cuda_int8", {})[row["cuda_int8"]] = row
            elif "cuda_real" in row:
                value.setdefault("cuda_int8_real", {})[row["cuda_real"]] = row
            elif "kits19" in row:
                value["kits19"] = row
            elif "road" in row:
                value["road"] = row
            elif "road_peer" in row:
                continue
            elif "ours" in row:
                value["road_parts" if row["parts"] > 1 else "road_ours"] = row
            elif "parts_of" in row:
                value["parts"] = row
            elif "nnunet_peer" in row:
                value.setdefault("nnunet_peers", {})[row["nnunet_peer"]] = row
            elif "network" in row:
                add_baselines(value["baselines"], row)
            else:
                value["window"] = row
    # A smaller job than the benchmark whose name it had.
    value.pop("cuda_int8_volume", None)
    value["date"] = days_of_runs(value)
    TARGET.write_text(json.dumps(value, indent=1) + "\n")
    TARGET.with_suffix(".md").write_text(page(value))


if __name__ == "__main__":
    main()
