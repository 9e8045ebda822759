"""The accuracy guard: which layers INT8 cannot afford, found by measuring.

Simulated INT8 is compared with FP32, and with labels where there are some, on patches of calibration scans. Where it
loses more than the budget allows, each quantized layer is tried alone, all others in float; then the layers go back to
float, the one that costs most agreement first, until the budget holds. Where it never does, the best network that was
seen is taken, which may be the one that it began with.

A layer that goes back takes its float weights with it while the file stays within 0.27 of FP32's. Beyond that it computes
in float with weights stored as INT8 (one scale an output channel loses little), unless that alone breaks the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from numpy.typing import NDArray

from ..errors import Cancelled
from ..models import qdq
from ..models.spec import ModelSpec
from ..progress import Task
from .measurer import Measurement, Measurer, Patch

#: The real engine's milliseconds for one patch of a candidate network.
Stopwatch = Callable[[Any], float]
#: Size of the INT8 network over FP32's, up to which returned layers take their float weights with them.
SIZE_LIMIT = 0.27


@dataclass(frozen=True)
class Budget:
    """The budget of a quantization: what INT8 may cost.

    Attributes:
        agreement: least mean Dice of simulated INT8 with FP32; 0 does not ask.
        dice_lost: the most that mean Dice to the labels may fall, where there are labels.
        fallback: whether layers may go back to float; if not, the loss is only measured.
        worst_structure: least Dice with FP32 of the structure that agrees least; 0 does not ask.
    """

    agreement: float = 0.99
    dice_lost: float = 0.005
    fallback: bool = True
    worst_structure: float = 0.0

    def excess(self, measurement: Measurement) -> float:
        """By how much a network exceeds the budget, in Dice; 0 where it holds."""
        short = 0.0 if measurement.agreement is None else self.agreement - measurement.agreement
        worst = measurement.worst_dice
        lost_structure = 0.0 if worst is None else self.worst_structure - worst
        return max(0.0, short) + max(0.0, measurement.dice_lost - self.dice_lost) + max(0.0, lost_structure)


#: Said where there is nothing to judge INT8 by.
NOTHING_FOUND = "FP32 finds no structure in the calibration patches that were compared, so nothing is known of what INT8 loses; calibrate on scans that show the structures"

NOTHING_LABELLED = "the labels show no structure in the calibration patches that were compared, so nothing is known of the Dice that INT8 loses to them"


@dataclass
class GuardResult:
    """The result of the guard: what INT8 costs, and what was done about it.

    Attributes:
        before, after: measured before and after layers went back.
        returned: layers that went back to float, in that order, with what was measured.
        stored_as_int8: those of the returned layers whose weights are still stored as INT8.
        biases_corrected: whether correcting the biases brought INT8 nearer to FP32.
        equalized: whether channels were equalized, because that brought INT8 nearer to FP32.
        milliseconds: of the real engine for one window, before and after each returned layer; empty if not measured.
        notes: what a user should know, in words.
    """

    budget: Budget
    before: Measurement
    after: Measurement
    returned: dict[str, str] = field(default_factory=dict)
    stored_as_int8: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    biases_corrected: bool = False
    equalized: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def agreement(self) -> float | None:
        return self.after.agreement

    @property
    def relative_error(self) -> float:
        return self.after.relative_error

    @property
    def dice_fp32(self) -> float | None:
        """FP32's mean Dice with the labels, on the patches that INT8's was measured on; None without labels."""
        return self.after.dice_fp32

    @property
    def judged(self) -> bool:
        """Whether the patches showed anything to judge INT8 by."""
        return self.after.agreement is not None or self.after.dice is not None

    @property
    def kept(self) -> bool:
        """Whether the budget holds; False as well where there was nothing to judge by."""
        return self.judged and self.budget.excess(self.after) <= 0

    @property
    def cost_ms(self) -> float | None:
        """What the returned layers cost on the real engine; times differ from run to run, and a cost below 0 is none."""
        return max(0.0, self.milliseconds[-1] - self.milliseconds[0]) if self.milliseconds else None

    def to_json(self) -> dict[str, Any]:
        return {
            "wanted_agreement": self.budget.agreement,
            "allowed_dice_lost": self.budget.dice_lost,
            "agreement_before": self.before.agreement,
            "agreement": self.agreement,
            "structures": [item.to_json() for item in self.after.structures],
            **self.after.worst.to_json(),
            "nothing_found": self.after.agreement is None,
            "relative_error": self.relative_error,
            "dice_to_labels": None
            if self.dice_fp32 is None
            else {"fp32": self.dice_fp32, "before": self.before.dice, "after": self.after.dice},
            "returned": self.returned,
            "returned_stored_as_int8": self.stored_as_int8,
            "milliseconds": self.milliseconds,
            "cost_ms": self.cost_ms,
            "notes": self.notes,
            "biases_corrected": self.biases_corrected,
            "channels_equalized": self.equalized,
            "kept": self.kept,
            "budget": asdict(self.budget),
        }


#: Patches that are looked at first.
_FEW = 2


@dataclass
class _Point:
    """A network on the guard's way: what was returned to get there, and what it measures."""

    model: Any
    returned: int
    measurement: Measurement


