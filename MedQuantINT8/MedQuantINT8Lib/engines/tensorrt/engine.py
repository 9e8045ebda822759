"""A loaded TensorRT engine: its execution context, and the pipeline that feeds it from the computer's memory."""

from __future__ import annotations

import contextlib
from typing import Any

from ...errors import EngineError
from ..base import BuildOptions, EngineDescription
from ..cuda.device import DeviceBuffer, Gpu, GpuError, GpuMemoryError, Stream
from ..cuda.engine import GpuEngine
from .layer_table import from_inspector, without_double_work


class TensorRTEngine(GpuEngine):
    """Satisfies :class:`..base.Engine`, and :class:`...inference.gpu_sliding_window.GpuNetwork` for the sliding window on the GPU.

    Args:
        engine: a deserialized ICudaEngine with one input and one output, float32 at both ends.
        macs: multiply-accumulates of one patch by ONNX node.
    """

    dtype = "float32"

    def __init__(
        self, trt: Any, runtime: Any, engine: Any, gpu: Gpu, options: BuildOptions, macs: dict[str, int], device: str
    ) -> None:
        self._trt, self._runtime, self._engine = trt, runtime, engine
        self._macs, self._device = macs, device
        self._context = engine.create_execution_context()
        if self._context is None:
            raise GpuMemoryError(
                "The GPU has not enough free memory for this engine.",
                "Close other programs, or choose a smaller batch.",
            )
        names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._input = next(name for name in names if modes[name] == trt.TensorIOMode.INPUT)
        self._output = next(name for name in names if modes[name] == trt.TensorIOMode.OUTPUT)
        channels, classes = (tuple(engine.get_tensor_shape(name))[1] for name in (self._input, self._output))
        super().__init__(gpu, options, channels, classes)
        self.gpu_network = self

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """Put the run of a batch that lies on the GPU into a stream."""
        context = self._context
        shape = (batch, self._channels, *self._options.patch)
        if not context.set_input_shape(self._input, shape):
            raise EngineError(f"TensorRT does not take patches of {shape}.", "Build the engine for this batch.")
        context.set_tensor_address(self._input, int(source.pointer))
        context.set_tensor_address(self._output, int(target.pointer))
        if not context.execute_async_v3(int(stream.handle)):
            raise GpuError("TensorRT could not run the network.")

    def describe(self) -> EngineDescription:
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        layers = without_double_work(from_inspector(text, self._macs))
        return EngineDescription("tensorrt", str(self._trt.__version__), self._device, layers)

    def close(self) -> None:
        if self._context is None:
            return
        self._close_pipeline()
        self._context = self._engine = self._runtime = None
        with contextlib.suppress(GpuError):
            self._gpu.close()
