"""ONNX networks run by torch, on a GPU if it sees one, with the interface of an ONNX Runtime session.

For experiments on whole heads, which a processor simulates in minutes each. It computes Q/DQ pairs as they are written, in single precision without TF32, and knows
the operators of the pretrained networks and their like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TorchSession:
    """A loaded network.

    Args:
        model: serialized, of fixed shapes.
        precision: of ONNX Runtime's sessions; both kinds are computed as written.
    """

    def __init__(self, model: bytes, precision: str = "fp32") -> None:
        loaded = onnx.load_model_from_string(model)
        self._constants = {i.name: _tensor(numpy_helper.to_array(i)) for i in loaded.graph.initializer}
        self._nodes = list(loaded.graph.node)
        self._inputs = [value.name for value in loaded.graph.input if value.name not in self._constants]
        self._outputs = [value.name for value in loaded.graph.output]

    def get_inputs(self) -> Sequence[Any]:
        """Return the inputs, which know their names."""
        return [onnx.ValueInfoProto(name=name) for name in self._inputs]

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the named outputs, or all of them in their order."""
        wanted = self._outputs if names is None else list(names)
        values = self._computed(wanted, {name: _tensor(value) for name, value in inputs.items()})
        return [values[name].cpu().numpy() for name in wanted]

    def labels(self, volume: np.ndarray) -> np.ndarray:
        """Return the class of the largest score of a volume (C, A0, A1, A2); the scores stay where they are."""
        values = self._computed(self._outputs, {self._inputs[0]: _tensor(volume[None].astype(np.float32))})
        return values[self._outputs[0]].argmax(1)[0].to(torch.int16).cpu().numpy()

    @torch.no_grad()
    def _computed(self, wanted: Sequence[str], inputs: dict[str, Any]) -> dict[str, Any]:
        needed, nodes = set(wanted), []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(name for name in node.input if name)
        readers = Counter(name for node in nodes for name in node.input) + Counter(wanted)
        values = self._constants | inputs
        for node in reversed(nodes):
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = _OPERATORS[node.op_type](attributes, *(values.get(name) for name in node.input))
            readers.subtract(node.input)
            for name in node.input:
                if name not in self._constants and readers[name] <= 0:
                    values.pop(name, None)
        return values


def _tensor(array: np.ndarray) -> Any:
    return torch.from_numpy(np.array(array)).to(DEVICE)


def _quantize(_: dict[str, Any], x: Any, scale: Any, zero: Any) -> Any:
    low, high = (0, 255) if zero.dtype == torch.uint8 else (-128, 127)
    return torch.clamp(torch.round(x / scale) + zero.float(), low, high).to(zero.dtype)


def _dequantize(attributes: dict[str, Any], x: Any, scale: Any, zero: Any = None) -> Any:
    if scale.numel() > 1:
        shape = [1] * x.dim()
        shape[attributes.get("axis", 1)] = -1
        scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
    return (x.float() if zero is None else x.float() - zero.float()) * scale


def _convolution(attributes: dict[str, Any], x: Any, weight: Any, bias: Any = None) -> Any:
    axes = weight.dim() - 2
    pads = list(attributes.get("pads", [0] * 2 * axes))
    assert axes == 3, "only 3D convolutions"
    if pads[:axes] != pads[axes:]:
        x = functional.pad(x, [n for axis in reversed(range(axes)) for n in (pads[axis], pads[axis + axes])])
        pads = [0] * 2 * axes
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    return functional.conv3d(x, weight, bias, strides, pads[:axes], dilations, attributes.get("group", 1))


def _transposed(attributes: dict[str, Any], x: Any, weight: Any, bias: Any = None) -> Any:
    pads = list(attributes.get("pads", [0] * 6))
    assert pads[:3] == pads[3:], "only transposed convolutions of equal margins"
    strides, more = attributes.get("strides", [1] * 3), attributes.get("output_padding", [0] * 3)
    dilations = attributes.get("dilations", [1] * 3)
    return functional.conv_transpose3d(x, weight, bias, strides, pads[:3], more, attributes.get("group", 1), dilations)


