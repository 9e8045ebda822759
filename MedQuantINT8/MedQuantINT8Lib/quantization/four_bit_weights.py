"""Weights of 4 bits: the fewest bytes of weights with which a network holds the budget, on the way to fewer INT8 layers.

The ladder, step by step: weights of 4 bits with a factor for each group of about 128 of them, and learned positions of 4 bits too; finer
groups, and positions of 8 bits; weights of 8 bits in the layers
that lose most; and only where weights of 8 bits everywhere do not hold the budget either, what the accuracy guard does about that (two INT8
halves, float at last). So the guard searches a network with weights of 8 bits, and what it has found gets weights of 4 bits in turn: no
layer is in float, or in halves, that is not so with weights of 8 bits.

Weights of 4 bits are learned in any case (:mod:`.rounding`), for the inputs that the layers have in the end: exact ones where these are two
INT8 halves. So each network that is tried has weights of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from ..models import qdq, rewrites
from ..models.halves import halved_layers
from ..models.onnx_graph import Graph
from ..models.packed_constants import round_constants
from ..models.spec import ModelSpec
from ..models.weight_halves import drop_rests, layers_with_weight_halves
from ..progress import Task
from .accuracy_guard import OTHER_ENGINES, SHORTENED, measure_other_form
from .candidates import Form
from .effort import Learning
from .fp32_network import Fp32Network
from .guard_result import Budget, GuardResult
from .guard_search import AGREEMENT_STAGE, HELD_OUT_MARGIN, INPUT_STAGE, Verify
from .input_halves import wanted_error, with_input_halves
from .ladder import FEW
from .measurer import Measurement, Measurer
from .rounding import RoundingReport
from .search_time import SearchTime

#: The part of the budget that weights of 4 bits may lose on held-out scans where those of 8 miss it already: these are other scans for all.
_LESS = 0.1
#: What is not tried when the time is over, in words.
FINER_GROUPS, FOUR_BITS_ALONE = "finer groups of weights of 4 bits", "what weights of 4 bits cost layer by layer"
#: Excess of a budget that is no more than the last bits of a sum.
_NOTHING = 1e-9


@dataclass
class FourBitWeights:
    """Searches weights of 4 bits.

    Attributes:
        learning: of weights of 4 bits.
        verify: the agreement of a network on held-out scans; None where it is not asked for.
        time: that the search has; when it is over, only what has to be learned is.
    """

    learning: Learning
    measurer: Measurer
    spec: ModelSpec
    budget: Budget
    task: Task
    verify: Verify | None = None
    time: SearchTime = field(default_factory=SearchTime)

    def search(self, form: Form, find: Callable[[], tuple[Any, GuardResult]]) -> tuple[Any, GuardResult]:
        """Return the network with weights of 4 bits, and what it costs.

        Args:
            form: the network as ModelOpt places its pairs.
            find: the guard with weights of 8 bits.
        """
        if self.budget.fallback:
            spent = self.time.spent
            if (direct := self._of_plain(form)) is not None:
                return direct
            # The guard's search has the time that it would have without.
            self.time.seconds += self.time.spent - spent
        return self._lowered(*find())

    def _of_plain(self, form: Form) -> tuple[Any, GuardResult] | None:
        """The network as it is, with weights of 4 bits; None where it does not hold the budget."""
        eight = _EightBits(form.network, form.int8)
        for fine in (False, True):
            if fine and self.time.is_over(FINER_GROUPS):
                break
            model, report = eight.learned(self.learning, fine=fine)
            measurement = self._measure(model)
            result = GuardResult(self.budget, measurement, measurement, source=(form, report), form=self.measurer.form)
            if not result.judged:
                break
            if self._excess(measurement) <= 0:
                ranges = {name: histogram.maximum for name, histogram in form.histograms.items()}
                model = self._with_input_halves(model, result, ranges, form.network.shape)
                if self._holds_on_held_out(model, result.source, None):
                    measure_other_form(self.measurer, model, result, self.task)
                    return model, result
                # What patches of calibration do not show is the work of ranges, not of groups.
                break
            # Finer groups mend what weights lose, and no more: where weights of 8 bits lose too much, activations do.
            if not fine and self._excess(self._measure(eight.model)) > 0:
                break
        return None

    def _lowered(self, model: Any, result: GuardResult) -> tuple[Any, GuardResult]:
        """A network of the guard's with weights of 4 bits wherever these hold what it holds.

        Where nothing is known of what it loses, or nothing may be done about it, all layers get them.
        """
        form, rounding = result.source
        judged, known = result.judged and self.budget.fallback, list(self.time.left_out)
        eight = _EightBits(form.network, model)
        held_out = self.verify(model, result.source) if judged and self.verify is not None else None
        limit = self._excess(result.after) + _NOTHING if judged else math.inf
        best: tuple[Any, RoundingReport, Measurement] | None = None
        # Weights of 16 bits make a file large: 4 learned ones may do in their place.
        networks = [(_EightBits(form.network, _without_rests(model)), False)] if eight.fixed else []
        for network, fine in (*networks, (eight, False), (eight, True)):
            if fine and self.time.is_over(FINER_GROUPS):
                break
            four, report = network.learned(self.learning, fine=fine)
            measurement = self._measure(four)
            holds = self._excess(measurement) <= limit
            if holds and (not judged or self._holds_on_held_out(four, result.source, held_out)):
                return self._finished(four, report, measurement, result)
            if network is eight and (best is None or self._excess(measurement) < self._excess(best[2])):
                best = four, report, measurement
        assert best is not None
        mixed = self._fewest_of_eight_bits(eight, best, limit, (result.source, held_out))
        if left_out := self.time.left_out[len(known) :]:
            result.notes.append(SHORTENED.format(", ".join(left_out)))
        if mixed is None:
            # Not even one layer can have weights of 4 bits.
            return self._finished(model, rounding, result.after, result)
        return self._finished(*mixed, result)

    def _fewest_of_eight_bits(
        self,
        eight: _EightBits,
        learned: tuple[Any, RoundingReport, Measurement],
        limit: float,
        held_out: tuple[Any, float | None],
    ) -> tuple[Any, RoundingReport, Measurement] | None:
        """The network with weights of 8 bits in the fewest layers, those first that cost most with 4; None if that is all of them."""
        four, report, _ = learned
        order = self._by_cost(eight, four, report)
        other = {layer.name for layer in report.layers} - set(order)
        networks: dict[int, Any] = {}

        def at(count: int) -> Any:
            if count not in networks:
                networks[count] = eight.with_weights_of(four, {*order[count:], *other})
            return networks[count]

        def may_hold(count: int) -> bool:
            return self._excess(self._measure(at(count), FEW)) <= limit

        high, low = 1, 1
        with self.task.stage("finding the layers whose weights need 8 bits", 2 * max(1, len(order).bit_length())):
            while high < len(order) and not may_hold(high):
                low, high = high + 1, min(2 * high, len(order))
                self.task.step()
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if may_hold(middle) else (middle + 1, high)
                self.task.step()
            step = 1
            while high < len(order):
                measurement = self._measure(at(high))
                if self._excess(measurement) <= limit and self._holds_on_held_out(at(high), *held_out):
                    left = [layer for layer in report.layers if layer.name not in order[:high]]
                    return at(high), replace(report, layers=left), measurement
                high, step = high + step, 2 * step
        return None

    def _by_cost(self, eight: _EightBits, four: Any, report: RoundingReport) -> list[str]:
        """The layers with weights of 4 bits, the one first that costs most for each weight, by one patch each."""
        layers, sizes = [layer.name for layer in report.layers if layer.bits == 4], eight.weights()
        if self.time.is_over(FOUR_BITS_ALONE):
            # What learning has left of each layer's error is known already.
            costs = {layer.name: layer.after / sizes[layer.name] for layer in report.layers if layer.bits == 4}
            return sorted(costs, key=lambda name: -costs[name])
        plain, costs = self._measure(eight.model, 1), {}
        with self.task.stage("finding the layers that weights of 4 bits cannot hold", len(layers)):
            for name in layers:
                alone = self._measure(eight.with_weights_of(four, {name}), 1)
                lost = (plain.agreement or 0.0) - (alone.agreement or 0.0)
                # Errors decide where the agreement of one patch shows nothing.
                cost = max(0.0, lost) + max(0.0, alone.relative_error - plain.relative_error)
                costs[name] = cost / sizes[name]
                self.task.step()
        return sorted(costs, key=lambda name: -costs[name])

    def _finished(
        self, model: Any, report: RoundingReport | None, measurement: Measurement, result: GuardResult
    ) -> tuple[Any, GuardResult]:
        form, _ = result.source
        finished = replace(result, after=measurement, source=(form, report))
        # What the guard has said of engines of another kind was said of weights of 8 bits.
        said = tuple(OTHER_ENGINES.values())
        finished.notes = [note for note in finished.notes if not note.startswith(said)]
        # Where it was found that weights need no halves.
        network = Graph(model)
        halves, weights = halved_layers(network), layers_with_weight_halves(network)
        finished.halves = {
            name: why if name in weights else why.split("; its ")[0]
            for name, why in result.halves.items()
            if name in halves or name in weights
        }
        finished.to_be_timed = [*result.to_be_timed[:1], model] if result.to_be_timed else []
        measure_other_form(self.measurer, model, finished, self.task)
        return model, finished

    def _with_input_halves(self, model: Any, result: GuardResult, ranges: dict[str, float], shape: Any) -> Any:
        """The network with its input in two halves, where that costs little and does no harm."""
        other, layers = with_input_halves(model, ranges, shape)
        if not layers:
            return model
        with self.task.stage(INPUT_STAGE, self.measurer.patches):
            after, before = self.measurer.measure(other, task=self.task), result.after
        if self._excess(after) > self._excess(before) or after.relative_error > wanted_error(
            self.spec, before.relative_error
        ):
            return model
        result.after, result.to_be_timed = after, [model, other]
        result.halves = dict.fromkeys(layers, "the input, for scans that go beyond calibration")
        return other

    def _measure(self, model: Any, patches: int | None = None) -> Measurement:
        if patches is not None:
            return self.measurer.measure(model, patches)
        with self.task.stage(AGREEMENT_STAGE, self.measurer.patches):
            return self.measurer.measure(model, task=self.task)

    def _excess(self, measurement: Measurement) -> float:
        return self.budget.excess(measurement)

    def _holds_on_held_out(self, model: Any, source: Any, reached: float | None) -> bool:
        """Whether a network agrees on held-out scans as the budget asks; all but as the one with weights of 8 bits does (``reached``)
        where that misses it."""
        agreement = None if self.verify is None else self.verify(model, source)
        if agreement is None:
            return True
        allowed = 1 - self.budget.agreement
        wanted = self.budget.agreement + HELD_OUT_MARGIN * allowed
        return agreement >= (wanted if reached is None else min(wanted, reached - _LESS * allowed))


def _without_rests(model: Any) -> Any:
    """The network with one product in place of two where weights are halves."""
    copy = rewrites.copied(model)
    drop_rests(copy, list(layers_with_weight_halves(Graph(copy))))
    return copy


class _EightBits:
    """A network with weights of 8 bits, and those that it could have with 4.

    Attributes:
        model: the network, with constants rounded as they are stored (:func:`..models.packed_constants.round_constants`).
        fixed: layers whose weights are two halves; they stay as they are.
    """

    def __init__(self, fp32: Fp32Network, model: Any) -> None:
        self._fp32, self._exact = fp32, model
        self.model = self._rounded(8)
        graph = Graph(self.model)
        # What has 16 bits of weights needs more than 8.
        self.fixed = frozenset(layers_with_weight_halves(graph))
        self._halved = set(halved_layers(graph))

    def learned(self, learning: Learning, *, fine: bool) -> tuple[Any, RoundingReport]:
        """The network with weights of 4 bits, and what was done.

        Args:
            fine: whether groups are short, and tables that are added have 8 bits and not 4.
        """
        model = self.model if fine else self._rounded(4)
        # In halves an input is all but exact.
        base = qdq.without_quantization(model, self._halved) if self._halved else model
        learned = learning.learned(self._fp32, base, fine=fine, fixed=self.fixed)
        four = qdq.with_weights_of(model, learned.model, {layer.name for layer in learned.report.layers})
        # Biases that were learned; tables stay as they are, of 4 bits too.
        round_constants(four, table_bits=8 if fine else 4)
        return four, learned.report

    def _rounded(self, table_bits: int) -> Any:
        """The network with constants rounded as they are stored."""
        model = rewrites.copied(self._exact)
        round_constants(model, table_bits=table_bits)
        return model

    def with_weights_of(self, other: Any, layers: Collection[str]) -> Any:
        """The network with the weights and biases of another in the named layers."""
        return qdq.with_weights_of(self.model, other, layers)

    def weights(self) -> dict[str, int]:
        """The number of weights of each layer that has them stored."""
        graph = Graph(self.model)
        numbers = {}
        for node in graph.nodes:
            source = graph.producer.get(node.input[1]) if len(node.input) > 1 else None
            weight = None if source is None else graph.initializers.get(source.input[0])
            if weight is not None:
                numbers[node.name] = math.prod(weight.dims)
        return numbers
