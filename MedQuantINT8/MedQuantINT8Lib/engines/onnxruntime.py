"""ONNX Runtime on the CPU: the simulated reference for INT8, and a float engine that runs everywhere.

INT8 networks run with graph optimisation off, so that every QuantizeLinear/DequantizeLinear is computed as written, in
float: what "fake quantization" gives. Real engines are held against it.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, EngineError
from .base import BuildOptions, EngineDescription, LayerRecord

_FILE = "network.onnx"


class OnnxRuntimeBackend:
    name = "onnxruntime"
    distribution = "onnxruntime"
    title = "ONNX Runtime (CPU; INT8 is simulated)"
    real_int8 = False

    def unavailable(self) -> str:
        # Looked up, not imported: asking which engines there are must not load them all.
        if importlib.util.find_spec("onnxruntime") is None:
            return "the Python package 'onnxruntime' is not installed (pip install onnxruntime onnx)."
        return ""

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def device_name(self, device: str) -> str:
        import platform

        return platform.processor() or platform.machine()

    def build(self, network: Path, folder: Path, options: BuildOptions) -> None:
        from ..models import onnx_graph as graph
        from ..models import qdq

        model = graph.fixed_shape(
            qdq.network_for(
                network, options.precision, options.high_precision, options.weight_bits, options.zero_points
            ),
            options.patch,
            batch=None,
        )
        (folder / _FILE).write_bytes(model.SerializeToString())
        self.load(folder, options)

    def load(self, folder: Path, options: BuildOptions) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(
            session((folder / _FILE).read_bytes(), options.precision, options.threads), options.precision
        )


def session(model: bytes, precision: str, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU; "int8" is computed exactly as the graph is written.

    Raises:
        DependencyError: ONNX Runtime is not installed.
        EngineError: an operator that ONNX Runtime lacks.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise DependencyError(
            "The Python package 'onnxruntime' is not installed.", "Install it with: pip install onnxruntime"
        ) from error

    # On Windows its makers' builds report usage unless told not to.
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = (
        threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    )
    # The arena would keep the largest activations of every layer alive between calls.
    options.enable_cpu_mem_arena = False
    if precision == "int8":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime raises its own C++ exception types, which share no base class but Exception.
        raise EngineError(
            f"ONNX Runtime cannot run this network: {_reason(error)}.", "Export it with standard operators."
        ) from error


def _reason(error: Exception) -> str:
    return str(error).split(" : ")[-1].strip().splitlines()[0][:200].rstrip(".")


class OnnxRuntimeEngine:
    def __init__(self, run: Any, precision: str) -> None:
        self._run, self._precision = run, precision
        self._input = run.get_inputs()[0].name

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return self._run.run(None, {self._input: np.ascontiguousarray(batch)})[0]
        except Exception as error:
            # onnxruntime's exceptions share no base class but Exception.
            raise EngineError(
                f"ONNX Runtime cannot run this network on {batch.shape[0]} window(s) of {batch.shape[1:]}: {_reason(error)}.",
                "Take the network's own patch size, and --batch 1.",
            ) from error

    def describe(self) -> EngineDescription:
        import onnxruntime as ort

        word = "f32 (INT8 simulated)" if self._precision == "int8" else "f32"
        layer = LayerRecord("network", "Graph", word, "CPUExecutionProvider", 1, int8=False)
        return EngineDescription("onnxruntime", ort.__version__, "cpu", (layer,))

    def close(self) -> None:
        self._run = None
