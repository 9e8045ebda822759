"""The part of docs/results/gpu.md (and the table in results.md) that tells of the CUDA INT8 engine, from what cuda_int8.py printed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gpu_networks import TIMED

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
#: Dense INT8 of tensor cores in TOP/s, and memory in GB/s, by the maker's data sheets.
ROOFS = {"NVIDIA H100 80GB HBM3": (1979, 3352), "NVIDIA H200": (1979, 4800)}
MODES = {
    "fp32": "FP32",
    "tf32": "TF32",
    "autocast_fp16": "autocast FP16",
    "fp16_channels_last": "FP16 channels-last",
    "compiled_autocast_fp16": "torch.compile",
}
#: The mode that, like this engine, has its kernels recorded.
RECORDED = "graphed_autocast_fp16"


def best_of_torch(row: dict[str, Any]) -> tuple[str, float]:
    """PyTorch's fastest mode that starts its kernels one by one, and its milliseconds."""
    times = {mode: row[mode]["median_ms"] for mode in MODES if "median_ms" in row.get(mode, {})}
    mode = min(times, key=lambda m: times[m])
    return MODES[mode], times[mode]


def one_run(value: dict[str, Any], name: str) -> bool:
    """Whether a network's rows of both sides were measured on one day and kind of GPU."""
    sides = value["cuda_int8"][name], value["baselines"][name]
    return len({(side.get("date"), side["gpu"]) for side in sides}) == 1


