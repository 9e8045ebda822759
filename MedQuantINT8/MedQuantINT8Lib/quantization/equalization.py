"""Cross-layer equalization: channels of one tensor get ranges that one scale serves, and the network computes the same.

After M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721), with
activations' ranges measured as in G. Xiao et al., "SmoothQuant" (arXiv 2211.10438). What makes a channel is divided by a
factor, and the convolutions that read it multiply their weights by it. Between them may stand whatever lets a positive
factor through: ReLU, leaky ReLU, PReLU, pooling, resizing, concatenation, addition. Behind a normalization its own
scale and shift are divided. An ELU, a GELU or another curve lets no factor through; channels behind one stay as they are here, and are
scaled by a multiplication of their own (:mod:`.channel_scales`).

Factors are powers of two, so that nothing is rounded: FP32's output stays the same to the last bit, as long as no value
leaves the range of floating point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models import onnx_graph as graph
from ..models import rewrites
from ..models.onnx_graph import Graph
from ..models.tensor_names import FreshNames
from .fp32_network import Fp32Network, ScaledTensors

Patch = NDArray[np.float32]
#: One channel of a tensor.
Channel = tuple[str, int]

#: A factor is at most 2 to this power, and at least its inverse.
MOST_POWER = 6
#: Operators of one input that let a positive factor of a channel through.
_HOMOGENEOUS = {
    *("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"),
}
#: Normalizations, whose inputs 1 and 2 are one value a channel that scales and shifts the output.
_NORMALIZATIONS = ("InstanceNormalization", "BatchNormalization")
#: Axes of output and input channels in the weight.
_AXES = {"Conv": (0, 1), "ConvTranspose": (1, 0)}


@dataclass
class _Group:
    """A group of channels that share one factor.

    Attributes:
        makers: nodes whose constants make such a channel, with the channel's number in their output.
        readers: convolutions that read one, with the channel's number in their input.
        fixed: whether something else makes or reads a channel, so that no factor is allowed.
    """

    makers: list[tuple[Any, int]] = field(default_factory=list)
    readers: list[tuple[Any, int]] = field(default_factory=list)
    fixed: bool = False


class _Sets:
    """Disjoint sets of channels (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Channel, Channel] = {}

    def find(self, channel: Channel) -> Channel:
        root = channel
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while (parent := self._parent.get(channel, channel)) != root:
            self._parent[channel] = root
            channel = parent
        return root

    def join(self, first: Channel, second: Channel) -> None:
        self._parent[self.find(first)] = self.find(second)


