"""Several networks on one GPU as one whose scores are their mean, so that the folds of a training meet there."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

from ..engines.base import Engine, GpuNetwork, gpu_network_of, gpu_of
from ..engines.cuda.device import DeviceBuffer, Gpu, Kernel, Stream
from .gpu_kernels import MEAN_NAMES, mean_source

_THREADS, _MOST_BLOCKS = 256, 8192


class MeanNetwork:
    """The mean of networks' scores, in float32.

    Attributes:
        dtype: of the input, and of each network's own scores.
        scores_dtype: of the mean.
    """

    scores_dtype = "float32"

    def __init__(self, gpu: Gpu, networks: Sequence[GpuNetwork]) -> None:
        self._gpu, self._networks = gpu, tuple(networks)
        self.dtype = self._networks[0].dtype
        self._scratch: DeviceBuffer | None = None
        self._kernel: Kernel | None = None

    @classmethod
    def of(cls, engines: Sequence[Engine]) -> MeanNetwork | None:
        """Return the mean of engines whose networks lie on one GPU and take the same type; None for others."""
        gpus, networks = [gpu_of(engine) for engine in engines], [gpu_network_of(engine) for engine in engines]
        first = gpus[0]
        if first is None or any(network is None for network in networks):
            return None
        own = [network for network in networks if network is not None]
        same_gpu = all(gpu is not None and gpu.info.index == first.info.index for gpu in gpus)
        return cls(first, own) if same_gpu and len({network.dtype for network in own}) == 1 else None

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """Put the run of a batch into a stream; ``target`` is of float32.

        Raises:
            GpuMemoryError: there is no room for one network's scores beside the mean.
        """
        if self._scratch is None or self._scratch.nbytes * target.dtype.itemsize < target.nbytes * self._itemsize:
            self.release()
            self._scratch = self._gpu.allocate(target.shape, self.dtype)
        if self._kernel is None:
            name = f"add_scores_{'f16' if self.dtype == 'float16' else 'f32'}"
            self._kernel = self._gpu.kernels(mean_source(), MEAN_NAMES)[name]
        total = batch * math.prod(target.shape[1:])
        blocks = min(_MOST_BLOCKS, -(-total // _THREADS))
        for number, network in enumerate(self._networks):
            network.enqueue(batch, source, self._scratch, stream)
            counts = (ctypes.c_int(number), ctypes.c_int(len(self._networks)), ctypes.c_longlong(total))
            self._kernel((blocks, 1, 1), (_THREADS, 1, 1), stream, self._scratch, target, *counts)

    @property
    def _itemsize(self) -> int:
        return 2 if self.dtype == "float16" else 4

    def release(self) -> None:
        """Free what a run needed; nothing of it may be under way."""
        if self._scratch is not None:
            self._scratch.free()
            self._scratch = None
