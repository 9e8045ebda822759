"""What an engine is: the protocols that each satisfies, and those that it may satisfy beyond them.

A *backend* builds engine files for this machine and loads them; an *engine* is a loaded network that infers. A new
engine is one new module with a class that satisfies :class:`EngineBackend`, and one line in :mod:`.registry`.

What only some engines have is a protocol of its own, looked for in one place by the function that stands below it:

===================  ====================================================  ==========================
Protocol             what it adds                                          found by
===================  ====================================================  ==========================
ChoosesDevice        ``needs_gpu``: the backend runs on NVIDIA GPUs        :func:`needs_gpu`
ChoosesPrecisions    ``precisions``: which it computes in                  :func:`precisions_of`
NamesDistribution    ``distribution``: the package that brings it          :func:`distribution_of`
ReportsBuild         ``build_with``: builds with progress                  isinstance
ResidesOnGpu         ``gpu``, ``gpu_network``: its network takes buffers   :func:`gpu_of`, :func:`gpu_network_of`
SpreadsOverGpus      ``on_each_gpu``: the engine on each of several GPUs   :func:`on_each_gpu`
PipelinesBatches     ``pipeline``: batches under way at the same time      :func:`pipeline_of`
HasHead              ``head``, ``infer_features``: all but the last layer  :func:`head_of`
===================  ====================================================  ==========================
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..models.engine_form import EngineForm

if TYPE_CHECKING:
    from ..models.pointwise_head import PointwiseHead
    from .cuda.device import DeviceBuffer, Gpu, Stream

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
        zero_points: whether INT8 activations that are bounded below get zero points of their own (:mod:`..models.one_sided`).
    """

    precision: Precision
    patch: tuple[int, int, int]
    batch: int = 1
    device: str = "auto"
    threads: int = 0
    high_precision: tuple[str, ...] = ()
    weight_bits: int = 8
    zero_points: bool = False

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
        return self.verdict_of(self.int8_mac_share)

    @staticmethod
    def verdict_of(share: float) -> str:
        """Return the verdict on a share of multiply-accumulates in INT8."""
        return "INT8" if share >= 0.9 else "mixed" if share > 0 else "not INT8"

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "version": self.version,
            "device": self.device,
            "verdict": self.verdict,
            "int8_mac_share": self.int8_mac_share,
            # Not by asdict, which copies each value by itself: a run says this once a case.
            "layers": [dict(vars(layer)) for layer in self.layers],
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


@runtime_checkable
class ChecksNetwork(Protocol):
    """A backend that tells within seconds, without building, whether it can build a network."""

    def check(self, network: Path, options: BuildOptions) -> None:
        """Return if it can.

        Raises:
            UnsupportedNetwork: it cannot; names what it lacks.
        """


@runtime_checkable
class LimitsWeights(Protocol):
    """A backend whose INT8 kernels do not take weights of 8 bits on every machine."""

    def weight_bits(self) -> int:
        """How many bits of a weight they take on this machine without overflowing: 7 or 8."""


@runtime_checkable
class HasZeroPoints(Protocol):
    """A backend that says whether its INT8 activations may have zero points. One that does not say takes symmetric ones alone."""

    zero_points: bool


@runtime_checkable
class ChoosesDevice(Protocol):
    """A backend that says where it runs. One that does not say runs on the processor."""

    needs_gpu: bool


@runtime_checkable
class ChoosesPrecisions(Protocol):
    """A backend that says which precisions it computes in. One that does not say computes in INT8 and FP32."""

    precisions: tuple[Precision, ...]


@runtime_checkable
class NamesDistribution(Protocol):
    """A backend that one Python package brings, whose version can be read without loading it."""

    distribution: str


def needs_gpu(backend: EngineBackend) -> bool:
    """Whether a backend runs on NVIDIA GPUs alone (:class:`ChoosesDevice`); otherwise it runs on the processor alone."""
    return isinstance(backend, ChoosesDevice) and backend.needs_gpu


def precisions_of(backend: EngineBackend) -> tuple[Precision, ...]:
    """The precisions that a backend computes in: INT8 and FP32, unless it says otherwise."""
    return tuple(backend.precisions) if isinstance(backend, ChoosesPrecisions) else ("int8", "fp32")


def distribution_of(backend: EngineBackend) -> str:
    """The name of the Python package that brings the engine, or an empty string where the backend names none."""
    return backend.distribution if isinstance(backend, NamesDistribution) else ""


def float_precision_of(backend: EngineBackend) -> Precision:
    """The precision that INT8 is compared with in a backend: FP32, or the most exact that it has."""
    return "fp32" if "fp32" in precisions_of(backend) else "fp16"