def table(value: dict[str, Any]) -> list[str]:
    """CUDA INT8 against PyTorch."""
    rows = [(n, value["cuda_int8"][n]) for n in TIMED if n in value.get("cuda_int8", {})]
    if not rows:
        return []
    lines = [
        "| network | batch | CUDA INT8 ms, median (p95) | PyTorch FP32 ms | times faster | PyTorch's best ms | times faster | torch.compile with CUDA graphs ms | times faster | INT8 share of multiply-accumulates | GPU memory MB |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, ours in rows:
        apart = "" if one_run(value, name) else " *"
        for batch in (1, 4):
            mine, torch = ours[f"batch_{batch}"], value["baselines"][name][f"batch_{batch}"]
            mode, best = best_of_torch(torch)
            fp32, recorded = torch["fp32"]["median_ms"], torch.get(RECORDED, {}).get("median_ms")
            cells = [
                f"{fp32:.1f} | {fp32 / mine['median_ms']:.1f}",
                f"{best:.2f} ({mode}){apart} | {best / mine['median_ms']:.1f}",
            ]
            cells.append("– | –" if recorded is None else f"{recorded:.2f} | {recorded / mine['median_ms']:.1f}")
            lines.append(
                f"| {TIMED[name].title} | {batch} | {mine['median_ms']:.2f} ({mine['p95_ms']:.2f}) | {' | '.join(cells)} | {100 * ours['int8_mac_share']:.1f} % | {mine['mb']:.0f} |"
            )
    if any(not one_run(value, name) for name, _ in rows):
        lines += ["", "\\* The two sides were timed on different days or GPUs."]
    return lines


def roofs(value: dict[str, Any]) -> list[str]:
    """How much of what the chip can do is reached, and the steps that cost most."""
    lines = [
        "| network | TOP/s | of the INT8 roof | GB/s if nothing stays in the cache | of the memory's roof | build s | load s | the three steps that cost most |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name in (n for n in TIMED if n in value["cuda_int8"]):
        ours = value["cuda_int8"][name]
        mine = ours["batch_1"]
        tops, gigabytes = 2e-9 * ours["macs"] / mine["median_ms"], 1e-6 * mine["bytes"] / mine["median_ms"]
        compute, memory = ROOFS[ours["gpu"]]
        costly = sorted(mine["steps"], key=lambda s: -s["ms"])[:3]
        words = "; ".join(
            f"{s['kind']} {s['channels'][0]} to {s['channels'][1]} {_where(s['size'])}: {s['ms']:.3f} ms"
            for s in costly
        )
        lines.append(
            f"| {TIMED[name].title} | {tops:.0f} | {100 * tops / compute:.0f} % | {gigabytes:.0f} | {100 * gigabytes / memory:.0f} % | {mine['build_s']:.1f} | {mine['load_s']:.2f} | {words} |"
        )
    return lines


def _where(size: list[int]) -> str:
    return f"at {size[0]}^3" if size[0] == size[1] == size[2] else f"for {math.prod(size)} tokens"


def study(value: dict[str, Any]) -> list[str]:
    """The study's table with this engine's column."""
    from MedQuantINT8Lib.importers.networks import STUDY

    sizes = {row["network"]: row for row in json.loads((RESULTS / "networks.json").read_text())["rows"]}
    lines = [
        "| network | FP32 file MB | INT8 file MB | times smaller | PyTorch FP32 ms | CUDA INT8 ms | times faster |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in STUDY:
        files, ours = sizes.get(name), value["cuda_int8"].get(name)
        fp32 = value["baselines"].get(name, {}).get("batch_1", {}).get("fp32", {}).get("median_ms")
        if files is None or fp32 is None:
            continue
        speed = (
            f"{ours['batch_1']['median_ms']:.2f} | {fp32 / ours['batch_1']['median_ms']:.1f}"
            if ours
            else "not timed | –"
        )
        lines.append(
            f"| {STUDY[name].title} | {files['fp32_mb']:.1f} | {files['int8_mb']:.1f} | {files['fp32_mb'] / files['int8_mb']:.1f} | {fp32:.1f} | {speed} |"
        )
    return lines


def section(value: dict[str, Any]) -> list[str]:
    """Of gpu.md."""
    if not value.get("cuda_int8"):
        return []
    first = next(iter(value["cuda_int8"].values()))
    torch = next(iter(value["baselines"].values()))["torch"]
    if first["gpu"] not in ROOFS:
        raise SystemExit(
            f"What a {first['gpu']} can do at most is not known here: add it to ROOFS in {Path(__file__).name}."
        )
    compute, memory = ROOFS[first["gpu"]]
    lines = [
        "## CUDA INT8, the engine of this project",
        "",
        f"Made by `benchmarks/cuda_int8.py` and `gpu_baselines.py`, {first['date']}. {first['gpu']}, PyTorch {torch}; networks of the study's size, random weights, 96 x 96 x 96, recorded",
        "calls, FP16 at both ends. Each network was timed beside PyTorch, one after the other on one machine; SwinUNETR's pair on another of its kind. A batch runs as two parts side by side. The",
        "best of PyTorch is the fastest of its modes that start their kernels one by one (FP32, TF32, autocast FP16,",
        "FP16 channels-last, torch.compile over autocast FP16); with CUDA graphs they are recorded as here.",
        "",
        *table(value),
        "",
        "The study's table (FP32 against INT8: size, latency) with this engine:",
        "",
        *study(value),
        "",
        f"Roofs are {compute} TOP/s (dense INT8) and the memory's {memory / 1000:.1f} TB/s. A step's time is its own, repeated. Why these cost most: the product of 64 rows and N columns takes the tensor",
        "cores N / 2 cycles and shared memory 16 + N / 4 (measured: 24 cycles for 32 columns, 28 for 48, 48 for 96), so that up to 48 columns shared memory decides; rows in registers, where they",
        "serve several taps, take 16 cycles for 32 columns. A convolution of 48 to 48 channels at 96^3 cannot take less than 61 us so. The last layer writes 105 classes in FP16, 186 MB; a residual",
        "adds 170 MB. Attention of 343 tokens needs a power of two for each of 121 million scores, 33 us alone. Tried and not faster: beginning a kernel while the last one ends; rows in registers for",
        "48 columns and more; two teams of threads at the tensor cores at once (a convolution of 32 to 32 channels 57 to 64 us instead of 54); rounding to INT8 by adding a large number instead of the",
        "conversion, which has few units (1.17 ms of SegResNet with 32 filters become 1.20); statistics of small tensors by the kernel that applies them instead of one of their own (nnU-Net 0.88 ms",
        "instead of 0.89); four parts of a batch side by side instead of two (nnU-Net 2.91 ms instead of 2.89, TransUNet 2.87 instead of 2.68; one part: 3.05 and 2.75); a compiler that optimizes",
        "less (-Ofast-compile=mid: built a second sooner, fourteen times slower). On an NVIDIA H200, earlier that day and before batches ran in parts, nnU-Net took 0.87 ms with one patch and 2.89 with",
        "four, 3.96 and 3.71 times faster than PyTorch's best there. Build: in a new process, from the ONNX file to the engine's files,",
        "kernels of one to six tilings a layer compiled on 16 cores and timed, no kernel kept from before by this program or NVIDIA's; load: all of it from the cache.",
        "",
        *roofs(value),
        "",
    ]
    for volume in (value.get("cuda_int8_volume") or {}).get("volumes", []):
        seconds = volume["seconds"]
        lines.append(
            f"- {volume['what']}, 14 classes, nnU-Net's network in windows of 96^3 half over each other ({volume['windows']}), int16 up, labels down: {seconds:.2f} s "
            f"({1 / seconds:.1f} a second), {volume['gpu_gb']:.2f} GB of the GPU's memory."
        )
    if "torch_volume_s" in (value.get("cuda_int8_volume") or {}):
        volume = value["cuda_int8_volume"]
        lines.append(
            f"- The first of these by MONAI's sliding window around the same network in PyTorch (autocast FP16, batch 4, volume and scores on the GPU, second of two runs): "
            f"{volume['torch_volume_s']:.2f} s, {volume['torch_gpu_gb']:.1f} GB."
        )
    if fidelity := value.get("cuda_int8_fidelity"):
        lines += ["", *_fidelity(fidelity)]
    if real := value.get("cuda_int8_real"):
        lines += ["", *_real(real)]
    return [*lines, ""]


def _fidelity(rows: dict[str, Any]) -> list[str]:
    """What cuda_reference.py found."""
    from MedQuantINT8Lib.importers.networks import STUDY

    lines = [
        "The engine against the same INT8 networks simulated in ONNX Runtime: the study's networks as narrowed and trained for [this table](trained.md), patches of 64 x 64 x 64 around",
        "the hippocampus of scans they have not seen (`experiments/cuda_reference.py`: the engine's plans in NumPy, which every step on the GPU equals). SwinUNETR, TransUNet and",
        "UNesT were trained anew, for two minutes (Dice 0.87 to 0.89).",
        "",
        "| network | patches | voxels with another label than simulated, mean | worst patch | relative error of scores | simulated INT8 against FP32, voxels with another label | INT8 share |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, r in rows.items():
        lines.append(
            f"| {STUDY[name].title} | {r['patches']} | {100 * r['other_labels']:.4f} % | {100 * r['worst_patch']:.4f} % | {r['relative_error']:.4f} "
            f"| {100 * r['simulated_other_labels']:.3f} % | {100 * r['int8_mac_share']:.1f} % |"
        )
    return lines


def _real(rows: dict[str, Any]) -> list[str]:
    """What cuda_real.py found."""
    devices = ", ".join(sorted({r["device"].split(",")[0] for r in rows.values()}))
    lines = [
        f"Pretrained networks on real scans by `medquant segment --engine cuda_int8` on an {devices}, against the same INT8 network simulated in ONNX Runtime on the processor",
        "(`experiments/cuda_real.py`; networks, calibration and scans as in [results](results.md)). Seconds are those of the whole command, from start to file: the first time, when",
        "the engine is built and proved, and the second.",
        "",
        "| network | scan | voxels with another label than simulated | Dice with it | engine's report | INT8 share | sliding window | first time s | then s |",
        "| --- | --- | ---: | ---: | --- | ---: | --- | ---: | ---: |",
    ]
    for name, r in rows.items():
        where = "on the GPU" if r["window_on_gpu"] else "blended on the processor"
        lines.append(
            f"| {name.replace('_', ' ')} | {' x '.join(map(str, r['voxels']))} | {100 * r['other_labels']:.4f} % | {r['dice']:.4f} | {r['verdict']} | {100 * r['int8_mac_share']:.0f} % "
            f"| {where} | {r['first_s']:.1f} | {r['second_s']:.1f} |"
        )
    return lines
