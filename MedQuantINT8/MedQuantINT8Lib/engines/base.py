"""What an engine is, and which there are.

A *backend* builds engine files for this machine and loads them; an *engine* is a loaded network that infers. A new
engine is one new module with a class that satisfies :class:`EngineBackend`, and one line in the registry below.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError

Precision = Literal["int8", "fp16", "fp32"]


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for; every field is part of the cache key.

    Attributes:
        precision: which network of the package: "int8" (Q/DQ) or "fp32"; "fp16" is FP32's in half precision (TensorRT and TensorRT for RTX).
        patch: spatial size of the input, along the tensor's axes.
        batch: windows a call.
        device: "auto", "cpu" (the processor), "gpu" or "gpu:N"; "auto" is the only kind that the backend runs on (:func:`device_of`).
        threads: CPU threads, 0 for the backend's own choice.
        high_precision: layers (ONNX node names) to run in float although the network quantizes them.
        weight_bits: 8, or 7 where the engine's INT8 kernels overflow with more on this processor.
    """

    precision: Precision
    patch: tuple[int, int, int]
    batch: int = 1
    device: str = "auto"
    threads: int = 0
    high_precision: tuple[str, ...] = ()
    weight_bits: int = 8

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LayerRecord:
    """One layer as the engine really runs it.

    Attributes:
        precision: the engine's own word for the type it computes in, such as "u8", "i8" or "f32".
        kernel: the engine's name of the implementation.
        macs: multiply-accumulates for one call, 0 for layers that are no convolution or matrix product.
        int8: whether the multiplications are done in 8-bit integers.
        sources: names of the ONNX nodes it was made of, as far as the engine tells.
    """

    name: str
    kind: str
    precision: str
    kernel: str
    macs: int
    int8: bool
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineDescription:
    """The engine's own report: every layer with the precision it really runs in."""

    engine: str
    version: str
    device: str
    layers: tuple[LayerRecord, ...] = field(default_factory=tuple)

    @property
    def int8_mac_share(self) -> float:
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.int8) / total if total else 0.0

    @property
    def verdict(self) -> str:
        """ "INT8" from 90 % of the multiply-accumulates on, "mixed" below, "not INT8" for none."""
        share = self.int8_mac_share
        return "INT8" if share >= 0.9 else "mixed" if share > 0 else "not INT8"

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "version": self.version,
            "device": self.device,
            "verdict": self.verdict,
            "int8_mac_share": self.int8_mac_share,
            "layers": [asdict(layer) for layer in self.layers],
        }


