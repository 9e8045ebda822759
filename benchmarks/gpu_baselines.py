"""What a GPU user has without this project: the networks in PyTorch at 96^3, batch 1 and 4, beside CUDA INT8 in the same process.

    python benchmarks/cuda_int8.py networks FOLDER [NAME ...]   # any machine with the build road: INT8 networks, without their weights
    python benchmarks/gpu_baselines.py FOLDER [--seconds N] [--modes MODE,...] [--batches 1,4] [NAME ...]

Needs an NVIDIA GPU, torch, MONAI and onnx; random weights. Prints one JSON line a network: milliseconds (median and 95th percentile of
CUDA events) of every mode of :data:`MODES`, or why a network does not run in it, and ``beside``: PyTorch's fastest mode and CUDA INT8
timed turn and turn about in one process. Modes that the seconds did not suffice for are named as left out.

Networks are compiled beside each other, a process each and batch; whoever runs something on the GPU has it alone.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "MedQuantINT8")]
from gpu_networks import TIMED  # noqa: E402

ROUNDS, WARM, TURNS = 20, 4, 3
BATCHES = (1, 4)
#: Seconds that a process leaves for the comparison in turns and for its end.
RESERVE = 15
#: Priority (the system's "nice") of those that compile and wait.
_WAITING = 10


@dataclass(frozen=True)
class Mode:
    """A way of running a network in PyTorch.

    Attributes:
        title: for a table's head.
        half: weights and input are in half precision.
        channels_last: weights and input lie channels-last.
        autocast: weights are in FP32, and PyTorch chooses what runs in half precision.
        compiled: ``torch.compile``'s mode; None runs operator after operator.
        frozen: weights are constants to the compiler, so that it may fold and lay them out anew.
    """

    title: str
    half: bool = False
    channels_last: bool = False
    autocast: bool = False
    tf32: bool = True
    compiled: str | None = None
    frozen: bool = False


#: In the order in which they are timed: what may be fastest first, since seconds may not suffice for all.
MODES = {
    "fp16_channels_last_recorded": Mode("FP16 channels-last, recorded", half=True, channels_last=True, compiled="reduce-overhead"),
    "fp16_recorded": Mode("FP16, recorded", half=True, compiled="reduce-overhead"),
    "fp32": Mode("FP32", tf32=False),
    "fp16_channels_last_max_autotune": Mode("FP16 channels-last, max-autotune", half=True, channels_last=True, compiled="max-autotune"),
    "fp16_channels_last_frozen": Mode("FP16 channels-last, recorded, frozen", half=True, channels_last=True, compiled="reduce-overhead", frozen=True),
    "graphed_autocast_fp16": Mode("autocast FP16, recorded", autocast=True, compiled="reduce-overhead"),
    "fp16_channels_last": Mode("FP16 channels-last", half=True, channels_last=True),
    "fp16": Mode("FP16", half=True),
    "autocast_fp16": Mode("autocast FP16", autocast=True),
    "tf32": Mode("TF32"),
    "compiled_autocast_fp16": Mode("autocast FP16, compiled", autocast=True, compiled="default"),
}  # fmt: skip


class GpuLock:
    """Whoever holds it has the GPU alone, and the processor before the others; held once or several times by one process."""

    def __init__(self, path: Path) -> None:
        self._file, self._depth = path.open("w"), 0

    def __enter__(self) -> None:
        if self._depth == 0:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            _at_priority(0)
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            _at_priority(_WAITING)
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _at_priority(nice: int) -> None:
    # Only the system's own user may go back to the usual priority; others stay where they are.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def torch_milliseconds(call: Callable[[], Any], rounds: int = ROUNDS) -> list[float]:
    """Milliseconds of each of some calls."""
    import torch

    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def allow_tf32(allowed: bool) -> None:
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def summary(times: list[float]) -> dict[str, float]:
    return {"median_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))}


class TorchNetwork:
    """A network in PyTorch, in every mode."""

    def __init__(self, name: str, batch: int, lock: GpuLock) -> None:
        import torch

        torch.backends.cudnn.benchmark = True
        self._name, self._batch, self._lock = name, batch, lock

    def call(self, mode: Mode, leave: contextlib.ExitStack) -> Callable[[], Any]:
        """Return a call in a mode that is compiled and warm. The GPU's lock is held from its first run on, until ``leave`` is closed."""
        import torch

        from MedQuantINT8Lib.importers.networks import PATCH, make

        # Before anything is compiled: a program is compiled anew where this has changed since.
        allow_tf32(mode.tf32)
        torch.manual_seed(0)
        module = make(TIMED[self._name]).cuda().eval().requires_grad_(False)
        x = torch.randn(self._batch, 1, *PATCH, device="cuda")
        if mode.half:
            module, x = module.half(), x.half()
        if mode.channels_last:
            module = module.to(memory_format=torch.channels_last_3d)
            x = x.to(memory_format=torch.channels_last_3d)
        held: list[bool] = []

        def hold() -> None:
            if not held:
                held.append(True)
                leave.enter_context(self._lock)

        network: Callable[[Any], Any] = module
        if mode.compiled is None:
            hold()
        else:
            # Each mode is compiled by itself, from one function; what was compiled before is kept, to be timed again.
            torch._dynamo.config.recompile_limit = 64
            network = torch.compile(module, backend=_compiler(mode, hold), dynamic=False)

        def run() -> Any:
            if not mode.autocast:
                return network(x)
            with torch.autocast("cuda", torch.float16):
                return network(x)

        for _ in range(WARM):
            run()
        torch.cuda.synchronize()
        return run