class _Groups:
    """Which channels of a network (fixed shapes) have to share a factor."""

    def __init__(self, model: Any) -> None:
        self._graph, self._sets = Graph(model), _Sets()
        self._groups: dict[Channel, _Group] = {}
        ends = {value.name for value in (*model.graph.input, *model.graph.output)}
        for node in self._graph.nodes:
            self._join(node)
        for node in self._graph.nodes:
            self._note(node)
        for name in ends:
            self._fix(name)

    def of(self, name: str, channel: int) -> tuple[Channel, _Group]:
        root = self._sets.find((name, channel))
        return root, self._groups.setdefault(root, _Group())

    def all(self) -> dict[Channel, _Group]:
        return self._groups

    def divisors(self, factors: dict[Channel, float]) -> dict[str, NDArray[np.float64]]:
        """What the channels of each tensor are divided by, (channels,), where it is not 1, from the factors of their groups."""
        names = [name for node in self._graph.nodes for name in node.output if self._width(name)]
        found = {
            name: np.array([factors.get(self._sets.find((name, channel)), 1.0) for channel in range(self._width(name))])
            for name in names
        }
        return {name: of_channels for name, of_channels in found.items() if (of_channels != 1.0).any()}

    def _width(self, name: str) -> int:
        shape = self._graph.shapes.get(name) or ()
        return int(shape[1]) if len(shape) > 2 else 0

    def _fix(self, name: str) -> None:
        for channel in range(self._width(name)):
            self.of(name, channel)[1].fixed = True

    def _tensors(self, node: Any) -> list[str]:
        return [name for name in node.input if name and not self._graph.is_constant(name)]

    def _passes(self, node: Any) -> bool:
        """Whether the node lets factors through from its tensors to its output, channel by channel."""
        tensors, width = self._tensors(node), self._width(node.output[0])
        if node.op_type == "Resize":
            # Its sizes may be computed from other tensors' shapes.
            tensors = tensors[:1]
        if not width or not tensors or any(not self._width(name) for name in tensors):
            return False
        if node.op_type == "Concat":
            return rewrites.attributes(node).get("axis") in (1, 1 - len(self._graph.shapes[node.output[0]])) and len(
                tensors
            ) == len(node.input)
        if node.op_type in ("Add", "Sub"):
            return len(tensors) == 2 and all(self._width(name) == width for name in tensors)
        if node.op_type == "Resize":
            # What is filled in from outside would keep its value.
            mode = rewrites.attributes(node).get("coordinate_transformation_mode", b"half_pixel")
            return tensors[0] == node.input[0] and mode != b"tf_crop_and_resize" and self._width(tensors[0]) == width
        return node.op_type in _HOMOGENEOUS and tensors == [node.input[0]] and self._width(tensors[0]) == width

    def _join(self, node: Any) -> None:
        if not self._passes(node):
            return
        tensors = self._tensors(node)
        if node.op_type == "Concat":
            start = 0
            for name in tensors:
                for channel in range(self._width(name)):
                    self._sets.join((name, channel), (node.output[0], start + channel))
                start += self._width(name)
            return
        for name in tensors if node.op_type in ("Add", "Sub") else tensors[:1]:
            for channel in range(self._width(name)):
                self._sets.join((name, channel), (node.output[0], channel))

    def _note(self, node: Any) -> None:
        if self._passes(node):
            return
        kind, output = node.op_type, node.output[0]
        if kind in ("Shape", "Size"):
            return
        known = [self._graph.array(name) is not None for name in node.input[1:] if name]
        if kind in _AXES and all(known) and rewrites.attributes(node).get("group", 1) == 1:
            for channel in range(self._width(output)):
                self.of(output, channel)[1].makers.append((node, channel))
            for channel in range(self._width(node.input[0])):
                self.of(node.input[0], channel)[1].readers.append((node, channel))
            return
        for name in self._tensors(node):
            self._fix(name)
        if kind in _NORMALIZATIONS and all(known):
            for channel in range(self._width(output)):
                self.of(output, channel)[1].makers.append((node, channel))
        else:
            for name in node.output:
                self._fix(name)


def channel_maxima(fp32: Any, patches: Iterable[Patch], shape: tuple[int, int, int]) -> dict[str, NDArray[np.float64]]:
    """Return the largest magnitude of each channel of each tensor that a convolution reads, by the tensor's name.

    Args:
        patches: (C, *shape) each.
    """
    return Fp32Network(fp32, shape).channel_maxima(patches)


def equalized_network(network: Fp32Network, patches: Iterable[Patch]) -> Fp32Network | None:
    """The network with channels of like ranges, by what it holds on the patches; None where there is nothing to change."""
    model, divisors = _equalized(network.model, network.channel_maxima(patches), network.shape)
    if model is None:
        return None
    sources = {name: (name, of_channels) for name, of_channels in divisors.items()}
    return Fp32Network(model, network.shape, ScaledTensors(network, sources))


def equalized(fp32: Any, maxima: dict[str, NDArray[np.float64]], shape: tuple[int, int, int]) -> Any:
    """A copy of the network that computes the same, with channels of like ranges; None where there is nothing to change.

    Args:
        maxima: of each channel of the tensors that are to be quantized (:meth:`.fp32_network.Fp32Network.channel_maxima`).
    """
    return _equalized(fp32, maxima, shape)[0]


