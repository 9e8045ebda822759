"""Weights of 4 bits beside INT8 on the trained networks: the Dice lost and the files' sizes, for docs/results/robustness.md.

    python experiments/four_bits.py WEIGHTS [--cases N] [--networks NAME ...] [--effort normal|best] [--only PART ...] [--keep-seconds]

WEIGHTS is what train.py wrote. Each network is calibrated on 20 training scans and quantized twice as `medquant quantize` does it, with
weights of 8 bits (rounded to nearest, no layer put back) and of 4 (learned; the guard may do what it does). Both run in OpenVINO on test
scans, and so does FP32; beside them weights of 4 bits that are rounded to nearest, one scale an output channel, activations FP32. Writes the
key four_bits of robustness.json, and the page. With --only, the other parts of a row stay as they are there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from evaluate import CALIBRATION_SCANS, package  # noqa: E402
from hippocampus import case_names, files  # noqa: E402
from robustness import TARGET, page  # noqa: E402
from scaled import PATCH, SCALED  # noqa: E402

#: Parts of a row: networks that are measured.
PARTS = ("fp32", "nearest", "int8", "int4")


def study(name: str, weights: Path, cases: int, effort: str, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    from MedQuantINT8Lib.evaluation.agreement import agreement, mean_dice
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment
    from MedQuantINT8Lib.quantization.accuracy_guard import Budget
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, quantize_package

    scans = [read_volume(files(case)[0]) for case in case_names("train")[:CALIBRATION_SCANS]]
    pairs = [files(case) for case in case_names("test")[:cases]]
    row: dict[str, Any] = {"network": name, "cases": len(pairs), "effort": effort}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDQUANT_CACHE"] = f"{scratch}/engines"
        made = package(name, weights, Path(scratch))
        inputs = [preprocess(read_volume(image), made.spec) for image, _ in pairs]
        truth = [read_volume(label).data[0].astype(np.uint8) for _, label in pairs]

        def dice(path: Path, precision: str) -> float:
            engine = _engine(path, precision, Path(tempfile.mkdtemp(dir=scratch)))
            label_maps = [segment(i, made.spec, engine, SegmentationOptions()).labels for i in inputs]
            engine.close()
            return float(
                np.mean(
                    [
                        mean_dice(agreement(f, t, made.spec.labels)) or 0.0
                        for f, t in zip(label_maps, truth, strict=True)
                    ]
                )
            )

        options = CalibrationOptions(patches=len(scans))
        policies = {
            "int8": QuantizationPolicy(budget=Budget(fallback=False), effort="fast"),
            "int4": QuantizationPolicy(effort=effort, weight_bits=4),
        }
        if "fp32" in parts:
            row["fp32"] = {"dice": dice(made.onnx_path("fp32"), "fp32"), **_sizes(made.onnx_path("fp32"))}
        if "nearest" in parts:
            rounded = Path(scratch) / "rounded.onnx"
            rounded_to_nearest(made.onnx_path("fp32"), rounded)
            row["nearest"] = {"dice": dice(rounded, "fp32")}
        for key, policy in policies.items():
            if key not in parts:
                continue
            sampler = PatchSampler([lambda v=v: v for v in scans], made.spec, PATCH, options)
            began = time.perf_counter()
            quantized, report = quantize_package(made, sampler, Path(scratch) / key, options, policy)
            row[key] = {
                "seconds": time.perf_counter() - began,
                "dice": dice(quantized.onnx_path("int8"), "int8"),
                **_sizes(quantized.onnx_path("int8")),
                "agreement": report.agreement,
                "int8_share": report.int8_mac_share,
                "four_bit_layers": len(report.four_bit_layers),
                "halves": len(report.guard.halves),
                "returned": len(report.guard.returned),
                "learning_s": report.rounding.seconds if report.rounding else 0.0,
            }
    return row


def _sizes(path: Path) -> dict[str, int]:
    """The bytes of a file as it lies in a package's folder, and in a zip."""
    content = path.read_bytes()
    return {"bytes": len(content), "zipped": len(zlib.compress(content))}


def _engine(path: Path, precision: str, folder: Path) -> Any:
    from MedQuantINT8Lib.engines import BuildOptions, backend

    wanted = BuildOptions(precision, PATCH)
    backend("openvino").build(path, folder, wanted)
    return backend("openvino").load(folder, wanted)


def rounded_to_nearest(source: Path, target: Path) -> None:
    """Write the FP32 network with the weights of its convolutions and matrix products rounded to -7..7 steps of an output channel."""
    import onnx

    from MedQuantINT8Lib.models import onnx_graph as graph

    model = graph.load_network(source)
    arrays = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.input[1] not in arrays:
            continue
        weight = arrays[node.input[1]]
        values = onnx.numpy_helper.to_array(weight)
        if values.ndim < 2:
            continue
        # The axis of output channels: first for convolutions, second for transposed ones, last for a matrix on the right.
        axis = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, values.ndim - 1)
        others = tuple(n for n in range(values.ndim) if n != axis)
        scale = np.maximum(np.abs(values).max(axis=others, keepdims=True) / 7, 1e-12)
        rounded = (np.clip(np.rint(values / scale), -7, 7) * scale).astype(np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(rounded, weight.name))
    target.write_bytes(model.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--networks", nargs="+", choices=list(SCALED), default=list(SCALED))
    parser.add_argument("--cases", type=int, default=20, help="test cases (default: %(default)s)")
    parser.add_argument("--effort", choices=["normal", "best"], default="normal")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    parser.add_argument(
        "--keep-seconds", action="store_true", help="keep the time of learning, where other work runs beside"
    )
    args = parser.parse_args()
    for name in args.networks:
        row = study(name, Path(args.weights), args.cases, args.effort, args.only)
        value = json.loads(TARGET.read_text())
        rows = {r["network"]: r for r in value.get("four_bits", [])}
        known = rows.get(name, {})
        if args.keep_seconds and "int4" in row and "int4" in known:
            row["int4"] |= {key: known["int4"][key] for key in ("seconds", "learning_s")}
        rows[name] = known | row
        print(json.dumps(row), flush=True)
        value["four_bits"] = [rows[n] for n in SCALED if n in rows]
        value["four_bits_date"] = time.strftime("%Y-%m-%d")
        TARGET.write_text(json.dumps(value, indent=1) + "\n")
        TARGET.with_suffix(".md").write_text(page(value))


if __name__ == "__main__":
    main()
