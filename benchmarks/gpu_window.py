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

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8")]
SHAPE, PATCH, CLASSES, ROUNDS = (400, 512, 512), (96, 96, 96), 14, 5
#: How often the network's kernel runs for one batch where copies are to be hidden behind it: some milliseconds.
REPEATS = 200


def overlap(gpu: Any) -> dict[str, Any]:
    """The processor's window around a network on the GPU: copies and blending beside the network's work, and one after the other."""
    from MedQuantINT8Lib.engines.cuda.pipeline import DevicePipeline
    from MedQuantINT8Lib.inference.sliding_window import SlidingWindow, slide
    from MedQuantINT8Lib.inference.windows import plan_windows
    from MedQuantINT8Lib.models.spec import Window
    from pointwise import Pointwise

    shape = (160, 192, 192)
    window = Window(PATCH, overlap=0.5)
    plan = plan_windows(shape, window, PATCH)
    volume = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    small = Pointwise(gpu, CLASSES)

    def busy(batch: int, source: Any, target: Any, stream: Any) -> None:
        for _ in range(REPEATS):
            small.enqueue(batch, source, target, stream)

    pipeline = DevicePipeline(gpu, busy, (1, 1, *PATCH), (1, CLASSES, *PATCH))
    times: dict[str, list[float]] = {"beside": [], "after": []}
    for number in range(ROUNDS + 1):
        for how, network in (
            ("beside", pipeline),
            ("after", lambda batch: (pipeline.submit(batch), pipeline.collect())[1]),
        ):
            began = time.perf_counter()
            slide(volume, network, lambda start, block: None, SlidingWindow(plan, window, CLASSES))
            if number:
                times[how].append(time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(plan.count):
        pipeline.submit(volume[None, :, :96, :96, :96])
        pipeline.collect()
    alone = time.perf_counter() - began
    pipeline.close()
    return {
        "windows": plan.count,
        "network_and_copies_s": alone,
        **{f"{how}_s": statistics.median(found) for how, found in times.items()},
    }


def ring_bytes(plan: Any, classes: int) -> int:
    """Memory of the planes that scores are added up in."""
    slow = plan.order[0]
    others = [n for axis, n in enumerate(plan.shape) if axis != slow]
    return 4 * classes * plan.patch[slow] * int(np.prod(others))


def main() -> None:
    from MedQuantINT8Lib.engines.cuda import device as cuda
    from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
    from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow, Intensity
    from MedQuantINT8Lib.inference.windows import plan_windows
    from MedQuantINT8Lib.models.spec import Window
    from pointwise import Pointwise

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
        row["overlap"] = overlap(gpu)
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), **row}))


if __name__ == "__main__":
    main()
