"""A loaded TensorRT engine: device buffers, a side stream, and a CUDA graph that is replayed for every batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .base import BuildOptions, EngineDescription
from .cuda import DeviceBuffer, Gpu, Stream
from .cuda_graph import CapturedGraph
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
        batch, patch = options.batch, options.patch
        self._stream = gpu.stream()
        self._source = gpu.allocate((batch, self._channels, *patch), np.float32)
        self._target = gpu.allocate((batch, self._classes, *patch), np.float32)
        self._host_in = gpu.pinned(self._source.shape, np.float32)
        self._host_out = gpu.pinned(self._target.shape, np.float32)
        self._graph = CapturedGraph(gpu, self._stream, self._enqueue_own)
        self._count = batch
        #: What the sliding window on the GPU looks for.
        self.gpu, self.gpu_network = gpu, self

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run up to the batch that the engine was built for; the result is valid until the next call.

        Raises:
            EngineError: the GPU failed; the engine can be used again if the GPU can.
        """
        self._gpu.enter()
        self._count = batch.shape[0]
        self._host_in.array[: self._count] = batch
        self._source.upload(self._host_in.array[: self._count], self._stream)
        self._graph.launch((self._count, self._source.pointer, self._target.pointer))
        found = self._host_out.array[: self._count]
        self._target.download(found, self._stream)
        self._stream.synchronize()
        return found

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

    def _enqueue_own(self, stream: Stream) -> None:
        self.enqueue(self._count, self._source, self._target, stream)

    def describe(self) -> EngineDescription:
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        layers = without_double_work(from_inspector(text, self._macs))
        return EngineDescription("tensorrt", str(self._trt.__version__), self._device, layers)

    def close(self) -> None:
        if self._context is None:
            return
        self._gpu.enter()
        self._stream.synchronize()
        self._graph.free()
        self._context = self._engine = self._runtime = None
        for buffer in (self._source, self._target, self._host_in, self._host_out):
            buffer.free()
        self._stream.free()
        self._gpu.close()