@dataclass(frozen=True)
class Candidate:
    """An INT8 network with the FP32 network that it was made of.

    Attributes:
        corrected: ``int8`` with corrected biases, which is taken if it is nearer to FP32; or None.
    """

    fp32: Any
    int8: Any
    corrected: Any = None


def guard(
    candidate: Candidate,
    patches: Sequence[Patch],
    spec: ModelSpec,
    budget: Budget,
    task: Task,
    references: Sequence[NDArray[Any]] = (),
    stopwatch: Stopwatch | None = None,
    equalize: Callable[[], Candidate | None] | None = None,
) -> tuple[Any, GuardResult]:
    """Return the INT8 network with as few layers in float as the budget needs, or the best that was seen if none holds it.

    Args:
        patches: (C, A0, A1, A2) each, all of one size.
        references: the patches' labels, (A0, A1, A2) each, with the model's label values; or none.
        stopwatch: times the real engine, to tell what each returned layer costs.
        equalize: makes the network anew with equalized channels, which compute the same in FP32. It is asked only where
            the budget does not hold, before a layer goes back to float; None where nothing can be equalized.
    """
    measurer = Measurer(candidate.fp32, patches, spec, references)
    with task.stage("checking the agreement with FP32"):
        int8, measurement, helps = _better_biases(measurer, candidate)
    result = GuardResult(budget, measurement, measurement, biases_corrected=helps)
    if measurement.agreement is None:
        result.notes.append(NOTHING_FOUND)
    if references and measurement.dice is None:
        result.notes.append(NOTHING_LABELLED)
    if not budget.fallback or result.kept or not result.judged:
        return int8, result
    fp32 = candidate.fp32
    other = equalize() if equalize is not None else None
    if other is not None:
        with task.stage("checking the agreement with FP32"):
            other_int8, other_measurement, other_helps = _better_biases(measurer, other)
        if _nearer(other_measurement, measurement, budget):
            fp32, int8, measurement = other.fp32, other_int8, other_measurement
            result.before = result.after = measurement
            result.biases_corrected, result.equalized = other_helps, True
            if result.kept:
                return int8, result
    points = _way_back(measurer, fp32, int8, result, task)
    best = _best(measurer, points, budget)
    result.after = best.measurement
    result.returned = dict(list(result.returned.items())[: best.returned])
    result.stored_as_int8 = [name for name in result.stored_as_int8 if name in result.returned]
    if stopwatch is not None:
        _time(result, [point.model for point in points[: best.returned + 1]], stopwatch, task)
    return best.model, result


def _better_biases(measurer: Measurer, candidate: Candidate) -> tuple[Any, Measurement, bool]:
    """The INT8 network with the biases that bring it nearer to FP32, what it measures, and whether they are the corrected ones."""
    measurement = measurer.measure(candidate.int8)
    if candidate.corrected is None:
        return candidate.int8, measurement, False
    better = measurer.measure(candidate.corrected)
    if better.relative_error < measurement.relative_error and (better.agreement or 0) >= (measurement.agreement or 0):
        return candidate.corrected, better, True
    return candidate.int8, measurement, False


