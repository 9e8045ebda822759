"""Learned rounding: weights of an INT8 network chosen by what a layer computes of its inputs, not each by itself.

Layer by layer, in the order of the network, with calibration patches and without labels. A layer's inputs X are those of the
quantized network as far as it is learned, its targets Y what FP32 computes there (M. Nagel et al., "Up or Down? Adaptive Rounding
for Post-Training Quantization", arXiv 2004.10568, call that asymmetric). At sampled output voxels both are matrices, and the
layer's error is a quadratic form of its weights with the matrix H of the inputs' second moments. So there is no need to
descend by gradients as AdaRound and BRECQ do:

1. The best float weights W* for these inputs, pulled towards FP32's where the samples say little, solve a linear system.
2. W* is rounded input by input, each taking on what the ones before it lost (E. Frantar et al., "GPTQ", arXiv 2210.17323, in
   the form of J. Chee et al., "QuIP", arXiv 2307.13304, with one Cholesky factor).
3. Single weights then move to the best value of the grid that the others leave them, some times over (K. Behdin et al.,
   "QuantEase", arXiv 2309.01885); each move lowers the error.

It is deterministic and takes seconds a layer on two cores. What was learned is kept for an output channel only where it is nearer to
FP32 at voxels that were not learned from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.float_session import float_session
from ..engines.onnxruntime import session
from ..models import onnx_graph as graph
from ..models import rewrites
from ..models.engine_form import SYMMETRIC, EngineForm
from ..models.layers import WEIGHTED_OPS
from ..models.onnx_graph import Graph
from ..models.tensor_names import FreshNames
from ..progress import Task
from .group_rounding import LayerStart, LearnedGroup, learn_group
from .label_borders import label_borders, largest_score
from .layer_matrix import LayerMatrix
from .quadratic_rounding import device
from .stepwise import StepwiseRun, is_plain

Array = NDArray[Any]
Patch = NDArray[np.float32]

#: Of the sampled inputs of one layer.
_MOST_BYTES = 1 << 29


@dataclass(frozen=True)
class RoundingOptions:
    """The options of learned rounding.

    Attributes:
        weight_bits: 8 or 4.
        eight_bits: layers (node names) whose weights have 8 bits all the same.
        fine: whether groups of weights of 4 bits that share a factor are short (:func:`..models.four_bit.group_length`).
        fixed: layers that are not learned: their weights stay as they are.
        samples: output voxels a layer, for each input of it; at least ``least_samples``.
        focus: the share of them that lie where FP32's labels meet: the rest are mostly background, which decides nothing.
        seconds: after which no further layer is begun; the rest stay rounded to nearest.
    """

    weight_bits: int = 8
    eight_bits: frozenset[str] = frozenset()
    fine: bool = False
    fixed: frozenset[str] = frozenset()
    samples: float = 2.0
    least_samples: int = 4096
    focus: float = 0.5
    seconds: float = 600.0
    seed: int = 0


@dataclass(frozen=True)
class LearnedLayer:
    """What learned rounding did to a layer.

    Attributes:
        bits: of its weights.
        before, after: mean square error to FP32's output over its mean square about the mean, at voxels that were not learned
            from, with weights rounded to nearest and as they are now.
        channels: output channels that were changed.
        samples: output voxels that it was learned from.
    """

    name: str
    bits: int
    before: float
    after: float
    channels: int
    samples: int


@dataclass
class RoundingReport:
    """What learned rounding did.

    Attributes:
        layers: in the order of the network.
        left: layers that were not learned, and why.
        seconds: that it took.
        device: where it was computed.
    """

    layers: list[LearnedLayer] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    device: str = "cpu"

    @property
    def sentence(self) -> str:
        """What was done, in words."""
        before, after = (
            float(np.mean([getattr(layer, name) for layer in self.layers] or [0.0])) for name in ("before", "after")
        )
        left = f"; {len(self.left)} stayed rounded to nearest" if self.left else ""
        return (
            f"learned how to round the weights of {len(self.layers)} layer(s) in {self.seconds:.0f} s{left}; "
            f"their mean square error fell from {before:.2g} to {after:.2g} of the output's variance"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def with_learned_rounding(
    fp32: Any,
    int8: Any,
    patches: Sequence[Patch],
    options: RoundingOptions = RoundingOptions(),
    task: Task | None = None,
    *,
    borders: Callable[[Patch], Array] | None = None,
    form: EngineForm = SYMMETRIC,
) -> tuple[Any, RoundingReport]:
    """Return a copy of an INT8 network with learned weights and biases, and what was done.

    Args:
        fp32: the network that it was made of; layers have the same names.
        patches: (C, A0, A1, A2) each, all of one size.
        borders: gives the places of a patch where FP32's labels meet (:func:`.label_borders.label_borders`); by default those of the class
            of the largest score, for which the network is run.
        form: of the engine that will run the network, whose activations weights make up for.
    """
    learner = _Learner(fp32, int8, patches, options, task or Task(), form)
    return learner.learn(borders)


class _Learner:
    def __init__(
        self,
        fp32: Any,
        int8: Any,
        patches: Sequence[Patch],
        options: RoundingOptions,
        task: Task,
        form: EngineForm,
    ) -> None:
        shape = patches[0].shape[1:]
        self._result = rewrites.copied(int8)
        self._fp32 = graph.fixed_shape(fp32, shape)
        self._int8 = graph.fixed_shape(form.activations_of(int8), shape)
        self._patches, self._options, self._task = patches, options, task
        self._report = RoundingReport(device=str(device()))

    def learn(self, borders: Callable[[Patch], Array] | None) -> tuple[Any, RoundingReport]:
        started = time.perf_counter()
        layers = [node for node in self._int8.graph.node if node.op_type in WEIGHTED_OPS]
        if not (is_plain(self._fp32) and is_plain(self._int8)):
            self._report.left = {node.name: "the network has branches or loops" for node in layers}
            return self._result, self._report
        # Few steps are chosen by the last bits of what is computed: 4 bits stay with the runtime that they were measured with.
        load = session if self._options.weight_bits == 4 else float_session
        self._exact = StepwiseRun(self._fp32, "fp32", self._patches, load)
        self._quantized = StepwiseRun(self._int8, "int8", self._patches, load)
        self._borders = [(borders or self._borders_of)(patch) for patch in self._patches]
        with self._task.stage("learning how to round weights", len(layers)):
            for number, node in enumerate(layers):
                if time.perf_counter() - started > self._options.seconds:
                    self._report.left |= {
                        other.name: "the time that learning may take was over" for other in layers[number:]
                    }
                    break
                reason = self._learn_layer(node, number)
                if reason:
                    self._report.left[node.name] = reason
                self._task.step()
        self._report.seconds = time.perf_counter() - started
        return graph.pruned(self._result), self._report

    def _borders_of(self, patch: Patch) -> Array:
        """The places where the network's own labels meet on a patch."""
        run = float_session(self._fp32.SerializeToString(), "fp32")
        scores = run.run(None, {graph.network_shape(self._fp32).input_name: patch[None]})[0]
        return label_borders(scores, largest_score)

    def _learn_layer(self, node: Any, number: int) -> str:
        """Learn one layer; why not, in words, where it stays as it is."""
        if node.name in self._options.fixed:
            return "its weights are two halves"
        network, exact = Graph(self._int8), Graph(self._fp32)
        original = next((other for other in exact.nodes if other.name == node.name), None)
        dequantize = network.producer.get(node.input[1])
        if original is None or dequantize is None or dequantize.op_type != "DequantizeLinear":
            return "its weight is not stored as INT8"
        integers, scale = (network.array(name) for name in dequantize.input[:2])
        weight = exact.array(original.input[1])
        if integers is None or scale is None or weight is None or weight.shape != integers.shape:
            return "its weight is not that of FP32"
        if len(network.readers[node.input[1]]) > 1 or len(network.readers[dequantize.input[0]]) > 1:
            return "another layer has the same weight"
        layer = LayerMatrix.of(network, node, weight.shape)
        if layer is None or scale.size not in (1, weight.shape[layer.channel_axis]):
            return "an operator whose weights cannot be learned"
        bias = self._bias(network, node, weight.shape[layer.channel_axis]) if layer.has_bias() else None
        if bias is None and layer.has_bias():
            return "its bias is no constant"
        bits = 8 if node.name in self._options.eight_bits else self._options.weight_bits
        columns, targets = self._samples(layer, node, original, number)
        matrix = layer.matrix(weight).astype(np.float64)
        start = LayerStart(
            matrix, layer.matrix(integers), np.broadcast_to(scale.reshape(-1), len(matrix)), bias, layer.taps
        )
        result = [
            learn_group(part, columns[:, reads], targets[:, rows], bits, fine=self._options.fine)
            for part, rows, reads in start.parts(layer.groups, columns.shape[1])
        ]
        self._write(layer, node, dequantize, result)
        errors = np.concatenate([part.errors for part in result], 1)
        self._report.layers.append(
            LearnedLayer(
                node.name,
                bits,
                float(errors[0].sum() / max(errors[2].sum(), 1e-30)),
                float(errors[1].sum() / max(errors[2].sum(), 1e-30)),
                int(sum(part.changed.sum() for part in result)),
                len(columns),
            )
        )
        return ""

    def _samples(self, layer: LayerMatrix, node: Any, original: Any, number: int) -> tuple[Array, Array]:
        """Columns of the quantized network's input at sampled outputs (samples, inputs), and FP32's outputs there."""
        inputs = self._quantized.tensor(node.input[0])
        outputs = self._exact.tensor(original.output[0])
        width = int(np.prod(layer.shape)) // layer.shape[layer.channel_axis] * layer.groups
        wanted = max(self._options.least_samples, int(self._options.samples * width / layer.groups))
        wanted = min(wanted, _MOST_BYTES // (4 * width))
        share = -(-wanted // len(self._patches))
        random = np.random.default_rng((self._options.seed, number))
        parts = []
        for source, output, places in zip(inputs, outputs, self._borders, strict=True):
            parts.append(layer.sample(source, output, self._chosen(layer, output, share, places, random)))
        order = random.permutation(sum(len(columns) for columns, _ in parts))
        return tuple(np.concatenate([part[n] for part in parts])[order] for n in (0, 1))  # type: ignore[return-value]

    def _chosen(self, layer: LayerMatrix, output: Array, count: int, places: Array, random: Any) -> Array:
        """Numbers of sampled outputs: a part of them where FP32's labels meet, the rest anywhere."""
        available = layer.outputs(output)
        focus = (
            int(self._options.focus * count)
            if len(places) and layer.is_convolution and output.ndim == 5 and output.shape[0] == 1
            else 0
        )
        chosen = (
            random.permutation(available)[: count - focus]
            if available < 1 << 24
            else random.integers(0, available, count - focus)
        )
        if not focus:
            return chosen
        size = np.array(output.shape[2:])
        near = (places[random.integers(0, len(places), focus)] * size).astype(int)
        near = np.clip(near, 0, size - 1)
        return np.concatenate([chosen, np.ravel_multi_index(tuple(near.T), output.shape[2:])])

    @staticmethod
    def _bias(network: Graph, node: Any, channels: int) -> Array | None:
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros(channels)
        bias = network.array(node.input[2])
        return None if bias is None else np.broadcast_to(bias.astype(np.float64).reshape(-1), channels)

    def _write(self, layer: LayerMatrix, node: Any, dequantize: Any, result: list[LearnedGroup]) -> None:
        """Put the weights and the bias into both the network that is run on and the one that is returned."""
        onnx = graph.require_onnx()
        weight = layer.weight(np.concatenate([part.int8 for part in result]))
        scale = np.concatenate([part.scale for part in result]).astype(np.float32)
        bias = np.concatenate([part.bias for part in result]).astype(np.float32)
        for model in (self._int8, self._result):
            fresh = FreshNames(model)
            own_node = next(other for other in model.graph.node if other.output[0] == node.output[0])
            own = next(other for other in model.graph.node if other.output[0] == dequantize.output[0])
            arrays = [weight, scale, np.zeros(scale.shape, np.int8)]
            names = [fresh(f"{node.name}_learned_{part}") for part in ("weight", "scale", "zero")]
            own.input[:] = names
            del own.attribute[:]
            own.attribute.append(onnx.helper.make_attribute("axis", layer.channel_axis))
            if layer.has_bias():
                names.append(fresh(f"{node.name}_learned_bias"))
                arrays.append(bias)
                del own_node.input[2:]
                own_node.input.append(names[-1])
            for name, array in zip(names, arrays, strict=True):
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
