"""An FP32 network on calibration patches: what its tensors hold and the scores that it gives, each patch run once.

Calibration asks for the largest magnitude of every quantized tensor, channel equalization for that of every channel, bias correction for
the channels' means, and the accuracy guard for the scores. All of them come out of one run of a patch, and are kept. Tensors are
reduced inside the network, so that none of them is copied out of the runtime.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.float_session import FloatSession, float_session, with_full_vectors
from ..errors import InputError
from ..imaging.patches import Patch
from ..models import onnx_graph as graph
from ..models import rewrites
from ..models.onnx_graph import Graph
from ..models.tensor_names import FreshNames

#: Slices of A0, A1, A2 of a patch; none for all of it.
Region = tuple[slice, ...]

#: Operators whose first input is a map of channels.
_MAP_READERS = ("Conv", "ConvTranspose")
#: Sides of boxes that maps are pooled over, the best first: the first that divides the map's own side is taken.
_SIDES = (4, 3, 5, 2, 7)
#: Values of tensors that are no maps that a runtime gives out in one run.
_MOST_VALUES = 1 << 28


@dataclass(frozen=True)
class TensorStatistics:
    """What a tensor held on one patch.

    Attributes:
        maxima: the largest magnitude of each channel, float64 (channels,); of a tensor that is no map of channels one value.
        means: the mean of each channel, likewise.
    """

    maxima: NDArray[np.float64]
    means: NDArray[np.float64]

    @property
    def maximum(self) -> float:
        """The largest magnitude of all."""
        return float(self.maxima.max(initial=0.0))


@dataclass(frozen=True)
class ScaledTensors:
    """How the tensors of a network come from those of another, which computes the same with other channels' scales.

    Attributes:
        network: the other.
        sources: by tensor, the other's tensor and what its channels are divided by, (channels,). What is not named is the same in both.
    """

    network: Fp32Network
    sources: Mapping[str, tuple[str, NDArray[np.float64]]]


def not_finite() -> InputError:
    """Return what is raised where a network gives values that are not finite."""
    return InputError(
        "The network gave values that are not finite on the calibration scans.",
        "Check the network and its normalization with --precision fp32.",
    )


class Fp32Network:
    """Runs an FP32 network on patches and remembers what came out.

    Statistics are kept of every patch, scores only of those that were asked for with :meth:`keep_scores`: scores of many classes are
    larger than the patch.

    Args:
        model: with node names. What its convolutions read is measured, and what is asked for beside it.
        shape: (A0, A1, A2) of the patches.
        scaled: what the network was made of by scaling channels with powers of two. What is known of that one on a patch is then known
            of this one too, and no patch is run again.
    """

    def __init__(self, model: Any, shape: tuple[int, int, int], scaled: ScaledTensors | None = None) -> None:
        self.model, self.shape, self._scaled = model, shape, scaled
        fixed = graph.fixed_shape(model, shape)
        self._widths = {name: sizes[1] for name, sizes in Graph(fixed).shapes.items() if len(sizes) > 2 and sizes[1]}
        self._fixed = with_full_vectors(fixed)
        self._tensors = {name for node in fixed.graph.node for name in node.output}
        self._input = graph.network_shape(self._fixed).input_name
        self._output = self._fixed.graph.output[0].name
        self._session: FloatSession | None = None
        self._measured = {node.input[0] for node in self._fixed.graph.node if node.op_type == "Conv"} - {self._input}
        self._measuring: _Measuring | None = None
        self._statistics: dict[bytes, dict[str, TensorStatistics]] = {}
        self._seconds: list[float] = []
        self._kept: set[bytes] = set()
        self._region: Region = ()
        self._scores: dict[bytes, NDArray[np.float32]] = {}

    def keep_scores(self, patches: Iterable[Patch], region: Region = ()) -> None:
        """Keep the scores of these patches, (C, A0, A1, A2) each, from their first run on.

        Args:
            region: the part of A0, A1, A2 that counts; by default all of it.
        """
        self._kept, self._region, self._scores = {_digest(patch) for patch in patches}, region, {}

    def statistics(self, patch: Patch, tensors: Sequence[str] | None = None) -> Mapping[str, TensorStatistics]:
        """Return what the network's input, and the inputs of its convolutions, hold on a patch (C, A0, A1, A2), by tensor.

        Args:
            tensors: further ones that are needed.

        Raises:
            InputError: values that are not finite.
        """
        if missing := set(tensors or ()) - self._measured - {self._input}:
            self._measured |= missing
            self._session = self._measuring = None
            self._statistics.clear()
        key = _digest(patch)
        if key not in self._statistics and not self._derive(patch, key):
            self._run(patch, key)
        return self._statistics[key]

    def scores(self, patch: Patch, region: Region = ()) -> NDArray[np.float32]:
        """Return the network's output (1, classes, A0, A1, A2) on a patch (C, A0, A1, A2), or a region of A0, A1, A2 of it."""
        if self._scaled is not None:
            return self._scaled.network.scores(patch, region)
        key = _digest(patch)
        if key in self._scores and region == self._region:
            return self._scores[key]
        scores: NDArray[np.float32] = self._timed_run([self._output], patch)[0]
        if key in self._kept:
            self._scores[key] = _part(scores, self._region)
        return _part(scores, region)

    @property
    def seconds_a_run(self) -> float:
        """The median time that a patch took in this network; 0 before the first one."""
        if self._scaled is not None:
            return self._scaled.network.seconds_a_run
        return float(np.median(self._seconds)) if self._seconds else 0.0

    def _timed_run(self, names: Sequence[str], patch: Patch) -> list[NDArray[Any]]:
        session, began = self._loaded(), time.perf_counter()
        values = session.run(names, {self._input: patch[None]})
        self._seconds.append(time.perf_counter() - began)
        return values

    def channel_maxima(self, patches: Iterable[Patch]) -> dict[str, NDArray[np.float64]]:
        """Return the largest magnitude of each channel of each tensor that a convolution reads, the network's input left out."""
        names = self._maps()
        maxima: dict[str, NDArray[np.float64]] = {}
        for patch in patches:
            statistics = self.statistics(patch)
            for name in names:
                maxima[name] = np.maximum(maxima.get(name, 0.0), statistics[name].maxima)
        return maxima

    def input_means(self, patches: Iterable[Patch]) -> dict[str, NDArray[np.float64]]:
        """Return the mean of each input channel of every convolution, by the convolution's name."""
        by_patch = [self.statistics(patch) for patch in patches]
        return {
            node.name: np.mean([statistics[node.input[0]].means for statistics in by_patch], axis=0)
            for node in self._convolutions()
        }

    def mean_squares(self, patches: Iterable[Patch]) -> dict[str, NDArray[np.float64]]:
        """Return the mean square of each channel of each tensor that a convolution reads, the network's input left out; runs the patches."""
        names = self._maps()
        if self._scaled is not None:
            squares = self._scaled.network.mean_squares(patches)
            sources = {name: self._source(name) for name in names}
            if all(source in squares for source, _ in sources.values()):
                return {name: squares[source] / divisors**2 for name, (source, divisors) in sources.items()}
        measuring = _Measuring(self._fixed, names, self._widths, squares=True)
        run = float_session(measuring.model.SerializeToString(), "fp32")
        outputs = [output for outputs in measuring.outputs.values() for output in outputs]
        by_patch = [
            measuring.statistics(dict(zip(outputs, run.run(outputs, {self._input: patch[None]}), strict=True)))
            for patch in (patches if outputs else ())
        ]
        return {name: np.mean([of_patch[name].means for of_patch in by_patch], axis=0) for name in names if by_patch}

    def _convolutions(self) -> list[Any]:
        return [node for node in self._fixed.graph.node if node.op_type == "Conv"]

    def _maps(self) -> set[str]:
        """The tensors that convolutions read, but for the network's input."""
        return {node.input[0] for node in self._convolutions()} - {self._input}

    def _source(self, name: str) -> tuple[str, NDArray[np.float64]]:
        """The tensor of the other network that a tensor is, and what its channels are divided by."""
        assert self._scaled is not None
        return self._scaled.sources.get(name) or (name, np.ones(1))

    def _derive(self, patch: Patch, key: bytes) -> bool:
        """Take a patch's statistics from the network that this one was made of; whether that tells all of them."""
        if self._scaled is None:
            return False
        other = self._scaled.network
        sources = {name: self._source(name) for name in (*self._measured, self._input)}
        if not all(other.knows(source) for source, _ in sources.values()):
            return False
        found = other.statistics(patch, [source for source, _ in sources.values()])
        # One value of a whole tensor says nothing of its channels.
        if any(divisors.size not in (1, found[source].maxima.size) for source, divisors in sources.values()):
            return False
        self._statistics[key] = {
            name: TensorStatistics(found[source].maxima / divisors, found[source].means / divisors)
            for name, (source, divisors) in sources.items()
        }
        return True

    def knows(self, name: str) -> bool:
        """Whether the network has a tensor of that name."""
        return name == self._input or name in self._tensors

    def _loaded(self) -> FloatSession:
        if self._session is None:
            self._measuring = _Measuring(self._fixed, self._measured, self._widths)
            self._session = float_session(self._measuring.model.SerializeToString(), "fp32")
        return self._session

    def _run(self, patch: Patch, key: bytes) -> None:
        self._loaded()
        assert self._measuring is not None
        kept = key in self._kept and key not in self._scores
        names = [name for names in self._measuring.outputs.values() for name in names]
        names += [self._output] if kept else []
        # An empty list of outputs would mean all of them.
        results = self._timed_run(names, patch) if names else []
        values = dict(zip(names, results, strict=True))
        if kept:
            self._scores[key] = _part(values[self._output], self._region)
        of_input = _statistics(np.abs(patch[None]).max(axis=(2, 3, 4)), patch[None].mean(axis=(2, 3, 4)))
        self._statistics[key] = {self._input: of_input, **self._measuring.statistics(values)}


