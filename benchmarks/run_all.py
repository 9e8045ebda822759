"""Run the benchmarks and write docs/results/benchmarks.md: python benchmarks/run_all.py [NAME ...]"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "MedQuantINT8")]
RESULTS = HERE.parent / "docs" / "results" / "benchmarks.json"


def page(results: dict) -> str:
    machine, versions = results["machine"], results["versions"]
    lines = [
        "# Speed and memory",
        "",
        "Made by `make bench` (`benchmarks/run_all.py`); do not edit. The sides of each comparison ran in turn, in one run.",
        f"Machine: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['features'])}); {', '.join(f'{k} {v}' for k, v in versions.items())}; {results['date']}.",
        "",
    ]
    if results.get("note"):
        lines += [f"Note on this run: {results['note']}", ""]
    if rows := results.get("network_speed"):
        lines += [
            "## One 96 x 96 x 96 patch, random weights",
            "",
            "| network | PyTorch FP32 ms | OpenVINO FP32 ms | real INT8 ms | FP32 / INT8 | INT8 share of work | file INT8 / FP32 | real against simulated | simulated against FP32 |",
            "| --- |" + " ---: |" * 8,
        ]
        lines += [
            f"| {r['network']} | {r['torch_ms']} | {r['fp32_ms']} | {r['int8_ms']} | {r['ratio']} | {100 * r['int8_share']:.1f} % | {r['size_ratio']:.3f} | {r['fidelity']['relative_error']:.4f} | {r['fidelity']['simulated_relative_error']:.4f} |"
            for r in rows
        ] + [""]
    if rows := results.get("rewrites"):
        lines += [
            "## Exact rewrites in OpenVINO, 96 x 96 x 96, INT8 around them",
            "",
            "| network | form | ms |",
            "| --- | --- | ---: |",
        ]
        lines += [f"| {r['network']} | {form} | {ms} |" for r in rows for form, ms in r["ms"].items()] + [""]
    if row := results.get("worker_start"):
        lines += [
            "## From asking to computing, a scan of 176 x 144 x 128",
            "",
            f"Resident worker, started for it: {row['cold_s']:.2f} s; with the engine kept: {row['warm_s']:.2f} s. A new process for the whole run: {row['new_process_whole_run_s']:.2f} s.",
            "",
        ]
    if row := results.get("window"):
        large = row["large"]
        lines += [
            f"## The module's window (in the stand-in of Testing/host) while a scan of {' x '.join(map(str, large['voxels']))} is segmented",
            "",
            f"{large['seconds']:.0f} s from click to segmentation node; longest gap in the event loop {large['longest_gap_ms']:.0f} ms ({large['gaps_over_100_ms']:.0f} over 100 ms, 99 % below {large['p99_gap_ms']:.0f} ms). "
            f"Click to worker computing: cold {row['cold_click_to_computing_s']:.2f} s, warm {row['warm_click_to_computing_s']:.2f} s. Import of the module file: {row['module_import_ms']:.1f} ms.",
            "",
        ]
    if row := results.get("end_to_end"):
        lines += [
            f"## A whole T1 head, file to label map ({row['network']})",
            "",
            "| round | medquant segment, real INT8, s | PyTorch FP32 + MONAI sliding window, s |",
            "| --- | ---: | ---: |",
        ]
        lines += [f"| {n + 1} | {r['int8_s']:.1f} | {r['torch_s']:.1f} |" for n, r in enumerate(row["rounds"])]
        lines += [
            "",
            f"{row['ratio']:.2f} times faster; agreement Dice {row['agreement']:.4f}; everything but the network takes {100 * row['outside_network_share']:.1f} % of the time.",
            "",
        ]
    if rows := results.get("bounded_memory"):
        lines += [
            "## Memory of blending 105 classes (above the empty process)",
            "",
            "| volume | whole score volume GB | peak GB | carried in | columns | seconds | MONAI peak GB | MONAI seconds | voxels with another label |",
            "| --- |" + " ---: |" * 8,
        ]
        for r in rows:
            other = r.get("monai")
            tail = (
                f"{other['peak_gb']:.2f} | {other['seconds']:.1f} | {100 * r['other_labels']:.4f} % |"
                if other
                else "– | – | – |"
            )
            lines.append(
                f"| {' x '.join(map(str, r['shape'][::-1]))} | {r['whole_scores_gb']:.1f} | {r['ours']['peak_gb']:.2f} | {r['ours']['carried']} | {r['ours']['columns']} | {r['ours']['seconds']:.1f} | {tail}"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    from importlib.metadata import version

    from MedQuantINT8Lib.system import machine

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in sys.argv[1:] or ("network_speed", "rewrites", "worker_start", "window", "bounded_memory", "end_to_end"):
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py")], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        results[name] = json.loads(done.stdout.splitlines()[-1])
        results |= {
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {n: version(n) for n in ("openvino", "onnxruntime", "torch", "monai", "nvidia-modelopt")},
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page(results))
        print(name, "done", flush=True)


if __name__ == "__main__":
    main()
