"""What a GPU user has without this project: the networks in PyTorch at 96^3, batch 1 and 4, beside CUDA INT8 in the same process.

    python benchmarks/cuda_int8.py networks FOLDER [NAME ...]   # any machine with the build road: INT8 networks, without their weights
    python benchmarks/gpu_baselines.py FOLDER [--seconds N] [--modes MODE,...] [--batches 1,4] [--at-once N] [--alone] [NAME ...]

Needs an NVIDIA GPU, torch, MONAI and onnx; random weights. Prints one JSON line a network: milliseconds (median and 95th percentile of
CUDA events) of every mode of torch_modes.py, or why a network does not run in it, and ``beside``: PyTorch's fastest mode and CUDA INT8
timed turn and turn about in one process (not with ``--alone``). Modes that the seconds did not suffice for are named as left out.

Networks are compiled beside each other (all, or so many ``--at-once``), a process each and batch; whoever runs something on the GPU has
it alone. What is compiled is kept only where TORCHINDUCTOR_CACHE_DIR and MEDQUANT_CACHE say so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "MedQuantINT8")]
from gpu_networks import TIMED  # noqa: E402
from torch_modes import (  # noqa: E402
    MODES,
    QUEUED,
    ROUNDS,
    WAITING,
    WARM,
    GpuLock,
    TorchNetwork,
    at_priority,
    lock_searches,
    summary,
    torch_milliseconds,
)

TURNS, QUEUED_ROUNDS = 3, 4
BATCHES = (1, 4)
#: Seconds that a process leaves for the comparison in turns and for its end.
RESERVE = 15


class Int8Network:
    """CUDA INT8's engine of a network, loaded, its call recorded."""

    def __init__(self, folder: Path, batch: int) -> None:
        from MedQuantINT8Lib.engines.base import BuildOptions
        from MedQuantINT8Lib.engines.cuda.graph_capture import CapturedGraph
        from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
        from MedQuantINT8Lib.importers.networks import PATCH

        self._engine = CudaInt8Backend().load(folder, BuildOptions("int8", PATCH, batch=batch, device="gpu"))
        network = self._engine.gpu_network
        assert network is not None
        gpu, plan = network.gpu, network.plan
        self._stream, self._begin, self._end = gpu.stream(), gpu.event(), gpu.event()
        source, target = (gpu.allocate((batch, c, *plan.size), np.float16) for c in (plan.channels, plan.classes))
        source.upload(np.random.default_rng(0).normal(size=source.shape).astype(np.float16), self._stream)
        self._graph = CapturedGraph(gpu, self._stream, lambda s: network.enqueue(batch, source, target, s))
        self.macs = sum(step.macs for step in plan.steps)
        self.int8_macs = sum(step.macs for step in plan.steps if step.int8)
        self.bytes = network.bytes

    def milliseconds(self, rounds: int = ROUNDS, queued: int = 1) -> list[float]:
        """As :func:`torch_modes.torch_milliseconds`."""
        times = []
        for _ in range(rounds):
            self._begin.record(self._stream)
            for _ in range(queued):
                self._graph.launch(0)
            self._end.record(self._stream)
            self._end.wait()
            times.append(float(self._end.milliseconds_since(self._begin)) / queued)
        return times

    def close(self) -> None:
        self._graph.free()
        self._engine.close()


def in_turns(call: Callable[[], Any], int8: Int8Network) -> dict[str, Any]:
    """PyTorch and CUDA INT8, turn and turn about: call by call, and several calls queued."""
    torch_times: dict[int, list[float]] = {1: [], QUEUED: []}
    int8_times: dict[int, list[float]] = {1: [], QUEUED: []}
    torch_milliseconds(call, WARM), int8.milliseconds(WARM)
    for _ in range(TURNS):
        for queued, rounds in ((1, ROUNDS), (QUEUED, QUEUED_ROUNDS)):
            torch_times[queued] += torch_milliseconds(call, rounds, queued)
            int8_times[queued] += int8.milliseconds(rounds, queued)
    torch_summary, int8_summary = summary(torch_times[1]), summary(int8_times[1])
    ratio = torch_summary["median_ms"] / int8_summary["median_ms"]
    together = {"calls": QUEUED, "torch": summary(torch_times[QUEUED]), "int8": summary(int8_times[QUEUED])}
    return {"torch": torch_summary, "int8": int8_summary, "ratio": ratio, "queued": together}


