"""Whole-volume time on a GPU beside the network: 512 x 512 x 400, 14 classes, a network that costs next to nothing.

Prints one JSON line. Needs an NVIDIA GPU; the network is one kernel that gives every class a score.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "MedQuantINT8")]
SHAPE, PATCH, CLASSES, ROUNDS = (400, 512, 512), (96, 96, 96), 14, 5


def main() -> None:
    from MedQuantINT8Lib.engines import cuda
    from MedQuantINT8Lib.engines.gpu_window import GpuSlidingWindow, Intensity, Reduction, ring_bytes
    from MedQuantINT8Lib.model_spec import Window
    from MedQuantINT8Lib.windows import plan_windows
    from test_gpu import Pointwise

    window = Window(PATCH, overlap=0.5)
    plan = plan_windows(SHAPE, window, PATCH)
    volume = np.random.default_rng(0).integers(-1000, 2000, (1, *SHAPE)).astype(np.int16)
    with cuda.Gpu() as gpu:
        free = gpu.free_bytes
        network = Pointwise(gpu, CLASSES)
        began = time.perf_counter()
        runner = GpuSlidingWindow(gpu, network, 1, CLASSES, plan, window, 4)
        setup = time.perf_counter() - began
        reduction, intensity = Reduction(np.arange(CLASSES, dtype=np.uint16)), Intensity(-160, 400, 1 / 560, 160 / 560)
        times = []
        for number in range(ROUNDS + 1):
            began = time.perf_counter()
            runner.run(volume, reduction, intensity)
            if number:
                times.append(time.perf_counter() - began)
        used = free - gpu.free_bytes
        # The network alone, as often as the run calls it.
        stream = gpu.stream()
        source, target = (gpu.allocate((4, c, *PATCH), np.float32) for c in (1, CLASSES))
        stream.synchronize()
        began = time.perf_counter()
        for _ in range(-(-plan.count // 4)):
            network.enqueue(4, source, target, stream)
        stream.synchronize()
        alone = time.perf_counter() - began
        row: dict[str, Any] = {
            "gpu": gpu.info.name,
            "voxels": list(SHAPE),
            "classes": CLASSES,
            "windows": plan.count,
            "setup_s": setup,
            "whole_s": statistics.median(times),
            "network_alone_s": alone,
            "beside_network_s": statistics.median(times) - alone,
            "gpu_memory_gb": used / 1e9,
            "ring_gb": ring_bytes(plan, CLASSES) / 1e9,
        }
        runner.close()
    print(json.dumps(row))


if __name__ == "__main__":
    main()
