"""A scan in memory to labels in memory, all on one GPU: CUDA INT8 with this project's road beside the same network in PyTorch.

    python benchmarks/cuda_int8.py networks FOLDER nnunet14   # any machine with the build road: the INT8 network
    python benchmarks/gpu_road.py ours FOLDER                 # a machine with a GPU and onnx; prints a JSON line
    python benchmarks/gpu_road.py torch                       # the same with torch and MONAI
    python benchmarks/gpu_road.py back                        # scores to labels alone: 25 and 118 classes, no network; needs cuda-python

512 x 512 x 400 voxels of 0.8 mm as int16, resampled to 1.5 mm and back, windows of 128^3 half over each other, 14 classes, random weights.
PyTorch: float16, channels-last, compiled where it compiles; trilinear ``interpolate`` both ways, class by class on the way back, which is
what fits; nothing but scan and labels crosses the bus. Each is run a few times; the first run, which compiles, builds and checks, is left
out.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8")]
SHAPE, SPACING, TARGET, PATCH, BATCH, ROUNDS = (400, 512, 512), 0.8, 1.5, (128, 128, 128), 4, 6
LOW, HIGH = -160.0, 400.0


def scan() -> np.ndarray:
    """A made-up scan (K, J, I)."""
    return np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype(np.int16)


def timed(run: Any) -> dict[str, Any]:
    """Seconds of a run that gives its result and its stages, the first left out."""
    times, stages = [], {}
    for number in range(ROUNDS + 1):
        began = time.perf_counter()
        stages = run()
        if number:
            times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times), "least": min(times), "most": max(times), **stages}


def ours(folder: Path) -> dict[str, Any]:
    """CUDA INT8 by the segment road."""
    from cuda_int8 import FOURTEEN, with_weights
    from MedQuantINT8Lib.engines.base import BuildOptions
    from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.imaging.volume import Volume
    from MedQuantINT8Lib.inference.gpu_preparation import deferred
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment_volume
    from MedQuantINT8Lib.models.spec import Geometry, Label, Normalization, Output, Window
    from road_models import road_spec

    volume = Volume(scan()[None], np.diag([-SPACING, -SPACING, SPACING, 1.0]))
    options = BuildOptions("int8", PATCH, batch=BATCH, device="gpu")
    with tempfile.TemporaryDirectory() as scratch:
        network = with_weights(folder / f"{FOURTEEN}.onnx", Path(scratch) / "network.onnx")
        CudaInt8Backend().build(network, Path(scratch), options)
        engine = CudaInt8Backend().load(Path(scratch), options)
    classes = engine.gpu_network.plan.classes
    spec = replace(
        road_spec("linear by centers"),
        geometry=Geometry("KJI", "LPS", spacing=(TARGET,) * 3),
        normalization=(Normalization("window", low=LOW, high=HIGH),),
        labels=tuple(Label(n, f"s{n}", n) for n in range(1, classes)),
        output=Output(),
        window=Window(PATCH, overlap=0.5),
    )

    def run() -> dict[str, Any]:
        options = SegmentationOptions(batch=BATCH)
        result = segment_volume(volume, spec, lambda _: engine, options, prepare=partial(deferred, prepare=preprocess))
        return {"stages": result.seconds, "notes": result.notes, "windows": result.windows}

    row = {"ours": "CUDA INT8", "gpu": engine.gpu.info.name, "classes": classes, **timed(run)}
    engine.close()
    return row


def peer() -> dict[str, Any]:
    """The same network in PyTorch, everything on the GPU."""
    import torch
    from torch.nn.functional import interpolate

    from MedQuantINT8Lib.inference.windows import importance_map, plan_windows
    from MedQuantINT8Lib.models.spec import Window
    from networks import torch_networks

    torch.backends.cudnn.benchmark = True
    module = torch_networks()["nnU-Net-like (DynUNet, InstanceNorm)"].cuda().eval().requires_grad_(False)
    module = module.half().to(memory_format=torch.channels_last_3d)
    probe = torch.zeros(BATCH, 1, *PATCH, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last_3d)
    network, mode = torch.compile(module, mode="reduce-overhead", dynamic=False), "compiled, recorded"
    with torch.inference_mode():
        try:
            network(probe)
        except Exception as error:
            network, mode = module, f"not compiled: {type(error).__name__}"
        classes = int(network(probe).shape[1])
    size = tuple(round((n - 1) * SPACING / TARGET + 1) for n in SHAPE)
    plan = plan_windows(size, Window(PATCH, overlap=0.5), PATCH)
    weights = torch.from_numpy(importance_map(PATCH, "gaussian")).cuda()
    volume = torch.from_numpy(scan())
    starts = list(plan.windows())

    def run() -> dict[str, Any]:
        marks = [time.perf_counter()]

        def mark() -> None:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())

        with torch.inference_mode():
            x = volume.cuda(non_blocking=True).float()[None, None]
            x = (interpolate(x, size, mode="trilinear", align_corners=False).clamp(LOW, HIGH) - LOW) / (HIGH - LOW)
            x = x.half()
            mark()
            scores = torch.zeros(classes, *size, device="cuda")
            total = torch.zeros(size, device="cuda")
            for first in range(0, len(starts), BATCH):
                some = starts[first : first + BATCH]
                places = [tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True)) for start in some]
                batch = torch.stack([x[0, :, a, b, c] for a, b, c in places])
                if len(some) < BATCH:
                    batch = torch.cat([batch, batch.new_zeros(BATCH - len(some), 1, *PATCH)])
                found = network(batch.to(memory_format=torch.channels_last_3d))
                for n, (a, b, c) in enumerate(places):
                    scores[:, a, b, c] += found[n].float() * weights
                    total[a, b, c] += weights
            scores /= total
            mark()
            best, labels = None, None
            for number in range(classes):
                finer = interpolate(scores[None, number : number + 1], SHAPE, mode="trilinear", align_corners=False)[
                    0, 0
                ]
                if best is None:
                    best, labels = finer, torch.zeros(SHAPE, dtype=torch.uint8, device="cuda")
                else:
                    labels.masked_fill_(finer > best, number)
                    torch.maximum(best, finer, out=best)
            mark()
            labels.cpu()
            mark()
        names = ("scan up, resampled, normalized", "windows", "back and argmax", "labels down")
        return {"stages": dict(zip(names, np.diff(marks).tolist(), strict=True))}

    gpu = torch.cuda.get_device_name()
    return {"peer": f"PyTorch {torch.__version__}, {mode}", "gpu": gpu, "windows": plan.count, **timed(run)}


def back() -> dict[str, Any]:
    """Scores to labels on the scan's grid by a network that costs next to nothing, and what is left without that step."""
    from MedQuantINT8Lib.engines.cuda import device as cuda
    from MedQuantINT8Lib.imaging.array_layout import ArrayLayout
    from MedQuantINT8Lib.imaging.axis_interpolation import AxisInterpolation
    from MedQuantINT8Lib.inference.gpu_label_resampling import GridLabels
    from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow, Reduction
    from MedQuantINT8Lib.inference.windows import plan_windows
    from MedQuantINT8Lib.models.spec import Window
    from pointwise import Pointwise

    rows = []
    with cuda.Gpu() as gpu:
        for classes, old in ((25, (267, 273, 273)), (118, (133, 137, 137))):
            window = Window(PATCH, overlap=0.5)
            plan = plan_windows(old, window, PATCH)
            axes = [
                AxisInterpolation.linear(o / n * (np.arange(n) + 0.5) - 0.5, o) for o, n in zip(old, SHAPE, strict=True)
            ]
            data = np.random.default_rng(0).uniform(0, classes, (1, *old)).astype(np.float32)
            values = np.arange(classes, dtype=np.uint8)
            layout = ArrayLayout.of((SHAPE[2], SHAPE[1], SHAPE[0]), ())
            grid = GridLabels((axes[0], axes[1], axes[2]), layout, "KJI", values)
            row: dict[str, Any] = {"classes": classes, "from": old, "windows": plan.count}
            for what, labels in (("resampled", grid), ("network_space", None)):
                runner = GpuSlidingWindow(gpu, Pointwise(gpu, classes), 1, classes, plan, window, 2, grid_labels=labels)
                reduction = Reduction(values.astype(np.uint16))

                def run(runner: Any = runner, reduction: Reduction = reduction, data: Any = data) -> dict[str, Any]:
                    runner.run(data, reduction)
                    return {}

                row[what] = timed(run)
                runner.close()
            rows.append(row)
        return {"back": rows, "to": SHAPE, "gpu": gpu.info.name}


def main() -> None:
    what, *rest = sys.argv[1:] or ["help"]
    if what == "ours" and rest:
        found = ours(Path(rest[0]))
    elif what in ("torch", "back"):
        found = peer() if what == "torch" else back()
    else:
        sys.exit(__doc__)
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), "voxels": SHAPE, **found}))


if __name__ == "__main__":
    main()
