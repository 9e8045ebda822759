"""How many scans, and which method: the study's open question 3, on the hippocampus set. Writes docs/results/calibration.json and .md.

    python experiments/calibration.py WEIGHTS [--data DIR] [--networks NAME ...] [--counts N ...] [--cases N]
    python experiments/calibration.py WEIGHTS --sampling [--networks NAME ...]

WEIGHTS is what train.py wrote; by default all seven networks. The whole network is quantized, nothing is put back by the guard; INT8 is real, in OpenVINO; figures come from
the test split, with 95 % bootstrap intervals of the mean over its cases. Whole scans are smaller than the networks' patch, so that each gives one; --sampling cuts patches of 32 x 32 x 32 instead,
anywhere, around foreground, or mixed as the product's default does (U-Net alone: the transformers are exported for one size).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from evaluate import package  # noqa: E402
from hippocampus import FOLDER, case_names, files  # noqa: E402
from scaled import PATCH, SCALED  # noqa: E402

TARGET = ROOT / "docs" / "results" / "calibration.json"
COUNTS = (1, 5, 20)
METHODS = ("max", "entropy", "percentile", "mse")
#: Shares of patches around foreground, and in air.
STRATEGIES = {"anywhere": (0.0, 0.0), "foreground": (1.0, 0.0), "mixed": (0.6, 0.1)}
SMALL, SMALL_COUNTS = (32, 32, 32), (5, 20, 100)


def whole_scans(train: list[Any], spec: Any, counts: Sequence[int]) -> dict[tuple[str, int], Any]:
    """A patch a scan, by strategy and count."""
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler

    return {
        ("whole scans", n): PatchSampler([lambda v=v: v for v in train[:n]], spec, PATCH, CalibrationOptions(patches=n))
        for n in counts
    }


def small_patches(train: list[Any], spec: Any, counts: Sequence[int]) -> dict[tuple[str, int], Any]:
    """Small patches out of as many scans as there are patches, at most all."""
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler

    made = {}
    for strategy, (foreground, air) in STRATEGIES.items():
        for n in counts:
            options = CalibrationOptions(patches=n, foreground=foreground, air=air)
            made[strategy, n] = PatchSampler([lambda v=v: v for v in train[:n]], spec, SMALL, options)
    return made


def study(
    name: str,
    weights: Path,
    make_samplers: Any,
    scans: tuple[list[Any], list[Any], list[Any]],
    known: list[dict[str, Any]],
) -> dict[str, Any]:
    """A network's rows: those that are known, and those that are missing.

    Args:
        scans: to calibrate on, to test on, and the labels of these.
    """
    from MedQuantINT8Lib.engines import BuildOptions, backend
    from MedQuantINT8Lib.evaluation.agreement import agreement, mean_dice
    from MedQuantINT8Lib.evaluation.statistics import mean_of
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models import qdq
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.quantization.activation_ranges import collect_histograms, scales_from
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions
    from MedQuantINT8Lib.quantization.qdq_placement import place
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, policy_reasons, require_quantizer

    train, test, truth = scans
    done = {(row["strategy"], row["scans"], row["method"]) for row in known}
    with tempfile.TemporaryDirectory() as scratch:
        made = package(name, weights, Path(scratch))
        fp32 = graph.load_network(made.onnx_path("fp32"))
        graph.name_nodes(fp32)
        inputs = [preprocess(volume, made.spec) for volume in test]

        def score(network: Path, precision: str) -> list[float]:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            options = BuildOptions(precision, PATCH)  # type: ignore[arg-type]
            backend("openvino").build(network, folder, options)
            engine = backend("openvino").load(folder, options)
            found = [segment(i, made.spec, engine, SegmentationOptions()).labels for i in inputs]
            engine.close()
            return [mean_dice(agreement(f, t, made.spec.labels)) or 0.0 for f, t in zip(found, truth, strict=True)]

        exact = score(made.onnx_path("fp32"), "fp32")
        samplers = make_samplers(train, made.spec)
        patch = next(iter(samplers.values())).patch
        first = next(iter(next(iter(samplers.values()))))
        placed = place(
            require_quantizer(), graph.fixed_shape(fp32, patch), first, policy_reasons(fp32, QuantizationPolicy())
        )
        tensors = list(qdq.activation_tensors(placed))
        rows = list(known)
        for (strategy, count), sampler in samplers.items():
            if all((strategy, count, method) in done for method in METHODS):
                continue
            histograms = collect_histograms(fp32, tensors, sampler, len(sampler), patch, Task())
            for method in METHODS:
                if (strategy, count, method) in done:
                    continue
                network = graph.require_onnx().ModelProto()
                network.CopyFrom(placed)
                qdq.set_activation_scales(network, scales_from(histograms, CalibrationOptions(method, count)))
                path = Path(scratch) / "int8.onnx"
                path.write_bytes(qdq.compacted(network).SerializeToString())
                lost = mean_of([a - b for a, b in zip(exact, score(path, "int8"), strict=True)])
                assert lost is not None
                row = {"strategy": strategy, "scans": count, "method": method, "drawn": sampler.drawn}
                rows.append({**row, "lost": lost.mean, "low": lost.low, "high": lost.high})
                print(name, rows[-1], flush=True)
    return {"network": name, "cases": len(test), "fp32_dice": float(np.mean(exact)), "rows": rows}


def _cell(row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{row['lost']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"


def _table(study_of: dict[str, Any], first: str, keys: Sequence[str]) -> list[str]:
    """The rows of a network's table: ``keys`` name what a line is of, and each method has a column."""
    lines = [
        f"| {first} | " + " | ".join(METHODS) + " |",
        "| " + " | ".join(["---:"] * (len(keys) + len(METHODS))) + " |",
    ]
    for values in dict.fromkeys(tuple(row[key] for key in keys) for row in study_of["rows"]):
        by_method = {row["method"]: row for row in study_of["rows"] if tuple(row[key] for key in keys) == values}
        cells = [*map(str, values), *(_cell(by_method.get(method)) for method in METHODS)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(value: dict[str, Any]) -> str:
    from MedQuantINT8Lib.importers.networks import STUDY

    machine = value["machine"]
    lines = [
        "# How many scans to calibrate on, and by which method",
        "",
        "Made by `experiments/calibration.py`; do not edit. Narrowed networks trained on the hippocampus set (see trained.md), the whole network in real INT8",
        "(OpenVINO), no layer put back. Dice lost against FP32, mean over the test cases with its 95 % bootstrap interval (cases drawn with replacement); negative: INT8",
        "is better. An interval that holds 0 says that nothing was measured.",
        f"Machine: {machine['processor']}, {machine['cores']} cores; {value['date']}.",
    ]
    for study_of in value.get("networks", []):
        title = (
            f"## {STUDY[study_of['network']].title}: FP32 Dice {study_of['fp32_dice']:.4f} on {study_of['cases']} cases"
        )
        lines += ["", title, "", *_table(study_of, "scans", ["scans"])]
    for study_of in value.get("sampling", []):
        lines += ["", f"## {STUDY[study_of['network']].title}, patches of 32 x 32 x 32: where they lie", ""]
        lines += [
            f'FP32 Dice {study_of["fp32_dice"]:.4f} on {study_of["cases"]} cases. Shares hold over all scans together; "mixed" is 60 % around foreground, 10 % in air, the rest anywhere.',
            "",
        ]
        lines += _table(study_of, "patches | lie", ["scans", "strategy"])
    return "\n".join(lines) + "\n"


def main() -> None:
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.system import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--counts", nargs="+", type=int, help="scans, or small patches (default: 1 5 20, or 5 20 100)")
    parser.add_argument("--sampling", action="store_true", help="where small patches should lie")
    parser.add_argument("--cases", type=int, default=60, help="test cases (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget rows that are there")
    parser.add_argument("--data", default=str(FOLDER))
    args = parser.parse_args()
    folder = Path(args.data)
    train = [read_volume(files(case, folder)[0]) for case in case_names("train", folder)[: max(SMALL_COUNTS)]]
    pairs = [files(case, folder) for case in case_names("test", folder)[: args.cases]]
    test, truth = (
        [read_volume(image) for image, _ in pairs],
        [read_volume(label).data[0].astype(np.uint8) for _, label in pairs],
    )
    value = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    part, samplers = ("sampling", small_patches) if args.sampling else ("networks", whole_scans)
    counts = args.counts or (SMALL_COUNTS if args.sampling else COUNTS)
    made = {r["network"]: r for r in value.get(part, [])}
    for name in args.networks or (["unet"] if args.sampling else list(SCALED)):
        # Rows on other cases say nothing beside these.
        before = made.get(name, {})
        known = [] if args.fresh or before.get("cases") != len(test) else before["rows"]
        make = partial(samplers, counts=counts)
        made[name] = study(name, Path(args.weights), make, (train, test, truth), known)
        value |= {"machine": machine(), "date": time.strftime("%Y-%m-%d"), part: list(made.values())}
        TARGET.write_text(json.dumps(value, indent=1) + "\n")
        TARGET.with_suffix(".md").write_text(page(value))


if __name__ == "__main__":
    main()
