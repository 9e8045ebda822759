"""Which NVIDIA GPUs there are, and what has to be installed so that INT8 networks run on them; for ``medquant doctor`` and the window."""

from __future__ import annotations

import importlib.util

from ...errors import MedQuantError
from ..registry import backend, unavailable_reason
from . import device as cuda
from .driver import has_driver

#: Compute capabilities below 12.0 that TensorRT for RTX takes; it takes all from 12.0 on (its plug-in 0.5.0).
_RTX = ((8, 6), (8, 9))
_RTX_PACKAGES = "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13 onnxruntime onnx (about 170 MB, proprietary license)"
_OWN_PACKAGES = "pip install cuda-python nvidia-cuda-nvrtc onnxruntime onnx (about 120 MB, proprietary license)"
_FULL_PACKAGES = "pip install tensorrt cuda-python onnxruntime onnx (more than 1 GB, proprietary license)"


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
        return [
            f"an NVIDIA driver is installed; to use the GPU: {_OWN_PACKAGES}, {_RTX_PACKAGES} for a GeForce or RTX card from the 30 series on, or {_FULL_PACKAGES}"
        ]
    try:
        infos = cuda.gpus()
    except MedQuantError as error:
        return [str(error)]
    return [f"{info.index}: {info.name}, {info.total_bytes / 1e9:.0f} GB: {_advice(info)}" for info in infos] or [
        "the driver finds no GPU"
    ]


def _advice(info: cuda.GpuInfo) -> str:
    if info.reason_unfit:
        return info.reason_unfit
    installed = ["cuda_int8"] if not unavailable_reason(backend("cuda_int8")) else []
    for name, package in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "onnxruntime_ep_nv_tensorrt_rtx")):
        if importlib.util.find_spec(package) is not None and (name == "tensorrt" or _takes_rtx(info)):
            installed.append(name)
    if installed:
        several = " (the fastest of them on this GPU is found when first needed)" if len(installed) > 1 else ""
        return f"{', '.join(installed)} can run{several}; prove it with: medquant selftest --engine {installed[0]}"
    own = f"for this project's own kernels: {_OWN_PACKAGES}"
    if _takes_rtx(info):
        return f"{own}; for TensorRT for RTX: {_RTX_PACKAGES}; or for TensorRT: {_FULL_PACKAGES}"
    return f"{own}; for TensorRT: {_FULL_PACKAGES}; TensorRT for RTX does not take this GPU"


def _takes_rtx(info: cuda.GpuInfo) -> bool:
    return info.capability in _RTX or info.capability >= (12, 0)
