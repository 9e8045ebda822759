"""What the CUDA INT8 engine computes against the same networks simulated in ONNX Runtime: the trained networks, on scans they have not seen.

    python experiments/cuda_reference.py WEIGHTS [--networks NAME ...] [--cases N]

Runs the engine's plans in NumPy, with the GPU's integers (engines/cuda_int8/reference/executor.py; on a GPU every step equals it, see
Testing/engines/cuda_int8/test_cuda_int8_gpu.py), so it needs no GPU. Adds its rows to docs/results/gpu.json; gpu_page.py writes them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from evaluate import CALIBRATION_SCANS, PATCH, SCALED, quantized  # noqa: E402
from hippocampus import case_names, files  # noqa: E402

TARGET = ROOT / "docs" / "results" / "gpu.json"
#: Networks of the study that the engine has kernels for.
NETWORKS = tuple(SCALED)


def row(name: str, weights: Path, cases: int) -> dict[str, Any]:
    from MedQuantINT8Lib.engines.base import BuildOptions
    from MedQuantINT8Lib.engines.cuda_int8.backend import planned
    from MedQuantINT8Lib.engines.cuda_int8.reference.executor import ReferenceExecutor
    from MedQuantINT8Lib.engines.onnxruntime import session
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.models import onnx_graph as graph
    from robustness import centre

    scans = [read_volume(files(case)[0]) for case in case_names("train")[:CALIBRATION_SCANS]]
    tests = [read_volume(files(case)[0]) for case in case_names("test")[:cases]]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDQUANT_CACHE"] = f"{scratch}/engines"
        made, _ = quantized(name, weights, Path(scratch), scans)
        plan = planned(made.onnx_path("int8"), BuildOptions("int8", PATCH))
        runs = {
            p: session(graph.fixed_shape(graph.load_network(made.onnx_path(p)), PATCH).SerializeToString(), p)
            for p in ("int8", "fp32")
        }
        others, errors, fake = [], [], []
        for volume in tests:
            patch = np.ascontiguousarray(centre(preprocess(volume, made.spec).data)[None], np.float32)
            ours = ReferenceExecutor(plan).run(patch)
            simulated, exact = (
                run.run(None, {run.get_inputs()[0].name: patch})[0] for run in (runs["int8"], runs["fp32"])
            )
            others.append(float((ours.argmax(1) != simulated.argmax(1)).mean()))
            fake.append(float((simulated.argmax(1) != exact.argmax(1)).mean()))
            errors.append(float(np.linalg.norm(ours - simulated) / np.linalg.norm(simulated)))
    return {
        "network": name,
        "patches": len(tests),
        "other_labels": float(np.mean(others)),
        "worst_patch": float(np.max(others)),
        "relative_error": float(np.mean(errors)),
        "simulated_other_labels": float(np.mean(fake)),
        "int8_mac_share": sum(s.macs for s in plan.steps if s.int8) / sum(s.macs for s in plan.steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--cases", type=int, default=10)
    args = parser.parse_args()
    for name in args.networks:
        began = time.perf_counter()
        found = row(name, args.weights, args.cases)
        value = json.loads(TARGET.read_text())
        value.setdefault("cuda_int8_fidelity", {})[name] = found
        TARGET.write_text(json.dumps(value, indent=1) + "\n")
        print(f"{time.perf_counter() - began:.0f} s", json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