def _equalized(
    fp32: Any, maxima: dict[str, NDArray[np.float64]], shape: tuple[int, int, int]
) -> tuple[Any, dict[str, NDArray[np.float64]]]:
    """The copy, or None; and by tensor, what its channels are divided by."""
    named_copy = rewrites.copied(fp32)
    fixed = graph.fixed_shape(named_copy, shape)
    if any(attribute.HasField("g") or attribute.graphs for node in fixed.graph.node for attribute in node.attribute):
        # The bodies of branches and loops may read any tensor.
        return None, {}
    groups = _Groups(fixed)
    columns = _weight_columns(fixed)
    factors = {
        root: _factor(group, maxima, columns)
        for root, group in groups.all().items()
        if not group.fixed and group.readers
    }
    scaled_groups = {root: (groups.all()[root], factor) for root, factor in factors.items() if factor != 1.0}
    if not scaled_groups:
        return None, {}
    divisors = groups.divisors({root: factor for root, (_, factor) in scaled_groups.items()})
    return _with_factors(named_copy, list(scaled_groups.values())), divisors


def _weight_columns(model: Any) -> dict[str, NDArray[np.float64]]:
    """For each convolution and input channel: its largest weight, as a share of the largest of the same output channel."""
    network, columns = Graph(model), {}
    for node in network.nodes:
        if node.op_type not in _AXES or (weight := network.array(node.input[1])) is None:
            continue
        largest = np.abs(weight.astype(np.float64)).max(axis=tuple(range(2, weight.ndim)))
        largest = largest if node.op_type == "Conv" else largest.T
        rows = largest.max(axis=1, keepdims=True)
        columns[node.name] = (largest / np.where(rows > 0, rows, 1)).max(axis=0)
    return columns


def _factor(group: _Group, maxima: dict[str, NDArray[np.float64]], columns: dict[str, NDArray[np.float64]]) -> float:
    """The power of two that brings the channel's share of its tensor's range nearest to its weights' share of theirs."""
    shares, weights = [], []
    for node, channel in group.readers:
        weights.append(columns[node.name][channel])
        if (maximum := maxima.get(node.input[0])) is not None and maximum.max() > 0:
            shares.append(maximum[channel] / maximum.max())
    share, weight = max(shares, default=0.0), max(weights)
    if share <= 0 or weight <= 0:
        return 1.0
    return float(2.0 ** np.clip(np.rint(np.log2(np.sqrt(share / weight))), -MOST_POWER, MOST_POWER))


def _with_factors(model: Any, factors: Sequence[tuple[_Group, float]]) -> Any:
    """A copy in which what makes a channel is divided by its group's factor, and what reads it is multiplied."""
    onnx = graph.require_onnx()
    copy = rewrites.copied(model)
    network, fresh = Graph(copy), FreshNames(copy)
    nodes = {node.name: node for node in copy.graph.node}
    arrays: dict[tuple[str, int], NDArray[Any]] = {}

    def constant(node: Any, position: int) -> NDArray[Any]:
        key = (node.name, position)
        if key not in arrays:
            arrays[key] = network.array(nodes[node.name].input[position]).copy()
        return arrays[key]

    for group, factor in factors:
        for node, channel in group.makers:
            if node.op_type in _AXES:
                np.moveaxis(constant(node, 1), _AXES[node.op_type][0], 0)[channel] /= np.float32(factor)
            else:
                constant(node, 1)[channel] /= np.float32(factor)
            if len(node.input) > 2 and node.input[2]:
                constant(node, 2)[channel] /= np.float32(factor)
        for node, channel in group.readers:
            np.moveaxis(constant(node, 1), _AXES[node.op_type][1], 0)[channel] *= np.float32(factor)
    for (name, position), array in arrays.items():
        new = fresh(f"{name}_input{position}_equalized")
        copy.graph.initializer.append(onnx.numpy_helper.from_array(array, new))
        nodes[name].input[position] = new
    return graph.pruned(copy)
