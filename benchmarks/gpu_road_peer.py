"""A scan to labels by PyTorch on one GPU, as fast as was found by trying: resampling, windows, blending, the way back, all of it there.

Nothing but scan and labels crosses the bus: the scan by a plain copy or in pieces through pinned memory, whatever is faster, labels into
pinned memory, where they stay. The network runs in the fastest mode and batch of those that are tried. Windows are blended in half precision, as nnU-Net's own predictor does
it, in scores that lie by class or by voxel, and scores go back to the scan's grid class by class or all at once, compiled: whatever is
faster. What this project's road does beside it (benchmarks/gpu_road.py) is the same work: a test compares the labels.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "MedQuantINT8")]
Size = tuple[int, int, int]
#: What is tried: whether the network lies channels-last, windows a call, and whether its weights are constants to the compiler.
FORMS = ((True, 4, False), (True, 4, True), (True, 8, False), (True, 1, False), (False, 4, False), (True, 16, False))
ROUNDS = 5
#: Pieces in which a scan goes up, and threads that copy them to pinned memory.
PIECES, COPYING = 48, 6


class TorchRoad:
    """A scan (K, J, I) in the computer's memory to labels of the same shape.

    Args:
        network: (N, 1, *patch) to (N, classes, *patch), in the device's memory, of that type.
        size: of network space, along (K, J, I).
        limits: intensities that become 0 and 1.
        dtype: of the network's ends and of blended scores; None is half precision.

    Attributes:
        plan: where windows lie.
        scores_by_voxel: whether the scores of a voxel lie together, not those of a class; see :meth:`choose`.
        pinned_up: whether a scan goes up through pinned memory, not by a plain copy; see :meth:`choose`.
        labels_of: takes scores (classes, K, J, I) and the scan's shape, and gives labels; see :meth:`choose`.
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
        self.scores_by_voxel = False
        self.labels_of: Callable[[Any, Size], Any] = labels_by_class
        self.pinned_up = False
        self._pinned: dict[str, Any] = {}
        self._threads = ThreadPoolExecutor(COPYING)

    def choose(self, shape: Size) -> dict[str, float]:
        """Take the fastest way of a scan to the GPU, and order of scores in memory together with the way to labels; the milliseconds of each."""
        import torch

        compiled = torch.compile(labels_at_once, dynamic=False)
        ways: dict[str, Callable[[Any, Size], Any]] = {
            "at once": compiled,
            "laid out by class, at once": lambda scores, shape: compiled(scores.contiguous(), shape),
        }
        x = torch.randn(1, *self._size, device=self._device, dtype=self._dtype)
        times: dict[str, float] = {}
        scan = np.ones(shape, np.int16)
        plain, pinned = "scan up, plain copy", "scan up, pinned pieces"
        for name in (plain, pinned):
            self.pinned_up = name == pinned
            times[name] = self._milliseconds(lambda: self._up(scan))
        self.pinned_up = times[pinned] < times[plain]
        # Class by class, 73 ms on an H200 and 17 ms compiled, is for GPUs on which the other ways do not compile.
        best, chosen = float("inf"), (False, labels_by_class)
        with torch.inference_mode():
            for by_voxel in (False, True):
                order, self.scores_by_voxel = "by voxel" if by_voxel else "by class", by_voxel
                times[f"windows, scores {order}"] = windows = self._milliseconds(lambda: self._blended(x), 2)
                scores = self._blended(x)
                for name, way in list(ways.items())[: 1 + by_voxel]:
                    name = f"back, scores {order}, {name}"
                    try:
                        times[name] = back = self._milliseconds(lambda way=way, scores=scores: way(scores, shape))
                    except Exception as error:
                        print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
                        continue
                    if windows + back < best:
                        best, chosen = windows + back, (by_voxel, way)
        self.scores_by_voxel, self.labels_of = chosen
        return times

    def _milliseconds(self, call: Callable[[], Any], rounds: int = ROUNDS) -> float:
        """Return the least of some calls, the first left out."""
        return 1e3 * min([self._seconds(call) for _ in range(rounds + 1)][1:])

    def _seconds(self, call: Callable[[], Any]) -> float:
        import torch

        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def run(self, scan: NDArray[Any]) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """Return the labels, which stay as they are until the next run, and the seconds of each stage."""
        import torch

        marks = [time.perf_counter()]

        def mark() -> None:
            if self._device == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

        with torch.inference_mode():
            x = self._prepared(self._up(scan))
            mark()
            scores = self._blended(x)
            mark()
            labels = self.labels_of(scores, tuple(scan.shape))
            mark()
            result = self._down(labels)
            mark()
        names = ("scan up, resampled, normalized", "windows", "back and argmax", "labels down")
        return result, dict(zip(names, np.diff(marks).tolist(), strict=True))

    def _up(self, scan: NDArray[Any]) -> Any:
        """Copy a scan to the GPU."""
        import torch

        source = torch.from_numpy(scan)
        if self._device == "cpu":
            return source
        if not self.pinned_up:
            return source.to(self._device)
        pinned, target = self._pinned_like(source), torch.empty_like(source, device=self._device)

        def copy(piece: slice) -> None:
            # NumPy's copy lets other threads go on; torch's own, on all cores, waits for those that others keep busy.
            np.copyto(pinned[piece].numpy(), scan[piece])

        # A piece is under way while the next ones are copied to pinned memory.
        for piece, done in [(piece, self._threads.submit(copy, piece)) for piece in _pieces(len(source))]:
            done.result()
            target[piece].copy_(pinned[piece], non_blocking=True)
        return target

    def _down(self, labels: Any) -> NDArray[np.uint8]:
        import torch

        if self._device == "cpu":
            return labels.numpy()
        pinned = self._pinned_like(labels)
        pinned.copy_(labels, non_blocking=True)
        torch.cuda.synchronize()
        return pinned.numpy()

    def _pinned_like(self, array: Any) -> Any:
        """Return pinned memory for an array, the same for all of its type and shape."""
        import torch

        key = f"{array.dtype} {tuple(array.shape)}"
        if key not in self._pinned:
            self._pinned[key] = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
        return self._pinned[key]

    def _prepared(self, scan: Any) -> Any:
        from torch.nn.functional import interpolate

        low, high = self._limits
        x = interpolate(scan.float()[None, None], self._size, mode="trilinear", align_corners=False)
        return x.clamp_(low, high).sub_(low).div_(high - low).to(self._dtype)[0]

    @property
    def _scores_shape(self) -> tuple[int, ...]:
        return (*self._size, self._classes) if self.scores_by_voxel else (self._classes, *self._size)

    def _blended(self, x: Any) -> Any:
        """The weighted mean of all windows' scores."""
        import torch

        scores = torch.zeros(self._scores_shape, device=self._device, dtype=self._dtype)
        if self.scores_by_voxel:
            scores = scores.permute(3, 0, 1, 2)
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