def _part(scores: NDArray[np.float32], region: Region) -> NDArray[np.float32]:
    """A copy of the region where there is one: a view would keep all scores alive."""
    return scores[(slice(None), slice(None), *region)].copy() if region else scores


def _digest(patch: Patch) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(patch).data).digest()


def _statistics(maxima: NDArray[Any], means: NDArray[Any]) -> TensorStatistics:
    """Statistics of a tensor from the largest magnitudes and means of equal parts of it, (slices, channels, ...) each, or (1,) of the whole."""
    if not all(np.isfinite(values).all() for values in (maxima, means)):
        raise not_finite()
    axes = tuple(n for n in range(maxima.ndim) if n != 1) if maxima.ndim > 1 else ()
    return TensorStatistics(maxima.max(axis=axes).astype(np.float64), means.mean(axis=axes, dtype=np.float64))


class _Measuring:
    """A network that gives statistics of its tensors as further outputs.

    What a convolution reads is pooled by largest magnitude and mean over equal boxes that fill it, which costs a runtime next to nothing, and
    NumPy does the rest; reducing it at once costs as much as the network itself. Of any other tensor the runtime gives the
    values, as far as they fit the memory, and else reduces it.

    Args:
        widths: how many channels of a tensor count; those behind them were filled in.
        squares: the means are those of the squares.

    Attributes:
        outputs: of the network, by tensor: two of each, or the tensor alone.
    """

    def __init__(self, model: Any, tensors: Iterable[str], widths: Mapping[str, int], *, squares: bool = False) -> None:
        self.model, self._widths, self._squares = rewrites.copied(model), widths, squares
        self._network, self._fresh = Graph(self.model), FreshNames(self.model)
        # The copy has no noted shapes.
        self._shapes = Graph(model).shapes
        self._room = _MOST_VALUES
        self.outputs = {name: self._measured(name) for name in sorted(tensors)}
        present = {value.name for value in self.model.graph.output}
        for name in (name for names in self.outputs.values() for name in names if name not in present):
            self._value(name)

    def statistics(self, values: Mapping[str, NDArray[Any]]) -> dict[str, TensorStatistics]:
        """Return the statistics of each tensor from the values of all outputs."""
        return {name: self._of(name, [values[output] for output in outputs]) for name, outputs in self.outputs.items()}

    def _of(self, name: str, values: Sequence[NDArray[Any]]) -> TensorStatistics:
        values = [value[:, : self._widths.get(name)] if value.ndim > 2 else np.atleast_1d(value) for value in values]
        if len(values) == 1:
            (whole,) = values
            return _statistics(np.reshape(np.abs(whole).max(), (1,)), np.reshape(whole.mean(), (1,)))
        return _statistics(*values)

    def _measured(self, name: str) -> list[str]:
        """Add what measures a tensor; the names of the outputs."""
        shape = self._shapes.get(name) or []
        if any(n.op_type in _MAP_READERS and n.input[0] == name for n in self._network.readers.get(name, [])):
            if len(shape) < 3 or not all(shape):
                return self._two(name, "GlobalMaxPool", "GlobalAveragePool")
            boxes = [next((side for side in _SIDES if size % side == 0), 1) for size in shape[2:]]
            return self._two(name, "MaxPool", "AveragePool", kernel_shape=boxes, strides=boxes)
        if 0 < math.prod(shape or [0]) <= self._room:
            self._room -= math.prod(shape)
            return [name]
        return self._two(name, "ReduceMax", "ReduceMean", keepdims=0)

    def _two(self, name: str, maximum: str, mean: str, **options: Any) -> list[str]:
        largest = self._node(maximum, [self._node("Abs", [name])], **options)
        return [largest, self._node(mean, [self._node("Mul", [name, name]) if self._squares else name], **options)]

    def _node(self, operator: str, inputs: Sequence[str], **options: Any) -> str:
        onnx = graph.require_onnx()
        output: str = self._fresh(f"{inputs[0]}_{operator}")
        self.model.graph.node.append(onnx.helper.make_node(operator, inputs, [output], **options))
        return output

    def _value(self, name: str) -> None:
        onnx = graph.require_onnx()
        self.model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
