"""Pretrained networks on real scans, FP32 against real INT8: writes docs/results/results.md.

    python benchmarks/real_networks.py [NAME ...]

Every step is a ``medquant`` command, in a process of its own, as a user would run it. Calibration scans are never those
that are segmented. With names, only those rows are made anew; the others are kept from docs/results/results.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(HERE.parent / "MedQuantINT8")]

from cuda_int8_page import table, timed_networks  # noqa: E402
from data_models import BRAIN18, DATA, OBELISK_TO_TOTAL, ROOT, hippocampus_spec, specs  # noqa: E402
from MedQuantINT8Lib.imaging.volume_files import read_volume  # noqa: E402
from MedQuantINT8Lib.models.spec import ModelSpec, Normalization  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "results.json"
_HEADS = [DATA / "brain" / f"t1_head_{x}.nii.gz" for x in "bc"]


@dataclass
class Case:
    """One row: a network, what it is calibrated on and what it segments."""

    network: Path
    spec: ModelSpec
    calibrate: list[Path]
    scans: list[Path]
    labels: list[Path] = field(default_factory=list)
    options: tuple[str, ...] = ()


def cases(scratch: Path) -> dict[str, Case]:
    described = specs()
    head = [DATA / "brain" / "t1_head_a.nii.gz"]

    def brain(name: str, *options: str) -> Case:
        return Case(DATA / "networks" / f"{name}.onnx", described[name], _HEADS, head, options=options)

    split = json.loads((DATA / "hippocampus" / "split.json").read_text())
    hippocampus = DATA / "hippocampus"
    abdomen, reference = _abdomen(scratch)
    stripped = replace(described["brain18_meshnet30"], normalization=(Normalization("percentile", low=0, high=99.9),))
    labelled, labels = _labelled(scratch, "1000")
    return {
        "hippocampus U-Net": Case(
            HERE.parent / "Testing" / "Networks" / "hippocampus_unet.onnx",
            hippocampus_spec(),
            [hippocampus / "images" / f"{c}.nii.gz" for c in split["train"][:20]],
            [hippocampus / "images" / f"{c}.nii.gz" for c in split["test"][:6]],
            [hippocampus / "labels" / f"{c}.nii.gz" for c in split["test"][:6]],
        ),
        "brain_torchio_4mm": brain("brain_torchio_4mm"),
        "brain_mask_deepbrain_v1": brain("brain_mask_deepbrain_v1"),
        "brain_mask_deepbrain_v2": brain("brain_mask_deepbrain_v2"),
        "abdomen_ct_obelisk": Case(
            DATA / "networks" / "abdomen_ct_obelisk.onnx",
            described["abdomen_ct_obelisk"],
            [DATA / "ct" / "thorax_cta_1.5mm.nii.gz"],
            [abdomen],
            [reference],
            ("--method", "entropy", "--keep-first", "--agreement", "0.97"),
        ),
        "brain3_meshnet20": brain("brain3_meshnet20", "--method", "mse", "--agreement", "0.95", "--patches", "6"),
        "brain_mask_mindgrab": brain("brain_mask_mindgrab", "--patches", "6"),
        "brain18_meshnet30": brain(
            "brain18_meshnet30", "--method", "percentile", "--agreement", "0.96", "--patches", "6"
        ),
        "brain18_meshnet30 (labeled scan)": Case(
            DATA / "networks" / "brain18_meshnet30.onnx",
            stripped,
            [DATA / "brain_labelled" / f"{n}_t1_stripped.nii.gz" for n in (1001, 1003)],
            [labelled],
            [labels],
            ("--method", "percentile", "--agreement", "0.96", "--patches", "6"),
        ),
    }


def _abdomen(scratch: Path) -> tuple[Path, Path]:
    """The part of the abdominal CT that OBELISK expects, and TotalSegmentator's labels as its classes."""
    from MedQuantINT8Lib.imaging.network_grid import sub_grid
    from MedQuantINT8Lib.imaging.segmentation_files import write_segmentation

    scan, labels = (
        read_volume(DATA / "ct" / "abdomen_3mm.nii.gz"),
        read_volume(DATA / "ct" / "abdomen_3mm_labels_totalsegmentator.nii.gz"),
    )
    box = ((0, 122), (6, 91), (56, 112))
    matrix = sub_grid(scan.grid, box).ijk_to_ras
    inside = tuple(slice(*bounds) for bounds in reversed(box))
    mapped = np.zeros(labels.data[0][inside].shape, np.uint8)
    for ours, theirs in OBELISK_TO_TOTAL.items():
        mapped[labels.data[0][inside] == theirs] = ours
    paths = scratch / "abdomen.nii.gz", scratch / "abdomen_labels.nii.gz"
    for path, array in zip(paths, (scan.data[0][inside].astype(np.int16), mapped), strict=True):
        write_segmentation(path, array, matrix, ())
    return paths


