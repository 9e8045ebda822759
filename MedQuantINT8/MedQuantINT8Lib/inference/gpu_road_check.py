"""Is the way of scores through a GPU the processor's?

Before scores go to the scan's grid on a GPU for the first time with an engine, a small volume is segmented there and on the processor,
by a network that can be computed by hand (road_check.cu), with the model's own steps, and the two label maps are compared. What came of it
is kept with the engine's files. Where they differ the processor does it, and a note says by how much.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..engines.base import gpu_network_of, gpu_of
from ..engines.cuda.device import DeviceBuffer, Gpu, GpuError, GpuMemoryError, Stream
from ..engines.preparation import PreparedEngine
from ..errors import DependencyError, InputError
from ..imaging.network_grid import along_ijk
from ..imaging.volume import Volume
from ..models.spec import ModelSpec
from .gpu_kernels import CHECK_NAMES, check_source, road_version
from .gpu_mean import MeanNetwork

#: The share of voxels that may get another label: where two scores are equal up to rounding.
MOST_DIFFERENT = 1e-3
_RECORD = "gpu_road"
_THREADS = 256
#: Voxels of the test volume along I, J and K in network space, about, and its spacing as shares of the network's.
_SIDES, _FINER = (36, 40, 30), (0.71, 0.83, 1.19)
#: A test window's share of the volume along an axis.
_WINDOW = 0.6


@dataclass(frozen=True)
class Verdict:
    """What came of a check.

    Attributes:
        difference: the share of voxels with another label than on the processor, 0 to 1.
        problem: why nothing could be compared, or an empty string.
    """

    difference: float
    problem: str = ""

    @property
    def doubt(self) -> str:
        """Why the processor does it, in words; empty where the GPU is trusted."""
        if self.problem:
            return self.problem
        if self.difference <= MOST_DIFFERENT:
            return ""
        return (
            f"of a test volume's voxels {100 * self.difference:.2g} % got another label there than on the processor "
            f"(at most {100 * MOST_DIFFERENT:g} % may)"
        )


class Verdicts(Protocol):
    """Where verdicts are kept."""

    def read(self, key: str) -> Verdict | None: ...

    def keep(self, key: str, verdict: Verdict) -> None: ...


@runtime_checkable
class KnowsVerdicts(Protocol):
    """An engine that knows where verdicts of its GPU are kept; None keeps them until the process ends."""

    @property
    def road_verdicts(self) -> Verdicts | None: ...


class EngineVerdicts:
    """Verdicts kept in the record of an engine's files, which are those of one network on one kind of GPU."""

    def __init__(self, prepared: PreparedEngine) -> None:
        self._prepared = prepared

    def read(self, key: str) -> Verdict | None:
        record = self._prepared.entry.record.get(_RECORD)
        if not isinstance(record, dict) or record.get("key") != key:
            return None
        difference, problem = record.get("difference"), record.get("problem")
        return Verdict(difference, problem) if isinstance(difference, float) and isinstance(problem, str) else None

    def keep(self, key: str, verdict: Verdict) -> None:
        self._prepared.entry = self._prepared.entry.update(**{_RECORD: {"key": key, **asdict(verdict)}})


class ProcessVerdicts:
    """Verdicts kept until the process ends, for engines without files."""

    def __init__(self) -> None:
        self._known: dict[str, Verdict] = {}

    def read(self, key: str) -> Verdict | None:
        return self._known.get(key)

    def keep(self, key: str, verdict: Verdict) -> None:
        self._known[key] = verdict


_OF_THIS_PROCESS = ProcessVerdicts()
#: Segments a volume with a model by an engine, through the GPU or not, and gives the label map (K, J, I).
Segments = Callable[[Volume, ModelSpec, Any, bool], NDArray[Any]]


def doubt_of(engine: Any, spec: ModelSpec, segment: Segments) -> str:
    """Return why an engine's GPU is not trusted with a model's scores, or an empty string where it is; checked once.

    A GPU whose memory is too small for the check, or for whose kernels there is no compiler, is not trusted for now, and nothing is kept.
    """
    gpu, network = gpu_of(engine), gpu_network_of(engine)
    assert gpu is not None and network is not None
    kept = engine.road_verdicts if isinstance(engine, KnowsVerdicts) else None
    verdicts: Verdicts = _OF_THIS_PROCESS if kept is None else kept
    averages = isinstance(network, MeanNetwork)
    parts = [road_version(), gpu.info.title, network.dtype, averages, spec.to_json()]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
    verdict = verdicts.read(key)
    if verdict is None:
        try:
            verdict = _compared(gpu, network.dtype, spec, segment, averages)
        except (GpuMemoryError, DependencyError) as error:
            return str(error)
        except (GpuError, InputError) as error:
            verdict = Verdict(1.0, f"the check failed: {error}")
        verdicts.keep(key, verdict)
    return verdict.doubt


def _compared(gpu: Gpu, dtype: str, spec: ModelSpec, segment: Segments, averages: bool) -> Verdict:
    volume = check_volume(spec)
    spec = replace(
        spec, cleaning=(), window=replace(spec.window, multiples=(1, 1, 1), whole_volume=False, air_threshold=None)
    )
    engine = CheckEngine(gpu, dtype, spec, averages)
    try:
        there, here = segment(volume, spec, engine, True), segment(volume, spec, engine, False)
    finally:
        engine.close()
    if len(np.unique(here)) < 2:
        return Verdict(1.0, "the test volume has one label alone, which tells nothing")
    return Verdict(float((there != here).mean()))


