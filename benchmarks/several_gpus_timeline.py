"""Where the time of a run on several GPUs goes: what each thread does and waits for, and what each GPU is busy with.

Calls that matter are wrapped: a thread's time counts for the innermost of them. On each GPU, events in its streams stand around the network,
the windows' kernels and the copies. All that makes a run a few percent slower, so that its total is not that of the page's tables.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: What a thread does, by (module, owner or empty, function).
CALLS: dict[str, list[tuple[str, str, str]]] = {
    "allocating": [("engines.cuda.device", "DeviceBuffer", "__init__")],
    "freeing": [("engines.cuda.device", "DeviceBuffer", "free")],
    "waiting for its GPU": [
        ("engines.cuda.device", "Event", "wait"),
        ("engines.cuda.device", "Stream", "synchronize"),
        ("engines.cuda.transfers", "Download", "wait"),
    ],
    "waiting for another GPU": [
        ("inference.gpu_team", "GpuTeam", "meet"),
        ("inference.gpu_team", "GpuTeam", "wait_for"),
    ],
    "waiting for the GPUs' threads": [
        ("inference.gpu_team", "GpuTeam", "run"),
        ("inference.task_gpus", "PartsOnGpus", "_collect"),
    ],
    "starting the network": [("engines.cuda_int8.runtime.network", "CudaInt8Network", "enqueue")],
    "starting other kernels": [("engines.cuda.device", "Kernel", "__call__")],
    "starting copies": [
        ("inference.gpu_spread", "", "copy_between"),
        ("inference.gpu_team", "", "copy_between"),
        ("inference.gpu_sliding_window", "", "copy_between"),
        ("inference.gpu_strip_run", "", "copy_between"),
        ("inference.gpu_label_merging", "", "copy_between"),
    ],
    "the scan's way to the GPU": [
        ("engines.cuda.transfers", "Transfers", "upload"),
        ("inference.gpu_team", "TeamMember", "upload"),
    ],
    "the scan's way to network space": [("inference.gpu_preparation", "DeferredInput", "on_gpu")],
    "opening the sliding window": [("inference.gpu_sliding_window", "GpuSlidingWindow", "__init__")],
    "closing the sliding window": [("inference.gpu_sliding_window", "GpuSlidingWindow", "close")],
    "windows": [
        ("inference.gpu_sliding_window", "GpuSlidingWindow", "slide"),
        ("inference.gpu_strip_run", "StripRun", "run"),
    ],
    "taking over planes": [("inference.gpu_spread", "SpreadSlidingWindow", "_take_over")],
    "blending what was kept": [("inference.gpu_sliding_window", "GpuSlidingWindow", "blend_stored")],
    "labels of finished planes": [("inference.gpu_label_resampling", "GpuLabelResampling", "finish")],
    "the labels' way down": [("inference.gpu_spread", "SpreadSlidingWindow", "_bring_down")],
    "memory for the labels": [("inference.gpu_spread", "_Result", "flat")],
    "merging parts": [
        ("inference.task_merging", "", "merge_labels"),
        ("inference.gpu_label_merging", "GpuMerging", "paint"),
    ],
    "waiting for the merging": [("inference.task_merging", "Merging", "end")],
    "all else": [("inference.network_run", "", "segment_volume"), ("inference.pipeline", "", "run_in_region")],
}
#: What a GPU is busy with, by (module, owner or empty, function, where its stream is: an argument's name or an attribute of the first).
ON_GPU: dict[str, list[tuple[str, str, str, str]]] = {
    "network": [("engines.cuda_int8.runtime.network", "CudaInt8Network", "enqueue", "stream")],
    "cutting": [("inference.gpu_window_kernels", "WindowKernels", "cut", "5")],
    "blending": [("inference.gpu_sliding_window", "GpuSlidingWindow", "blend", ".stream")],
    "labels": [("inference.gpu_label_resampling", "GpuLabelResampling", "finish", "._stream")],
    "copies": [
        ("inference.gpu_spread", "", "copy_between", "2"),
        ("inference.gpu_team", "", "copy_between", "2"),
        ("inference.gpu_sliding_window", "", "copy_between", "2"),
        ("inference.gpu_strip_run", "", "copy_between", "2"),
    ],
    "clearing": [("engines.cuda.device", "DeviceBuffer", "zero", "1")],
    "preparation": [("inference.gpu_arrays", "GpuArrays", "_run", ".stream")],
}


class Timeline:
    """Notes what threads and GPUs do from when it is entered."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self._lock, self._own = threading.Lock(), threading.local()
        #: (thread, what, depth, begin, end, without what was called in it), in seconds since the beginning.
        self.spans: list[tuple[str, str, int, float, float, float]] = []
        self._events: list[tuple[Any, str, Any, Any]] = []
        self._bases: dict[int, tuple[Any, float]] = {}

    def around(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            stack = self._own.__dict__.setdefault("stack", [])
            stack.append(0.0)
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                ended = time.perf_counter()
                inner = stack.pop()
                if stack:
                    stack[-1] += ended - began
                span = (began - self.began, ended - self.began, ended - began - inner)
                with self._lock:
                    self.spans.append((threading.current_thread().name, what, len(stack), *span))

        return timed

    def on_gpu(self, what: str, call: Callable[..., Any], where: str) -> Callable[..., Any]:
        from MedQuantINT8Lib.engines.cuda.device import Event

        @functools.wraps(call)
        def marked(*arguments: Any, **named: Any) -> Any:
            if where.startswith("."):
                stream = getattr(arguments[0], where[1:])
            else:
                stream = arguments[int(where)] if where.isdigit() else named.get(where, arguments[-1])
            gpu = stream._gpu
            first = Event(gpu).record(stream)
            result = call(*arguments, **named)
            last = Event(gpu).record(stream)
            with self._lock:
                self._events.append((gpu, what, first, last))
            return result

        return marked

    def start(self, gpus: list[Any]) -> None:
        """Note where the clocks of GPUs stand, and begin."""
        from MedQuantINT8Lib.engines.cuda.device import Event, Stream

        for gpu in gpus:
            gpu.enter()
            stream = Stream(gpu)
            event = Event(gpu).record(stream)
            event.wait()
            self._bases[gpu.info.index] = event, time.perf_counter()
            stream.free()
        self.spans, self._events = [], []
        self.began = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """Return the milliseconds of each thread and GPU by what they were spent on, and longer spans in order."""
        threads: dict[str, dict[str, float]] = {}
        ordered: dict[str, list[Any]] = {}
        for thread, what, depth, began, ended, own in sorted(self.spans, key=lambda span: span[3]):
            name = thread if not thread.startswith("transfers") else "transfers"
            row = threads.setdefault(name, {})
            row[what] = row.get(what, 0.0) + 1e3 * own
            calls = f"{what}, calls"
            row[calls] = row.get(calls, 0) + 1
            if ended - began > 3e-4 and name != "transfers":
                ordered.setdefault(name, []).append((depth, what, round(1e3 * began, 2), round(1e3 * ended, 2)))
        gpus: dict[int, dict[str, Any]] = {}
        for gpu, what, first, last in self._events:
            gpu.enter()
            base, at = self._bases[gpu.info.index]
            begin, end = (1e3 * (at - self.began) + event.milliseconds_since(base) for event in (first, last))
            first.free()
            last.free()
            row = gpus.setdefault(gpu.info.index, {}).setdefault(
                what, {"ms": 0.0, "calls": 0, "from": begin, "to": end}
            )
            row["ms"] += end - begin
            row["calls"] += 1
            row["from"], row["to"] = min(row["from"], begin), max(row["to"], end)
        rounded = {
            index: {what: {k: round(v, 2) for k, v in row.items()} for what, row in rows.items()}
            for index, rows in gpus.items()
        }
        return {
            "threads": {name: {k: round(v, 2) for k, v in row.items()} for name, row in threads.items()},
            "gpus": rounded,
            "spans": ordered,
        }


@contextmanager
def recorded() -> Iterator[Timeline]:
    """Wrap what is looked at for as long as it lasts."""
    import importlib

    timeline = Timeline()
    before: list[tuple[Any, str, Any]] = []

    def replace(module: str, owner: str, name: str, wrapped: Callable[[Any], Any]) -> None:
        place: Any = importlib.import_module(f"MedQuantINT8Lib.{module}")
        place = getattr(place, owner) if owner else place
        before.append((place, name, getattr(place, name)))
        setattr(place, name, wrapped(getattr(place, name)))

    for what, marks in ON_GPU.items():
        for module, owner, name, where in marks:
            replace(module, owner, name, lambda call, what=what, where=where: timeline.on_gpu(what, call, where))
    for what, calls in CALLS.items():
        for module, owner, name in calls:
            replace(module, owner, name, lambda call, what=what: timeline.around(what, call))
    try:
        yield timeline
    finally:
        for place, name, call in reversed(before):
            setattr(place, name, call)


def printed(title: str, result: dict[str, Any], total: float) -> None:
    """Print a timeline, for whoever looks for what takes long."""
    print(f"TIMELINE {title}: {1e3 * total:.1f} ms", flush=True)
    for name, row in result["threads"].items():
        parts = sorted(((v, k) for k, v in row.items() if not k.endswith(", calls") and v >= 0.2), reverse=True)
        print(f"  thread {name}: " + ", ".join(f"{k} {v:.1f} ({row[k + ', calls']:.0f})" for v, k in parts))
    for index, rows in result["gpus"].items():
        words = (f"{what} {r['ms']:.1f} ({r['calls']}, {r['from']:.1f} to {r['to']:.1f})" for what, r in rows.items())
        print(f"  GPU {index}: " + ", ".join(words))
    for name, spans in result["spans"].items():
        print(f"  spans {name}:")
        for depth, what, began, ended in spans:
            print(f"    {'. ' * depth}{what} {began:.1f} to {ended:.1f} ({ended - began:.1f})")
    print(flush=True)