def _nearer(first: Measurement, second: Measurement, budget: Budget) -> bool:
    """Whether the first exceeds the budget by less, or of equals has the smaller error."""
    return (budget.excess(first), first.relative_error) < (budget.excess(second), second.relative_error)


def _way_back(measurer: Measurer, fp32: Any, int8: Any, result: GuardResult, task: Task) -> list[_Point]:
    """Put layers back to float one by one until the budget holds, and return every network on the way.

    All but the first and the last that holds are measured on a few patches only.
    """
    budget = result.budget
    layers = qdq.layers_with_int8_weights(int8)
    order = _worst_first(measurer, fp32, int8, layers, task)
    # Weights stored as INT8, everything computed in float: if even that is too coarse, size has to give way.
    as_int8 = measurer.measure(qdq.without_quantization(int8, set(layers)), _FEW)
    room = SIZE_LIMIT * fp32.ByteSize() if budget.excess(as_int8) <= 0 else math.inf
    points = [_Point(int8, 0, result.before)]
    with task.stage("putting layers back to float", len(layers)):
        for name, alone in order.items():
            result.returned[name] = (
                f"quantized alone it gives agreement {_agreement(alone)}, relative error {alone.relative_error:.3g}"
            )
            whole = qdq.without_quantization(points[-1].model, {name}, fp32)
            if whole.ByteSize() > room:
                whole = qdq.without_quantization(points[-1].model, {name})
                result.stored_as_int8.append(name)
            points.append(_Point(whole, len(result.returned), measurer.measure(whole, _FEW)))
            task.step()
            if budget.excess(points[-1].measurement) <= 0:
                # A few patches tell that a network is not good enough, but not that it is.
                points[-1].measurement = measurer.measure(whole)
                if budget.excess(points[-1].measurement) <= 0:
                    break
    return points


#: Networks that are measured on all patches where the budget was never held.
_FINALISTS = 3


def _best(measurer: Measurer, points: Sequence[_Point], budget: Budget) -> _Point:
    """The last network if it holds the budget, else the one that misses it by least, measured on all patches; of equals the one with
    fewest layers in float."""
    if budget.excess(points[-1].measurement) <= 0:
        return points[-1]
    first, *others = points
    finalists = sorted(others, key=lambda point: (budget.excess(point.measurement), point.returned))[:_FINALISTS]
    for point in finalists:
        point.measurement = measurer.measure(point.model)
    return min([first, *finalists], key=lambda point: (budget.excess(point.measurement), point.returned))


def _time(result: GuardResult, candidates: Sequence[Any], stopwatch: Stopwatch, task: Task) -> None:
    """Time what the returned layers cost. An engine that cannot be timed is no reason to lose the network that was made."""
    try:
        with task.stage("timing what the layers cost", len(candidates)):
            for candidate in candidates:
                result.milliseconds.append(stopwatch(candidate))
                task.step()
    except Cancelled:
        raise
    except Exception as error:
        result.milliseconds = []
        result.notes.append(f"what the returned layers cost was not measured: {error}")


def _agreement(measurement: Measurement) -> str:
    return "unknown" if measurement.agreement is None else f"{measurement.agreement:.4f}"


def _worst_first(measurer: Measurer, fp32: Any, int8: Any, layers: list[str], task: Task) -> dict[str, Measurement]:
    """The layers with what each costs by itself, the one that costs most agreement first."""
    alone = {}
    with task.stage("finding the layers that INT8 cannot afford", len(layers)):
        for name in layers:
            # Quantized alone: put back alone, a bad layer hides behind the others, whose error has saturated already.
            alone[name] = measurer.measure(qdq.without_quantization(int8, set(layers) - {name}, fp32), patches=1)
            task.step()
    return dict(
        sorted(
            alone.items(),
            key=lambda item: (1.0 if item[1].agreement is None else item[1].agreement, -item[1].relative_error),
        )
    )
