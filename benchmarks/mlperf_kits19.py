"""MLPerf Inference's 3D U-Net on KiTS19, without its weights, data and load generator: its 42 cases' shapes through CUDA INT8, preprocessed input in memory, labels out.

    python benchmarks/cuda_int8.py networks FOLDER kits19   # any machine with the build road: the INT8 network
    python benchmarks/mlperf_kits19.py FOLDER               # a machine with a GPU and onnx; prints a JSON line
    python benchmarks/mlperf_kits19.py shapes               # the cases' shapes and windows

The network is the benchmark's: six levels of 32 to 320 channels, instance normalization, ReLU, 3 classes (random weights); windows of 128^3
half over each other, Gaussian blending, argmax. Preprocessing and scoring are not timed, as there. MLPerf's 43rd case is a copy of case 185, and left out.

Shapes. MLPerf resamples to 1.6 x 1.2 x 1.2 mm, cuts or pads each side to a multiple of 64, and to 128 at least. Height and width follow from
the pixel widths that KiTS19 publishes for each case (data/kits.json; 512 x 512 pixels). That does not say how many slices a case has, so
that the depth is assumed: 412 mm, the median of the training cases by F. Isensee and K. Maier-Hein (arXiv 1908.02182: 128 slices of 3.22 mm
after resampling). The number of windows grows in proportion to the depth, so that their sum is right if the 42 cases are as deep on
average. MLPerf Storage says about the same of the 168 cases of training: 146.6 MB each on average (record_length of unet3d), which at 5 bytes a
voxel and the widths here are 403 mm. Case 0 is known: 611 slices of 0.5 mm.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "MedQuantINT8")]
#: Width of a pixel in mm by case number, for the 42 cases that MLPerf measures.
PIXELS = {
    0: 0.919921875, 3: 0.85546875, 5: 0.9765625, 6: 0.7421875, 12: 0.751953125, 24: 0.6640625, 34: 0.8359375, 41: 0.677734375,
    44: 0.966796875, 49: 0.861328125, 52: 0.95703125, 56: 0.78125, 61: 0.976562, 65: 0.820312, 66: 0.863281, 70: 0.732421875,
    76: 0.677734375, 78: 0.962890625, 80: 0.72265625, 84: 0.9765625, 86: 0.789062, 87: 0.69140625, 92: 0.703125, 111: 0.742188,
    112: 0.7421875, 125: 0.9765625, 128: 0.878906, 138: 0.68359375, 157: 0.8515625, 160: 0.451171875, 161: 0.87109375,
    162: 0.55078125, 169: 0.755, 171: 0.759765625, 176: 0.9765625, 185: 0.912109, 187: 0.625, 189: 0.7421875, 198: 0.732421875,
    203: 0.63671875, 206: 0.970703125, 207: 0.75390625,
}  # fmt: skip
#: Millimeters from the first to the last slice: assumed, and of the cases that are known.
DEPTH, KNOWN_DEPTHS = 412.0, {0: 305.5}
SPACING, SIDE, STEP, PATCH, BATCH, ROUNDS = (1.6, 1.2, 1.2), 512, 64, (128, 128, 128), 4, 3
#: Samples a second and GPU of NVIDIA's submission to MLPerf Inference 4.1 with 8 H200s (3d-unet-99.9, Offline: 54.7136).
SUBMITTED = 6.84
Size = tuple[int, int, int]


def fitted(size: int) -> int:
    """A side as MLPerf leaves it: cut where less than half a step is over, padded otherwise, two steps at least."""
    size = max(size, 2 * STEP)
    over = size % STEP
    return size - over if over < STEP // 2 else size - over + STEP


def shapes() -> dict[int, Size]:
    """The shape (depth, height, width) of each preprocessed case."""
    found = {}
    for case, pixel in PIXELS.items():
        lengths = (KNOWN_DEPTHS.get(case, DEPTH), SIDE * pixel, SIDE * pixel)
        depth, height, width = (
            fitted(round(length / spacing)) for length, spacing in zip(lengths, SPACING, strict=True)
        )
        found[case] = depth, height, width
    return found


def windows_of(shape: Size) -> int:
    """How many windows a case of that shape has."""
    return int(np.prod([(side - patch) // STEP + 1 for side, patch in zip(shape, PATCH, strict=True)]))


def cases(folder: Path) -> dict[str, Any]:
    """All cases one after the other, each from its array in the computer's memory to its labels there."""
    from cuda_int8 import KITS, with_weights
    from MedQuantINT8Lib.engines.base import BuildOptions
    from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
    from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
    from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow
    from MedQuantINT8Lib.inference.windows import plan_windows
    from MedQuantINT8Lib.models.spec import Window

    window, options = Window(PATCH, overlap=0.5), BuildOptions("int8", PATCH, batch=BATCH, device="gpu")
    with tempfile.TemporaryDirectory() as scratch:
        network_file = with_weights(folder / f"{KITS}.onnx", Path(scratch) / "network.onnx")
        CudaInt8Backend().build(network_file, Path(scratch), options)
        engine = CudaInt8Backend().load(Path(scratch), options)
    network = engine.gpu_network
    assert network is not None
    classes = network.plan.classes
    reduction = Reduction(np.arange(classes, dtype=np.uint16))
    rng = np.random.default_rng(0)
    # Preprocessed cases of one shape are one array: what is in it does not change the time.
    arrays = {shape: rng.standard_normal((1, *shape), np.float32) for shape in set(shapes().values())}
    rounds, windows = [], 0
    for number in range(ROUNDS + 1):
        began, windows = time.perf_counter(), 0
        for shape in shapes().values():
            plan = plan_windows(shape, window, PATCH)
            runner = GpuSlidingWindow(network.gpu, network, 1, classes, plan, window, BATCH)
            labels = runner.run(arrays[shape], reduction)
            runner.close()
            assert labels.shape == shape and plan.count == windows_of(shape)
            windows += plan.count
        if number:
            rounds.append(time.perf_counter() - began)
    macs = sum(step.macs for step in network.plan.steps)
    share = sum(step.macs for step in network.plan.steps if step.int8) / macs
    gpu = network.gpu.info.name
    engine.close()
    seconds = statistics.median(rounds)
    return {
        "kits19": len(PIXELS),
        "gpu": gpu,
        "date": time.strftime("%Y-%m-%d"),
        "windows": windows,
        "seconds": seconds,
        "cases_a_second": len(PIXELS) / seconds,
        "window_ms": 1e3 * seconds / windows,
        "rounds": rounds,
        "macs": macs,
        "int8_mac_share": share,
        "submitted": SUBMITTED,
    }


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "shapes":
        for case, shape in shapes().items():
            print(f"case_{case:05d} {shape} {windows_of(shape)} windows")
        print(sum(map(windows_of, shapes().values())), "windows in all")
    else:
        print(json.dumps(cases(Path(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    main()
