"""A scan to labels by PyTorch on one GPU, as fast as was found by trying: resampling, windows, blending, the way back, all of it there.

Nothing but scan and labels crosses the bus. The network runs in the fastest mode and batch that were found by trying; windows are blended
in half precision, as nnU-Net's own predictor does it, labels come down by a plain copy, and scores go back to the scan's grid in one compiled pass where that is faster than
class by class. What this project's road does beside it (benchmarks/gpu_road.py) is the same work: a test compares the labels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "MedQuantINT8")]
Size = tuple[int, int, int]
#: What is tried: whether the network lies channels-last, and windows a call.
FORMS = ((True, 4), (True, 1), (False, 4))
ROUNDS = 5


def nnunet(classes: int, activation: str = "leakyrelu") -> Any:
    """nnU-Net's plain network of six levels, as TotalSegmentator's plans have it, random weights; MLPerf's has "relu"."""
    import torch
    from monai.networks.nets import DynUNet

    torch.manual_seed(0)
    levels = 6
    return DynUNet(
        3,
        1,
        classes,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=[32, 64, 128, 256, 320, 320],
        res_block=False,
        deep_supervision=False,
        act_name=(activation, {"inplace": True}),
        trans_bias=True,
    )


class TorchRoad:
    """A scan (K, J, I) in the computer's memory to labels of the same shape.

    Args:
        network: (N, 1, *patch) to (N, classes, *patch), in the device's memory, of that type.
        size: of network space, along (K, J, I).
        limits: intensities that become 0 and 1.
        dtype: of the network's ends and of blended scores; None is half precision.

    Attributes:
        plan: where windows lie.
        labels_of: takes scores (classes, K, J, I) and the scan's shape, and gives labels; see :meth:`choose_way_back`.
    """

    def __init__(
        self,
        network: Callable[[Any], Any],
        classes: int,
        size: Size,
        patch: Size,
        batch: int,
        limits: tuple[float, float],
        *,
        device: str = "cuda",
        dtype: Any = None,
        channels_last: bool = True,
    ) -> None:
        import torch

        from MedQuantINT8Lib.inference.windows import importance_map, plan_windows
        from MedQuantINT8Lib.models.spec import Window

        self._network, self._classes, self._size, self._patch, self._batch = network, classes, size, patch, batch
        self._limits, self._device, self._dtype = limits, device, dtype or torch.float16
        self._layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.plan = plan_windows(size, Window(patch, overlap=0.5), patch)
        self._weights = torch.from_numpy(np.array(importance_map(patch, "gaussian"))).to(device, self._dtype)
        starts = [tuple(start) for start in self.plan.windows()]
        self._batches = [starts[first : first + batch] for first in range(0, len(starts), batch)]
        self.labels_of: Callable[[Any, Size], Any] = labels_by_class

    def choose_way_back(self, shape: Size) -> dict[str, float]:
        """Take the faster way from scores to labels, and return the milliseconds of each."""
        import torch

        scores = torch.randn(self._classes, *self._size, device=self._device, dtype=self._dtype)
        compiled = torch.compile(labels_at_once, dynamic=False)
        ways = {
            "class by class": labels_by_class,
            "class by class, compiled": _compiled_by_class(),
            "at once, compiled": compiled,
        }
        times = {}
        for name, way in ways.items():
            try:
                way(scores, shape)
                times[name] = 1e3 * min(self._seconds(lambda way=way: way(scores, shape)) for _ in range(ROUNDS))
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
        self.labels_of = ways[min(times, key=lambda name: times[name])]
        return times

    def _seconds(self, call: Callable[[], Any]) -> float:
        import torch

        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def run(self, scan: NDArray[Any]) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """Return the labels, and the seconds of each stage."""
        import torch

        marks = [time.perf_counter()]

        def mark() -> None:
            if self._device == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

        with torch.inference_mode():
            x = self._prepared(torch.from_numpy(scan).to(self._device))
            mark()
            scores = self._blended(x)
            mark()
            labels = self.labels_of(scores, tuple(scan.shape))
            mark()
            result = labels.cpu().numpy()
            mark()
        names = ("scan up, resampled, normalized", "windows", "back and argmax", "labels down")
        return result, dict(zip(names, np.diff(marks).tolist(), strict=True))

    def _prepared(self, scan: Any) -> Any:
        from torch.nn.functional import interpolate

        low, high = self._limits
        x = interpolate(scan.float()[None, None], self._size, mode="trilinear", align_corners=False)
        return x.clamp_(low, high).sub_(low).div_(high - low).to(self._dtype)[0]

    def _blended(self, x: Any) -> Any:
        """The weighted mean of all windows' scores."""
        import torch

        scores = torch.zeros(self._classes, *self._size, device=self._device, dtype=self._dtype)
        total = torch.zeros(self._size, device=self._device, dtype=self._dtype)
        for starts in self._batches:
            places = [tuple(slice(s, s + p) for s, p in zip(start, self._patch, strict=True)) for start in starts]
            batch = torch.stack([x[:, a, b, c] for a, b, c in places])
            if len(starts) < self._batch:
                # A recorded network takes batches of one size.
                batch = torch.cat([batch, batch.new_zeros(self._batch - len(starts), *batch.shape[1:])])
            found = self._network(batch.contiguous(memory_format=self._layout))
            for number, (a, b, c) in enumerate(places):
                scores[:, a, b, c].addcmul_(found[number], self._weights)
                total[a, b, c] += self._weights
        return scores.div_(total)