def _labelled(scratch: Path, case: str) -> tuple[Path, Path]:
    """A manually labelled, stripped brain with a margin of air, and its labels as the 18 classes."""
    from MedQuantINT8Lib.imaging.segmentation_files import write_segmentation

    scan, labels = (
        read_volume(DATA / "brain_labelled" / f"{case}_{what}.nii.gz") for what in ("t1_stripped", "labels")
    )
    values = labels.data[0]
    mapped = np.zeros(values.shape, np.uint8)
    for ours, (_, *theirs) in enumerate(BRAIN18, start=1):
        mapped[np.isin(values, theirs) if theirs else values >= 100] = ours
    matrix = scan.ijk_to_ras.copy()
    matrix[:3, 3] -= matrix[:3, :3] @ [16, 16, 16]
    paths = scratch / f"{case}.nii.gz", scratch / f"{case}_labels.nii.gz"
    for path, array in zip(paths, (scan.data[0], mapped), strict=True):
        write_segmentation(path, np.pad(array, 16), matrix, ())
    return paths


def run(name: str, case: Case, scratch: Path) -> dict[str, object]:
    folder = scratch / name.replace(" ", "_").strip("()")
    folder.mkdir()
    package, quantized = quantized_package(case, folder)
    labels = ["--labels", *map(str, case.labels)] if case.labels else []
    report = medquant("compare", package, *map(str, case.scans), *labels)
    return {
        "row": row(report, quantized["calibration"]),
        "calibration": f"{quantized['calibration']['method']}, {len(case.calibrate)} scan(s)",
    }


def quantized_package(case: Case, folder: Path) -> tuple[str, dict]:
    """Where a case's package is, in that folder, and what quantizing it told."""
    (folder / "spec.json").write_text(json.dumps(case.spec.to_json()))
    package = str(folder / "package")
    medquant("import", "onnx", str(case.network), "--spec", str(folder / "spec.json"), "--output", package)
    return package, medquant("quantize", package, "--calibrate", *map(str, case.calibrate), *case.options)