def check_volume(spec: ModelSpec) -> Volume:
    """Return a small volume of the model's channels whose voxels are not those of the network, with air at two sides."""
    geometry = spec.geometry
    wanted = along_ijk(geometry.spacing or (None, None, None), geometry)
    spacing = [(1.0 if own is None else own) * share for own, share in zip(wanted, _FINER, strict=True)]
    i, j, k = (round(side / share) for side, share in zip(_SIDES, _FINER, strict=True))
    z, y, x = np.indices((k, j, i), np.float32)
    rng = np.random.default_rng(0)
    channels = []
    for channel in spec.channels:
        a, b, c = rng.uniform(0.15, 0.35, 3)
        waves = np.sin(a * x) + np.cos(b * y + 0.1 * x) + np.sin(c * z + 1)
        values = np.rint(400 * waves + rng.normal(0, 20, waves.shape) + 300)
        if channel.one_hot:
            values = np.digitize(waves, np.linspace(-1.5, 1.5, max(channel.one_hot) + 1))
        values[..., :4] = values[-2:] = 0
        channels.append(values.astype(np.int16))
    matrix = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    matrix[:3, 3] = (17.0, 40.0, -25.0)
    return Volume(np.stack(channels), matrix, "the GPU's test volume")


def check_patch_size(shape: tuple[int, ...], spec: ModelSpec) -> tuple[int, int, int]:
    """Return the window for a volume of that shape in network space: several along two axes, one with padding along the shortest.

    Several along the longest, so that memory of finished planes is used again.
    """
    usual = spec.window.patch_size
    patch = [1 if own == 1 else max(2, int(_WINDOW * size)) for own, size in zip(usual, shape, strict=True)]
    shortest = int(np.argmin(shape))
    if patch[shortest] > 1 and shape[shortest] + 3 < max(shape) and spec.window.padding == "constant":
        patch[shortest] = shape[shortest] + 3
    return patch[0], patch[1], patch[2]


class CheckEngine:
    """The network of road_check.cu as an engine, on the GPU and computed here.

    Args:
        averages: it is the mean of two such networks.
    """

    def __init__(self, gpu: Gpu, dtype: str, spec: ModelSpec, averages: bool = False) -> None:
        self.gpu, self.dtype, self._spec = gpu, dtype, spec
        self._parts = [_CheckNetwork(self, share) for share in ((1.0, 0.25) if averages else (1.0,))]
        self.gpu_network: Any = MeanNetwork(gpu, self._parts) if averages else self
        gpu.enter()
        self._kernel = gpu.kernels(check_source(), CHECK_NAMES)["score_f16" if dtype == "float16" else "score_f32"]
        self._centers: NDArray[np.float32] | None = None
        self._height = self._slope = np.float32(0)
        self._table: DeviceBuffer | None = None

    def look_at(self, data: NDArray[np.float32]) -> None:
        """Spread the classes over the values of a volume in network space (C, n0, n1, n2), so that all of them occur."""
        if self._centers is not None:
            return
        values, output, classes = data.sum(axis=0), self._spec.output, self._spec.output_channels
        low, high = float(values.min()), float(values.max())
        reach = max(high - low, 1e-6)
        if output.regions and output.activation == "sigmoid":
            height, slope = (1.0, 8.0) if output.activated else (4.0, 64.0)
        else:
            # Square by square: scores that fall in straight lines would be equal over whole borders between plateaus.
            height, slope = (1.0, 1.0) if output.activated else (0.0, min(4.0 * classes**2, 4e4))
        self._height, self._slope = np.float32(height), np.float32(slope / reach**2)
        # In an order that is not the values' own.
        order = np.argsort(np.random.default_rng(1).random(classes))
        self._centers = (low + (order + 0.5) / classes * reach).astype(np.float32)
        self._table = self.gpu.allocate(self._centers.shape, np.float32)
        stream = self.gpu.stream()
        self._table.upload(self._centers, stream)
        stream.synchronize()
        stream.free()

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        self.enqueue_share(1.0, batch, source, target, stream)

    def enqueue_share(
        self, share: float, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream
    ) -> None:
        """As :meth:`enqueue`, with a slope that is less steep."""
        assert self._table is not None
        channels, voxels = source.shape[1], int(np.prod(source.shape[2:]))
        self._kernel(
            (-(-voxels * batch // _THREADS), 1, 1),
            (_THREADS, 1, 1),
            stream,
            source,
            target,
            self._table,
            ctypes.c_float(float(self._height)),
            ctypes.c_float(float(self._slope * np.float32(share))),
            ctypes.c_int(channels),
            ctypes.c_int(target.shape[1]),
            ctypes.c_longlong(voxels),
            ctypes.c_int(batch),
        )

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        first, *others = (self._scores(batch, part.share) for part in self._parts)
        for scores in others:
            first += scores
        first /= len(self._parts)
        return first

    def _scores(self, batch: NDArray[np.float32], share: float) -> NDArray[np.float32]:
        assert self._centers is not None
        rounded = batch.astype(self.dtype).astype(np.float32)
        total = np.zeros((len(batch), *batch.shape[2:]), np.float32)
        for channel in range(batch.shape[1]):
            total += rounded[:, channel]
        slope = self._slope * np.float32(share)
        scores = [self._height - slope * np.square(total - center) for center in self._centers]
        return np.stack(scores, axis=1).astype(self.dtype).astype(np.float32)

    def describe(self) -> Any:
        """It is no engine of a package."""

    def close(self) -> None:
        if self._table is not None:
            self._table.free()
            self._table = None


class _CheckNetwork:
    """One of the networks of a :class:`CheckEngine`, with a share of its slope."""

    def __init__(self, engine: CheckEngine, share: float) -> None:
        self._engine, self.share, self.dtype = engine, share, engine.dtype

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        self._engine.enqueue_share(self.share, batch, source, target, stream)