def form_of(backend: EngineBackend) -> EngineForm:
    """The form of INT8 networks that a backend computes on this machine."""
    zero_points = isinstance(backend, HasZeroPoints) and backend.zero_points
    return EngineForm(zero_points, backend.weight_bits() if isinstance(backend, LimitsWeights) else 8)


def runs_on(backend: EngineBackend, device: str) -> bool:
    """Whether a backend runs on a device of that name: "auto" is any, "cpu" the processor, any other NVIDIA GPUs."""
    return device == "auto" or (device == "cpu") != needs_gpu(backend)


def device_of(backend: EngineBackend, device: str) -> str:
    """The device in the backend's own words: "cpu" for those of the processor; "gpu", "gpu:N" or several for those of NVIDIA GPUs.

    Raises:
        EngineError: the backend does not run on that device.
    """
    on_gpu = needs_gpu(backend)
    if not runs_on(backend, device):
        where = "an NVIDIA GPU" if on_gpu else "the processor"
        raise EngineError(
            f"{backend.title} runs on {where} alone, not on the device {device}.",
            "Choose the device auto, or another engine.",
        )
    return device if device != "auto" else "gpu" if on_gpu else "cpu"


class GpuNetwork(Protocol):
    """A network whose input and output lie on an NVIDIA GPU.

    Attributes:
        dtype: of input and output, "float32" or "float16".
    """

    @property
    def dtype(self) -> str: ...

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """Put the run of ``batch`` patches (batch, C, *patch) to scores (batch, classes, *patch) into the stream."""


@runtime_checkable
class ResidesOnGpu(Protocol):
    """An engine whose network takes and gives buffers of an NVIDIA GPU, so that a whole sliding window can stay there.

    Attributes:
        gpu: the GPU, opened.
        gpu_network: None where the engine cannot give its network away (it is closed, or several are averaged).
    """

    @property
    def gpu(self) -> Gpu | None: ...

    @property
    def gpu_network(self) -> GpuNetwork | None: ...


@runtime_checkable
class SpreadsOverGpus(Protocol):
    """The same network on each of several GPUs.

    Attributes:
        on_each_gpu: an engine for each; what is not spread is done by the first.
    """

    @property
    def on_each_gpu(self) -> tuple[Engine, ...]: ...


class BatchPipeline(Protocol):
    """A network that works while the caller goes on: batches are submitted, and their scores collected in the same order.

    Attributes:
        ahead: how many batches may be under way when the next is submitted; collected scores stay valid for as many more.
    """

    @property
    def ahead(self) -> int: ...

    def submit(self, batch: NDArray[np.float32]) -> None:
        """Begin with (n, C, *patch), which is copied."""

    def collect(self) -> NDArray[np.float32]:
        """The scores (n, classes, *patch) of the oldest batch that was not collected yet."""

    def drain(self) -> None:
        """Forget what was submitted and not collected."""


@runtime_checkable
class PipelinesBatches(Protocol):
    """An engine that has several batches under way at the same time.

    Attributes:
        pipeline: made when it is first asked for; None where the engine has none (several are averaged).
    """

    @property
    def pipeline(self) -> BatchPipeline | None: ...


@runtime_checkable
class HasHead(Protocol):
    """An engine that can leave its network's last layer to whoever blends windows.

    Attributes:
        head: the last layer, which :meth:`infer` applies to each window; None where the network cannot do without.
    """

    @property
    def head(self) -> PointwiseHead | None: ...

    def infer_features(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """As :meth:`Engine.infer`, to (n, features, A0, A1, A2): what the head is applied to."""


def head_of(engine: Engine) -> PointwiseHead | None:
    """The last layer that an engine can leave out (:class:`HasHead`), or None."""
    return engine.head if isinstance(engine, HasHead) else None


def gpu_of(engine: Engine) -> Gpu | None:
    """The GPU that an engine's network resides on (:class:`ResidesOnGpu`), or None."""
    return engine.gpu if isinstance(engine, ResidesOnGpu) else None


def gpu_network_of(engine: Engine) -> GpuNetwork | None:
    """An engine's network as one whose input and output lie on the GPU (:class:`ResidesOnGpu`), or None."""
    return engine.gpu_network if isinstance(engine, ResidesOnGpu) else None


def on_each_gpu(engine: Engine) -> tuple[Any, ...]:
    """An engine on each GPU that it is spread over (:class:`SpreadsOverGpus`); alone where it is on one, or on none."""
    return engine.on_each_gpu if isinstance(engine, SpreadsOverGpus) else (engine,)


def pipeline_of(engine: Engine) -> BatchPipeline | None:
    """An engine's pipeline of batches (:class:`PipelinesBatches`), or None.

    Raises:
        GpuMemoryError: its buffers do not fit.
    """
    return engine.pipeline if isinstance(engine, PipelinesBatches) else None