def measure(
    name: str, batch: int, scratch: Path, modes: list[str], deadline: float, alone: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield what is known of a network and batch, piece by piece.

    Args:
        scratch: the folder with the lock and the engines.
        alone: PyTorch is timed without the engine.
    """
    import torch

    lock = GpuLock(scratch / "lock")
    with contextlib.suppress(AttributeError, ImportError):
        lock_searches(lock)
    network = TorchNetwork(name, batch, lock)
    at_priority(WAITING)
    fastest, channels_last = float(np.inf), False
    with torch.no_grad():
        for label in modes:
            if channels_last and MODES[label].substitute:
                continue
            if time.time() > deadline - RESERVE:
                yield {label: {"left_out": True}}
                continue
            began, call = time.perf_counter(), None
            with contextlib.ExitStack() as leave:
                try:
                    call = network.call(MODES[label], leave)
                    times = summary(torch_milliseconds(call))
                except Exception as error:
                    # A mode that a network cannot run in is a result as well.
                    yield {label: {"error": f"{type(error).__name__}: {(str(error) or '-').splitlines()[0][:120]}"}}
                    continue
                yield {label: times | {"ready_s": time.perf_counter() - began}}
                channels_last |= MODES[label].channels_last
                if not alone and MODES[label].compiled and times["median_ms"] < fastest:
                    int8 = Int8Network(scratch / f"{name}.{batch}", batch)
                    shares = {"int8_mac_share": int8.int8_macs / int8.macs, "macs": int8.macs, "mb": int8.bytes / 1e6}
                    yield {"beside": {"mode": label, **in_turns(call, int8), **shares}}
                    int8.close()
                fastest = min(fastest, times["median_ms"])
                call = None
                torch.cuda.empty_cache()


def build_engines(names: list[str], networks: Path, scratch: Path, batches: Sequence[int]) -> dict[str, float]:
    """Build CUDA INT8's engines, each alone on the GPU, and return the seconds that each took."""
    from cuda_int8 import with_weights
    from MedQuantINT8Lib.engines.base import BuildOptions
    from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
    from MedQuantINT8Lib.importers.networks import PATCH

    seconds = {}
    for name in names:
        network = with_weights(networks / f"{name}.onnx", scratch / f"{name}.onnx")
        for batch in batches:
            folder = scratch / f"{name}.{batch}"
            folder.mkdir()
            began = time.perf_counter()
            CudaInt8Backend().build(network, folder, BuildOptions("int8", PATCH, batch=batch, device="gpu"))
            seconds[f"{name}.{batch}"] = time.perf_counter() - began
    return seconds


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        folder: with the INT8 networks.
        deadline: in seconds of ``time.time``; who is not through by then is ended.
        at_once: processes that compile beside each other.
        alone: PyTorch is timed without the engine.
    """

    names: list[str]
    folder: Path
    modes: list[str]
    batches: Sequence[int]
    deadline: float
    at_once: int
    alone: bool = False


def measured(plan: Plan, name: str, batch: int, scratch: Path) -> dict[str, Any]:
    """A network and batch in a process of its own. What it finds is shown as it comes as well."""
    found: dict[str, Any] = {}
    seconds = plan.deadline - time.time()
    if seconds <= RESERVE:
        return found
    command = [sys.executable, __file__, "--measure", name, "--batch", str(batch), str(scratch)]
    command += ["--modes", ",".join(plan.modes), "--seconds", str(seconds), *(["--alone"] if plan.alone else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        end = threading.Timer(seconds, process.kill)
        end.start()
        for line in process.stdout:
            if line.startswith("{"):
                found.update(json.loads(line))
                print(f"{name} {batch}: {line.strip()}", file=sys.stderr, flush=True)
        end.cancel()
    return found


def run_all(plan: Plan) -> list[dict[str, Any]]:
    """Measure each network and batch in a process of its own; those that are not through in time are ended."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # No kernel is kept from before by NVIDIA's compiler, nor, unless their folders are named, by this program and PyTorch.
        os.environ |= {
            "MEDQUANT_CACHE": os.environ.get("MEDQUANT_CACHE", folder),
            "CUDA_CACHE_DISABLE": "1",
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(scratch / "inductor")),
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 8)),
        }
        built: dict[str, float] = {}
        tasks = [(name, batch) for batch in plan.batches for name in plan.names]
        with ThreadPoolExecutor(plan.at_once) as pool:
            with GpuLock(scratch / "lock"):
                # They are compiled for PyTorch while the engines are built.
                futures = {task: pool.submit(measured, plan, *task, scratch) for task in tasks}
                if not plan.alone:
                    built = build_engines(plan.names, plan.folder, scratch, plan.batches)
            results = {task: future.result() for task, future in futures.items()}
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    rows = []
    for name in plan.names:
        row: dict[str, Any] = {"network": name, **about}
        for batch in plan.batches:
            row[f"batch_{batch}"] = results[name, batch]
            if not plan.alone:
                row[f"batch_{batch}"]["build_s"] = built[f"{name}.{batch}"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(TIMED))
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--at-once", type=int, default=len(TIMED) * len(BATCHES))
    parser.add_argument("--alone", action="store_true", help="without CUDA INT8")
    given = parser.parse_intermixed_args()
    deadline, modes = time.time() + given.seconds, given.modes.split(",")
    batches = [int(batch) for batch in given.batches.split(",")]
    if unknown := [name for name in (*given.names, *modes) if name not in TIMED and name not in MODES]:
        parser.error(f"unknown: {', '.join(unknown)}; networks are {', '.join(TIMED)}, modes {', '.join(MODES)}")
    if given.at_once < 1:
        parser.error("--at-once is 1 at least")
    if given.measure:
        for piece in measure(given.measure, given.batch, given.folder, modes, deadline, given.alone):
            print(json.dumps(piece), flush=True)
    else:
        for row in run_all(Plan(given.names, given.folder, modes, batches, deadline, given.at_once, given.alone)):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