def medquant(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "MedQuantINT8Lib.cli.main", *arguments, "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT / "MedQuantINT8",
    )
    if done.returncode:
        raise SystemExit(f"medquant {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def row(report: dict, calibration: dict) -> dict[str, object]:
    def mean(values: list) -> float | None:
        present = [v for v in values if v is not None]
        return float(np.mean(present)) if present else None

    def dice(first: str, second: str) -> float | None:
        return mean([a["mean_dice"] for a in report["agreement"] if (a["first"], a["second"]) == (first, second)])

    made: dict[str, object] = {
        "scans": len({r["scan"] for r in report["runs"]}),
        "agreement": dice("int8", "fp32"),
        "dice_fp32": dice("fp32", "labels"),
        "dice_int8": dice("int8", "labels"),
        "size_ratio": report["sizes"]["ratio"],
        "high_precision": {
            layer["name"]: layer["reason"] for layer in calibration["quantization"]["layers"] if not layer["quantized"]
        },
        "machine": report["machine"],
        "versions": calibration["versions"],
    }
    for precision in ("fp32", "int8"):
        runs = [r for r in report["runs"] if r["precision"] == precision]
        made[precision] = {
            "latency_ms": mean([r["latency_ms"]["median"] for r in runs]),
            "seconds": mean([r["seconds"]["total"] for r in runs]),
            "network_seconds": mean([r["seconds"]["network"] for r in runs]),
            "peak_mb": max(r["peak_memory_bytes"] for r in runs) / 1e6,
            "int8_share": mean([r["engine"]["description"]["int8_mac_share"] for r in runs]),
            "engine": runs[0]["engine"]["title"],
            "engine_version": runs[0]["engine"]["description"]["version"],
            "fidelity": runs[0]["engine"]["fidelity"],
        }
    return made


def page(results: dict[str, dict]) -> str:
    rows = {name: value["row"] for name, value in results.items()}
    first = next(iter(rows.values()))
    machine = first["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
    lines = [
        "# Pretrained networks on real scans: FP32 against real INT8",
        "",
        "Made by `make results` (`benchmarks/real_networks.py`); do not edit. Every run is a process of its own, with its engine in the cache.",
        f"Machine: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['features'])}). Engine: {first['int8']['engine']} {first['int8']['engine_version']}; {versions}.",
        "",
        "Agreement is the mean Dice over structures of INT8 with FP32. INT8 share is the share of multiply-accumulates that the engine itself reports in INT8.",
        "One call is the network on one patch (median). End to end is from reading the file to the written segmentation, engine loading included.",
        "Networks that stand among [those that resist](resisting.md) as well were measured again there, with the guard's cures of today; README has those figures.",
        "",
        "| network | scans | calibration | agreement | Dice to labels, FP32 | INT8 | INT8 share | file | one call ms, FP32 | INT8 | ratio | end to end s, FP32 | INT8 | peak MB, FP32 | INT8 |",
        "| --- |" + " ---: |" * 14,
    ]
    for name, r in rows.items():
        fp32, int8 = r["fp32"], r["int8"]
        cells = [
            name,
            str(r["scans"]),
            results[name]["calibration"],
            _f(r["agreement"], 4),
            _f(r["dice_fp32"], 3),
            _f(r["dice_int8"], 3),
            f"{100 * int8['int8_share']:.0f} %",
            _f(r["size_ratio"], 3),
            _f(fp32["latency_ms"], 1),
            _f(int8["latency_ms"], 1),
            _f(fp32["latency_ms"] / int8["latency_ms"], 2),
            _f(fp32["seconds"], 2),
            _f(int8["seconds"], 2),
            _f(fp32["peak_mb"], 0),
            _f(int8["peak_mb"], 0),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Layers kept in high precision", ""]
    for name, r in rows.items():
        lines.append(
            f"- **{name}**: "
            + ("; ".join(f"`{layer}`: {why}" for layer, why in r["high_precision"].items()) or "none")
            + "."
        )
    lines += [
        "",
        "## Real INT8 against the same network simulated in ONNX Runtime",
        "",
        "| network | relative error | voxels with another label | simulation against FP32 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, r in rows.items():
        f = r["int8"]["fidelity"]
        lines.append(
            f"| {name} | {f['relative_error']:.4f} | {100 * f['label_disagreement']:.3f} % | {f['simulated_relative_error']:.4f} |"
        )
    gpu = RESULTS.with_name("gpu.json")
    if gpu.exists() and (compared := table(value := json.loads(gpu.read_text()))):
        cards = ", ".join(sorted({value["baselines"][name]["gpu"] for name in timed_networks(value)}))
        lines += [
            "",
            "## On an NVIDIA GPU: CUDA INT8 against PyTorch",
            "",
            f"{cards}; 96 x 96 x 96, networks of the study's size; [more](gpu.md).",
            "",
            *compared,
        ]
    return "\n".join(lines).rstrip() + "\n"


def _f(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def main() -> None:
    wanted = sys.argv[1:]
    results = json.loads(RESULTS.read_text()) if wanted and RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        known = cases(Path(scratch))
        for name in wanted or known:
            results[name] = run(name, known[name], Path(scratch))
            print(name, json.dumps(results[name]["row"]["agreement"]), flush=True)
            results = {n: results[n] for n in known if n in results}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            (ROOT / "docs" / "results" / "results.md").write_text(page(results))


if __name__ == "__main__":
    main()
