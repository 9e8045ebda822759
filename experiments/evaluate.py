"""FP32 against INT8 for the seven trained networks: writes docs/results/trained.json and trained.md.

    python experiments/evaluate.py WEIGHTS [--data DIR] [NAME ...]

WEIGHTS is what train.py wrote. Calibration scans come from the training split, figures from the test split; INT8 is the
whole network, with no layer put back by the guard.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from data_models import hippocampus_spec  # noqa: E402
from hippocampus import FOLDER, case_names, dataset, files  # noqa: E402
from scaled import PATCH, SCALED  # noqa: E402

CALIBRATION_SCANS = 20


def package(name: str, weights: Path, folder: Path) -> Any:
    from MedQuantINT8Lib.importers.checkpoints import load_weights
    from MedQuantINT8Lib.importers.export import export_network
    from MedQuantINT8Lib.importers.onnx import import_onnx
    from MedQuantINT8Lib.models.spec import Window

    module = SCALED[name](len(hippocampus_spec().labels) + 1)
    load_weights(module, weights / f"{name}.pt")
    path = folder / f"{name}.onnx"
    export_network(module.float(), path, PATCH)
    spec = replace(hippocampus_spec(), name=f"hippocampus-{name}", window=Window(PATCH, overlap=0.5))
    return import_onnx(path, spec, folder / name)


def quantized(name: str, weights: Path, folder: Path, scans: list[Any]) -> tuple[Any, Any]:
    """A trained network as an INT8 package, calibrated on one patch of each scan, with no layer put back; and the report."""
    from MedQuantINT8Lib.quantization.accuracy_guard import Budget
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, quantize_package

    made = package(name, weights, folder)
    options = CalibrationOptions(patches=len(scans))
    sampler = PatchSampler([lambda v=v: v for v in scans], made.spec, PATCH, options)
    return quantize_package(made, sampler, folder / "int8", options, QuantizationPolicy(budget=Budget(fallback=False)))


def row(name: str, weights: Path, calibration: list[Any], data: Any) -> dict[str, Any]:
    from MedQuantINT8Lib.evaluation.dataset_evaluation import evaluate
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.ensemble import Ensemble
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.progress import Task

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDQUANT_CACHE"] = f"{scratch}/engines"
        made, report = quantized(name, weights, Path(scratch), calibration)
        found = evaluate(
            Ensemble([made]),
            data,
            data.cases,
            EngineChoice("openvino", "int8"),
            SegmentationOptions(),
            1.0,
            Task(),
        )
        engine = found["engine"]["int8"]
        return {
            "network": name,
            "cases": len(data.cases),
            "summary": {metric: found["summary"]["overall"][metric] for metric in ("dice", "nsd", "hd95")},
            "structures": {s: v["dice"] for s, v in found["summary"]["structures"].items()},
            "seconds": found["seconds"],
            "int8_share": engine["int8_share"],
            "fidelity": engine["fidelity"],
            "fallback_layers": engine["fallback_layers"],
            "size_ratio": report.size_ratio,
        }


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.4f} ({found['low']:.4f} to {found['high']:.4f})"


def page(value: dict[str, Any]) -> str:
    from MedQuantINT8Lib.importers.networks import STUDY

    machine = value["machine"]
    lines = [
        "# The seven networks, narrowed and trained: FP32 against real INT8",
        "",
        "Made by `experiments/evaluate.py`; do not edit. Networks of `experiments/scaled.py`, trained for two to three minutes each on one",
        "NVIDIA H200 by `experiments/train.py` on the Medical Segmentation Decathlon's hippocampus set (CC BY-SA 4.0), split by subject.",
        f"INT8 in OpenVINO, calibrated on {CALIBRATION_SCANS} training scans, no layer put back by the guard; means over {value['rows'][0]['cases']} test cases with",
        "95 % bootstrap intervals; lost: FP32 minus INT8 in pairs, with Wilcoxon's signed-rank test; surface Dice at 1 mm.",
        f"Machine: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['features'])}); {value['date']}.",
        "",
        "| network | Dice FP32 | Dice INT8 | Dice lost | p | surface Dice FP32 | INT8 | INT8 share | real against simulated: error | other labels | file |",
        "| --- |" + " ---: |" * 10,
    ]
    for r in value["rows"]:
        f, dice, nsd = r["fidelity"], r["summary"]["dice"], r["summary"]["nsd"]
        p = "–" if dice["wilcoxon_p"] is None else f"{dice['wilcoxon_p']:.2g}"
        lines.append(
            f"| {STUDY[r['network']].title} | {_interval(dice['fp32'])} | {_interval(dice['int8'])} | {_interval(dice['difference'])} | {p} | {nsd['fp32']['mean']:.4f} | {nsd['int8']['mean']:.4f} "
            f"| {100 * r['int8_share']:.1f} % | {f['relative_error']:.4f} | {100 * f['label_disagreement']:.3f} % | {r['size_ratio']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.system import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--data", default=str(FOLDER))
    parser.add_argument("--cases", type=int, default=60, help="test cases (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget rows that are there")
    args = parser.parse_args()
    folder, target = Path(args.data), ROOT / "docs" / "results" / "trained.json"
    data = dataset("test", args.cases, folder)
    calibration = [read_volume(files(case, folder)[0]) for case in case_names("train", folder)[:CALIBRATION_SCANS]]
    rows = (
        {r["network"]: r for r in json.loads(target.read_text())["rows"]} if target.exists() and not args.fresh else {}
    )
    for name in args.names or SCALED:
        rows[name] = row(name, Path(args.weights), calibration, data)
        print(json.dumps(rows[name]), flush=True)
        value = {
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "rows": [rows[n] for n in SCALED if n in rows],
        }
        target.write_text(json.dumps(value, indent=1) + "\n")
        target.with_suffix(".md").write_text(page(value))


if __name__ == "__main__":
    main()
