"""The accuracy guard: which layers plain INT8 cannot hold, found by measuring, and what is done about them.

Simulated INT8 is compared with FP32, and with labels where there are some, on patches of calibration scans. Where it loses more
than the budget allows, the cheapest cure that holds the budget is taken: corrected biases and equalized channels, which cost
nothing; then two INT8 halves for the layers that need them, of the input or of the weights, which cost as much work again; float at last
(:mod:`.ladder`).
Where nothing holds the budget, the best network that was seen is taken, which may be the one that it began with.

A layer that goes back takes its float weights with it while the file stays within 0.27 of FP32's. Beyond that it computes
in float with weights stored as INT8 (one scale an output channel loses little), unless that alone breaks the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from ..errors import Cancelled
from ..models.engine_form import SYMMETRIC, EngineForm
from ..models.spec import ModelSpec
from ..progress import Task
from .guard_result import Budget, GuardResult
from .guard_search import Alternative, Candidate, Search, Verify
from .measurer import Measurer, Patch
from .search_time import SearchTime

#: The real engine's milliseconds for one patch of a candidate network.
Stopwatch = Callable[[Any], float]


#: Run INT8 on all patches in the form of engines of another kind.
OTHER_FORM_STAGE = "checking the agreement of other engines"

#: Said where there is nothing to judge INT8 by.
NOTHING_FOUND = "FP32 finds no structure in the calibration patches that were compared, so nothing is known of what INT8 loses; calibrate on scans that show the structures"

#: Engines that compute with zero points, and those that compute without.
OTHER_ENGINES = {True: "engines on the processor (OpenVINO)", False: "engines on an NVIDIA GPU"}

#: Said where the search has left something out.
SHORTENED = "the time that this effort gives the search was too short for: {}"

NOTHING_LABELLED = "the labels show no structure in the calibration patches that were compared, so nothing is known of the Dice that INT8 loses to them"


def guard(
    candidate: Candidate,
    patches: Sequence[Patch],
    spec: ModelSpec,
    budget: Budget,
    task: Task,
    references: Sequence[NDArray[Any]] = (),
    alternatives: Sequence[Alternative] = (),
    *,
    learned: Sequence[Alternative] = (),
    thorough: bool = False,
    form: EngineForm = SYMMETRIC,
    verify: Verify | None = None,
    time: SearchTime | None = None,
) -> tuple[Any, GuardResult]:
    """Return the INT8 network with as few layers in halves and in float as the budget needs, or the best that was seen if none holds it.

    Args:
        patches: (C, A0, A1, A2) each, all of one size.
        references: the patches' labels, (A0, A1, A2) each, with the model's label values; or none.
        alternatives: make the INT8 network in other ways, such as with equalized channels. They are asked one after the other while the
            budget does not hold, before a layer is taken in halves or goes back to float.
        learned: the same with learned rounding, which takes minutes. Where the network, or a layer of it by itself, loses what no rounding
            makes up for, halves are tried first, and these are asked only where halves do not hold the budget, or hold it with most layers in halves.
        thorough: ask all of them, whether the budget holds or not and whether layers may go back to float or not.
        form: of the engine that will run the network: what holds the budget in that form is taken. What it loses in the other one is
            measured and reported.
        verify: measures what was found on held-out scans. Where it misses the budget there, which patches of calibration do not show, it is
            searched again with more of the budget left over, and the best by this measure is taken.
        time: that the search has; by default as much as it takes. When it is over, no other way is asked any more, and the ladder is
            climbed in the largest steps.
    """
    measurer = Measurer(candidate.network or candidate.fp32, patches, spec, references, form=form)
    time = time or SearchTime()
    search = Search(measurer, budget, task, candidate, time)
    result = search.result
    if search.measurement.agreement is None:
        result.notes.append(NOTHING_FOUND)
    if references and search.measurement.dice is None:
        result.notes.append(NOTHING_LABELLED)
    if not result.judged or not (thorough or budget.fallback):
        return search.start, result

    def find() -> Any:
        return _searched(search, spec, patches[0].shape[1:], (alternatives, learned), thorough=thorough)

    model = find() if verify is None else search.verified(find, verify)
    if time.shortened:
        result.notes.append(SHORTENED.format(", ".join(time.left_out)))
    measure_other_form(measurer, model, result, task)
    if budget.fallback and (result.halves or result.returned):
        result.to_be_timed = [search.start, model]
    return model, result


def _searched(
    search: Search,
    spec: ModelSpec,
    shape: tuple[int, ...],
    ways: tuple[Sequence[Alternative], Sequence[Alternative]],
    *,
    thorough: bool,
) -> Any:
    """The network that the search ends at.

    Args:
        ways: alternatives, and those with learned rounding.
    """
    alternatives, learned = ways
    search.ask(alternatives, thorough=thorough)
    if not search.settled and learned and (thorough or not search.cure_by_few_halves()):
        search.ask(learned, thorough=thorough)
    if not search.result.budget.fallback:
        return search.start
    point = None if search.settled else search.climb()
    model = search.start if point is None else search.take(point)
    return search.with_input_halves(model, spec, shape)


def measure_other_form(measurer: Measurer, model: Any, result: GuardResult, task: Task) -> None:
    """Measure what the network loses with zero points where it will run without, and the other way round."""
    if replace(SYMMETRIC, zero_points=True).activations_of(model) is model:
        return
    # Weights of 7 bits are those of this machine's engine, not of another kind.
    form = EngineForm(not measurer.form.zero_points)
    with task.stage(OTHER_FORM_STAGE, measurer.patches):
        result.other_form, result.in_other_form = form, measurer.measure(model, task=task, form=form)
    if result.kept and result.budget.excess(result.in_other_form) > 0:
        agreement = result.in_other_form.agreement
        figure = "unknown" if agreement is None else f"{agreement:.4f}"
        result.notes.append(
            f"{OTHER_ENGINES[form.zero_points]} compute this network with {form.title}: agreement {figure} on the same patches"
        )


def time_layers(result: GuardResult, stopwatch: Stopwatch, task: Task) -> bool:
    """Time the real engine before and after layers were taken in halves or went back, if any was; whether there is anything new to report.

    An engine that cannot be timed is no reason to lose the network that was made. One that ends the process by a fault of its own is none
    either, if the network was written before.
    """
    networks, result.to_be_timed = result.to_be_timed, []
    if not networks:
        return False
    try:
        with task.stage("timing what the layers cost", len(networks)):
            for network in networks:
                result.milliseconds.append(stopwatch(network))
                task.step()
    except Cancelled:
        raise
    except Exception as error:
        result.milliseconds = []
        result.notes.append(f"what the layers in halves and in float cost was not measured: {error}")
    return True
