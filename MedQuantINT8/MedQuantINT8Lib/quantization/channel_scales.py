"""Scales for each channel of an activation, where engines have one for the whole tensor: an exact multiplication before it is quantized.

Cross-layer equalization (:mod:`.equalization`) moves a channel's factor into what makes the channel. An ELU, a GELU or another curve lets no
factor through. Behind one a multiplication stands here, ``Mul(x, 1 / f)`` with a factor for each channel, and the convolutions that read x
multiply their weights by it. Engines compute it where they round x anyway. Factors are powers of two, so that FP32's output stays the same to
the last bit.

The factors are those of least error at the convolutions' outputs. Rounding a tensor of the range r = max(m / f) to 127 steps adds noise of the
power r^2 f^2 w^2 through each weight w of a channel; rounding the weights, whose largest is max(f w) for an output channel, adds its square times
the channel's mean square over f^2. With small factors the first vanishes and the second grows, and the other way round. (SmoothQuant, G. Xiao et
al., arXiv 2211.10438, takes the square root of the ratio of both ranges instead.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..imaging.patches import Patch
from ..models import onnx_graph as graph
from ..models import rewrites
from ..models.onnx_graph import Graph
from ..models.tensor_names import FreshNames
from .equalization import MOST_POWER
from .fp32_network import Fp32Network, ScaledTensors

Array = NDArray[np.float64]

#: What the noise of rounded weights counts, beside that of rounded activations: bias correction and learned rounding take much of it away.
_WEIGHT_SHARE = 0.25
#: A tensor is scaled only where that leaves at most this part of its noise.
_LEAST_GAIN = 0.8
#: Weights' pairs of channels up to which single factors are searched; larger layers take the best of the starts, which follow the ranges.
_MOST_PAIRS, _MOST_SWEEPS = 1 << 16, 20
#: Starts of the search: powers of the channel's share of the tensor's range.
_STARTS = (0.0, 0.5, 0.75, 1.0)
#: Channels that hold nothing have a range and a mean square of this part of the largest.
_LEAST = 1e-6


@dataclass(frozen=True)
class ChannelRange:
    """What the channels of a tensor hold.

    Attributes:
        maximum: the largest magnitude of each.
        mean_square: of each.
    """

    maximum: NDArray[np.float64]
    mean_square: NDArray[np.float64]


def channel_ranges(network: Fp32Network, patches: Sequence[Patch]) -> dict[str, ChannelRange]:
    """Return what the channels of each tensor hold that a convolution reads, but for the network's input, by the tensor's name.

    Args:
        patches: (C, A0, A1, A2) each, of the network's shape.
    """
    maxima, squares = network.channel_maxima(patches), network.mean_squares(patches)
    return {name: ChannelRange(maxima[name], square) for name, square in squares.items()}


@dataclass(frozen=True)
class _Reader:
    """A convolution that reads a tensor.

    Attributes:
        largest: of its weights, (output channels, input channels).
        power: the sum of the squares of the weights that read a channel, (input channels,).
        taps: weights of an output channel that read the same input channel.
    """

    largest: Array
    power: Array
    taps: int


def scaled_network(network: Fp32Network, patches: Sequence[Patch]) -> Fp32Network | None:
    """Return the network with channel scales by what it holds on the patches; None where there is nothing to gain."""
    model, factors = with_channel_scales(network.model, channel_ranges(network, patches))
    if model is None:
        return None
    sources = {output: (name, divisors.astype(np.float64)) for name, (output, divisors) in factors.items()}
    return Fp32Network(model, network.shape, ScaledTensors(network, sources))


def with_channel_scales(
    fp32: Any, ranges: Mapping[str, ChannelRange]
) -> tuple[Any, dict[str, tuple[str, NDArray[np.float32]]]]:
    """Return a copy of the network that computes the same, in which convolutions read tensors of like channels.

    Args:
        ranges: of the channels of tensors that convolutions read (:func:`channel_ranges`).

    Returns:
        The copy, or None where there is nothing to gain; and by tensor that is divided, the result and what its channels are divided by.
    """
    onnx = graph.require_onnx()
    copy = rewrites.copied(fp32)
    network, fresh = Graph(copy), FreshNames(copy)
    scaled: dict[str, tuple[str, NDArray[np.float32]]] = {}
    behind: dict[str, list[Any]] = {}
    for name, of_channels in ranges.items():
        nodes = [node for node in network.readers.get(name, []) if node.op_type == "Conv" and node.input[0] == name]
        if not nodes or not all(_is_plain(network, node) for node in nodes) or name not in network.producer:
            continue
        factors = channel_factors(of_channels, [_reader(network.array(node.input[1])) for node in nodes])
        if factors is None:
            continue
        inverse, output = fresh(f"{name}_channel_scales"), fresh(f"{name}_scaled")
        axes = network.array(nodes[0].input[1]).ndim - 2
        values = (1 / factors).reshape(1, -1, *[1] * axes).astype(np.float32)
        copy.graph.initializer.append(onnx.numpy_helper.from_array(values, inverse))
        multiplication = onnx.helper.make_node("Mul", [name, inverse], [output], name=f"{output}_Mul")
        behind.setdefault(network.producer[name].output[0], []).append(multiplication)
        scaled[name] = output, factors.astype(np.float32)
    if not scaled:
        return None, {}
    nodes = []
    for node in copy.graph.node:
        if node.op_type == "Conv" and node.input[0] in scaled:
            output, of_inputs = scaled[node.input[0]]
            weight = network.array(node.input[1])
            own = fresh(f"{node.name}_input1_scaled")
            array = weight * of_inputs.reshape(1, -1, *[1] * (weight.ndim - 2))
            copy.graph.initializer.append(onnx.numpy_helper.from_array(array, own))
            node.input[:2] = [output, own]
        nodes += [node, *behind.get(node.output[0], [])]
    kept = [_copied(node) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return graph.pruned(copy), scaled


def _copied(node: Any) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


def _is_plain(network: Graph, node: Any) -> bool:
    """Whether a convolution's weight is a constant, with all input channels for each output channel."""
    return network.array(node.input[1]) is not None and rewrites.attributes(node).get("group", 1) == 1


