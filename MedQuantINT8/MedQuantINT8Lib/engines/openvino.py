"""OpenVINO on the CPU: real INT8, with VNNI or AMX where the processor has them and weights of 7 bits where not."""

from __future__ import annotations

import functools
import importlib.util
import io
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..models.pointwise_head import PointwiseHead
from . import saturation
from .base import BuildOptions, EngineDescription, LayerRecord, UnsupportedNetwork

_FILE = "network.blob"
#: Channels that OpenVINO's normalization takes at once. Where a width is no multiple, the fused kernel behind an INT8
#: convolution falls back to single values: 13 times slower for 15 channels at 96^3 (benchmarks/rewrites.py).
VECTOR = 16
_INT8_TYPES = ("u8", "i8")
_MAC_KINDS = ("Convolution", "Deconvolution", "MatMul", "FullyConnected")


def silent_openvino() -> Any:
    """The openvino module without its telemetry.

    On import OpenVINO sends an event to its makers' analytics, in a forked process, unless its package for that is
    missing. Nothing leaves the machine here without being asked: to OpenVINO the package is missing.

    Raises:
        EngineError: it is installed, but cannot be loaded.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EngineError(
            f"OpenVINO is installed but cannot be loaded: {error}.", "Install it again: pip install -U openvino"
        ) from error

    return openvino


@functools.cache
def core() -> Any:
    """Return the one ``openvino.Core`` of this process; it is never given up.

    OpenVINO's plugin for processors with AMX gives the thread that makes it a stack for signal handlers, and frees that stack with the last network of its core
    without telling the system. The next signal of the process, such as Ctrl-C, would then be a segmentation fault (OpenVINO 2025 and 2026).
    """
    return silent_openvino().Core()


class OpenVINOBackend:
    name = "openvino"
    distribution = "openvino"
    title = "OpenVINO (CPU)"
    real_int8 = True

    def __init__(self, *, signed_activations: bool = False) -> None:
        """``signed_activations`` leaves out the rewrite to UINT8: only for the tests of what it mends."""
        self._signed = signed_activations
        self.zero_points = not signed_activations

    def unavailable(self) -> str:
        # Looked up, not imported: asking which engines there are must not load them all.
        if importlib.util.find_spec("openvino") is None:
            return "the Python package 'openvino' is not installed (pip install openvino onnx)."
        return ""

    def version(self) -> str:
        openvino = silent_openvino()

        return str(openvino.__version__) + ("+signed" if self._signed else "")

    def device_name(self, device: str) -> str:
        return str(core().get_property("CPU", "FULL_DEVICE_NAME"))

    def weight_bits(self) -> int:
        """How many bits of a weight the INT8 kernels take here without overflowing: 8, or 7 without VNNI."""
        return saturation.weight_bits(core)

    def build(self, network: Path, folder: Path, options: BuildOptions) -> None:
        from ..models import onnx_graph as graph
        from ..models import qdq, rewrites
        from ..models.explicit_padding import with_explicit_padding
        from ..models.pointwise_head import without_head

        model = qdq.network_for(
            network, options.precision, options.high_precision, options.weight_bits, options.zero_points
        )
        if options.precision == "int8" and not self._signed:
            model = qdq.as_unsigned(model)
        model = graph.fixed_shape(model, options.patch, options.batch)
        model = rewrites.with_padded_channels(model, VECTOR, only_with="InstanceNormalization")
        if options.precision == "int8":
            model = with_explicit_padding(model)
        model, head = without_head(model)
        try:
            compiled = core().compile_model(_read(core(), model), "CPU", _config(options))
        except RuntimeError as error:
            # What is wrong with the INT8 form alone leaves FP32; what is wrong with FP32 leaves another engine.
            kind = EngineError if options.precision == "int8" else UnsupportedNetwork
            raise kind(
                f"OpenVINO cannot build this network: {_reason(error)}.", "Choose another engine with --engine."
            ) from error
        (folder / _FILE).write_bytes(compiled.export_model().getvalue())
        if head is not None:
            head.save(folder)

    def check(self, network: Path, options: BuildOptions) -> None:
        """Ask whether each operator has a kernel, without compiling the network.

        Raises:
            UnsupportedNetwork: one has none.
        """
        from ..models import onnx_graph as graph
        from ..models import qdq

        model = qdq.network_for(
            network, options.precision, options.high_precision, options.weight_bits, options.zero_points
        )
        network_model = _read(core(), graph.fixed_shape(model, options.patch, options.batch))
        try:
            supported = core().query_model(network_model, "CPU")
        except RuntimeError as error:
            raise UnsupportedNetwork(
                f"OpenVINO cannot build this network: {_reason(error)}.", "Choose another engine with --engine."
            ) from error
        lacking = [op for op in network_model.get_ordered_ops() if op.get_friendly_name() not in supported]
        if lacking:
            name, kind = lacking[0].get_friendly_name(), lacking[0].get_type_name()
            raise UnsupportedNetwork(
                f"OpenVINO has no kernel for {kind} (node {name}).", "Choose another engine with --engine."
            )

    def load(self, folder: Path, options: BuildOptions) -> OpenVINOEngine:
        try:
            compiled = core().import_model(io.BytesIO((folder / _FILE).read_bytes()), "CPU", _config(options))
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot load its engine: {_reason(error)}.", "Remove it with: medquant cache clear"
            ) from error
        return OpenVINOEngine(compiled, options, PointwiseHead.load(folder))


def _read(core: Any, model: Any) -> Any:
    """Read the network into OpenVINO's own form.

    Raises:
        UnsupportedNetwork: an operator that OpenVINO does not convert.
    """
    try:
        return core.read_model(model.SerializeToString())
    except RuntimeError as error:
        raise UnsupportedNetwork(
            f"OpenVINO cannot build this network: {_reason(error)}.", "Choose another engine with --engine."
        ) from error


def _config(options: BuildOptions) -> dict[str, Any]:
    # f32 around INT8 layers: without it a CPU with AVX-512 BF16 would round everything else to 8 bits of mantissa.
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if options.threads:
        config["INFERENCE_NUM_THREADS"] = options.threads
    return config


#: Words of a message that tells what OpenVINO lacks; other messages tell mere consequences of it.
_UNSUPPORTED_MARKERS = ("no conversion rule", "does not support", "only supported", "not support")
_NODE = re.compile(r"ONNX node '<Node\((\w+)\): ([^>]*)>'")


def _reason(error: Exception) -> str:
    """The line of an exception that tells the cause, with the node that it stands beside."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
    for marker in _UNSUPPORTED_MARKERS:
        for number, line in enumerate(lines):
            if marker not in line.lower():
                continue
            node = next((match for above in lines[number - 2 : number][::-1] if (match := _NODE.search(above))), None)
            return line[:300].rstrip(".") + (f" (node {node[2]})" if node is not None else "")
    return (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")


class OpenVINOEngine:
    """A compiled network.

    Attributes:
        head: its last layer where that is not part of what was compiled (:class:`.base.HasHead`); else None.
    """

    def __init__(self, compiled: Any, options: BuildOptions, head: PointwiseHead | None = None) -> None:
        self._compiled, self._options, self.head = compiled, options, head
        self._request = compiled.create_infer_request()
        self._shape = tuple(compiled.input(0).shape)
        self._description: EngineDescription | None = None
        self._scores: NDArray[np.float32] | None = None

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        result = self.infer_features(batch)
        if self.head is None:
            return result
        shape = (self._shape[0], self.head.classes, *result.shape[2:])
        if self._scores is None or self._scores.shape != shape:
            self._scores = np.empty(shape, np.float32)
        for features, scores in zip(result, self._scores, strict=False):
            self.head.scores(features.reshape(len(features), -1), scores.reshape(len(scores), -1))
        return self._scores[: len(result)]

    def infer_features(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a batch up to the head; the whole network where it has none apart from it."""
        count = batch.shape[0]
        if count < self._shape[0]:
            padding = np.zeros((self._shape[0] - count, *batch.shape[1:]), np.float32)
            batch = np.concatenate([batch, padding])
        result = self._request.infer({0: np.ascontiguousarray(batch)}, share_inputs=True, share_outputs=True)[0]
        return result[:count]

    def describe(self) -> EngineDescription:
        # What was compiled does not change: asking for it takes longer than a small network's call.
        if self._description is None:
            self._description = self._describe()
        return self._description

    def _describe(self) -> EngineDescription:
        openvino = silent_openvino()

        layers = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = {key: _text(value) for key, value in node.get_rt_info().items()}
            kind = info.get("layerType", "")
            if kind in ("Const", "Input", "Output", ""):
                continue
            precision = info.get("runtimePrecision", "")
            macs = _macs(node, kind)
            sources = tuple(name for name in info.get("originalLayersNames", "").split(",") if name)
            int8 = bool(macs) and precision in _INT8_TYPES
            kernel = info.get("primitiveType", "")
            if int8 and self._options.weight_bits < 8:
                kernel += f", {self._options.weight_bits}-bit weights"
            layers.append(
                LayerRecord(node.get_friendly_name(), kind, precision, kernel, macs, int8=int8, sources=sources)
            )
        if self.head is not None:
            voxels = math.prod(self._compiled.output(0).shape[2:]) * self._shape[0]
            layers.append(
                LayerRecord(
                    self.head.name,
                    "Convolution",
                    "f32",
                    "matrix product with blended features",
                    self.head.weights.size * voxels,
                    int8=False,
                    sources=(self.head.name,),
                )
            )
        return EngineDescription("openvino", openvino.__version__, "CPU", tuple(layers))

    def close(self) -> None:
        self._request = self._compiled = self._scores = None


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def _macs(node: Any, kind: str) -> int:
    """Multiply-accumulates from the shapes of the executed layer: output (or input) voxels times weights."""
    if kind not in _MAC_KINDS:
        return 0
    shapes = [list(value.get_shape()) for value in node.input_values()]
    target = list(node.get_output_shape(0))
    if kind in ("MatMul", "FullyConnected"):
        return math.prod(target) * shapes[0][-1]
    if len(shapes) < 2:
        return 0
    spatial = target[2:] if kind == "Convolution" else shapes[0][2:]
    return math.prod(shapes[1]) * math.prod(spatial) * target[0]
