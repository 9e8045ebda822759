"""A scan in memory to labels in memory, all on one GPU: CUDA INT8 with this project's road beside the same network in PyTorch.

    python benchmarks/cuda_int8.py networks FOLDER total25    # any machine with the build road: the INT8 network
    python benchmarks/gpu_road.py ours FOLDER [PARTS]         # a machine with a GPU and onnx; prints a JSON line
    python benchmarks/gpu_road.py torch                       # the same with torch and MONAI (gpu_road_peer.py)
    python benchmarks/gpu_road.py both FOLDER                 # both in one process, turn and turn about
    python benchmarks/gpu_road.py parts                       # the largest part of each of 25 structures kept; needs cuda-python
    python benchmarks/gpu_road.py back                        # scores to labels alone: 25 and 118 classes, no network; needs cuda-python

512 x 512 x 400 voxels of 0.8 x 0.8 x 1 mm as int16, resampled to 1.5 mm (273 x 273 x 267) and back by linear interpolation, windows of
128^3 half over each other, nnU-Net's network with 25 classes, random weights: one part of TotalSegmentator's "total". With PARTS such
networks are run in turn and their labels merged. Each is run a few times; the first run, which compiles, builds and checks, is left out.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8")]
#: Along (K, J, I).
SHAPE, SPACING, TARGET = (400, 512, 512), (1.0, 0.8, 0.8), 1.5
PATCH, BATCH, ROUNDS, CLASSES = (128, 128, 128), 4, 6, 25
LOW, HIGH = -160.0, 400.0
#: After so many no other form of PyTorch's network is tried.
PEER_SECONDS = 30.0


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


class Ours:
    """CUDA INT8 by the segment road: a scan in memory to labels in memory, the engines loaded.

    Args:
        parts: networks that are run in turn, their labels merged as a task's are.
    """

    def __init__(self, folder: Path, parts: int = 1) -> None:
        from cuda_int8 import TOTAL, with_weights
        from MedQuantINT8Lib.engines.base import BuildOptions
        from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
        from MedQuantINT8Lib.imaging.volume import Volume
        from MedQuantINT8Lib.models.input_spec import SplineResampling
        from MedQuantINT8Lib.models.spec import Channel, Geometry, Label, ModelSpec, Normalization, Output, Window

        k, j, i = SPACING
        self._volume = Volume(scan()[None], np.diag([-i, -j, k, 1.0]))
        options = BuildOptions("int8", PATCH, batch=BATCH, device="gpu")
        with tempfile.TemporaryDirectory() as scratch:
            network = with_weights(folder / f"{TOTAL}.onnx", Path(scratch) / "network.onnx")
            CudaInt8Backend().build(network, Path(scratch), options)
            self.engines = [CudaInt8Backend().load(Path(scratch), options) for _ in range(parts)]
        self.classes = self.engines[0].gpu_network.plan.classes
        self._spec = ModelSpec(
            name=TOTAL,
            version="1",
            modality="CT",
            channels=(Channel("CT"),),
            license="Apache-2.0",
            geometry=Geometry(
                "KJI",
                "native",
                spacing=(TARGET,) * 3,
                anchor="edges",
                interpolation="nnunet",
                spline=SplineResampling(order=1),
            ),
            normalization=(Normalization("window", low=LOW, high=HIGH),),
            labels=tuple(Label(n, f"s{n}", n) for n in range(1, self.classes)),
            output=Output(),
            window=Window(PATCH, overlap=0.5),
        )

    def run(self) -> dict[str, Any]:
        """As a task's run goes: its parts share the scan on the GPU, and each is merged while the next one is run."""
        from MedQuantINT8Lib.imaging.region_of_interest import whole_box
        from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment_volume
        from MedQuantINT8Lib.inference.shared_preprocessing import SharedPreprocessing
        from MedQuantINT8Lib.inference.task_merging import MergedLabels

        shared, several = SharedPreprocessing(), len(self.engines) > 1
        # One byte a voxel holds the structures of all parts of the benchmark.
        merged, box = MergedLabels(self._volume.data.shape[1:], np.uint8), whole_box(self._volume.grid)
        try:
            for number, engine in enumerate(self.engines):
                shared.keep = number + 1 < len(self.engines)
                result = segment_volume(
                    self._volume,
                    self._spec,
                    lambda _, engine=engine: engine,
                    SegmentationOptions(batch=BATCH),
                    prepare=shared.deferred,
                    keeper=merged if several else None,
                )
                if several:
                    first = 1 + number * (self.classes - 1)
                    targets = {n: first + n - 1 for n in range(1, self.classes)}
                    merged.paint(result.labels if result.on_gpu is None else result.on_gpu, box, targets)
            if several:
                merged.end()
        finally:
            merged.close()
            shared.close()
        return {"stages": result.seconds, "notes": result.notes, "windows": result.windows}

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


def ours(folder: Path, parts: int = 1) -> dict[str, Any]:
    road = Ours(folder, parts)
    about = {"ours": "CUDA INT8", "gpu": road.engines[0].gpu.info.name, "classes": road.classes, "parts": parts}
    row = about | timed(road.run)
    road.close()
    return row


