"""The CUDA INT8 engine on a GPU, step by step: milliseconds a call at 96^3, batch 1 and 4. Beside PyTorch: gpu_baselines.py.

    python benchmarks/cuda_int8.py networks FOLDER [NAME ...]  # any machine with the build road: INT8 networks, without their weights
    python benchmarks/cuda_int8.py time FOLDER [NAME ...]      # a machine with a GPU and onnx; prints a JSON line each

Networks get random weights of the same shape: time does not depend on values.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8")]
from gpu_networks import TIMED  # noqa: E402

# NVIDIA's compiler keeps what it has compiled as well.
os.environ["CUDA_CACHE_DISABLE"] = "1"
#: One part of TotalSegmentator's "total": nnU-Net's network with 25 classes (gpu_road.py).
TOTAL = "total25"
#: MLPerf's 3D U-Net: nnU-Net's plain network with ReLU and 3 classes (mlperf_kits19.py).
KITS = "kits19"
#: nnU-Net's network with 14 classes (several_gpus.py).
FOURTEEN = "nnunet14"
ROUNDS, STEP_RUNS = 30, 10


def make_network(name: str, folder: Path) -> None:
    """An INT8 network without its weights, which would be most of it."""
    from MedQuantINT8Lib.evaluation.study_tables import study_package
    from MedQuantINT8Lib.progress import Task

    with tempfile.TemporaryDirectory() as scratch:
        if name in (TOTAL, KITS, FOURTEEN):
            from networks import quantized, torch_networks, totalsegmentator

            if name == FOURTEEN:
                module = torch_networks()["nnU-Net-like (DynUNet, InstanceNorm)"]
            else:
                module = totalsegmentator(25) if name == TOTAL else totalsegmentator(3, "relu")
            package = quantized(module, name, Path(scratch), classes={TOTAL: 25, KITS: 3, FOURTEEN: 14}[name])
        else:
            package, _ = study_package(TIMED[name], Path(scratch), Task())
        keep_network(package.onnx_path("int8"), folder / f"{name}.onnx")


def int8_weights(model: Any) -> list[Any]:
    """Of a network; zero points, which are INT8 as well, have one dimension."""
    return [tensor for tensor in model.graph.initializer if tensor.data_type == tensor.INT8 and len(tensor.dims) > 1]


def keep_network(source: Path, target: Path) -> None:
    import onnx

    model = onnx.load(source)
    for tensor in int8_weights(model):
        tensor.ClearField("raw_data")
        tensor.ClearField("int32_data")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(model.SerializeToString())


def with_weights(source: Path, target: Path) -> Path:
    """The same network with random weights."""
    import onnx

    model, rng = onnx.load(source), np.random.default_rng(0)
    for tensor in int8_weights(model):
        tensor.raw_data = rng.integers(-127, 128, tuple(tensor.dims)).astype(np.int8).tobytes()
    onnx.save(model, target)
    return target


def bytes_of(plan: Any, batch: int) -> int:
    """What the steps read and write in the GPU's memory if nothing stays in its cache, weights included."""
    total = 0
    for step in plan.steps:
        for view in (*step.reads(), *step.writes()):
            total += batch * int(np.prod(plan.buffers[view.buffer].size)) * view.layout.width * (1 if view.scale else 2)
        if step.weights:
            total += (
                step.macs
                // int(np.prod(step.size if step.kind == "conv" else step.source_size))
                * (1 if step.int8 else 2)
            )
    return total + batch * int(np.prod(plan.size)) * 2 * (plan.channels + plan.classes)


def timed(gpu: Any, network: Any, batch: int) -> dict[str, Any]:
    """Milliseconds of a recorded call, and of each step."""
    from MedQuantINT8Lib.engines.cuda.graph_capture import CapturedGraph

    plan, stream = network.plan, gpu.stream()
    source, target = (gpu.allocate((batch, c, *plan.size), np.float16) for c in (plan.channels, plan.classes))
    source.upload(np.random.default_rng(0).normal(size=source.shape).astype(np.float16), stream)
    begin, end = gpu.event(), gpu.event()

    def milliseconds(graph: Any) -> float:
        begin.record(stream)
        graph.launch(0)
        end.record(stream)
        end.wait()
        return float(end.milliseconds_since(begin))

    whole = CapturedGraph(gpu, stream, lambda s: network.enqueue(batch, source, target, s))
    for _ in range(4):
        whole.launch(0)
    times = [milliseconds(whole) for _ in range(ROUNDS)]
    whole.free()
    steps = []
    for number, program in enumerate(network.programs if batch == 1 else []):
        alone = CapturedGraph(
            gpu,
            stream,
            lambda s, n=number: [network.launch(n, batch, source, target, s) for _ in range(STEP_RUNS)] and None,
        )
        alone.launch(0)
        milliseconds(alone)
        step, tiling = program.step, program.tiling
        steps.append(
            {
                "ms": milliseconds(alone) / STEP_RUNS,
                "kind": step.kind,
                "name": step.name,
                "size": list(step.size),
                "channels": [step.source.layout.channels if step.source else plan.channels, step.layout.channels],
                "tops": 2e-9 * step.macs * batch,
                "tile": None
                if tiling is None
                else [
                    *tiling.tile.voxels,
                    tiling.tile.channels,
                    tiling.tile.warps,
                    tiling.tile.stages,
                    tiling.tile.groups,
                    tiling.tile.split,
                    tiling.tile.teams,
                    tiling.tile.depth,
                ],
            }
        )
        alone.free()
    for thing in (source, target, begin, end, stream):
        thing.free()
    return {"median_ms": statistics.median(times), "p95_ms": float(np.percentile(times, 95)), "steps": steps}


def row(name: str, folder: Path) -> dict[str, Any]:
    """A network built cold (no kernel kept), loaded, and timed."""
    from MedQuantINT8Lib.engines.base import BuildOptions
    from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
    from MedQuantINT8Lib.importers.networks import PATCH

    found: dict[str, Any] = {"cuda_int8": name, "date": time.strftime("%Y-%m-%d")}
    for batch in (1, 4):
        options = BuildOptions("int8", PATCH, batch=batch, device="gpu")
        with tempfile.TemporaryDirectory() as scratch:
            network = with_weights(folder / f"{name}.onnx", Path(scratch) / "network.onnx")
            # No kernel is kept from before.
            os.environ["MEDQUANT_CACHE"] = scratch
            began = time.perf_counter()
            CudaInt8Backend().build(network, Path(scratch), options)
            built = time.perf_counter() - began
            began = time.perf_counter()
            engine = CudaInt8Backend().load(Path(scratch), options)
            loaded = time.perf_counter() - began
        run = engine.gpu_network
        assert run is not None
        macs = sum(step.macs for step in run.plan.steps)
        found |= {
            "gpu": run.gpu.info.name,
            "macs": macs,
            "int8_mac_share": sum(step.macs for step in run.plan.steps if step.int8) / macs,
        }
        found[f"batch_{batch}"] = {
            **timed(run.gpu, run, batch),
            "build_s": built,
            "load_s": loaded,
            "mb": run.bytes / 1e6,
            "bytes": bytes_of(run.plan, batch),
        }
        engine.close()
    return found


def main() -> None:
    verb, folder, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    if verb == "networks":
        for name in names or (*TIMED, TOTAL, KITS):
            make_network(name, folder)
            print(name, flush=True)
    else:
        for name in names:
            print(json.dumps(row(name, folder)), flush=True)


if __name__ == "__main__":
    main()
