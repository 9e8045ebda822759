"""The way from a first INT8 network to the one that holds the budget: what the accuracy guard (:mod:`.accuracy_guard`) searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..models.spec import ModelSpec
from ..progress import Task
from .fp32_network import Fp32Network
from .guard_result import Budget, GuardResult
from .input_halves import wanted_error, with_input_halves
from .ladder import FEW, Base, Goal, Ladder, Point
from .measurer import Measurement, Measurer
from .search_time import SearchTime

#: Dice beyond the budget that a single layer, or all of them together, lose where their inputs are the cause: rounding weights otherwise
#: makes up for less.
HOPELESS = 0.05

#: The part of the agreement's budget that a cure leaves over where it can: on a scan that was never seen a network agrees a little less than
#: on the patches that it was chosen by.
MARGIN = 0.2
#: Searches for a network that holds on held-out scans as well, after the first; the largest part of the budget that they leave over, and what
#: they add to the part that was missed there.
MORE_SEARCHES, MOST_MARGIN, _ADDED = 2, 0.9, 0.1
#: The part of the budget that is left over on held-out scans, where it can be: one that just holds there is missed on every other new scan.
HELD_OUT_MARGIN = 0.05

#: The stages of a guard whose budget holds at once: each runs INT8 on all patches, the first once or twice.
AGREEMENT_STAGE = "checking the agreement with FP32"
INPUT_STAGE = "checking the agreement with the input in halves"

#: What is not tried when the time is over, in words.
OTHER_WAYS = "other ways of making the INT8 network"
OTHER_SEARCHES = "another search for what was missed on held-out scans"


@dataclass(frozen=True)
class Candidate:
    """An INT8 network with the FP32 network that it was made of.

    Attributes:
        network: ``fp32`` with what is known of it on patches, where there is such a thing.
        corrected: ``int8`` with corrected biases, which is taken if it is nearer to FP32; or None.
        ranges: largest magnitude of each quantized tensor in calibration, for the halves of it.
        equalized: whether it was made of the network with equalized channels.
        source: what the caller knows it by; the guard's result has that of the candidate that it took.
        exact: makes the candidate whose weights are rounded for exact inputs, for layers in halves; or None.
        compensates: whether its weights were learned to make up for errors of INT8 activations. Where layers then run in halves or in
            float, those errors are gone and such weights are worse than plain ones: it is taken only as it is.
    """

    fp32: Any
    int8: Any
    corrected: Any = None
    ranges: Mapping[str, float] = field(default_factory=dict)
    equalized: bool = False
    source: Any = None
    exact: Callable[[], Candidate] | None = None
    compensates: bool = False
    network: Fp32Network | None = None


#: Makes a candidate in another way; None where that way changes nothing.
Alternative = Callable[[], Candidate | None]
#: The agreement of a network, made of the candidate of this source, on scans that its ranges do not come from; None where it is unknown.
Verify = Callable[[Any, Any], float | None]


class Search:
    """The way to the network that holds the budget.

    Attributes:
        start: the plain INT8 network that is nearest to FP32 so far.
        measurement: of it, on all patches.
        settled: whether there is nothing to search: it holds the budget as it came, or with the margin.
    """

    def __init__(self, measurer: Measurer, budget: Budget, task: Task, candidate: Candidate, time: SearchTime) -> None:
        self._measurer, self._budget, self._task, self._time = measurer, budget, task, time
        self.start, self.measurement, self._biases_help = _better_biases(measurer, candidate, task)
        self._candidate = candidate
        self._ladder: Ladder | None = None
        #: Of the search before, which aimed at less.
        self._earlier: Ladder | None = None
        self._climbed: Point | None = None
        self._exact: list[Candidate] = []
        self._margin, self._retried = MARGIN, False
        #: Holds the budget without the margin, with weights that halves would spoil.
        self._reserve: tuple[Any, Measurement, Candidate] | None = None
        self.result = GuardResult(
            budget,
            self.measurement,
            self.measurement,
            biases_corrected=self._biases_help,
            source=candidate.source,
            form=measurer.form,
        )
        self.settled = self.result.kept

    def ask(self, alternatives: Sequence[Alternative], *, thorough: bool) -> None:
        """Ask other ways one after the other, and take those that come nearer to FP32."""
        for alternative in alternatives:
            wanted = (thorough or not self.settled) and not self._time.is_over(OTHER_WAYS)
            other = alternative() if wanted else None
            if other is None:
                continue
            int8, measurement, helps = _better_biases(self._measurer, other, self._task)
            if other.compensates and self._budget.fallback and not self._aimed(measurement):
                if (
                    not self._retried
                    and self._budget.excess(measurement) <= 0
                    and (self._reserve is None or _nearer(measurement, self._reserve[1], self._budget))
                ):
                    self._reserve = int8, measurement, other
                continue
            if _nearer(measurement, self.measurement, self._budget):
                self._start_from(int8, measurement, other, helps)
            self.settled = self.settled or self._aimed(self.measurement)

    def _aimed(self, measurement: Measurement) -> bool:
        return self._budget.excess(measurement, self._margin) <= 0

    def verified(self, find: Callable[[], Any], verify: Verify) -> Any:
        """The network that holds the budget on held-out scans as well, or comes nearest to it.

        Args:
            find: searches a network with the margin at hand.
        """
        model = find()
        agreement = verify(model, self.result.source)
        best, result = (model, agreement), replace(self.result)
        for _ in range(MORE_SEARCHES):
            if agreement is None or not self._misses(agreement) or self._time.is_over(OTHER_SEARCHES):
                break
            self._leave_more_over(agreement)
            model = find()
            agreement = verify(model, self.result.source)
            if agreement is not None and agreement > (best[1] or 0.0):
                best, result = (model, agreement), replace(self.result)
        vars(self.result).update(vars(result))
        return best[0]

    def _misses(self, agreement: float) -> bool:
        """Whether the agreement on held-out scans misses the budget or all but does, and more of it can be left over."""
        # Of a budget of nothing no part can be left over.
        wanted = self._budget.agreement + HELD_OUT_MARGIN * (1 - self._budget.agreement)
        fails = agreement < wanted and self._budget.agreement < 1
        return fails and self._budget.fallback and self._margin < MOST_MARGIN

    def _leave_more_over(self, agreement: float) -> None:
        """Leave more of the budget over, by what was missed on held-out scans, and search anew."""
        missed, allowed = max(0.0, self._budget.agreement - agreement), 1 - self._budget.agreement
        self._margin = min(MOST_MARGIN, self._margin + missed / allowed + _ADDED)
        self._earlier = self._ladder
        self._ladder = self._climbed = self._reserve = None
        self._retried, self.settled = True, self._aimed(self.measurement)
        self._write_down_start()

    def _start_from(self, int8: Any, measurement: Measurement, candidate: Candidate, helps: bool) -> None:
        self.start, self._candidate, self.measurement, self._biases_help = int8, candidate, measurement, helps
        self._ladder = self._climbed = None
        self._write_down_start()

    def _write_down_start(self) -> None:
        """Write down the network that the search starts from, with nothing of what an earlier search has found."""
        result, candidate = self.result, self._candidate
        result.before = result.after = self.measurement
        result.biases_corrected, result.equalized = self._biases_help, candidate.equalized
        result.source = candidate.source
        result.halves, result.returned, result.stored_as_int8 = {}, {}, []

    @property
    def ladder(self) -> Ladder:
        """The ladder of the network that is nearest so far."""
        if self._ladder is None:
            candidate, exact = self._candidate, self._candidate.exact
            self._exact = []

            def learn() -> Any:
                assert exact is not None
                self._exact.append(exact())
                return self._exact[0].int8

            nearest = None if self.start is candidate.int8 else candidate.int8
            base = Base(candidate.fp32, self.start, candidate.ranges, nearest, learn if exact is not None else None)
            goal = Goal(self._budget.excess, self._margin, self._time)
            self._ladder = Ladder(base, self._measurer, goal, self._task)
            if self._earlier is not None:
                self._ladder.learn_from(self._earlier)
        return self._ladder

    def cure_by_few_halves(self) -> bool:
        """Climb the ladder where the network, or a layer of it by itself, loses what learned rounding does not make up for.

        Returns:
            Whether it was climbed, and at most half of the layers in halves hold the budget.
        """
        if not self._budget.fallback or not self._is_hopeless():
            return False
        self._climbed = self.ladder.climb(self.measurement, strict=self._retried)
        few = 2 * len(self._climbed.halved) <= self.ladder.layers
        return few and not self._climbed.returned and self._budget.excess(self._climbed.measurement) <= 0

    def _is_hopeless(self) -> bool:
        """Whether rounding weights otherwise cannot be enough."""
        return self._budget.excess(self.measurement) > HOPELESS or any(
            self._budget.excess(alone) > HOPELESS for alone in self.ladder.alone.values()
        )

    def climb(self) -> Point | None:
        """The best network on the ladder; None where a network that needs none is as good, which is the start then."""
        point = self._climbed or self.ladder.climb(
            self.measurement, to_float=self._reserve is None, strict=self._retried
        )
        if self._reserve is not None and not (self._aimed(point.measurement) and not point.returned):
            int8, measurement, candidate = self._reserve
            self._start_from(int8, measurement, candidate, helps=False)
            return None
        return point

    def take(self, point: Point) -> Any:
        """Write down what was chosen, and make it."""
        _note(self.result, self.ladder, point)
        if point.network != "int8":
            self.result.biases_corrected = False
        if point.network == "learned":
            self.result.source = self._exact[0].source
        return self.ladder.build(point)

    def with_input_halves(self, model: Any, spec: ModelSpec, shape: tuple[int, ...]) -> Any:
        """The network with its input in two halves where that costs little and does no harm on the patches; else as it is."""
        other, layers = with_input_halves(model, self._candidate.ranges, shape)
        if not layers:
            return model
        before = self.result.after
        with self._task.stage(INPUT_STAGE, self._measurer.patches):
            after = self._measurer.measure(other, task=self._task)
        worse = self._budget.excess(after) > self._budget.excess(before)
        if worse or after.relative_error > wanted_error(spec, before.relative_error):
            return model
        why = f"the input, for scans that go beyond calibration: relative error {before.relative_error:.3g} without, {after.relative_error:.3g} with it"
        self.result.after = after
        self.result.halves = dict.fromkeys(layers, why) | self.result.halves
        return other


def _note(result: GuardResult, ladder: Ladder, best: Point) -> None:
    """Write down what the network is that was taken, and why."""

    def why(name: str) -> str:
        alone = ladder.alone.get(name)
        if alone is None:
            return "for want of time it was not measured by itself"
        agreement = "unknown" if alone.agreement is None else f"{alone.agreement:.4f}"
        return f"quantized alone it gives agreement {agreement}, relative error {alone.relative_error:.3g}"

    result.after = best.measurement
    parts = dict.fromkeys(best.halved, "") | {
        name: "; its input and its weights are halves" if name in best.halved else "; its weights are halves"
        for name in best.refined
    }
    result.halves = {name: why(name) + parts[name] for name in ladder.order if name in parts}
    result.returned = {name: why(name) for name in best.returned}
    result.stored_as_int8 = list(best.stored)


def _better_biases(measurer: Measurer, candidate: Candidate, task: Task) -> tuple[Any, Measurement, bool]:
    """The INT8 network with the biases that bring it nearer to FP32, what it measures, and whether they are the corrected ones.

    Where a few patches decide, the other one is not measured on the rest.
    """
    plain, corrected, patches = candidate.int8, candidate.corrected, measurer.patches
    if corrected is None:
        with task.stage(AGREEMENT_STAGE, patches):
            return plain, measurer.measure(plain, task=task), False
    with task.stage(AGREEMENT_STAGE, 2 * patches):
        if patches > FEW:
            on_few = [measurer.measure(network, FEW, task) for network in (plain, corrected)]
            smaller = on_few[1].relative_error < on_few[0].relative_error
            if not smaller or _agrees_as_well(on_few[1], on_few[0]):
                better = corrected if smaller else plain
                task.step(patches - FEW)
                return better, measurer.measure(better, task=task), smaller
        first, second = (measurer.measure(network, task=task) for network in (plain, corrected))
    if second.relative_error < first.relative_error and _agrees_as_well(second, first):
        return corrected, second, True
    return plain, first, False


def _agrees_as_well(first: Measurement, second: Measurement) -> bool:
    return (first.agreement or 0) >= (second.agreement or 0)


def _nearer(first: Measurement, second: Measurement, budget: Budget) -> bool:
    """Whether the first exceeds the budget by less; where both hold it, whether it agrees better, or as well with a smaller error."""
    return _rank(first, budget) < _rank(second, budget)


def _rank(measurement: Measurement, budget: Budget) -> tuple[float, float, float]:
    excess = budget.excess(measurement)
    agreement = 0.0 if excess > 0 else round(measurement.agreement or 0.0, 4)
    return excess, -agreement, measurement.relative_error
