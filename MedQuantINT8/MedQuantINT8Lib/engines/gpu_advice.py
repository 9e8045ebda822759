"""Which NVIDIA GPUs there are, and what has to be installed so that INT8 networks run on them; for ``medquant doctor`` and the window."""

from __future__ import annotations

import ctypes
import importlib.util
import sys

from ..errors import MedQuantError
from . import cuda

#: Compute capabilities that TensorRT for RTX takes (GeForce and RTX cards from Ampere on).
_RTX = ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))


def has_driver() -> bool:
    """Whether NVIDIA's driver is installed, found without any package."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def gpu_names() -> list[tuple[str, str]]:
    """Device name and title of each GPU that INT8 networks can run on; none where cuda-python is missing."""
    if importlib.util.find_spec("cuda") is None or not has_driver():
        return []
    try:
        fit = [info for info in cuda.gpus() if not info.reason_unfit]
    except MedQuantError:
        return []
    return [(f"gpu:{info.index}", f"{info.name}, {info.total_bytes / 1e9:.0f} GB") for info in fit]


def advice_for_gpus() -> list[str]:
    """A line for each GPU, or one that says why there is none."""
    if not has_driver():
        return ["no NVIDIA GPU, or its driver is not installed"]
    if importlib.util.find_spec("cuda") is None:
        return ["an NVIDIA driver is installed: pip install tensorrt cuda-python (more than 1 GB) to use the GPU"]
    try:
        found = cuda.gpus()
    except MedQuantError as error:
        return [str(error)]
    return [f"{info.index}: {info.name}, {info.total_bytes / 1e9:.0f} GB: {_advice(info)}" for info in found] or ["the driver finds no GPU"]


def _advice(info: cuda.GpuInfo) -> str:
    if info.reason_unfit:
        return info.reason_unfit
    if importlib.util.find_spec("tensorrt") is not None:
        return "TensorRT is installed; prove it with: medquant selftest --engine tensorrt"
    rtx = " (TensorRT for RTX, 146 MB, would fit this card too, but is no engine here yet)" if info.capability in _RTX else ""
    return f"for TensorRT: pip install tensorrt (more than 1 GB, proprietary licence){rtx}"