def _pieces(count: int) -> list[slice]:
    """Cut so many things into pieces of about the same size."""
    ends = np.linspace(0, count, PIECES + 1).round().astype(int).tolist()
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def labels_by_class(scores: Any, shape: Sequence[int]) -> Any:
    """Class after class interpolated and compared with the best so far."""
    import torch

    best = torch.full(tuple(shape), -torch.inf, device=scores.device, dtype=scores.dtype)
    labels = torch.zeros(tuple(shape), dtype=torch.uint8, device=scores.device)
    for number in range(len(scores)):
        best, labels = _better(best, labels, scores[number], number)
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


def fastest_network(classes: int, patch: Size, seconds: float = 600.0) -> dict[str, Any]:
    """nnU-Net's network in the form whose window takes least, compiled and recorded ("reduce-overhead"), and what every one takes.

    Args:
        seconds: no other form is begun after so many.

    Returns:
        ``call``, ``batch``, ``channels_last`` and ``mode`` of the fastest; ``ms``: of a window in each.
    """
    import torch

    from networks import totalsegmentator

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    best: dict[str, Any] = {}
    milliseconds: dict[str, float | str] = {}
    began = time.perf_counter()
    # Each form is compiled by itself, all from one function.
    torch._dynamo.config.recompile_limit = 64
    for channels_last, batch, frozen in FORMS:
        name = f"{'channels-last' if channels_last else 'contiguous'}, recorded{', frozen' * frozen}, batch {batch}"
        if time.perf_counter() - began > seconds:
            milliseconds[name] = "left out for want of time"
            continue
        layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        module = totalsegmentator(classes).cuda().eval().requires_grad_(False).half().to(memory_format=layout)
        x = torch.randn(batch, 1, *patch, device="cuda", dtype=torch.float16).contiguous(memory_format=layout)
        compiler = torch._TorchCompileInductorWrapper("reduce-overhead", {"freezing": True} if frozen else None, False)
        call = torch.compile(module, backend=compiler, dynamic=False)
        try:
            window = _event_milliseconds(call, x) / batch
        except Exception as error:
            milliseconds[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        milliseconds[name] = window
        if not best or window < best["window_ms"]:
            best = {"call": call, "batch": batch, "channels_last": channels_last, "mode": name, "window_ms": window}
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
