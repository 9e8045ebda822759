"""Which engines there are, which can run here, and which one is taken where the choice is left to the program."""

from __future__ import annotations

import importlib
from collections.abc import Collection

from ..errors import EngineError
from .base import EngineBackend, UnsupportedNetwork, device_of, needs_gpu, precisions_of, runs_on
from .ranking import fastest_first

#: "module:class" of each backend by its name, best first. No module is loaded before its engine is asked for.
_REGISTRY: dict[str, str] = {
    "tensorrt": "MedQuantINT8Lib.engines.tensorrt.backend:TensorRTBackend",
    "cuda_int8": "MedQuantINT8Lib.engines.cuda_int8.backend:CudaInt8Backend",
    "tensorrt_rtx": "MedQuantINT8Lib.engines.tensorrt.rtx_backend:TensorRTRTXBackend",
    "openvino": "MedQuantINT8Lib.engines.openvino:OpenVINOBackend",
    "onnxruntime": "MedQuantINT8Lib.engines.onnxruntime:OnnxRuntimeBackend",
}


def register(name: str, factory: str) -> None:
    """Add or replace a backend; ``factory`` is "module:class"."""
    _REGISTRY[name] = factory


def backend_names() -> list[str]:
    """All known backends, best first."""
    return list(_REGISTRY)


def backend(name: str) -> EngineBackend:
    """Return the backend of that name.

    Raises:
        EngineError: there is no such backend.
    """
    if name not in _REGISTRY:
        raise EngineError(f"There is no engine called {name!r}.", f"Choose one of {', '.join(_REGISTRY)}.")
    module, _, cls = _REGISTRY[name].partition(":")
    chosen: EngineBackend = getattr(importlib.import_module(module), cls)()
    return chosen


def unavailable_reason(candidate: EngineBackend) -> str:
    """Why a backend cannot run here, in one line, or an empty string.

    Whatever its own check raises is its reason: an engine whose libraries fail in a way that it does not know must not stop another.
    """
    try:
        return candidate.unavailable()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        return f"{candidate.title} cannot be asked: {type(error).__name__}{': ' if reason else ''}{reason}."


def choose_processor(precision: str) -> EngineBackend:
    """As :func:`choose_backend` for "auto", among the backends that run on the processor."""
    usable = [
        candidate
        for candidate in map(backend, _REGISTRY)
        if runs_on(candidate, "cpu") and not unavailable_reason(candidate)
    ]
    usable.sort(key=lambda candidate: precision != "fp32" and not candidate.real_int8)
    if not usable:
        raise EngineError("No engine can run on the processor.", "Install one with: pip install openvino onnx")
    return usable[0]


def choose_instead(
    precision: str, failed: EngineError, tried: Collection[str] = (), device: str = "auto"
) -> EngineBackend:
    """The backend that "auto" takes when an engine failed: the next one for a network that it has no kernel for, else the processor.

    Args:
        tried: names of the engines that failed; by default the first choice.
        device: where it may run; with a GPU that was asked for, nothing goes to the processor.

    Raises:
        EngineError: ``failed``, where nothing is left to try.
    """
    if isinstance(failed, UnsupportedNetwork):
        usable = usable_backends(precision, device)
        names = set(tried) or {usable[0].name}
        others = [candidate for candidate in usable if candidate.name not in names]
        if not others:
            raise failed
        return others[0]
    if device not in ("auto", "cpu"):
        raise failed
    candidate = choose_processor(precision)
    if candidate.name in tried:
        raise failed
    return candidate


def choose_backend(name: str, precision: str, device: str = "auto") -> EngineBackend:
    """The backend asked for, or for "auto" the first that can run here, on that device; INT8 prefers a real one.

    Raises:
        EngineError: none can run here; says why for each.
    """
    if name != "auto":
        chosen = backend(name)
        if precision not in ("auto", *precisions_of(chosen)):
            raise EngineError(
                f"{chosen.title} does not compute in {precision.upper()}.",
                f"Choose another --precision ({', '.join(precisions_of(chosen))}) or engine.",
            )
        device_of(chosen, device)
        if reason := unavailable_reason(chosen):
            raise EngineError(f"The engine {name} cannot run here: {reason}")
        return chosen
    return usable_backends(precision, device)[0]


def usable_backends(precision: str, device: str = "auto") -> list[EngineBackend]:
    """All backends that can run here in that precision on that device, best first: real INT8 before the simulation, and where several can
    use an NVIDIA GPU, the one whose time on it is shortest (:mod:`.ranking`).

    Raises:
        EngineError: none can run here; says why for each.
    """
    here = [candidate for candidate in map(backend, _REGISTRY) if runs_on(candidate, device)]
    usable = [
        candidate
        for candidate in here
        if precision in ("auto", *precisions_of(candidate)) and not unavailable_reason(candidate)
    ]
    if not usable:
        reasons = "; ".join(
            f"{candidate.name}: {unavailable_reason(candidate) or f'no {precision.upper()}'}" for candidate in here
        )
        hint = (
            "Half precision alone needs an NVIDIA GPU: choose another --precision."
            if precision == "fp16"
            else "Install one with: pip install openvino onnx"
        )
        if device not in ("auto", "cpu"):
            hint = "Choose the device auto or cpu."
        raise EngineError(
            f"No engine can run {'here' if device == 'auto' else f'on the device {device}'} ({reasons}).", hint
        )
    usable.sort(key=lambda candidate: precision != "fp32" and not candidate.real_int8)
    on_gpu = [candidate for candidate in usable if needs_gpu(candidate)]
    return fastest_first(on_gpu) + [candidate for candidate in usable if candidate not in on_gpu]
