"""What a GPU user has without this project: the networks in PyTorch at 96^3, batch 1 and 4, random weights.

    python benchmarks/gpu_baselines.py [NAME ...]

Prints one JSON line a network: milliseconds (median and 95th percentile of CUDA events) in FP32 (TF32 off), TF32, autocast FP16,
FP16 channels-last, and torch.compile over autocast FP16, as it comes and with CUDA graphs (mode "reduce-overhead"). Needs an NVIDIA GPU,
torch and MONAI.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "MedQuantINT8")]
from gpu_networks import TIMED  # noqa: E402

ROUNDS, WARM = 20, 4


def timed(call: Callable[[], Any]) -> dict[str, float]:
    import torch

    for _ in range(WARM):
        call()
    torch.cuda.synchronize()
    found = []
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end))
    return {"median_ms": float(np.median(found)), "p95_ms": float(np.percentile(found, 95))}


def row(name: str, batch: int) -> dict[str, Any]:
    import torch

    from MedQuantINT8Lib.importers.networks import PATCH, make

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    module = make(TIMED[name]).cuda().eval().requires_grad_(False)
    x = torch.randn(batch, 1, *PATCH, device="cuda")
    found: dict[str, Any] = {}

    def tf32(on: bool) -> None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on

    def run(label: str, call: Callable[[], Any]) -> None:
        try:
            found[label] = timed(call)
        except Exception as error:
            # A mode that a network cannot run in is a result as well.
            found[label] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
            torch.cuda.empty_cache()

    tf32(False)
    run("fp32", lambda: module(x))
    tf32(True)
    run("tf32", lambda: module(x))

    def autocast() -> Any:
        with torch.autocast("cuda", torch.float16):
            return module(x)

    run("autocast_fp16", autocast)
    for label, mode in (("compiled_autocast_fp16", None), ("graphed_autocast_fp16", "reduce-overhead")):
        torch._dynamo.reset()
        faster = torch.compile(module, mode=mode, dynamic=False)

        def compiled_autocast(call: Callable[[Any], Any] = faster) -> Any:
            with torch.autocast("cuda", torch.float16):
                return call(x)

        run(label, compiled_autocast)
    torch._dynamo.reset()
    with contextlib.suppress(Exception):
        half = module.half().to(memory_format=torch.channels_last_3d)
        y = x.half().to(memory_format=torch.channels_last_3d)
        run("fp16_channels_last", lambda: half(y))
    return found


def main() -> None:
    import torch

    for name in sys.argv[1:] or TIMED:
        began = time.perf_counter()
        value = {
            "network": name,
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
            "batch_1": row(name, 1),
            "batch_4": row(name, 4),
            "seconds": time.perf_counter() - began,
        }
        print(json.dumps(value), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
