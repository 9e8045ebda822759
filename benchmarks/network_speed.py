"""One 96^3 patch on the CPU: OpenVINO FP32, OpenVINO real INT8, PyTorch FP32, in turn in one process."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from networks import PATCH, phantom_patch, quantized, torch_networks

ROUNDS = 5


def main() -> None:
    import torch

    from MedQuantINT8Lib.engines import BuildOptions, backend
    from MedQuantINT8Lib.engines.preparation import prepare

    patch = phantom_patch()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDQUANT_CACHE"] = f"{scratch}/engines"
        for number, (name, network) in enumerate(torch_networks().items()):
            package = quantized(network, f"net{number}", Path(scratch))
            int8 = prepare(package, backend("openvino"), BuildOptions("int8", PATCH), [patch[0]])
            fp32 = prepare(package, backend("openvino"), BuildOptions("fp32", PATCH))
            tensor = torch.from_numpy(patch)

            def in_torch(network=network, tensor=tensor):
                with torch.inference_mode():
                    return network(tensor)

            runs = {
                "fp32": lambda e=fp32.engine: e.infer(patch),
                "int8": lambda e=int8.engine: e.infer(patch),
                "torch": in_torch,
            }
            times: dict[str, list[float]] = {key: [] for key in runs}
            for _ in range(ROUNDS + 1):
                for key, run in runs.items():
                    began = time.perf_counter()
                    run()
                    times[key].append(time.perf_counter() - began)
            medians = {key: 1e3 * float(np.median(values[1:])) for key, values in times.items()}
            ratios = [a / b for a, b in zip(times["fp32"][1:], times["int8"][1:], strict=True)]
            rows.append(
                {
                    "network": name,
                    **{f"{k}_ms": round(v, 1) for k, v in medians.items()},
                    "ratio": round(float(np.median(ratios)), 2),
                    "int8_share": round(int8.describe().int8_mac_share, 4),
                    "fidelity": int8.fidelity.to_json() if int8.fidelity else None,
                    "size_ratio": round(
                        package.onnx_path("int8").stat().st_size / package.onnx_path("fp32").stat().st_size, 4
                    ),
                }
            )
            int8.close()
            fp32.close()
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
