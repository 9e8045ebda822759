"""How many scans, and which method: the study's open question 3, on the hippocampus set. Writes docs/results/calibration.json and .md.

    python experiments/calibration.py WEIGHTS [--data DIR] [--networks NAME ...]
    python experiments/calibration.py WEIGHTS --sampling [--networks NAME ...]

WEIGHTS is what train.py wrote; by default one convolutional network (U-Net) and one transformer (UNesT). The whole network is quantized, nothing is put back by the guard; INT8 is real, in OpenVINO; figures come from
the test split. Whole scans are smaller than the networks' patch, so that each gives one; --sampling cuts patches of 32 x 32 x 32 instead,
anywhere, around foreground, or mixed as the product's default does (U-Net alone: the transformers are exported for one size).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from evaluate import package  # noqa: E402
from hippocampus import FOLDER, case_names, files  # noqa: E402
from scaled import PATCH  # noqa: E402

TARGET = ROOT / "docs" / "results" / "calibration.json"
COUNTS = (1, 5, 20, 50, 100)
METHODS = ("max", "entropy", "percentile", "mse")
#: Shares of patches around foreground, and in air.
STRATEGIES = {"anywhere": (0.0, 0.0), "foreground": (1.0, 0.0), "mixed": (0.6, 0.1)}
SMALL, SMALL_COUNTS = (32, 32, 32), (1, 5, 20, 50, 100, 200)


def whole_scans(train: list[Any], spec: Any) -> dict[tuple[str, int], Any]:
    """A patch a scan, by strategy and count."""
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler

    return {
        ("whole scans", n): PatchSampler([lambda v=v: v for v in train[:n]], spec, PATCH, CalibrationOptions(patches=n))
        for n in COUNTS
    }


def small_patches(train: list[Any], spec: Any) -> dict[tuple[str, int], Any]:
    """Small patches out of as many scans as there are patches, at most all."""
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler

    made = {}
    for strategy, (foreground, air) in STRATEGIES.items():
        for n in SMALL_COUNTS:
            options = CalibrationOptions(patches=n, foreground=foreground, air=air)
            made[strategy, n] = PatchSampler([lambda v=v: v for v in train[:n]], spec, SMALL, options)
    return made


def study(
    name: str, weights: Path, make_samplers: Any, train: list[Any], test: list[Any], truth: list[Any]
) -> dict[str, Any]:
    from MedQuantINT8Lib.engines import BuildOptions, backend
    from MedQuantINT8Lib.evaluation.agreement import agreement, mean_dice
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models import qdq
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.quantization.bias_correction import with_corrected_biases
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, collect_histograms, scales_from
    from MedQuantINT8Lib.quantization.qdq_placement import place
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, input_means, policy_reasons, require_quantizer

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
        rows = []
        for (strategy, count), sampler in samplers.items():
            histograms = collect_histograms(fp32, tensors, sampler, len(sampler), patch, Task())
            means = input_means(fp32, [sample.patch for sample in sampler.first_samples(2)], patch)
            for method in METHODS:
                network = graph.require_onnx().ModelProto()
                network.CopyFrom(placed)
                qdq.set_activation_scales(network, scales_from(histograms, CalibrationOptions(method, count)))
                forms = {"plain": network}
                if patch == PATCH:
                    forms["biases corrected"] = with_corrected_biases(fp32, network, means)
                best: dict[str, Any] = {}
                for form, model in forms.items():
                    if model is None:
                        continue
                    path = Path(scratch) / "int8.onnx"
                    path.write_bytes(qdq.compacted(model).SerializeToString())
                    values = score(path, "int8")
                    best[form] = {
                        "dice": float(np.mean(values)),
                        "lost": float(np.mean(np.array(exact) - np.array(values))),
                    }
                rows.append({"strategy": strategy, "scans": count, "method": method, **best})
                print(name, strategy, count, method, {k: round(v["lost"], 4) for k, v in best.items()}, flush=True)
    return {"network": name, "cases": len(test), "fp32_dice": float(np.mean(exact)), "rows": rows}


def page(value: dict[str, Any]) -> str:
    from MedQuantINT8Lib.importers.networks import STUDY

    machine = value["machine"]
    lines = [
        "# How many scans to calibrate on, and by which method",
        "",
        "Made by `experiments/calibration.py`; do not edit. Narrowed networks trained on the hippocampus set (see trained.md), the whole network in real INT8",
        "(OpenVINO), no layer put back. Dice lost against FP32, mean over the test cases; negative: INT8 is better by chance. In brackets: with corrected biases.",
        "Where tables give another FP32 Dice, they were made with weights of another training of the same network.",
        f"Machine: {machine['processor']}, {machine['cores']} cores; {value['date']}.",
    ]
    for study_of in value.get("networks", []):
        lines += [
            "",
            f"## {STUDY[study_of['network']].title}: FP32 Dice {study_of['fp32_dice']:.4f} on {study_of['cases']} cases",
            "",
        ]
        lines += ["| scans | " + " | ".join(METHODS) + " |", "| ---: |" + " ---: |" * len(METHODS)]
        for count in COUNTS:
            cells = []
            for method in METHODS:
                row = next(r for r in study_of["rows"] if r["scans"] == count and r["method"] == method)
                corrected = row.get("biases corrected")
                cells.append(f"{row['plain']['lost']:+.4f}" + (f" ({corrected['lost']:+.4f})" if corrected else ""))
            lines.append(f"| {count} | {' | '.join(cells)} |")
    for study_of in value.get("sampling", []):
        lines += [
            "",
            f"## {STUDY[study_of['network']].title}, patches of 32 x 32 x 32 from 100 scans: where they lie",
            "",
        ]
        lines += [
            "Entropy loses nothing here, where patches hold tissue throughout; above, most of a patch is padding around a small scan, and the histograms it works on are full of it.",
            "",
        ]
        lines += [f"FP32 Dice {study_of['fp32_dice']:.4f} on {study_of['cases']} cases.", ""]
        lines += ["| patches | lie | " + " | ".join(METHODS) + " |", "| ---: | --- |" + " ---: |" * len(METHODS)]
        for count in SMALL_COUNTS:
            for strategy in STRATEGIES:
                found = {
                    r["method"]: r["plain"]["lost"]
                    for r in study_of["rows"]
                    if r["scans"] == count and r["strategy"] == strategy
                }
                lines.append(f"| {count} | {strategy} | " + " | ".join(f"{found[m]:+.4f}" for m in METHODS) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.system import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--sampling", action="store_true", help="where small patches should lie")
    parser.add_argument("--cases", type=int, default=60, help="test cases (default: %(default)s)")
    parser.add_argument("--data", default=str(FOLDER))
    args = parser.parse_args()
    folder = Path(args.data)
    train = [read_volume(files(case, folder)[0]) for case in case_names("train", folder)[: max(COUNTS)]]
    pairs = [files(case, folder) for case in case_names("test", folder)[: args.cases]]
    test, truth = (
        [read_volume(image) for image, _ in pairs],
        [read_volume(label).data[0].astype(np.uint8) for _, label in pairs],
    )
    value = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    part, samplers = ("sampling", small_patches) if args.sampling else ("networks", whole_scans)
    made = {r["network"]: r for r in value.get(part, [])}
    for name in args.networks or (["unet"] if args.sampling else ["unet", "unest"]):
        made[name] = study(name, Path(args.weights), samplers, train, test, truth)
        value |= {"machine": machine(), "date": time.strftime("%Y-%m-%d"), part: list(made.values())}
        TARGET.write_text(json.dumps(value, indent=1) + "\n")
        TARGET.with_suffix(".md").write_text(page(value))


if __name__ == "__main__":
    main()
