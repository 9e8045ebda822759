"""The part of docs/results/gpu.md (and the table in results.md) that tells of the CUDA INT8 engine, from what cuda_int8.py printed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gpu_networks import TIMED
from torch_modes import MODES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
#: Dense INT8 of tensor cores in TOP/s, and memory in GB/s, by the maker's data sheets.
ROOFS = {"NVIDIA H100 80GB HBM3": (1979, 3352), "NVIDIA H200": (1979, 4800)}


def best_of_torch(row: dict[str, Any]) -> tuple[str, float]:
    """PyTorch's fastest mode of all that were timed, alone or beside the engine, by its title, and its milliseconds."""
    times = {mode: row[mode]["median_ms"] for mode in MODES if "median_ms" in row.get(mode, {})}
    beside = row["beside"]
    times[beside["mode"]] = min(times.get(beside["mode"], np.inf), beside["torch"]["median_ms"])
    mode = min(times, key=lambda m: times[m])
    return MODES[mode].title, times[mode]


def days_of(rows: list[dict[str, Any]], what: str = "") -> str:
    """The first and the last day on which something of the rows was timed: all, or what is named."""
    days = {
        found.get("date", row["date"])
        for row in rows
        for batch in (1, 4)
        for name, found in row.get(f"batch_{batch}", {}).items()
        if isinstance(found, dict) and what in ("", name)
    }
    return " to ".join(sorted({min(days), max(days)}))


def _not_run(value: dict[str, Any]) -> str:
    """The modes that no network was timed in, in words."""
    rows = [value["baselines"][name].get(f"batch_{batch}", {}) for name in timed_networks(value) for batch in (1, 4)]
    left = [mode.title for name, mode in MODES.items() if not any("median_ms" in row.get(name, {}) for row in rows)]
    return "; ".join(left)


def timed_networks(value: dict[str, Any]) -> list[str]:
    """The networks that were timed beside PyTorch in one process, at batch 1 at least."""
    return [name for name in TIMED if "beside" in value["baselines"].get(name, {}).get("batch_1", {})]


def ratios(value: dict[str, Any], against: str = "best") -> list[float]:
    """How many times faster than PyTorch's best mode, or its FP32, each network is, at each batch that was timed."""
    found = []
    for name in timed_networks(value):
        for batch in (1, 4):
            row = value["baselines"][name].get(f"batch_{batch}", {})
            if "beside" not in row or (against == "fp32" and "median_ms" not in row.get("fp32", {})):
                continue
            theirs = best_of_torch(row)[1] if against == "best" else row["fp32"]["median_ms"]
            found.append(theirs / row["beside"]["int8"]["median_ms"])
    return found