def _compiler(mode: Mode, before_first_run: Callable[[], None]) -> Callable[[Any, Any], Any]:
    """Return ``torch.compile``'s own compiler in a mode; a call of what it gives is preceded by that function."""
    import torch

    inductor = torch._TorchCompileInductorWrapper(mode.compiled, {"freezing": True} if mode.frozen else None, False)

    def compile_graph(graph: Any, inputs: Any) -> Any:
        compiled = inductor(graph, inputs)

        def run(*arguments: Any) -> Any:
            before_first_run()
            return compiled(*arguments)

        return run

    return compile_graph


def lock_searches(lock: GpuLock) -> None:
    """Let each kernel that "max-autotune" tries have the GPU alone, while others are compiled beside it."""
    from torch._inductor.select_algorithm import AlgorithmSelectorCache

    plain = AlgorithmSelectorCache.benchmark_choice.__func__

    def benchmark_choice(owner: Any, *arguments: Any, **options: Any) -> Any:
        with lock:
            return plain(owner, *arguments, **options)

    AlgorithmSelectorCache.benchmark_choice = classmethod(benchmark_choice)  # type: ignore[method-assign,assignment]


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

    def milliseconds(self, rounds: int = ROUNDS) -> list[float]:
        times = []
        for _ in range(rounds):
            self._begin.record(self._stream)
            self._graph.launch(0)
            self._end.record(self._stream)
            self._end.wait()
            times.append(float(self._end.milliseconds_since(self._begin)))
        return times

    def close(self) -> None:
        self._graph.free()
        self._engine.close()


def in_turns(call: Callable[[], Any], int8: Int8Network) -> dict[str, Any]:
    """PyTorch and CUDA INT8, turn and turn about."""
    torch_times, int8_times = [], []
    torch_milliseconds(call, WARM), int8.milliseconds(WARM)
    for _ in range(TURNS):
        torch_times += torch_milliseconds(call)
        int8_times += int8.milliseconds()
    torch_summary, int8_summary = summary(torch_times), summary(int8_times)
    ratio = torch_summary["median_ms"] / int8_summary["median_ms"]
    return {"torch": torch_summary, "int8": int8_summary, "ratio": ratio}


def measure(name: str, batch: int, engine: Path, modes: list[str], deadline: float) -> Iterator[dict[str, Any]]:
    """Yield what is known of a network and batch, piece by piece."""
    import torch

    lock = GpuLock(engine.parent / "lock")
    with contextlib.suppress(AttributeError, ImportError):
        lock_searches(lock)
    network = TorchNetwork(name, batch, lock)
    _at_priority(_WAITING)
    fastest: float = np.inf
    with torch.no_grad():
        for label in modes:
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
                if MODES[label].compiled and times["median_ms"] < fastest:
                    int8 = Int8Network(engine, batch)
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


def collect(stream: IO[str], target: dict[str, Any]) -> None:
    for line in stream:
        if line.startswith("{"):
            target.update(json.loads(line))


def run_all(
    names: list[str], networks: Path, modes: list[str], deadline: float, batches: Sequence[int] = BATCHES
) -> list[dict[str, Any]]:
    """Measure each network and batch in a process of its own; those that are not through in time are ended."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # No kernel is kept from before, by this program, by NVIDIA's or by PyTorch's.
        os.environ |= {
            "MEDQUANT_CACHE": folder,
            "CUDA_CACHE_DISABLE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // 8)),
        }
        results: dict[tuple[str, int], dict[str, Any]] = {}
        processes, readers = [], []
        with GpuLock(scratch / "lock"):
            # They are compiled for PyTorch while the engines are built.
            for name in names:
                for batch in batches:
                    command = [sys.executable, __file__, "--measure", name, "--batch", str(batch), str(scratch)]
                    command += ["--modes", ",".join(modes), "--seconds", str(deadline - time.time())]
                    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                    assert process.stdout is not None
                    found = results.setdefault((name, batch), {})
                    reader = threading.Thread(target=collect, args=(process.stdout, found), daemon=True)
                    reader.start()
                    processes.append(process)
                    readers.append(reader)
            built = build_engines(names, networks, scratch, batches)
        for process, reader in zip(processes, readers, strict=True):
            try:
                process.wait(max(0.1, deadline - time.time()))
            except subprocess.TimeoutExpired:
                process.kill()
            reader.join(2)
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    rows = []
    for name in names:
        row = {"network": name, **about}
        for batch in batches:
            row[f"batch_{batch}"] = results[name, batch] | {"build_s": built[f"{name}.{batch}"]}
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
    given = parser.parse_intermixed_args()
    deadline, modes = time.time() + given.seconds, given.modes.split(",")
    batches = [int(batch) for batch in given.batches.split(",")]
    if unknown := [name for name in (*given.names, *modes) if name not in TIMED and name not in MODES]:
        parser.error(f"unknown: {', '.join(unknown)}; networks are {', '.join(TIMED)}, modes {', '.join(MODES)}")
    if given.measure:
        for piece in measure(
            given.measure, given.batch, given.folder / f"{given.measure}.{given.batch}", modes, deadline
        ):
            print(json.dumps(piece), flush=True)
    else:
        for row in run_all(given.names, given.folder, modes, deadline, batches):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
