"""A scan goes up to the GPU as it lies in memory and comes to network space there, as :mod:`..imaging.preprocessing` does it on the processor.

First the steps in space are worked out, for which only a crop looks at voxels; the scan is brought to network space when somebody asks for
it: on a GPU (:meth:`DeferredInput.on_gpu`), or on the processor (:attr:`DeferredInput.data`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.cuda.device import DeviceBuffer, Gpu
from ..imaging.array_layout import ArrayLayout
from ..imaging.network_input import NetworkInput
from ..imaging.preprocessing import Preparation
from ..imaging.sampling_weights import AxisWeights, forward_weights
from ..imaging.spatial_steps import Cut, SpatialStep
from ..imaging.volume import Volume
from ..models.spec import ModelSpec, Normalization
from ..progress import Task
from .gpu_arrays import SOURCES, GpuArrays
from .gpu_team import TeamMember

_NO_LIMIT = 3e38
#: Kinds of normalization by the number that scan_preparation.cu knows them by.
_CLIP, _SCALE, _SCALE_BUT_ZERO, _LINEAR, _LOGISTIC, _TANH, _TRUNCATE, _ABOVE, _BELOW, _FILL = range(10)
_MASKS = {"all": 0, "nonzero": 1, "above_mean": 2}


class NotOnGpu(Exception):
    """A step of a model that only the processor does; names it."""


@dataclass(frozen=True)
class _LayOut:
    layout: ArrayLayout
    pad: float


@dataclass(frozen=True)
class _Resample:
    weights: list[AxisWeights]


_Work = _LayOut | _Resample | Normalization


class DeferredInput(NetworkInput):
    """A volume on its way to network space.

    Args:
        compute: brings it there on the processor.

    Attributes:
        shape: (C, A0, A1, A2) of ``data``.
        keep: of how many voxels along each axis one is asked for later on, so that these come down from the GPU once they are there; 1 for
            all, 0 for none.
        shared: whether what a GPU brought to network space stays there for the next network; see :meth:`share`.
    """

    keep, shared = 0, False

    def __init__(
        self, volume: Volume, plan: GpuPreparation, compute: Callable[[], NDArray[np.float32]], axis_order: str
    ) -> None:
        self.__dict__.update(
            grid=plan.grid, original=volume.grid, axis_order=axis_order, steps=tuple(plan.steps), _volume=volume
        )
        self.__dict__.update(_plan=plan, _compute=compute)

    @cached_property
    def data(self) -> NDArray[np.float32]:  # type: ignore[override]
        """float32 (C, A0, A1, A2), computed when it is first asked for."""
        return self.__dict__["_compute"]()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        i, j, k = self.grid.size
        channels = int(self.__dict__["_volume"].data.shape[0])
        return (channels, i, j, k) if self.axis_order == "IJK" else (channels, k, j, i)

    def wanted_later(self, stride: int = 1) -> None:
        """Say that ``data``, or :meth:`every` so many of its voxels, is asked for when the volume was segmented."""
        self.__dict__["keep"] = stride

    def every(self, stride: int) -> NDArray[np.float32]:
        """As :meth:`.network_input.NetworkInput.every`, of what came down from the GPU, if that was wanted."""
        sample: NDArray[np.float32] | None = self.__dict__.get("_samples", {}).get(stride)
        return super().every(stride) if sample is None or "data" in self.__dict__ else sample

    def share(self, shared: bool = True) -> None:
        """Say whether what a GPU brings to network space stays there, when it is released, for the networks that ask for it next."""
        self.__dict__["shared"] = shared

    @property
    def resides(self) -> bool:
        """Whether what a GPU brought to network space is there still."""
        return "_resident" in self.__dict__

    def let_go(self) -> None:
        """Free what was kept for other networks."""
        self.share(False)
        if self.resides:
            self.release(self.__dict__["_resident"])

    def release(self, buffer: DeviceBuffer) -> None:
        """Free a buffer of :meth:`on_gpu`, unless it is kept for the next network."""
        if buffer is self.__dict__.get("_resident"):
            if self.shared:
                return
            del self.__dict__["_resident"]
        if buffer.pointer:
            buffer.gpu.enter()
            buffer.free()

    def on_gpu(self, gpu: Gpu, member: TeamMember | None = None) -> DeviceBuffer:
        """Return ``data`` on a GPU, computed there; it ends with :meth:`release`.

        Args:
            member: where several GPUs do it at the same time: the first of them keeps what is asked for later on.

        Raises:
            GpuMemoryError: it does not fit.
        """
        resident: DeviceBuffer | None = self.__dict__.get("_resident")
        # An engine that was closed in the meantime has freed its GPU's memory; one that is closed from now on must not.
        if member is None and resident is not None and resident.change_owner(gpu):
            return resident
        arrays = GpuArrays(gpu, member)
        try:
            buffer = self.__dict__["_plan"].run(arrays, self.__dict__["_volume"].data, self.shape, self.axis_order)
            try:
                if member is None or member.number == 0:
                    self._keep_what_is_wanted(buffer, arrays)
            except BaseException:
                buffer.free()
                raise
        finally:
            arrays.close()
        if self.shared and member is None:
            former = self.__dict__.get("_resident")
            self.__dict__["_resident"] = buffer
            if former is not None:
                self.release(former)
                gpu.enter()
        return buffer

    def _keep_what_is_wanted(self, buffer: DeviceBuffer, arrays: GpuArrays) -> None:
        """Bring down what is asked for later on."""
        samples: dict[int, NDArray[np.float32]] = self.__dict__.setdefault("_samples", {})
        if not self.keep or "data" in self.__dict__ or self.keep in samples:
            return
        if self.keep == 1:
            self.__dict__["data"] = arrays.downloaded(buffer)
        else:
            samples[self.keep] = arrays.every(buffer, self.keep)


def data_of(network_input: NetworkInput, task: Task) -> NDArray[np.float32]:
    """Return a volume in network space (C, A0, A1, A2); what a GPU does not do after all is done now, and counts as preprocessing."""
    if not isinstance(network_input, DeferredInput):
        return network_input.data
    with task.stage("preprocessing"):
        return network_input.data


def deferred(volume: Volume, spec: ModelSpec, prepare: Callable[[Volume, ModelSpec], NetworkInput]) -> NetworkInput:
    """Return a volume whose way to network space is known, or, where a GPU cannot go it, the volume in network space by ``prepare``.

    Raises:
        InputError: as :func:`..imaging.preprocessing.preprocess`.
    """
    try:
        plan = GpuPreparation(volume, spec)
    except NotOnGpu:
        return prepare(volume, spec)
    return DeferredInput(volume, plan, lambda: prepare(volume, spec).data, spec.geometry.axis_order)


class GpuPreparation(Preparation):
    """The steps of a model for one volume, as work for a GPU.

    Attributes:
        grid: of the volume in network space.
        steps: what is done in space.

    Raises:
        NotOnGpu: a step that only the processor does.
        InputError: a volume that the model does not take.
    """

    def __init__(self, volume: Volume, spec: ModelSpec) -> None:
        if spec.input_channels > spec.scans:
            raise NotOnGpu("a label map among the channels")
        if str(volume.data.dtype) not in SOURCES:
            raise NotOnGpu(f"voxels of {volume.data.dtype}")
        super().__init__(volume, spec)
        self._work: list[_Work] = []
        #: Whether channels are still the scan as it came, cut and turned, so that a crop can look at them.
        self._untouched = True
        self.check_volume()
        for step in spec.steps:
            getattr(self, step)()
        self.grid, self.steps = self._grid, self._spatial_steps
        # The scan is not kept alive twice, nor views of it.
        self._channels = []

    def crop(self) -> None:
        if not self._untouched and self._spec.crop.look_at == "current":
            raise NotOnGpu("a crop of a scan that was changed")
        super().crop()

    def _cut(self, cut: Cut) -> None:
        padded = any(start < 0 or stop > size for (start, stop), size in zip(cut.box, cut.source.size, strict=True))
        if padded and cut.padding != "constant":
            raise NotOnGpu(f"a scan that is continued by its {cut.padding}")
        self._lay_out(cut, cut.pad_value if padded else None)
        if self._untouched:
            super()._cut(cut)
        else:
            self._spatial_steps.append(cut)

    def reorient(self) -> None:
        if self._untouched:
            super().reorient()
        else:
            self._turn_grid()
        self._lay_out(self._spatial_steps[-1], None)

    def _lay_out(self, step: SpatialStep, pad: float | None) -> None:
        """Add a cut or a turn to the one before it, if there is one that pads otherwise by the same value."""
        last = self._work[-1] if self._work else None
        if isinstance(last, _LayOut) and pad is None:
            self._work[-1] = _LayOut(last.layout.after(step), last.pad)
        else:
            self._work.append(_LayOut(ArrayLayout.of(step.source.size, ()).after(step), pad or 0.0))

    def resample(self) -> None:
        sampling = self._sampling()
        weights = forward_weights(sampling)
        if weights is None:
            raise NotOnGpu(f"resampling by {self._spec.geometry.interpolation}")
        self._untouched = False
        self._work.append(_Resample(weights))
        self._spatial_steps.append(sampling)

    def normalize(self) -> None:
        step = next(self._normalizations)
        if step.mask not in _MASKS and step.kind == "zscore":
            raise NotOnGpu(f"a normalization inside of {step.mask}")
        if step.over == "all" and len(self._spec.channels) > 1:
            raise NotOnGpu("a normalization over all channels")
        self._untouched = False
        self._work.append(step)

    def run(
        self, arrays: GpuArrays, channels: NDArray[Any], shape: tuple[int, int, int, int], axis_order: str
    ) -> DeviceBuffer:
        """Return the scan's channels (C, K, J, I) in network space, (C, A0, A1, A2) on the GPU."""
        target = arrays.allocate(shape)
        size = self.grid.size
        for number, channel in enumerate(channels):
            array = self._run_channel(arrays, channel, number)
            arrays.lay_out(array, ArrayLayout.of(size, ()), axis_order, into=(target, number))
            arrays.free(array)
        return arrays.hand_over(target)

    def _run_channel(self, arrays: GpuArrays, channel: NDArray[Any], number: int) -> DeviceBuffer:
        array = arrays.upload_scan(channel)
        raw, works = True, list(self._work)
        if (one_pass := _resampled_at_once(arrays, array, works)) is not None:
            arrays.free(array)
            array, raw = one_pass, False
        for work in works:
            if isinstance(work, Normalization) and work.channels and number not in work.channels:
                continue
            if raw and not isinstance(work, _LayOut):
                array, raw = _laid_out(arrays, array, _LayOut(ArrayLayout.of(_size(array), ()), 0.0)), False
            if isinstance(work, _LayOut):
                array, raw = _laid_out(arrays, array, work), False
            elif isinstance(work, _Resample):
                array = arrays.resample(array, work.weights)
            else:
                _normalize(arrays, array, work)
        return _laid_out(arrays, array, _LayOut(ArrayLayout.of(_size(array), ()), 0.0)) if raw else array


