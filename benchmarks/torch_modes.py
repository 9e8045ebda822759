"""A network in PyTorch in each of its modes, and who has the GPU: for gpu_baselines.py."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "MedQuantINT8")]
from gpu_networks import TIMED  # noqa: E402

ROUNDS, WARM = 20, 4
#: Calls that are queued where a call is not timed by itself.
QUEUED = 10
#: Priority (the system's "nice") of those that compile and wait.
WAITING = 10


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

    @property
    def searches(self) -> bool:
        """Whether kernels are compiled and timed in its first run, for minutes."""
        return self.compiled == "max-autotune"

    @property
    def substitute(self) -> bool:
        """Whether it is for networks alone that refuse channels-last."""
        return self.half and not self.channels_last and self.compiled is not None


#: In the order in which they are timed: what may be fastest first, since seconds may not suffice for all.
MODES = {
    "fp16_channels_last_recorded": Mode("FP16 channels-last, recorded", half=True, channels_last=True, compiled="reduce-overhead"),
    "fp16_recorded": Mode("FP16, recorded", half=True, compiled="reduce-overhead"),
    "fp32": Mode("FP32", tf32=False),
    "fp16_channels_last_max_autotune": Mode("FP16 channels-last, max-autotune", half=True, channels_last=True, compiled="max-autotune"),
    "fp16_channels_last_frozen": Mode("FP16 channels-last, recorded, frozen", half=True, channels_last=True, compiled="reduce-overhead", frozen=True),
    "fp16_max_autotune": Mode("FP16, max-autotune", half=True, compiled="max-autotune"),
    "fp16_frozen": Mode("FP16, recorded, frozen", half=True, compiled="reduce-overhead", frozen=True),
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

    @property
    def held(self) -> bool:
        return self._depth > 0

    def __enter__(self) -> None:
        if self._depth == 0:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            at_priority(0)
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            at_priority(WAITING)
            fcntl.flock(self._file, fcntl.LOCK_UN)


def at_priority(nice: int) -> None:
    # Only the system's own user may go back to the usual priority; others stay where they are.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def torch_milliseconds(call: Callable[[], Any], rounds: int = ROUNDS, queued: int = 1) -> list[float]:
    """Milliseconds of a call, measured some times.

    Args:
        queued: calls between two events. One by one, what Python does for a call is part of its time; queued, it is hidden where
            the GPU's work takes longer.
    """
    import torch

    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(queued):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / queued)
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
            # A search's first run takes minutes: what is timed in it takes the lock by itself.
            network = torch.compile(
                module, backend=_compiler(mode, (lambda: None) if mode.searches else hold), dynamic=False
            )

        def run() -> Any:
            if not mode.autocast:
                return network(x)
            with torch.autocast("cuda", torch.float16):
                return network(x)

        if mode.searches:
            run()
            torch.cuda.synchronize()
            hold()
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
    """Let each kernel that "max-autotune" times have the GPU alone, while others are compiled beside it; and each convolution by cuDNN
    until it is recorded, since cuDNN times its own kernels in the first run."""
    import torch
    import torch._inductor.kernel.conv  # It puts the convolution into the namespace.
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._inductor.select_algorithm import AlgorithmSelectorCache, extern_kernels

    plain = AlgorithmSelectorCache.benchmark_choice.__func__
    plain_bench, plain_convolution = CachingAutotuner.bench, extern_kernels.convolution

    def benchmark_choice(owner: Any, *arguments: Any, **options: Any) -> Any:
        with lock:
            return plain(owner, *arguments, **options)

    def bench(owner: Any, *arguments: Any, **options: Any) -> Any:
        with lock:
            return plain_bench(owner, *arguments, **options)

    def convolution(*arguments: Any, **options: Any) -> Any:
        if lock.held or torch.cuda.is_current_stream_capturing():
            return plain_convolution(*arguments, **options)
        with lock:
            result = plain_convolution(*arguments, **options)
            torch.cuda.synchronize()
            return result

    AlgorithmSelectorCache.benchmark_choice = classmethod(benchmark_choice)  # type: ignore[method-assign,assignment]
    CachingAutotuner.bench = bench  # type: ignore[method-assign]
    extern_kernels.convolution = convolution
