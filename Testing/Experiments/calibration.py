"""How many scans, and which method: the study's open question 3, on the hippocampus set. Writes Resources/calibration.json and .md.

    python Testing/Experiments/calibration.py WEIGHTS [--data DIR] [NAME ...]

WEIGHTS is what train.py wrote; by default one convolutional network (U-Net) and one transformer (UNesT). The whole network is
quantized, nothing is put back by the guard; INT8 is real, in OpenVINO; figures come from the test split. Scans here are smaller than a patch, so
that each gives one patch and the sampling strategy (random, foreground, mixed) cannot matter.
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
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT / "MedQuantINT8")]

from evaluate import package  # noqa: E402
from hippocampus import FOLDER, case_names, files  # noqa: E402
from scaled import PATCH  # noqa: E402

TARGET = ROOT / "Resources" / "calibration.json"
COUNTS = (1, 5, 20, 50, 100)
METHODS = ("max", "entropy", "percentile", "mse")


def study(name: str, weights: Path, train: list[Any], test: list[Any], truth: list[Any]) -> dict[str, Any]:
    from MedQuantINT8Lib import graph, qdq
    from MedQuantINT8Lib.bias_correction import with_corrected_biases
    from MedQuantINT8Lib.calibration import CalibrationOptions, PatchSampler, collect_histograms, scales_from
    from MedQuantINT8Lib.engines import BuildOptions, backend
    from MedQuantINT8Lib.evaluation import agreement, mean_dice
    from MedQuantINT8Lib.placement import place
    from MedQuantINT8Lib.preprocessing import preprocess
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.quantization import QuantizationPolicy, input_means, policy_reasons, require_quantizer
    from MedQuantINT8Lib.segmenter import SegmentationOptions, segment

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
        samplers = {
            count: PatchSampler([lambda v=v: v for v in train[:count]], made.spec, PATCH, CalibrationOptions(patches=count)) for count in COUNTS
        }
        placed = place(require_quantizer(), graph.fixed_shape(fp32, PATCH), next(iter(samplers[1])), policy_reasons(fp32, QuantizationPolicy()))
        tensors = list(qdq.activation_tensors(placed))
        rows = []
        for count, sampler in samplers.items():
            histograms = collect_histograms(fp32, tensors, sampler, len(sampler), PATCH, Task())
            means = input_means(fp32, [sample.patch for sample in sampler.first_samples(2)], PATCH)
            for method in METHODS:
                network = graph.require_onnx().ModelProto()
                network.CopyFrom(placed)
                qdq.set_activation_scales(network, scales_from(histograms, CalibrationOptions(method, count)))
                forms = {"plain": network, "biases corrected": with_corrected_biases(fp32, network, means)}
                best: dict[str, Any] = {}
                for form, model in forms.items():
                    if model is None:
                        continue
                    path = Path(scratch) / "int8.onnx"
                    path.write_bytes(qdq.compacted(model).SerializeToString())
                    values = score(path, "int8")
                    best[form] = {"dice": float(np.mean(values)), "lost": float(np.mean(np.array(exact) - np.array(values)))}
                rows.append({"scans": count, "method": method, **best})
                print(name, count, method, {k: round(v["lost"], 4) for k, v in best.items()}, flush=True)
    return {"network": name, "cases": len(test), "fp32_dice": float(np.mean(exact)), "rows": rows}


def page(value: dict[str, Any]) -> str:
    from MedQuantINT8Lib.networks import STUDY

    machine = value["machine"]
    lines = [
        "# How many scans to calibrate on, and by which method",
        "",
        "Made by `Testing/Experiments/calibration.py`; do not edit. Narrowed networks trained on the hippocampus set (see trained.md), the whole network in real INT8",
        "(OpenVINO), no layer put back. Dice lost against FP32, mean over the test cases; negative: INT8 is better by chance. In brackets: with corrected biases.",
        f"Machine: {machine['processor']}, {machine['cores']} cores; {value['date']}.",
    ]
    for study_of in value["networks"]:
        lines += ["", f"## {STUDY[study_of['network']].title}: FP32 Dice {study_of['fp32_dice']:.4f} on {study_of['cases']} cases", ""]
        lines += ["| scans | " + " | ".join(METHODS) + " |", "| ---: |" + " ---: |" * len(METHODS)]
        for count in COUNTS:
            cells = []
            for method in METHODS:
                row = next(r for r in study_of["rows"] if r["scans"] == count and r["method"] == method)
                corrected = row.get("biases corrected")
                cells.append(f"{row['plain']['lost']:+.4f}" + (f" ({corrected['lost']:+.4f})" if corrected else ""))
            lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from MedQuantINT8Lib.system import machine
    from MedQuantINT8Lib.volume_io import read_volume

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("names", nargs="*", default=["unet", "unest"])
    parser.add_argument("--data", default=str(FOLDER))
    args = parser.parse_args()
    folder = Path(args.data)
    train = [read_volume(files(case, folder)[0]) for case in case_names("train", folder)[: max(COUNTS)]]
    pairs = [files(case, folder) for case in case_names("test", folder)]
    test, truth = [read_volume(image) for image, _ in pairs], [read_volume(label).data[0].astype(np.uint8) for _, label in pairs]
    made = {r["network"]: r for r in json.loads(TARGET.read_text())["networks"]} if TARGET.exists() else {}
    for name in args.names:
        made[name] = study(name, Path(args.weights), train, test, truth)
        value = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "networks": list(made.values())}
        TARGET.write_text(json.dumps(value, indent=1) + "\n")
        TARGET.with_suffix(".md").write_text(page(value))


if __name__ == "__main__":
    main()
