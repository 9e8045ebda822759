"""The network's own input in two INT8 halves, where that costs next to nothing.

A scan that was never seen has brighter voxels than those of calibration, and what INT8 clips or rounds at the input no later layer can
mend. The layers that read the input have few channels, so that a second product of them is a small part of the work. In halves the input
has room for values far beyond calibration, and is rounded a hundred times less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models import onnx_graph as graph
from ..models.halves import halved_layers, quantized_inputs, with_halves
from ..models.layers import weighted_layers
from ..models.spec import ModelSpec

#: The range of the input in halves over the largest magnitude of calibration. Of its 16 bits two go beyond.
INPUT_MARGIN = 4.0
#: The share of the network's work that the layers that read the input may have.
MOST_WORK = 0.02
#: Steps of normalization that leave no value beyond bounds, and the part of the error that halves have to take away behind one.
_BOUNDING = frozenset(
    ("window", "minmax", "percentile", "nnunet_ct", "sigmoid", "tanh", "clip", "clip_percentile", "truncate")
)
_LEAST_GAIN = 0.05


def wanted_error(spec: ModelSpec, error: float) -> float:
    """Return the largest relative error with which a network that takes its input in halves is worth the time.

    Args:
        error: without it, on patches of calibration, where nothing lies outside of the range.
    """
    bounded = any(step.kind in _BOUNDING for step in spec.normalization)
    return error * (1 - _LEAST_GAIN if bounded else 1 + _LEAST_GAIN)


def input_layers(model: Any) -> list[str]:
    """Return the quantized layers that read the network's input, and are not in halves yet."""
    name = graph.network_shape(model).input_name
    halved = halved_layers(graph.Graph(model))
    return [layer for layer, tensor in quantized_inputs(model).items() if tensor == name and layer not in halved]


def with_input_halves(model: Any, ranges: Mapping[str, float], shape: tuple[int, ...]) -> tuple[Any, list[str]]:
    """Return a copy of an INT8 network that takes its input in two halves, and the layers that read them.

    Args:
        ranges: largest magnitude of each quantized tensor in calibration.
        shape: of a patch, by which the work is counted.

    Returns:
        The network itself and no layers where the input is in halves already, is not quantized, or where its layers do more work than
        that is worth.
    """
    names, magnitude = input_layers(model), ranges.get(graph.network_shape(model).input_name, 0.0)
    layers = weighted_layers(graph.fixed_shape(model, (shape[0], shape[1], shape[2])))
    work = sum(layer.macs for layer in layers if layer.name in names)
    if not names or magnitude <= 0 or work > MOST_WORK * sum(layer.macs for layer in layers):
        return model, []
    return with_halves(model, dict.fromkeys(names, INPUT_MARGIN * magnitude / 127)), names