@runtime_checkable
class Engine(Protocol):
    """A loaded network."""

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run (n, C, A0, A1, A2), n at most the batch it was built for, to (n, classes, A0, A1, A2).

        The result may lie in the engine's own memory: it is valid, and may be written to, until the next call.
        """

    def describe(self) -> EngineDescription: ...

    def close(self) -> None: ...


class UnsupportedNetwork(EngineError):
    """A network that holds something an engine has no kernel for; another engine may have."""


class EngineBackend(Protocol):
    """Builds and loads engines of one kind."""

    name: str
    title: str
    #: Whether an INT8 network really runs in 8-bit integers (False: the simulated reference).
    real_int8: bool

    def unavailable(self) -> str:
        """Why this backend cannot run here and what to do, or an empty string if it can."""

    def version(self) -> str: ...

    def device_name(self, device: str) -> str:
        """The device in words; part of the cache key."""

    def build(self, network: Path, folder: Path, options: BuildOptions) -> None:
        """Write the engine's files for the ONNX network into ``folder``.

        Raises:
            EngineError: the network holds something that this engine cannot do; names it.
        """

    def load(self, folder: Path, options: BuildOptions) -> Engine: ...


@runtime_checkable
class ReportsBuild(Protocol):
    """A backend whose builds take minutes: it tells a task how far it is, and stops when the task is cancelled."""

    def build_with(self, network: Path, folder: Path, options: BuildOptions, task: Any) -> None:
        """As :meth:`EngineBackend.build`.

        Raises:
            Cancelled: the task was cancelled.
        """


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
    """The backend of that name.

    Raises:
        EngineError: there is no such backend.
    """
    if name not in _REGISTRY:
        raise EngineError(f"There is no engine called {name!r}.", f"Choose one of {', '.join(_REGISTRY)}.")
    module, _, cls = _REGISTRY[name].partition(":")
    made: EngineBackend = getattr(importlib.import_module(module), cls)()
    return made


def unavailable_reason(made: EngineBackend) -> str:
    """Why a backend cannot run here, in one line, or an empty string.

    Whatever its own check raises is its reason: an engine whose libraries fail in a way that it does not know must not stop another.
    """
    try:
        return made.unavailable()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        return f"{made.title} cannot be asked: {type(error).__name__}{': ' if reason else ''}{reason}."


def availability() -> dict[str, str]:
    """For each backend an empty string, or why it cannot run here."""
    return {name: unavailable_reason(backend(name)) for name in _REGISTRY}


def precisions_of(made: EngineBackend) -> tuple[str, ...]:
    """What a backend computes in: "int8" and "fp32", unless it says otherwise."""
    return tuple(getattr(made, "precisions", ("int8", "fp32")))


def float_precision_of(made: EngineBackend) -> Precision:
    """What INT8 is held against in a backend: FP32, or the most exact that it has."""
    return "fp32" if "fp32" in precisions_of(made) else "fp16"


def runs_on(made: EngineBackend, device: str) -> bool:
    """Whether a backend runs on a device of that name: "auto" is any, "cpu" the processor, "gpu" and "gpu:N" an NVIDIA GPU."""
    return device == "auto" or (device == "cpu") != bool(getattr(made, "needs_gpu", False))


def device_of(made: EngineBackend, device: str) -> str:
    """The device in the backend's own words: "cpu" for those of the processor; "gpu" or "gpu:N" for those of NVIDIA GPUs.

    Raises:
        EngineError: the backend does not run on that device.
    """
    on_gpu = bool(getattr(made, "needs_gpu", False))
    if not runs_on(made, device):
        where = "an NVIDIA GPU" if on_gpu else "the processor"
        raise EngineError(
            f"{made.title} runs on {where} alone, not on the device {device}.",
            "Choose the device auto, or another engine.",
        )
    return device if device != "auto" else "gpu" if on_gpu else "cpu"


def choose_processor(precision: str) -> EngineBackend:
    """As :func:`choose_backend` for "auto", among the backends that run on the processor."""
    usable = [made for made in map(backend, _REGISTRY) if runs_on(made, "cpu") and not unavailable_reason(made)]
    usable.sort(key=lambda made: precision != "fp32" and not made.real_int8)
    if not usable:
        raise EngineError("No engine can run on the processor.", "Install one with: pip install openvino onnx")
    return usable[0]


def choose_instead(
    precision: str, failed: EngineError, tried: Collection[str] = (), device: str = "auto"
) -> EngineBackend:
    """What "auto" takes when an engine failed: the next one for a network that it has no kernel for, else the processor.

    Args:
        tried: names of the engines that failed; by default the first choice.
        device: where it may run; with a GPU that was asked for, nothing goes to the processor.

    Raises:
        EngineError: ``failed``, where nothing is left to try.
    """
    if isinstance(failed, UnsupportedNetwork):
        usable = usable_backends(precision, device)
        names = set(tried) or {usable[0].name}
        others = [made for made in usable if made.name not in names]
        if not others:
            raise failed
        return others[0]
    if device not in ("auto", "cpu"):
        raise failed
    made = choose_processor(precision)
    if made.name in tried:
        raise failed
    return made


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
    use an NVIDIA GPU, the one that was fastest in a trial on it.

    Raises:
        EngineError: none can run here; says why for each.
    """
    from .ranking import fastest_first

    here = [made for made in map(backend, _REGISTRY) if runs_on(made, device)]
    usable = [made for made in here if precision in ("auto", *precisions_of(made)) and not unavailable_reason(made)]
    if not usable:
        reasons = "; ".join(f"{made.name}: {unavailable_reason(made) or f'no {precision.upper()}'}" for made in here)
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
    usable.sort(key=lambda made: precision != "fp32" and not made.real_int8)
    on_gpu = [made for made in usable if getattr(made, "needs_gpu", False)]
    return fastest_first(on_gpu) + [made for made in usable if made not in on_gpu]
