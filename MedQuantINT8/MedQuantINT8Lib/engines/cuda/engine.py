"""What engines on a GPU have in common: batches out of the computer's memory go through a pipeline of copies beside the work."""

from __future__ import annotations

import contextlib

import numpy as np
from numpy.typing import NDArray

from ..base import BuildOptions
from .device import DeviceBuffer, Gpu, GpuError, Stream
from .pipeline import DevicePipeline


class GpuEngine:
    """Satisfies the part of :class:`..base.Engine` that runs, given ``enqueue``.

    Args:
        channels, classes: of the network's input and output.
    """

    def __init__(self, gpu: Gpu, options: BuildOptions, channels: int, classes: int) -> None:
        self._gpu, self._options, self._channels, self._classes = gpu, options, channels, classes
        self._pipeline: DevicePipeline | None = None
        #: What the sliding window on the GPU looks for.
        self.gpu = gpu

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """Put the run of a batch that lies on the GPU into a stream."""
        raise NotImplementedError

    @property
    def pipeline(self) -> DevicePipeline:
        """For batches that lie in the computer's memory; made when first asked for: the sliding window on the GPU has its own buffers.

        Raises:
            GpuMemoryError: its buffers do not fit.
        """
        if self._pipeline is None:
            self._gpu.enter()
            batch, patch = self._options.batch, self._options.patch
            shapes = (batch, self._channels, *patch), (batch, self._classes, *patch)
            self._pipeline = DevicePipeline(self._gpu, self.enqueue, *shapes)
        return self._pipeline

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run up to the batch that the engine was built for; the result is valid until the next call.

        Raises:
            EngineError: the GPU failed; the engine can be used again if the GPU can.
        """
        pipeline = self.pipeline
        try:
            pipeline.submit(batch)
            return pipeline.collect()
        except BaseException:
            pipeline.drain()
            raise

    def _close_pipeline(self) -> None:
        # A GPU that was lost frees nothing any more; that must not hide what went wrong.
        with contextlib.suppress(GpuError):
            self._gpu.enter()
            if self._pipeline is not None:
                self._pipeline.drain()
                self._pipeline.close()
        self._pipeline = None
