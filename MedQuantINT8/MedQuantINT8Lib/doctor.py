"""``medquant doctor``: what is installed, what can run here, and why not the rest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .engines import backend, backend_names
from .engines.cache import cache_root
from .engines.gpu_advice import advice_for_gpus
from .quantization import require_quantizer
from .system import available_memory, machine, peak_memory


def examined() -> dict[str, Any]:
    """What is installed, what can run here and why not the rest."""
    found: dict[str, str | None] = {}
    for name in (
        "medquantint8",
        "numpy",
        "SimpleITK",
        "onnx",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "onnxruntime-ep-nv-tensorrt-rtx-cu13",
        "cuda-python",
        "nvidia-cuda-nvrtc",
        "nvidia-modelopt",
        "torch",
        "monai",
        "slicer-core",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    engines = {}
    for name in backend_names():
        made = backend(name)
        reason = made.unavailable()
        engines[name] = {
            "title": made.title,
            "available": not reason,
            "reason": reason,
            "real_int8": made.real_int8,
            "version": "" if reason else made.version(),
        }
    try:
        require_quantizer()
        quantizer = ""
    except Exception as error:
        # Whatever keeps ModelOpt from loading is what the doctor is asked for.
        quantizer = str(error)
    return {
        "machine": machine(),
        "gpus": advice_for_gpus(),
        "packages": found,
        "engines": engines,
        "quantizer": {"available": not quantizer, "reason": quantizer},
        "cache": str(cache_root()),
        "memory_available_bytes": available_memory(),
        "peak_memory_bytes": peak_memory(),
    }