def _resampled_at_once(arrays: GpuArrays, array: DeviceBuffer, works: list[_Work]) -> DeviceBuffer | None:
    """Return a channel as it lies in memory laid out and resampled in one pass, and take these steps out of ``works``; None if they are not its first."""
    layouts = 1 if works and isinstance(works[0], _LayOut) else 0
    if len(works) <= layouts or not isinstance(resample := works[layouts], _Resample):
        return None
    layout = works[0].layout if isinstance(works[0], _LayOut) else ArrayLayout.of(_size(array), ())
    result = arrays.resample_laid_out(array, layout, resample.weights)
    if result is not None:
        del works[: layouts + 1]
    return result


def _size(array: DeviceBuffer) -> tuple[int, int, int]:
    k, j, i = array.shape
    return i, j, k


def _laid_out(arrays: GpuArrays, array: DeviceBuffer, work: _LayOut) -> DeviceBuffer:
    result = arrays.lay_out(array, work.layout, pad=work.pad)
    arrays.free(array)
    return result


def _normalize(arrays: GpuArrays, array: DeviceBuffer, step: Normalization) -> None:
    """Apply one step to a channel; see :mod:`..imaging.intensity`."""
    kind, low, high = step.kind, step.low, step.high
    if kind == "zscore":
        _zscore(arrays, array, step)
    elif kind == "nnunet_ct":
        assert low is not None and high is not None and step.mean is not None and step.std is not None
        arrays.change(array, _CLIP, low, high)
        arrays.change(array, _SCALE, step.mean, step.std)
    elif kind == "sigmoid":
        arrays.change(array, _LOGISTIC)
    elif kind == "tanh":
        assert high is not None
        arrays.change(array, _TANH, high)
    elif kind == "linear":
        assert low is not None and high is not None
        arrays.change(array, _LINEAR, high - low, low)
    elif kind == "spread":
        count, _, deviation = arrays.moments(array)
        spread = deviation * float(np.sqrt(count / (count - 1))) if count > 1 else 0.0
        arrays.change(array, _SCALE, float(arrays.extremes(array)[0][0]), spread or 1.0)
    elif kind == "truncate":
        arrays.change(array, _TRUNCATE)
    elif kind == "threshold":
        arrays.change(array, _BELOW if low is None else _ABOVE, float(high if low is None else low), c=step.fill)  # type: ignore[arg-type]
    elif kind in ("clip", "clip_percentile"):
        if kind == "clip_percentile":
            low, high = arrays.percentiles(array, _percents(step))
        arrays.change(array, _CLIP, -_NO_LIMIT if low is None else low, _NO_LIMIT if high is None else high)
    else:
        _scale_to_range(arrays, array, step)


