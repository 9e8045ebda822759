"""The driver's and NVRTC's bindings (cuda-python), and what becomes of a call that failed."""

from __future__ import annotations

from typing import Any

from ..errors import DependencyError, EngineError


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
        raise DependencyError("The Python package 'cuda-python' is not installed.", "Install it with: pip install cuda-python") from error
    except RuntimeError as error:
        raise DependencyError(f"There is no NVIDIA driver here: {error}.", "Install NVIDIA's driver, or use another engine.") from error
    return driver, nvrtc


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
            raise GpuMemoryError(f"The GPU has not enough free memory to {what}.", "Close other programs, or choose a smaller batch or patch.")
        raise GpuError(f"The GPU could not {what}: {name.lower().replace('_', ' ')}.", "Restart the program; if it happens again, update NVIDIA's driver.")
    return values[0] if len(values) == 1 else tuple(values) if values else None
