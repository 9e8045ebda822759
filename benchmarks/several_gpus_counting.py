"""What crosses the bus in a run on several GPUs, how long that takes, and how much memory is allocated, counted where it happens; and its timeline."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Counter:
    """Counts, per GPU, what crosses the bus and how long that takes, and the most memory that was allocated at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes: dict[tuple[int, str], int] = {}
        self._times: dict[tuple[int, str], list[tuple[float, float]]] = {}
        self._allocated: dict[int, int] = {}
        self._most: dict[int, int] = {}
        self._waiting: dict[int, int] = {}

    def add(self, index: int, what: str, size: int, began: float, ended: float) -> None:
        with self._lock:
            key = index, what
            self._bytes[key] = self._bytes.get(key, 0) + size
            self._times.setdefault(key, []).append((began, ended))

    def allocate(self, index: int, size: int) -> None:
        with self._lock:
            self._allocated[index] = self._allocated.get(index, 0) + size
            self._most[index] = max(self._most.get(index, 0), self._allocated[index])

    def keep(self, index: int, size: int) -> None:
        """Note how much freed memory waits for its next use."""
        with self._lock:
            self._waiting[index] = max(self._waiting.get(index, 0), size)

    def forget_copies(self) -> None:
        with self._lock:
            self._bytes, self._times = {}, {}

    def rows(self) -> dict[int, dict[str, float]]:
        """Return the figures of each GPU; copies that run at the same time on several threads count once."""
        rows = {}
        for index, most in sorted(self._most.items()):
            row: dict[str, float] = {"most_allocated": most, "most_waiting": self._waiting.get(index, 0)}
            for what in ("up", "down", "from_gpus"):
                row[f"bytes_{what}"] = self._bytes.get((index, what), 0)
                row[f"seconds_{what}"] = _covered(self._times.get((index, what), []))
            rows[index] = row
        return rows


def _covered(times: list[tuple[float, float]]) -> float:
    """Return how long at least one of some spans of time lasted."""
    total, reached = 0.0, -math.inf
    for began, ended in sorted(times):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def copying_modules() -> list[Any]:
    """Return the modules that copy from one GPU to another."""
    import importlib

    folder = Path(importlib.import_module("MedQuantINT8Lib.inference").__file__ or "").parent
    names = [path.stem for path in sorted(folder.glob("gpu_*.py"))]
    modules = [importlib.import_module(f"MedQuantINT8Lib.inference.{name}") for name in names]
    return [module for module in modules if hasattr(module, "copy_between")]


@contextmanager
def counted(counter: Counter) -> Iterator[None]:
    """Count what this process's GPUs allocate, and what is copied; each copy waits for what is before it, and is waited for."""
    from MedQuantINT8Lib.engines.cuda.device import DeviceBuffer
    from MedQuantINT8Lib.engines.cuda.several import copy_between as between

    create, free = DeviceBuffer.__init__, DeviceBuffer.free
    upload, pinned, download = DeviceBuffer.upload, DeviceBuffer.upload_bytes, DeviceBuffer.download

    def timed(gpu: Any, stream: Any, what: str, size: int, copy: Callable[[], None]) -> None:
        stream.synchronize()
        began = time.perf_counter()
        copy()
        stream.synchronize()
        counter.add(gpu.info.index, what, size, began, time.perf_counter())

    def created(self: Any, gpu: Any, shape: Any, dtype: Any) -> None:
        create(self, gpu, shape, dtype)
        counter.allocate(gpu.info.index, self.nbytes)

    def freed(self: Any) -> None:
        if self.pointer:
            counter.allocate(self.gpu.info.index, -self.nbytes)
        free(self)
        counter.keep(self.gpu.info.index, self.gpu.blocks.nbytes)

    def up(self: Any, array: Any, stream: Any, **how: Any) -> None:
        timed(self.gpu, stream, "up", array.nbytes, lambda: upload(self, array, stream, **how))

    def up_pinned(self: Any, array: Any, stream: Any, to: int = 0) -> None:
        timed(self.gpu, stream, "up", array.nbytes, lambda: pinned(self, array, stream, to))

    def down(self: Any, array: Any, stream: Any, offset: int = 0) -> None:
        timed(self.gpu, stream, "down", array.nbytes, lambda: download(self, array, stream, offset))

    def across(source: Any, target: Any, stream: Any, first: int = 0, size: int | None = None, to: int = 0) -> None:
        if source.gpu.info.index == target.gpu.info.index:
            between(source, target, stream, first, size, to)
            return
        count = source.nbytes - first if size is None else size
        timed(target.gpu, stream, "from_gpus", count, lambda: between(source, target, stream, first, size, to))

    patches: list[tuple[Any, str, Any]] = [
        (DeviceBuffer, "__init__", created),
        (DeviceBuffer, "free", freed),
        (DeviceBuffer, "upload", up),
        (DeviceBuffer, "upload_bytes", up_pinned),
        (DeviceBuffer, "download", down),
        *((module, "copy_between", across) for module in copying_modules()),
    ]
    before = [getattr(where, name) for where, name, _ in patches]
    for where, name, new in patches:
        setattr(where, name, new)
    try:
        yield
    finally:
        for (where, name, _), old in zip(patches, before, strict=True):
            setattr(where, name, old)


def timeline_of(gpus: list[str], run: Callable[[], Any]) -> dict[str, Any]:
    """Run once more, and return what each thread and each GPU did when; nothing without GPUs."""
    from MedQuantINT8Lib.engines.cuda.device import Gpu
    from several_gpus_timeline import printed, recorded

    if gpus == ["cpu"]:
        return {}
    opened = [Gpu(int(name.partition(":")[2])) for name in gpus]
    with recorded() as timeline:
        timeline.start(opened)
        began = time.perf_counter()
        run()
        took = time.perf_counter() - began
        result = {"seconds": took, **timeline.result()}
    for gpu in opened:
        gpu.enter()
        gpu.close()
    printed(", ".join(gpus), result, took)
    return result
