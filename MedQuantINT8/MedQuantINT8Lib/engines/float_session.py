"""A network in single precision on the processor, by the fastest runtime at hand: for calibration and for measuring simulated INT8.

Making an INT8 network runs the FP32 network and simulated INT8 many times. ONNX Runtime computes Q/DQ pairs as they are written,
but its 3D convolutions are two to three times slower than OpenVINO's, dilated ones more. Where OpenVINO is installed it runs them
here, in single precision (no bfloat16) and with its INT8 kernels left out, so that it simulates as well. What it cannot read goes
to ONNX Runtime. A real engine is compared with the simulation in ONNX Runtime, not with this one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..models import onnx_graph as graph
from ..models import rewrites
from .onnxruntime import session
from .openvino import VECTOR

_SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
#: Without it OpenVINO would run what lies between Q/DQ pairs in INT8, which is no simulation.
_AS_WRITTEN = {"LP_TRANSFORMS_MODE": "NO"}


def with_full_vectors(model: Any) -> Any:
    """Return a network that computes the same, whose normalizations see widths that OpenVINO computes in full vectors.

    The filled channels are 0 and nothing reads them; tensors keep their names. A network of 15 channels takes three quarters of the time.

    Args:
        model: of fixed, inferred shapes, before any of its inner tensors is made an output: those stay as they are.
    """
    padded = rewrites.with_padded_channels(model, VECTOR, only_with="InstanceNormalization")
    if padded is not model:
        graph.infer(padded)
    return padded


class FloatSession(Protocol):
    """A loaded network, as ONNX Runtime's sessions run one."""

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the named outputs, or all of them in their order."""


def float_session(model: bytes, precision: str) -> FloatSession:
    """Load a network of fixed shapes.

    Args:
        precision: "fp32", or "int8" for one with Q/DQ pairs, which are computed as they are written.

    Raises:
        EngineError: an operator that neither runtime has.
    """
    if importlib.util.find_spec("openvino") is not None:
        try:
            return _OpenVINOSession(model, precision)
        except Exception:
            # OpenVINO raises RuntimeError and types of its own for what it cannot read; ONNX Runtime then says what is wrong.
            pass
    loaded: FloatSession = session(model, precision)
    return loaded


class _OpenVINOSession:
    def __init__(self, model: bytes, precision: str) -> None:
        from .openvino import core

        options = _SINGLE_PRECISION | (_AS_WRITTEN if precision == "int8" else {})
        self._compiled = core().compile_model(core().read_model(model), "CPU", options)
        self._request = self._compiled.create_infer_request()

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self._request.infer({name: np.ascontiguousarray(values) for name, values in inputs.items()})
        if names is None:
            return [self._request.get_output_tensor(n).data.copy() for n in range(len(self._compiled.outputs))]
        return [self._request.get_tensor(name).data.copy() for name in names]