def labels_by_class(scores: Any, shape: Sequence[int]) -> Any:
    """Class after class interpolated and compared with the best so far."""
    return _by_class(scores, shape, _better)


def _compiled_by_class() -> Callable[[Any, Any], Any]:
    import torch

    step = torch.compile(_better, dynamic=False)
    return lambda scores, shape: _by_class(scores, shape, step)


def _by_class(scores: Any, shape: Sequence[int], step: Callable[..., Any]) -> Any:
    import torch

    best = torch.full(tuple(shape), -torch.inf, device=scores.device, dtype=scores.dtype)
    labels = torch.zeros(tuple(shape), dtype=torch.uint8, device=scores.device)
    for number in range(len(scores)):
        # As a tensor, so that a compiled step is one for all classes.
        best, labels = step(best, labels, scores[number], torch.tensor(number, dtype=torch.uint8, device=scores.device))
    return labels


def _better(best: Any, labels: Any, scores: Any, number: Any) -> tuple[Any, Any]:
    import torch
    from torch.nn.functional import interpolate

    finer = interpolate(scores[None, None], tuple(best.shape), mode="trilinear", align_corners=False)[0, 0]
    return torch.maximum(best, finer), torch.where(finer > best, number, labels)


def labels_at_once(scores: Any, shape: Sequence[int]) -> Any:
    """All classes interpolated and the largest taken, for a compiler that makes one kernel of it."""
    import torch
    from torch.nn.functional import interpolate

    finer = interpolate(scores[None], tuple(shape), mode="trilinear", align_corners=False)[0]
    return finer.argmax(0).to(torch.uint8)


def fastest_network(classes: int, patch: Size, compiled_modes: Sequence[str] = ("reduce-overhead",)) -> dict[str, Any]:
    """nnU-Net's network in the mode and batch whose window takes least, and what every one takes.

    Returns:
        ``call``, ``batch``, ``channels_last`` and ``mode`` of the fastest; ``ms``: of a window in each.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    best: dict[str, Any] = {}
    milliseconds: dict[str, float | str] = {}
    # Each form is compiled by itself, all from one function.
    torch._dynamo.config.recompile_limit = 64
    for mode in compiled_modes:
        for channels_last, batch in FORMS:
            name = f"{'channels-last' if channels_last else 'contiguous'}, {mode}, batch {batch}"
            layout = torch.channels_last_3d if channels_last else torch.contiguous_format
            module = nnunet(classes).cuda().eval().requires_grad_(False).half().to(memory_format=layout)
            x = torch.randn(batch, 1, *patch, device="cuda", dtype=torch.float16).contiguous(memory_format=layout)
            call = torch.compile(module, mode=mode, dynamic=False)
            try:
                times = _event_milliseconds(call, x)
            except Exception as error:
                milliseconds[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
                continue
            milliseconds[name] = times / batch
            if not best or times / batch < best["window_ms"]:
                best = {"call": call, "batch": batch, "channels_last": channels_last, "mode": name}
                best["window_ms"] = times / batch
    return best | {"ms": milliseconds}


def _event_milliseconds(call: Callable[[Any], Any], x: Any) -> float:
    import torch

    times = []
    with torch.inference_mode():
        for number in range(ROUNDS + 4):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call(x)
            end.record()
            torch.cuda.synchronize()
            if number >= 4:
                times.append(begin.elapsed_time(end))
    return float(np.median(times))