def peer_road() -> tuple[Any, dict[str, Any]]:
    """The same in PyTorch, everything on the GPU, and how it runs."""
    import torch

    from gpu_road_peer import TorchRoad, fastest_network

    network = fastest_network(CLASSES, PATCH, PEER_SECONDS)
    size = tuple(round(n * s / TARGET) for n, s in zip(SHAPE, SPACING, strict=True))
    road = TorchRoad(
        network["call"], CLASSES, size, PATCH, network["batch"], (LOW, HIGH), channels_last=network["channels_last"]
    )
    about = {
        "peer": f"PyTorch {torch.__version__}, {network['mode']}",
        "gpu": torch.cuda.get_device_name(),
        "classes": CLASSES,
        "windows": road.plan.count,
        "window_ms": network["ms"],
        "tried_ms": road.choose(SHAPE),
    }
    return road, about


def peer() -> dict[str, Any]:
    road, about = peer_road()
    volume = scan()
    return about | timed(lambda: {"stages": road.run(volume)[1]})


def both(folder: Path) -> Iterator[dict[str, Any]]:
    """How PyTorch's runs, the two turn and turn about, and ours with five parts: PyTorch's five are five times its one."""
    road, about = peer_road()
    yield {"road_peer": about}
    volume, mine = scan(), Ours(folder)
    times: dict[str, list[float]] = {"ours": [], "torch": []}
    stages: dict[str, Any] = {}
    for number in range(ROUNDS + 1):
        for name, run in (("torch", lambda: {"stages": road.run(volume)[1]}), ("ours", mine.run)):
            began = time.perf_counter()
            stages[name] = run()
            if number:
                times[name].append(time.perf_counter() - began)
    mine.close()
    seconds = {name: statistics.median(found) for name, found in times.items()}
    ratio = seconds["torch"] / seconds["ours"]
    yield {"road": about, "seconds": seconds, "times": times, "ratio": ratio, "details": stages}
    yield ours(folder, 5)


def back() -> dict[str, Any]:
    """Scores to labels on the scan's grid by a network that costs next to nothing, and what is left without that step."""
    from MedQuantINT8Lib.engines.cuda import device as cuda
    from MedQuantINT8Lib.imaging.array_layout import ArrayLayout
    from MedQuantINT8Lib.imaging.axis_interpolation import AxisInterpolation
    from MedQuantINT8Lib.inference.gpu_label_resampling import GridLabels
    from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
    from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow
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


def parts() -> dict[str, Any]:
    """The largest part of each structure kept in a label map of the scan's size on the GPU, and on the processor for an eighth of it."""
    from MedQuantINT8Lib.engines.cuda import device as cuda
    from MedQuantINT8Lib.inference.gpu_cleaning import GpuCleaning
    from MedQuantINT8Lib.inference.postprocessing import cleaned
    from MedQuantINT8Lib.models.spec import Cleaning

    k, j, i = (np.arange(n, dtype=np.float32) for n in SHAPE)
    waves = np.sin(k / 31)[:, None, None] + np.sin(j / 27)[None, :, None] + np.cos(i / 33)[None, None, :]
    labels = np.digitize(waves, np.linspace(-2.8, 2.8, CLASSES)).astype(np.uint8)
    # Specks, as networks leave them.
    places = np.random.default_rng(0).integers(0, labels.size, 20_000)
    labels.reshape(-1)[places] = places % CLASSES
    steps = [Cleaning()]
    with cuda.Gpu() as gpu:
        stream, buffer = gpu.stream(), gpu.allocate(labels.shape, labels.dtype)

        def run() -> dict[str, Any]:
            buffer.upload(labels, stream)
            stream.synchronize()
            began = time.perf_counter()
            assert GpuCleaning(steps, 1.0).clean(gpu, buffer, stream) == len(steps)
            return {"parts_ms": 1e3 * (time.perf_counter() - began)}

        row = {"parts_of": CLASSES - 1, "gpu": gpu.info.name, **timed(run)}
        result = np.empty_like(labels)
        buffer.download(result, stream)
        stream.synchronize()
    eighth = tuple(slice(0, n // 2) for n in SHAPE)
    began = time.perf_counter()
    cleaned(labels[eighth].copy(), steps)
    return row | {"eighth_on_processor_s": time.perf_counter() - began, "changed": int((result != labels).sum())}


def main() -> None:
    what, *rest = sys.argv[1:] or ["help"]
    rows: Iterable[dict[str, Any]]
    if what == "ours" and rest:
        rows = [ours(Path(rest[0]), *map(int, rest[1:2]))]
    elif what == "both" and rest:
        rows = both(Path(rest[0]))
    elif what in ("torch", "back", "parts"):
        rows = [{"torch": peer, "back": back, "parts": parts}[what]()]
    else:
        sys.exit(__doc__)
    for row in rows:
        print(json.dumps({"date": time.strftime("%Y-%m-%d"), "voxels": SHAPE, **row}), flush=True)


if __name__ == "__main__":
    main()
