"""From asking to computing: the resident worker cold, warm, and a new process for each run, with the demo's network.

"Computing" is the first window that the engine has been given: the first progress of the stage "segmenting".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "Testing" / "support"), str(HERE.parent / "MedQuantINT8")]

ROUNDS = 5


def main() -> None:
    from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_spec
    from MedQuantINT8Lib.imaging.segmentation_files import write_segmentation
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.resources import resource
    from MedQuantINT8Lib.worker.client import WorkerClient
    from real_networks import medquant

    choice, options = EngineChoice("openvino", "int8"), SegmentationOptions()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDQUANT_CACHE"] = f"{scratch}/engines"
        volume, _ = make_phantom(5, (176, 144, 128), 2.2)
        package, scan = f"{scratch}/package", f"{scratch}/scan.nii.gz"
        write_segmentation(scan, volume.data[0], volume.ijk_to_ras, ())
        (Path(scratch) / "spec.json").write_text(json.dumps(phantom_spec().to_json()))
        medquant("import", "onnx", str(resource("phantom_unet.onnx")), "--spec", f"{scratch}/spec.json", "-o", package)
        medquant("quantize", package, "--calibrate", scan, "--patches", "2")
        medquant("build", package, "--scan", scan, "--precision", "int8")

        def until_computing(client: WorkerClient) -> float:
            began = time.perf_counter()
            first: list[float] = []

            def listen(event: object) -> None:
                if getattr(event, "stage", "") == "segmenting" and not first:
                    first.append(time.perf_counter() - began)

            client.segment(package, volume, choice, options, Task(listen))
            return first[0]

        cold, warm, command = [], [], []
        for _ in range(ROUNDS):
            with WorkerClient() as client:
                cold.append(until_computing(client))
                warm += [until_computing(client) for _ in range(2)]
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "MedQuantINT8Lib.cli.main", "segment", package, scan, "-o", f"{scratch}/out.nrrd", "-q"],
                           cwd=HERE.parent / "MedQuantINT8", check=True, capture_output=True)  # fmt: skip
            command.append(time.perf_counter() - began)
    medians = {"cold_s": cold, "warm_s": warm, "new_process_whole_run_s": command}
    print(json.dumps({k: round(float(np.median(v)), 3) for k, v in medians.items()}))


if __name__ == "__main__":
    main()
