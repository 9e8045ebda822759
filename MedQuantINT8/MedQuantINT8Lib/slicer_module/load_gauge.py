"""How much memory and processor a process uses, and how busy the graphics card is, while it works; no package is needed."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..system import available_memory, cpu_count


@dataclass(frozen=True)
class GpuLoad:
    """The busiest graphics card: its number, the share of time that it computes (0 to 1), and bytes in use and in all."""

    index: int
    share: float
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Load:
    """What a process takes now; None where the operating system does not tell.

    Attributes:
        memory_bytes: of the process.
        free_bytes: that it could take still.
        processor_share: of all cores that it may use, since the last look (0 to 1).
        gpu: None where there is no NVIDIA driver.
    """

    memory_bytes: int | None
    free_bytes: int
    processor_share: float | None
    gpu: GpuLoad | None


class LoadGauge:
    """Looks at one process again and again.

    Args:
        pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._last: tuple[float, float] | None = None

    def read(self) -> Load:
        """Look now."""
        used = _usage(self.pid)
        memory, share, now = None, None, time.monotonic()
        if used is not None:
            memory, processor = used
            if self._last is not None and now > self._last[0]:
                share = (processor - self._last[1]) / (now - self._last[0]) / cpu_count()
                share = min(1.0, max(0.0, share))
            self._last = (now, processor)
        return Load(memory, available_memory(), share, _busiest_gpu())


def _usage(pid: int) -> tuple[int, float] | None:
    """Bytes of memory and seconds of processor time of a process; None where that cannot be told."""
    try:
        if sys.platform == "win32":
            return _usage_on_windows(pid)
        if sys.platform == "darwin":
            return _usage_on_macos(pid)
        return _usage_on_linux(pid)
    except (OSError, ValueError, AttributeError, IndexError):
        return None


def _usage_on_linux(pid: int) -> tuple[int, float]:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    # The name of the program, in brackets, may hold blanks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return pages * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK")


def _usage_on_macos(pid: int) -> tuple[int, float] | None:
    """By proc_pid_rusage; times are in units of mach_absolute_time."""

    class Usage(ctypes.Structure):
        _fields_ = [("uuid", ctypes.c_uint8 * 16)] + [
            (name, ctypes.c_uint64)
            for name in (
                "user", "system", "package_wakeups", "interrupt_wakeups", "pageins", "wired", "resident", "footprint",
                "start", "exit",
            )
        ]  # fmt: skip

    class Timebase(ctypes.Structure):
        _fields_ = [("numerator", ctypes.c_uint32), ("denominator", ctypes.c_uint32)]

    library = ctypes.CDLL(ctypes.util.find_library("System") or "libSystem.dylib")
    usage, base = Usage(), Timebase()
    if library.proc_pid_rusage(pid, 0, ctypes.byref(usage)) != 0:
        return None
    library.mach_timebase_info(ctypes.byref(base))
    seconds = (usage.user + usage.system) * base.numerator / max(1, base.denominator) / 1e9
    return int(usage.resident), seconds


def _usage_on_windows(pid: int) -> tuple[int, float] | None:
    class Counters(ctypes.Structure):
        _fields_ = [("size", ctypes.c_ulong), ("faults", ctypes.c_ulong)] + [
            (name, ctypes.c_size_t)
            for name in ("peak", "resident", "paged_peak", "paged", "nonpaged_peak", "nonpaged", "pagefile", "pagefile_peak")
        ]  # fmt: skip

    kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return None
    try:
        counters, times = Counters(), [ctypes.c_ulonglong() for _ in range(4)]
        counters.size = ctypes.sizeof(counters)
        process = ctypes.c_void_p(handle)
        if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size):
            return None
        if not kernel.GetProcessTimes(process, *(ctypes.byref(value) for value in times)):
            return None
        # In units of 100 ns: creation, exit, kernel, user.
        return int(counters.resident), (times[2].value + times[3].value) / 1e7
    finally:
        kernel.CloseHandle(ctypes.c_void_p(handle))


@lru_cache(maxsize=1)
def _nvml() -> Any | None:
    """NVIDIA's management library, which comes with the driver; None where it is not there."""
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    try:
        library = ctypes.CDLL(name)
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


class _GpuRates(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _GpuMemory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _busiest_gpu() -> GpuLoad | None:
    library = _nvml()
    if library is None:
        return None
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return None
    loads = [load for index in range(count.value) if (load := _gpu_load(library, index)) is not None]
    return max(loads, key=lambda load: (load.share, load.used_bytes), default=None)


def _gpu_load(library: Any, index: int) -> GpuLoad | None:
    device, rates, memory = ctypes.c_void_p(), _GpuRates(), _GpuMemory()
    if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
        return None
    if library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != 0:
        return None
    # A part of a card (MIG) tells its memory, but not how busy it is.
    library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(rates))
    return GpuLoad(index, rates.gpu / 100, memory.used, memory.total)