def _slice(attributes: dict[str, Any], x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    assert steps is None or bool((steps == 1).all()), "only slices of neighbors"
    index = [slice(None)] * x.dim()
    for axis, start, end in zip(range(len(starts)) if axes is None else axes.tolist(), starts, ends, strict=True):
        index[axis] = slice(int(start), int(end))
    return x[tuple(index)]


def _resize(attributes: dict[str, Any], x: Any, region: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    if sizes is None:
        size = [int(n * float(factor)) for n, factor in zip(x.shape[2:], scales[2:], strict=True)]
    else:
        size = [int(n) for n in sizes[2:]]
    if attributes.get("mode", b"nearest") == b"nearest":
        return functional.interpolate(x, size=size, mode="nearest")
    corners = attributes.get("coordinate_transformation_mode") == b"align_corners"
    return functional.interpolate(x, size=size, mode="trilinear", align_corners=corners)


def _pool(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, x: function(x, a["kernel_shape"], a.get("strides", [1] * 3))


def _spatial(x: Any) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


_OPERATORS: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _convolution,
    "Relu": lambda a, x: functional.relu(x),
    "Elu": lambda a, x: functional.elu(x, a.get("alpha", 1.0)),
    "InstanceNormalization": lambda a, x, scale, bias: functional.instance_norm(
        x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5)
    ),
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Erf": lambda a, x: torch.erf(x),
    "Neg": lambda a, x: -x,
    "Abs": lambda a, x: x.abs(),
    "ConvTranspose": _transposed,
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, a.get("alpha", 0.01)),
    "PRelu": lambda a, x, slope: torch.where(x < 0, x * slope, x),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Round": lambda a, x: x.round(),
    "Clip": lambda a, x, low, high: x.clamp(float(low), float(high)),
    "Identity": lambda a, x: x,
    "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "Shape": lambda a, x: torch.tensor(x.shape, device=DEVICE),
    "Slice": _slice,
    "Resize": _resize,
    "Constant": lambda a: _tensor(numpy_helper.to_array(a["value"])),
    "Cast": lambda a, x: x.float(),
    "MaxPool": _pool(functional.max_pool3d),
    "AveragePool": _pool(functional.avg_pool3d),
    "GlobalMaxPool": lambda a, x: x.amax(_spatial(x), keepdim=True),
    "GlobalAveragePool": lambda a, x: x.mean(_spatial(x), keepdim=True),
}


class TorchDistance:
    """As :class:`MedQuantINT8Lib.engines.fidelity.Distance`, computed by torch: of many classes NumPy takes seconds for each patch.

    Args:
        labels: gives the labels of scores.
    """

    def __init__(self, labels: Callable[[np.ndarray], np.ndarray]) -> None:
        self._labels = labels
        self._squares = self._reference = 0.0
        self._other = self._voxels = 0

    def add(self, output: np.ndarray, reference: np.ndarray) -> None:
        """Count the scores (N, channels, A0, A1, A2) of one patch."""
        ours, theirs = _tensor(output), _tensor(reference)
        self._squares += float((ours - theirs).double().square().sum())
        self._reference += float(theirs.double().square().sum())
        found, expected = self._labels(output), self._labels(reference)
        self._other += int((found != expected).sum())
        self._voxels += found.size

    @property
    def relative_error(self) -> float:
        """The norm of the difference over that of the reference."""
        return float(np.sqrt(self._squares / max(self._reference, 1e-30)))


def torch_labels_of(output: Any) -> Callable[[np.ndarray], np.ndarray]:
    """As :func:`MedQuantINT8Lib.engines.fidelity.labels_of`, with the class of the largest score found by torch."""
    from MedQuantINT8Lib.engines.fidelity import labels_of

    if output.activation != "softmax":
        return labels_of(output)
    return lambda scores: _tensor(scores).argmax(1).cpu().numpy()


def use_torch() -> None:
    """Let what quantizes networks run them, and compare their scores, by torch from now on."""
    from MedQuantINT8Lib.quantization import (
        activation_ranges,
        fp32_network,
        held_out,
        measurer,
        quantize,
        rounding,
        score_agreement,
        stepwise,
    )

    for module in (activation_ranges, fp32_network, held_out, measurer):
        module.float_session = TorchSession
    for other in (rounding, stepwise):
        other.session = TorchSession
    for user in (measurer, quantize, score_agreement):
        user.labels_of = torch_labels_of
    measurer.Distance = TorchDistance