def _percents(step: Normalization) -> tuple[float, float]:
    return step.low or 0.0, step.high if step.high is not None else 100.0


def _scale_to_range(arrays: GpuArrays, array: DeviceBuffer, step: Normalization) -> None:
    if step.kind == "percentile":
        low, high = arrays.percentiles(array, _percents(step))
    else:
        least, most = arrays.extremes(array) if step.low is None or step.high is None else ([0.0], [0.0])
        low = step.low if step.low is not None else float(least[0])
        high = step.high if step.high is not None else float(most[0])
    if high <= low:
        arrays.change(array, _FILL)
        return
    arrays.change(array, _SCALE, low, high - low, float(step.clip and step.kind != "minmax"))


def _zscore(arrays: GpuArrays, array: DeviceBuffer, step: Normalization) -> None:
    above = arrays.moments(array)[1] if step.mask == "above_mean" else 0.0
    count, mean, deviation = arrays.moments(array, _MASKS[step.mask], above)
    if count == 0:
        arrays.change(array, _FILL)
        return
    mean = mean if step.mean is None else step.mean
    deviation = deviation if step.std is None else step.std
    kind = _SCALE_BUT_ZERO if step.mask == "nonzero" else _SCALE
    arrays.change(array, kind, mean, deviation if deviation > 1e-8 else 1.0)
