"""The driver's and NVRTC's bindings (cuda-python), and what becomes of a call that failed."""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any

from ...errors import DependencyError, EngineError

#: Held while work is recorded, and while all work of a GPU is waited for: a wait spoils what another thread records on that GPU.
recording = threading.RLock()


class GpuError(EngineError):
    """A call of the driver that failed."""


class GpuMemoryError(GpuError):
    """The GPU has not enough free memory."""


def bindings() -> tuple[Any, Any]:
    """The driver's and NVRTC's bindings.

    Raises:
        DependencyError: cuda-python is missing, or the GPU's driver is.
    """
    try:
        from cuda.bindings import driver, nvrtc
    except ImportError as error:
        raise DependencyError(
            "The Python package 'cuda-python' is not installed.", "Install it with: pip install cuda-python"
        ) from error
    except RuntimeError as error:
        raise _without_driver(error) from error
    return driver, nvrtc


def start_driver(driver: Any) -> int:
    """Start the driver, which is the first call of it; the driver's own code of success or failure.

    Bindings look for the driver when it is first called. Where it is missing, or lacks a function that they ask for, they raise
    RuntimeError or a class of their own below it.

    Raises:
        DependencyError: there is no driver, or it cannot be used.
    """
    try:
        return int(driver.cuInit(0)[0])
    except RuntimeError as error:
        raise _without_driver(error) from error


def nvrtc_version(nvrtc: Any) -> tuple[int, ...]:
    """The version of NVIDIA's run-time compiler, which bindings look for when it is first called.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        return tuple(checked(nvrtc.nvrtcVersion(), "ask NVRTC for its version"))
    except RuntimeError as error:
        raise DependencyError(
            "NVIDIA's run-time compiler is not installed.", "Install it with: pip install nvidia-cuda-nvrtc"
        ) from error


def has_driver() -> bool:
    """Whether NVIDIA's driver is installed, found without any package."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _without_driver(error: Exception) -> DependencyError:
    if not has_driver():
        return DependencyError("There is no NVIDIA driver here.", "Install NVIDIA's driver, or use another engine.")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return DependencyError(
        f"NVIDIA's driver cannot be used by the installed cuda-python: {reason}.",
        "Update the driver, or use another engine.",
    )


def checked(result: tuple[Any, ...], what: str) -> Any:
    """The values of a driver or NVRTC call.

    Raises:
        GpuMemoryError: the memory of the GPU, or pinned memory, is used up.
        GpuError: any other failure; says what was tried and the driver's own name of the error.
    """
    code, *values = result
    if int(code) != 0:
        name = getattr(code, "name", str(code)).removeprefix("CUDA_ERROR_").removeprefix("NVRTC_ERROR_")
        if name == "OUT_OF_MEMORY":
            raise GpuMemoryError(
                f"The GPU has not enough free memory to {what}.",
                "Close other programs, or choose a smaller batch or patch.",
            )
        raise GpuError(
            f"The GPU could not {what}: {name.lower().replace('_', ' ')}.",
            "Restart the program; if it happens again, update NVIDIA's driver.",
        )
    return values[0] if len(values) == 1 else tuple(values) if values else None
