"""FP32 and an INT8 network with the ranges of all scans but some, which run on held-out windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.float_session import FloatSession, float_session, with_full_vectors
from ..models import onnx_graph as graph
from ..models.engine_form import SYMMETRIC, EngineForm
from ..models.single_products import with_single_products
from ..models.tensor_names import FreshNames
from .activation_ranges import scales_from
from .calibration import CalibrationOptions
from .fp32_network import Fp32Network
from .histogram import ActivationHistogram
from .measurer import Patch


@dataclass(frozen=True)
class Calibrated:
    """An INT8 network with what its ranges came from.

    Attributes:
        fp32: the FP32 network, with what is known of it on patches.
        int8: the INT8 network before its names are shortened.
        histograms: of the quantized tensors, with a part for each fold.
        form: that the network is simulated in: that of the engine that will run it.
        fp32_labels: what FP32 gives on windows, by their digest; it fills up, and serves the next INT8 network of the same FP32.
    """

    fp32: Fp32Network
    int8: Any
    histograms: Mapping[str, ActivationHistogram]
    options: CalibrationOptions
    form: EngineForm = SYMMETRIC
    fp32_labels: dict[bytes, NDArray[Any]] = field(default_factory=dict)


class FoldNetworks:
    """FP32, the INT8 network, and INT8 with the ranges of all folds but one, in sessions that are loaded when they are needed.

    Attributes:
        scaled: how many of the network's quantized tensors have ranges of their own in a fold.
    """

    def __init__(self, network: Calibrated, patch: tuple[int, int, int]) -> None:
        self._network, self._patch = network, patch
        self._sessions: dict[Any, Any] = {}
        self._input = graph.network_shape(network.int8).input_name
        self.scaled = sum(name in network.histograms for name in _quantized_tensors(network.int8))

    def run(self, which: int | str | None, window: Patch) -> NDArray[np.float32]:
        """Run "fp32", the INT8 network (None), or the one without a fold on a window (C, A0, A1, A2); scores (1, classes, ...)."""
        if which == "fp32":
            return self._network.fp32.scores(window)
        if which not in self._sessions:
            # One fold at a time: scans of a fold come after each other only where there are few.
            for old in [key for key in self._sessions if isinstance(key, int)]:
                del self._sessions[old]
            self._sessions[which] = self._session(which)
        scores: NDArray[np.float32] = self._sessions[which].run(None, {self._input: window[None]})[0]
        return scores

    def _session(self, which: int | str | None) -> FloatSession:
        model = self._network.int8
        if isinstance(which, int):
            model = rescaled(model, fold_ratios(self._network.histograms, which, self._network.options))
        model = with_single_products(self._network.form.of(model))
        return float_session(with_full_vectors(graph.fixed_shape(model, self._patch)).SerializeToString(), "int8")


def fold_ratios(
    histograms: Mapping[str, ActivationHistogram], fold: int, options: CalibrationOptions
) -> dict[str, float]:
    """Return each tensor's range without a fold over its range with all."""
    with_parts = {name: histogram for name, histogram in histograms.items() if fold in histogram.parts}
    rest = scales_from({name: histogram.without(fold) for name, histogram in with_parts.items()}, options)
    whole = scales_from(with_parts, options)
    # A tensor that is 0 in all other scans has no range of its own.
    return {
        name: rest[name] / whole[name]
        for name, histogram in with_parts.items()
        if histogram.without(fold).maximum > 0 and whole[name] > 0
    }


def rescaled(model: Any, ratios: Mapping[str, float]) -> Any:
    """Return a copy whose quantized float tensors have scales that are multiplied by a ratio each."""
    onnx = graph.require_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    network, fresh = graph.Graph(copy), FreshNames(copy)
    # By tensor and scale: a layer that takes its input in two INT8 halves has a scale of its own beside the plain one.
    names: dict[tuple[str, str], str] = {}
    for node in network.nodes:
        # A constant node has no input.
        if node.op_type != "QuantizeLinear" or network.is_constant(node.input[0]) or node.input[0] not in ratios:
            continue
        tensor = node.input[0]
        scale = network.array(node.input[1])
        if scale is None:
            continue
        key = tensor, node.input[1]
        if key not in names:
            names[key] = fresh(f"{tensor}_fold_scale")
            array = (scale * np.float32(ratios[tensor])).astype(scale.dtype)
            copy.graph.initializer.append(onnx.numpy_helper.from_array(array, names[key]))
        node.input[1] = names[key]
        for reader in network.readers.get(node.output[0], []):
            if reader.op_type == "DequantizeLinear":
                reader.input[1] = names[key]
    return copy


def _quantized_tensors(model: Any) -> Iterator[str]:
    network = graph.Graph(model)
    return (
        node.input[0]
        for node in network.nodes
        if node.op_type == "QuantizeLinear" and not network.is_constant(node.input[0])
    )
