"""TensorRT for RTX as a plug-in of ONNX Runtime: its packages, the GPUs that it takes, and sessions on one of them."""

from __future__ import annotations

import importlib.util
from typing import Any

from ...errors import DependencyError, EngineError
from ..error_causes import failure

PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
#: The first version of ONNX Runtime that loads the plug-in.
_LEAST_RUNTIME = (1, 24)
_registered: set[str] = set()


def modules() -> tuple[Any, Any]:
    """Return the modules of ONNX Runtime and of the plug-in.

    Raises:
        DependencyError: one is missing, or ONNX Runtime is too old.
    """
    for module, package in (("onnxruntime", "onnxruntime"), (MODULE, PACKAGE)):
        if importlib.util.find_spec(module) is None:
            raise DependencyError(
                f"The Python package {package!r} is not installed.",
                f"Install it with: pip install {PACKAGE} onnxruntime onnx",
            )
    import onnxruntime as ort

    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < _LEAST_RUNTIME:
        raise DependencyError(
            f"ONNX Runtime {ort.__version__} is too old for TensorRT for RTX.",
            "Update it with: pip install -U onnxruntime",
        )
    return ort, importlib.import_module(MODULE)


def devices() -> list[Any]:
    """What the plug-in can run on: ONNX Runtime's OrtEpDevice objects, in its own order.

    Raises:
        DependencyError: a package is missing.
        EngineError: the plug-in does not load.
    """
    ort, plugin = modules()
    name = plugin.get_ep_name()
    if name not in _registered:
        try:
            ort.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:
            # onnxruntime's own exception types share no base class but Exception.
            raise failure(f"TensorRT for RTX cannot be loaded: {last_words(error)}.", str(error)) from error
        _registered.add(name)
    return [device for device in ort.get_ep_devices() if device.ep_name == name]


def choose_device(wanted: str) -> tuple[int, Any]:
    """The device that "gpu" (the first) or "gpu:N" names, and its number.

    Raises:
        EngineError: there is none.
    """
    known = devices()
    if not known:
        raise EngineError(
            "TensorRT for RTX takes no GPU of this computer: it needs a GeForce or RTX card of compute capability 8.6, 8.9 or 12.0 on (RTX 30 or later)."
        )
    number = wanted.partition(":")[2] or "0"
    if not number.isdigit() or int(number) >= len(known):
        raise EngineError(
            f"There is no GPU number {number}.",
            f"There are: {', '.join(f'gpu:{n} {title_of(d)}' for n, d in enumerate(known))}.",
        )
    return int(number), known[int(number)]


def title_of(device: Any) -> str:
    """The name of a GPU; its PCI number where the system gives no name."""
    hardware = device.device
    return str(hardware.metadata.get("Description") or f"{hardware.vendor or 'NVIDIA'} GPU {hardware.device_id:04x}")


def last_words(error: Exception) -> str:
    """What ONNX Runtime says at the end of its errors."""
    return str(error).split("error: ")[-1].split(" : ")[-1].strip().splitlines()[0][:300].rstrip(".")


def session_options(ort: Any, device: Any, provider: dict[str, str]) -> Any:
    """A session that runs on the device alone: an operator that it lacks is an error, not a silent detour over the processor."""
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices([device], provider)
    return options
