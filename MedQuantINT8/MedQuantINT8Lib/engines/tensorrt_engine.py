"""A loaded TensorRT engine: its execution context, and the pipeline that feeds it from the computer's memory."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .base import BuildOptions, EngineDescription
from .cuda import DeviceBuffer, Gpu, GpuError, Stream
from .pipeline import DevicePipeline
from .tensorrt_layers import from_inspector, without_double_work


class TensorRTEngine:
    """Satisfies :class:`.base.Engine`, and :class:`.gpu_window.GpuNetwork` for the sliding window on the GPU.

    Args:
        engine: a deserialized ICudaEngine with one input and one output, float32 at both ends.
        macs: multiply-accumulates of one patch by ONNX node.
    """

    dtype = "float32"

    def __init__(
        self, trt: Any, runtime: Any, engine: Any, gpu: Gpu, options: BuildOptions, macs: dict[str, int], device: str
    ) -> None:
        self._trt, self._runtime, self._engine, self._gpu = trt, runtime, engine, gpu
        self._options, self._macs, self._device = options, macs, device
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError("The GPU has not enough free memory for this engine.", "Close other programs, or choose a smaller batch.")
        names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._input = next(name for name in names if modes[name] == trt.TensorIOMode.INPUT)
        self._output = next(name for name in names if modes[name] == trt.TensorIOMode.OUTPUT)
        self._channels = tuple(engine.get_tensor_shape(self._input))[1]
        self._classes = tuple(engine.get_tensor_shape(self._output))[1]
        self._pipeline: DevicePipeline | None = None
        #: What the sliding window on the GPU looks for.
        self.gpu, self.gpu_network = gpu, self

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
        self._gpu.enter()
        pipeline = self.pipeline
        try:
            pipeline.submit(batch)
            return pipeline.collect()
        except BaseException:
            pipeline.drain()
            raise

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """Put the run of a batch that lies on the GPU into a stream."""
        context = self._context
        shape = (batch, self._channels, *self._options.patch)
        if not context.set_input_shape(self._input, shape):
            raise EngineError(f"TensorRT does not take patches of {shape}.", "Build the engine for this batch.")
        context.set_tensor_address(self._input, int(source.pointer))
        context.set_tensor_address(self._output, int(target.pointer))
        if not context.execute_async_v3(int(stream.handle)):
            raise EngineError("TensorRT could not run the network.", "Look whether other programs took the GPU's memory, and try again.")

    def describe(self) -> EngineDescription:
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        layers = without_double_work(from_inspector(text, self._macs))
        return EngineDescription("tensorrt", str(self._trt.__version__), self._device, layers)

    def close(self) -> None:
        if self._context is None:
            return
        # A GPU that was lost frees nothing any more; that must not hide what went wrong.
        with contextlib.suppress(GpuError):
            self._gpu.enter()
            if self._pipeline is not None:
                self._pipeline.drain()
                self._pipeline.close()
        self._pipeline = self._context = self._engine = self._runtime = None
        with contextlib.suppress(GpuError):
            self._gpu.close()