def table(value: dict[str, Any]) -> list[str]:
    """CUDA INT8 against PyTorch, timed turn and turn about."""
    lines = [
        "| network | batch | CUDA INT8 ms, median (p95) | PyTorch FP32 ms | times faster | PyTorch's best ms | times faster | ten calls queued: PyTorch, CUDA INT8 ms | times faster | INT8 share of multiply-accumulates | GPU memory MB | measured |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for name in timed_networks(value):
        for batch in (1, 4):
            row = value["baselines"][name].get(f"batch_{batch}", {})
            if "beside" not in row:
                continue
            beside = row["beside"]
            mine, (mode, best) = beside["int8"], best_of_torch(row)
            fp32 = row.get("fp32", {}).get("median_ms")
            queued = _queued(beside)
            single = "– | –" if fp32 is None else f"{fp32:.1f} | {fp32 / mine['median_ms']:.1f}"
            lines.append(
                f"| {TIMED[name].title} | {batch} | {mine['median_ms']:.2f} ({mine['p95_ms']:.2f}) | {single} "
                f"| {best:.2f} ({mode}) | {best / mine['median_ms']:.1f} | {queued} | {100 * beside['int8_mac_share']:.1f} % | {beside['mb']:.0f} "
                f"| {beside.get('date', value['baselines'][name]['date'])} |"
            )
    return lines if len(lines) > 2 else []


def _queued(beside: dict[str, Any]) -> str:
    """The cells of several calls that were queued, PyTorch's and the engine's."""
    if "queued" not in beside:
        return "– | –"
    theirs, mine = (beside["queued"][key]["median_ms"] for key in ("torch", "int8"))
    return f"{theirs:.2f}, {mine:.2f} | {theirs / mine:.1f}"


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
    for name in (n for n in STUDY if n in timed_networks(value)):
        files, row = sizes.get(name), value["baselines"][name]["batch_1"]
        fp32, ours = row.get("fp32", {}).get("median_ms"), row["beside"]["int8"]["median_ms"]
        if files is None or fp32 is None:
            continue
        lines.append(
            f"| {STUDY[name].title} | {files['fp32_mb']:.1f} | {files['int8_mb']:.1f} | {files['fp32_mb'] / files['int8_mb']:.1f} | {fp32:.1f} | {ours:.2f} | {fp32 / ours:.1f} |"
        )
    return lines


def section(value: dict[str, Any]) -> list[str]:
    """Of gpu.md."""
    if not timed_networks(value):
        return []
    first = value["baselines"][timed_networks(value)[0]]
    days = days_of([value["baselines"][name] for name in timed_networks(value)], "beside")
    steps = next(iter(value["cuda_int8"].values()))
    if steps["gpu"] not in ROOFS:
        raise SystemExit(
            f"What a {steps['gpu']} can do at most is not known here: add it to ROOFS in {Path(__file__).name}."
        )
    compute, memory = ROOFS[steps["gpu"]]
    lines = [
        "## CUDA INT8, the engine of this project, beside PyTorch's best",
        "",
        f"Made by `benchmarks/gpu_baselines.py`, {days}. {first['gpu']}, PyTorch {first['torch']}; networks of the study's size, random weights, 96 x 96 x 96, FP16 at both ends. Each",
        "network runs in one process with PyTorch, turn and turn about, calls recorded on both sides. PyTorch's best is the fastest of all modes that were timed",
        "([below](#what-a-gpu-user-has-in-pytorch-the-figures-to-beat)); every ratio on these pages and in README is against it unless it says FP32. A batch of four runs as two parts side by side. Each call is timed by itself, with what the caller's",
        "processor does for it; where ten calls are queued (of the mode that is fastest beside the engine), the GPU's work hides most of that.",
        "The last column says when a row was measured; rows of an earlier day are of the kernels of that day."
        * (" to " in days),
        f"Of the modes that `benchmarks/gpu_baselines.py` knows, these were not run for want of time on the GPU: {_not_run(value)}. What cannot run is named below."
        * bool(_not_run(value)),
        "",
        *table(value),
        "",
        "The study's table (FP32 against INT8: size, latency) with this engine. The study's own 2.05 to 2.66 compares TensorRT in INT8 with TensorRT in FP32; these times compare this engine",
        "with PyTorch in FP32, another baseline, so that the two are not to be compared.",
        "",
        *study(value),
        "",
        f"How near the chip's limits it is was looked at on an {steps['gpu']}, {steps['date']} (`benchmarks/cuda_int8.py`), before the kernels of today.",
        f"Roofs are {compute} TOP/s (dense INT8) and the memory's {memory / 1000:.1f} TB/s. A step's time is its own, repeated. Why these cost most: the product of 64 rows and N columns takes the tensor",
        "cores N / 2 cycles and shared memory 16 + N / 4 (measured: 24 cycles for 32 columns, 28 for 48, 48 for 96), so that up to 48 columns shared memory decides; rows in registers, where they",
        "serve several taps, take 16 cycles for 32 columns. A convolution of 48 to 48 channels at 96^3 cannot take less than 61 us so. The last layer writes 105 classes in FP16, 186 MB; a residual",
        "adds 170 MB. Attention of 343 tokens needs a power of two for each of 121 million scores, 33 us alone. Tried and not faster: rows in registers for",
        "48 columns and more; two teams of threads at the tensor cores at once (a convolution of 32 to 32 channels 57 to 64 us instead of 54); rounding to INT8 by adding a large number instead of the",
        "conversion, which has few units (1.17 ms of SegResNet with 32 filters become 1.20); statistics of small tensors by the kernel that applies them instead of one of their own (nnU-Net 0.88 ms",
        "instead of 0.89); four parts of a batch side by side instead of two (nnU-Net 2.91 ms instead of 2.89, TransUNet 2.87 instead of 2.68; one part: 3.05 and 2.75); a compiler that optimizes",
        "less (-Ofast-compile=mid: built a second sooner, fourteen times slower). Build: in a new process, from the ONNX file to the engine's files,",
        "kernels of one to six tilings a layer compiled on 16 cores and timed, no kernel kept from before by this program or NVIDIA's; load: all of it from the cache.",
        "",
        *roofs(value),
        "",
    ]
    if fidelity := value.get("cuda_int8_fidelity"):
        lines += ["", "## The engine beside the simulation of its network", "", *_fidelity(fidelity)]
    if real := value.get("cuda_int8_real"):
        lines += ["", *_real(real)]
    return [*lines, "", *whole_jobs(value)]


def whole_jobs(value: dict[str, Any]) -> list[str]:
    """From a scan in memory to labels in memory, beside the fastest way with PyTorch that was tried, nnU-Net's and TotalSegmentator's own, and MLPerf's benchmark."""
    lines: list[str] = []
    if road := value.get("road"):
        peer, seconds = road["road"], road["seconds"]
        stages = road["details"]["torch"]["stages"]
        lines += [
            "## A whole job: scan in memory to labels in memory",
            "",
            f"{peer['gpu']}, {road['date']}, `benchmarks/gpu_road.py`: one part of TotalSegmentator's \"total\" (nnU-Net's network, {peer['classes']} classes, {peer['windows']} windows of 128^3), 512 x 512 x 400 as int16 resampled to",
            "273 x 273 x 267 and back, engine loaded. PyTorch's side keeps everything on the GPU and is the fastest that was tried: half precision, blended in half precision as nnU-Net does it,",
            f"the fastest network mode of those tried ({peer['peer']}), and a compiled pass that interpolates all classes and takes the largest. {_copies(peer)}",
            "Both in one process, turn and turn about:",
            "",
            "| | seconds, median |",
            "| --- | ---: |",
            f"| CUDA INT8 by this project's road | {seconds['ours']:.3f} |",
            f"| PyTorch, everything on the GPU | {seconds['torch']:.3f} ({', '.join(f'{name} {second:.3f}' for name, second in stages.items())}) |",
            f"| times faster | {road['ratio']:.2f} |",
        ]
        if five := value.get("road_parts"):
            lines.append(
                f"| {five['parts']} parts in one run, their labels merged, CUDA INT8 | {five['seconds']:.2f} |"
            )
        lines += [
            "",
            *([f"What was tried of PyTorch's, in milliseconds: {_tried(peer)}."] if "tried_ms" in peer else []),
            "A test holds the labels of the two ways to each other (`Testing/inference/test_gpu_road_peer.py`).",
            "",
        ]
    if parts := value.get("parts"):
        lines += [
            f"Keeping the largest part of each of {parts['parts_of']} structures in a label map of that size takes {parts['parts_ms']:.0f} ms on the GPU, with the processor's labels; the processor takes",
            f"{parts['eighth_on_processor_s']:.1f} s for an eighth of it (`benchmarks/gpu_road.py parts`).",
            "",
        ]
    if peers := value.get("nnunet_peers"):
        about = next(iter(peers.values()))
        k, j, i = about["voxels"]
        lines += [
            f"What a user of nnU-Net and TotalSegmentator waits for, on the same GPU (`benchmarks/nnunet_peers.py`{_days_in(peers)}; nnUNetPredictor's defaults; {i} x {j} x {k} voxels, an eighth of",
            "the scan above, since nnU-Net resamples each class on the processor; one plan, random weights; medians without the first run, which builds, compiles and tunes):",
            "",
            "| | seconds |",
            "| --- | ---: |",
            *(f"| {name} | {_seconds(row)} |" for name, row in peers.items()),
            "",
            "Processor cores were shared with jobs on other GPUs of the machine, and rows ran beside each other, each in a process of its own. nnU-Net's predictor resamples",
            "the probabilities of each class on one core, which is nearly all of its time, with mirroring and without. On a processor alone: `benchmarks/nnunet_peers.py cpu`.",
            "",
        ]
    if kits := value.get("kits19"):
        lines += [
            "## MLPerf's 3D U-Net on KiTS19",
            "",
            f"{kits['gpu']}, {kits['date']}, `benchmarks/mlperf_kits19.py`: the benchmark's network (32 to 320 channels, instance normalization, ReLU, 3 classes; random weights), windows of 128^3 half over each other,",
            f"Gaussian blending, {kits['kits19']} cases from preprocessed arrays in the computer's memory to labels there: **{kits['cases_a_second']:.1f} cases a second** ({kits['windows']} windows, {kits['window_ms']:.2f} ms each with all that belongs",
            f"to it; {100 * kits['int8_mac_share']:.1f} % of the work in INT8). NVIDIA's submission to round 4.1 reports {kits['submitted']} a second for each of 8 H200s. What differs: heights and widths are those of the {kits['kits19']} cases, but KiTS19's list of cases does not say how many slices",
            "each has, so that the depth is assumed: 412 mm, the median of the training cases by the challenge's winners (128 slices of 3.22 mm after resampling, arXiv 1908.02182; case 0 has its own); weights",
            "are random, so that no accuracy is claimed; cases ran one after the other, without MLPerf's load generator and without its 43rd case, a copy of another. It is no result of MLPerf.",
            "",
        ]
    return lines


def _days_in(rows: dict[str, dict[str, Any]]) -> str:
    """The days of rows that say theirs, after a comma."""
    days = sorted({row["date"] for row in rows.values() if "date" in row})
    return f", {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""


def _copies(peer: dict[str, Any]) -> str:
    """How PyTorch's scan and labels cross the bus."""
    if "tried_ms" not in peer:
        return "Its scan and labels cross the bus by plain copies; pinned memory, which this project's road uses, was not tried there."
    return "Its scan goes up by a plain copy or in pieces through pinned memory, whatever is faster, and its labels stay in the pinned memory that they come down to; this project's come down to an array of their own."


def _tried(peer: dict[str, Any]) -> str:
    """Milliseconds of each form of the network, of a window, and of each order of scores, of a scan; or why there are none."""
    windows = {f"a window, {name}": ms for name, ms in peer["window_ms"].items()}
    found = windows | {f"a scan, {name}": ms for name, ms in peer["tried_ms"].items()}
    return "; ".join(f"{name} {ms if isinstance(ms, str) else format(ms, '.3g')}" for name, ms in found.items())


def _seconds(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"]).split(":")[0]
    seconds = f"{row['seconds']:.{1 if row['seconds'] > 1 else 3}f}"
    return seconds if len(row.get("times", [])) != 1 else f"{seconds} (its first run; no other was reached)"


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
