"""The machine at hand: memory, processor, and where its user's files lie."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

from .telemetry import silent


def available_memory() -> int:
    """Return the bytes of memory that can be used without swapping; a container's limit counts."""
    limits = [_free_by_os(), *_free_in_container()]
    return max(0, min(value for value in limits if value is not None))


def _free_by_os() -> int:
    try:
        _, found, rest = _read("/proc/meminfo").partition(b"MemAvailable:")
        if found:
            return int(rest.split(maxsplit=1)[0]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return _windows_available()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return 8 << 30


def _free_in_container() -> list[int]:
    try:
        limit = _read("/sys/fs/cgroup/memory.max").strip()
        return [] if limit == b"max" else [int(limit) - int(_read("/sys/fs/cgroup/memory.current"))]
    except (OSError, ValueError):
        return []


def _read(path: str) -> bytes:
    """A small file of the system; asked several times a run, so without a buffer and a decoder."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _windows_available() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in (
                "total",
                "available",
                "page_total",
                "page_available",
                "virtual_total",
                "virtual_available",
                "extended",
            )
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.available)


def reset_peak_memory() -> bool:
    """Let :func:`peak_memory` begin anew; False where the system cannot (it then tells the peak since the start)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes; 0 where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def user_folder(kind: Literal["cache", "data"]) -> Path:
    """Return this program's folder among the user's caches or data, where the operating system keeps them."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "MedQuantINT8"
    if sys.platform == "darwin":
        return Path.home() / "Library" / ("Caches" if kind == "cache" else "Application Support") / "MedQuantINT8"
    variable, usual = ("XDG_CACHE_HOME", ".cache") if kind == "cache" else ("XDG_DATA_HOME", ".local/share")
    return Path(os.environ.get(variable) or _home() / usual) / "medquantint8"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # A user without a name and without $HOME.
        return Path(tempfile.gettempdir())


def cache_folder() -> Path:
    """Return where engines and kernels are kept: the user's cache folder, or a temporary one where that cannot be made (and they are made anew each time)."""
    folder = user_folder("cache")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.gettempdir()) / "medquantint8-cache"


def default_python() -> str:
    """Return the Python that other processes run on: Slicer's own launcher inside Slicer (it sets the library paths), else the caller's."""
    return shutil.which("PythonSlicer") or sys.executable


def module_arguments(module: str) -> list[str]:
    """Return arguments with which a Python runs a module of this library, wherever that Python looks for modules.

    ``-m`` would find it through PYTHONPATH, which a launcher such as PythonSlicer may set to paths of its own, before ours or instead.
    """
    library = str(Path(__file__).resolve().parent.parent)
    code = (
        f"import sys; sys.path.insert(0, {library!r}); "
        f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return ["-c", code]


def library_environment() -> dict[str, str]:
    """Return environment variables of a process of this project's own: it finds this library, and nothing in it reports to anybody."""
    library = str(Path(__file__).resolve().parent.parent)
    return silent(
        {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH", "")]))}
    )


def installed_version(package: str) -> str | None:
    """Return the version of an installed Python package, by its name in the package registry; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


#: Instruction sets that matter for INT8, by Linux's names: AVX2, AVX-512, VNNI, AMX; Arm's dot product and matrix product.
_INT8_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_tile", "asimddp", "i8mm")


def cpu_features() -> list[str]:
    """Return the processor's instruction sets that matter for INT8; an empty list where they are not known."""
    lines = _processor_lines(("flags", "Features"))
    present = set(lines[0].split()) if lines else _features_beside_linux()
    return [name for name in _INT8_FEATURES if name in present]


def cpu_name() -> str:
    """Return the processor's name as its maker writes it, or the name of its architecture."""
    lines = _processor_lines(("model name",))
    return (lines[0] if lines else _name_beside_linux()) or platform.processor() or platform.machine()


def _processor_lines(keys: tuple[str, ...]) -> list[str]:
    """Return what Linux says of its processors under one of the keys, one line a core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(keys)]


def _features_beside_linux() -> set[str]:
    """Return the instruction sets as archspec finds them by CPUID (Windows) or sysctl (macOS), by Linux's names."""
    try:
        import archspec.cpu
        from archspec.cpu.detect import detected_info

        # What the processor says, and what every processor of its kind has: Apple's say nothing.
        return {*detected_info().features, *archspec.cpu.host().features}
    except Exception:
        # It calls an instruction and programs of the system; a report without this line is better than none.
        return set()


def _name_beside_linux() -> str | None:
    try:
        import archspec.cpu

        return archspec.cpu.brand_string()
    except Exception:
        return None


def cpu_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, object]:
    """Return what a report says of the machine; nothing that names the user or the host."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "python": platform.python_version(),
        "processor": cpu_name(),
        "cores": cpu_count(),
        "features": cpu_features(),
        "memory_available_bytes": available_memory(),
    }
