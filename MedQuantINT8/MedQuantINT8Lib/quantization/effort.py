"""How long quantizing may try: which ways the accuracy guard has beside plain rounding, and with how many samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models import onnx_graph as graph
from ..models.engine_form import SYMMETRIC, EngineForm
from ..models.four_bit import CHANGED_OPERATORS, OPSET, packed
from ..models.halves import LOW
from ..models.layers import WEIGHTED_OPS
from ..models.onnx_graph import Graph
from ..progress import Task
from ..system import available_memory
from .calibration import PatchSampler
from .fp32_network import Fp32Network
from .label_borders import label_borders
from .rounding import RoundingOptions, RoundingReport, with_learned_rounding
from .search_time import SearchTime
from .stepwise import peak_bytes

Patch = NDArray[np.float32]

#: Share of the free memory, and the most bytes, that patches on their way through both networks may take.
_MEMORY_SHARE, _MOST_BYTES = 0.4, 4 << 30
#: How long simulated INT8 takes for a patch where FP32 takes 1.
_INT8_RUN = 1.15
#: Share of a network's weights that keeps 8 bits where the rest gets 4: the smallest layers, which the file hardly notices.
_SMALL_SHARE = 0.01


@dataclass(frozen=True)
class Effort:
    """How much may be tried.

    Attributes:
        learns: whether rounding is learned where the budget does not hold.
        always: whether it is learned in any case, and the best of all ways is taken.
        patches: calibration patches that weights are learned on, where memory allows.
        rounding: samples, and a bound on the time that one network takes.
        seconds: that learning takes over all networks that it is tried on; those after it stay rounded to nearest.
        search_seconds: that quantizing takes before the guard takes the first network that holds the budget.
        seconds_in_all: from the start to the end of quantizing; what comes after the search is taken off.
        least_seconds, least_runs: that are left from calibration on at least: seconds, and runs of the network on a patch.
    """

    learns: bool
    always: bool = False
    patches: int = 4
    rounding: RoundingOptions = RoundingOptions()
    seconds: float = 600.0
    search_seconds: float = 600.0
    seconds_in_all: float = math.inf
    least_seconds: float = 120.0
    least_runs: float = 90.0

    def seconds_after_calibration(self, spent: float, seconds_a_run: float, runs_after: float) -> float:
        """How long the search may go on from where the network is calibrated.

        Args:
            spent: the seconds from the start until then.
            seconds_a_run: of the network on a patch.
            runs_after: how many runs what comes after the search takes.
        """
        left = max(self.seconds_in_all - spent, self.least_seconds, self.least_runs * seconds_a_run)
        return left - runs_after * _INT8_RUN * seconds_a_run


EFFORTS = {
    "fast": Effort(learns=False, search_seconds=300),
    "normal": Effort(
        learns=True,
        patches=4,
        rounding=RoundingOptions(samples=2.0, least_samples=4096, seconds=180),
        seconds=360,
        seconds_in_all=235,
    ),
    "best": Effort(
        learns=True,
        always=True,
        patches=8,
        rounding=RoundingOptions(samples=4.0, least_samples=8192, seconds=300),
        seconds=480,
        search_seconds=720,
    ),
}
#: What is not tried when the time is over, in words.
LEARNING_AGAIN = "learning how weights are rounded with equalized channels"
#: Bits that weights can have.
WEIGHT_BITS = (8, 4)


def check_effort(effort: str, weight_bits: int) -> None:
    """Raise :class:`InputError` for an effort or a number of bits that there is not, or that do not go together."""
    if effort not in EFFORTS:
        raise InputError(f"There is no effort {effort!r}.", f"Choose one of {', '.join(EFFORTS)}.")
    if weight_bits not in WEIGHT_BITS:
        raise InputError(f"Weights cannot have {weight_bits} bits.", "Choose 8 or 4.")
    if weight_bits == 4 and not EFFORTS[effort].learns:
        raise InputError(
            "Weights of 4 bits need learned rounding, which the effort fast leaves out.", "Take normal or best."
        )


@dataclass(frozen=True)
class LearnedNetwork:
    """An INT8 network with learned rounding, and what was done."""

    model: Any
    report: RoundingReport


class Learning:
    """Learns the rounding of INT8 networks on calibration patches other than those that they are compared on.

    Args:
        compared: how many of the sampler's first patches networks are compared on.
        apart: whether weights of 8 bits are never learned on those. Weights that were learned on few patches agree there and nowhere
            else, which nothing would show. Of patches that are whole volumes there are seldom more, and each has many more voxels than
            are learned on.
        labels: gives the label map of scores (:func:`..engines.fidelity.labels_of`).
        form: of the engine that will run the networks.
        time: that the search has; learning ends with it.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        effort: Effort,
        weight_bits: int,
        compared: int,
        labels: Callable[[NDArray[Any]], NDArray[Any]],
        task: Task,
        *,
        apart: bool,
        form: EngineForm = SYMMETRIC,
        time: SearchTime | None = None,
    ) -> None:
        self._time = time or SearchTime()
        self._sampler, self._effort, self._compared, self._labels, self._task = sampler, effort, compared, labels, task
        self.weight_bits, self._apart, self._form = weight_bits, apart and weight_bits == 8, form
        self._patches: list[Patch] | None = None
        self._seconds = self._last_seconds = 0.0
        #: By the identity of the patches, which are kept.
        self._borders: dict[int, NDArray[Any]] = {}

    @property
    def possible(self) -> bool:
        """Whether the effort allows learning, and there are patches to learn on."""
        return self._effort.learns and not self.lacks_patches

    @property
    def lacks_patches(self) -> bool:
        """Whether rounding would be learned if more patches were drawn than networks are compared on."""
        return self._effort.learns and self._apart and not self._learned_on()

    @property
    def out_of_time(self) -> bool:
        """Whether the networks so far have taken the time that learning may take, or the search has less left than the last one took;
        weights of 4 bits have to be learned all the same."""
        if self.weight_bits < 8:
            return False
        return self._seconds >= self._effort.seconds or self._time.lacks(self._last_seconds, LEARNING_AGAIN)

    def learned(
        self, network: Fp32Network, int8: Any, *, fine: bool = False, fixed: frozenset[str] = frozenset()
    ) -> LearnedNetwork:
        """Return the INT8 network with learned rounding.

        Args:
            network: the FP32 network that it was made of.
            fine, fixed: :class:`.rounding.RoundingOptions`.
        """
        fp32, four_bits = network.model, self.weight_bits == 4
        left = min(self._effort.rounding.seconds, max(0.0, self._effort.seconds - self._seconds), self._time.left)
        options = replace(
            self._effort.rounding,
            weight_bits=self.weight_bits,
            eight_bits=frozenset(_smallest_layers(fp32)) if four_bits else frozenset(),
            fine=fine,
            fixed=fixed,
            # Weights of 4 bits are learned in any case: rounded to nearest they are of no use, and left at 8 bits not what was asked for.
            seconds=math.inf if four_bits else left,
        )
        patches = self._fitting_patches(fp32, int8)
        borders = partial(self._borders_of, network)
        model, report = with_learned_rounding(
            fp32, int8, patches, options, self._task, borders=borders, form=self._form
        )
        self._seconds, self._last_seconds = self._seconds + report.seconds, report.seconds
        return LearnedNetwork(model, report)

    def _borders_of(self, network: Fp32Network, patch: Patch) -> NDArray[Any]:
        """The places of a patch where FP32's labels meet; all forms of a network compute the same in FP32, so that it is run once."""
        if id(patch) not in self._borders:
            self._borders[id(patch)] = label_borders(network.scores(patch), self._labels)
        return self._borders[id(patch)]

    def _fitting_patches(self, fp32: Any, int8: Any) -> Sequence[Patch]:
        """As many patches as memory allows."""
        patches = self._learned_on()
        shape = patches[0].shape[1:]
        each = sum(peak_bytes(graph.fixed_shape(model, shape)) for model in (fp32, int8))
        allowed = min(_MOST_BYTES, int(_MEMORY_SHARE * available_memory()))
        return patches[: max(1, allowed // max(1, each))]

    def _learned_on(self) -> Sequence[Patch]:
        """The patches to learn on; those that networks are compared on come last, or not at all."""
        if self._patches is None:
            samples = self._sampler.first_samples(self._compared + self._effort.patches)
            patches = [sample.patch for sample in samples]
            others = patches[self._compared :]
            self._patches = others if self._apart else (others + patches[: self._compared])[: self._effort.patches]
        return self._patches


def _weight_counts(fp32: Any) -> dict[str, int]:
    network = Graph(fp32)
    return {
        node.name: int(np.prod(network.initializers[node.input[1]].dims))
        for node in network.nodes
        if node.op_type in WEIGHTED_OPS and node.input[1] in network.initializers
    }


def _smallest_layers(fp32: Any) -> list[str]:
    """Layers whose weights keep 8 bits: the smallest."""
    counts = _weight_counts(fp32)
    total, chosen, used = sum(counts.values()), [], 0
    for name in sorted(counts, key=lambda name: counts[name]):
        used += counts[name]
        if used > _SMALL_SHARE * total:
            break
        chosen.append(name)
    return chosen


def with_packed_weights(model: Any, opset_name: str) -> tuple[Any, list[str]]:
    """Return an INT8 network with weights of 4 bits packed, and the layers that have them, those in two halves once."""
    if any(node.op_type in CHANGED_OPERATORS for node in model.graph.node) and graph.opset_of(model) < OPSET:
        model = graph.at_opset(model, OPSET, opset_name)
    network, layers = packed(model)
    return network, [name for name in layers if not name.endswith(LOW)]