def _reader(weight: NDArray[np.float32]) -> _Reader:
    flat = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    return _Reader(np.abs(flat).max(axis=2), (flat**2).sum(axis=(0, 2)), flat.shape[2])


def channel_factors(ranges: ChannelRange, readers: Sequence[_Reader]) -> Array | None:
    """Return the powers of two, one for each channel, with the least noise at the readers' outputs; None where they gain too little."""
    largest, squares = ranges.maximum, ranges.mean_square
    if largest.max() <= 0 or any(not reader.power.any() for reader in readers):
        return None
    largest, squares = np.maximum(largest, _LEAST * largest.max()), np.maximum(squares, _LEAST * squares.max())
    before = [_noise(np.ones(len(largest)), largest, squares, reader) for reader in readers]

    def noise(powers: Array) -> float:
        factors = 2.0**powers
        return sum(
            _noise(factors, largest, squares, reader) / old for reader, old in zip(readers, before, strict=True)
        ) / len(readers)

    share = np.log2(largest / largest.max())
    starts = [np.clip(np.rint(power * share), -MOST_POWER, 0) for power in _STARTS]
    best = min(starts, key=noise)
    if sum(reader.largest.size for reader in readers) <= _MOST_PAIRS:
        best = min((_descended(start, noise) for start in starts), key=noise)
    if noise(best) > _LEAST_GAIN:
        return None
    # A common factor changes nothing: the tensor's range stays about where it is.
    return np.asarray(2.0 ** (best - best.max()))


def _noise(factors: Array, largest: Array, squares: Array, reader: _Reader) -> float:
    """The noise of a convolution's outputs by rounding its input and its weights, but for a constant."""
    of_input = (largest / factors).max() ** 2 * (factors**2 * reader.power).sum()
    of_weights = ((factors * reader.largest).max(axis=1) ** 2).sum() * reader.taps * (squares / factors**2).sum()
    return float(of_input + _WEIGHT_SHARE * of_weights)


def _descended(powers: Array, noise: Any) -> Array:
    """Move one channel's power after the other while that lowers the noise."""
    powers, least = powers.copy(), noise(powers)
    for _ in range(_MOST_SWEEPS):
        moved = False
        for channel in range(len(powers)):
            for step in (-1.0, 1.0):
                other = powers.copy()
                other[channel] += step
                if abs(other[channel]) <= MOST_POWER and (value := noise(other)) < least:
                    powers, least, moved = other, value, True
        if not moved:
            break
    return powers
