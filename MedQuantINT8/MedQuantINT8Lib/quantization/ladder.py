"""The ladder of a layer that 8 bits cannot hold: plain INT8, two INT8 halves, and float at last.

Where INT8 loses more than the budget allows, every layer is measured once alone, all others in float. Then all layers are taken
as two halves (:mod:`..models.halves`). If that holds the budget, or comes nearer to it, the fewest layers that need halves are
searched by bisection, the one that costs most alone first. What is left is the rounding of weights, which halves of the input do
not mend: it is learned for inputs that are exact, as halves all but are. Where that does not hold the budget either, the weights of
the fewest layers become two halves (:mod:`..models.weight_halves`), as far as the file stays small, and where that is not enough in a
larger file: INT8 in halves is faster than float. What is left goes back to float, again the worst first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from ..models import qdq
from ..models.halves import quantized_inputs, with_halves
from ..models.onnx_graph import network_shape
from ..models.weight_halves import with_weight_halves
from ..progress import Task
from .input_halves import INPUT_MARGIN
from .measurer import Measurement
from .search_points import Base, Goal, Measures, Point

#: Size of the INT8 network over FP32's, up to which weights are two halves, and layers in float take their float weights with them.
SIZE_LIMIT = 0.27
#: Patches that are looked at first, and networks that are measured on all of them where the budget was never held.
FEW, _FINALISTS = 2, 3
#: The range of a tensor in halves over the largest magnitude of calibration: of 16 bits some may be spent on scans that go beyond.
HALVES_MARGIN = 1.5


#: What is not tried when the time is over, in words.
LAYERS_ALONE = "measuring every layer by itself"
WEIGHTS_ALONE = "measuring every layer's weights by themselves"
LEARNED_FOR_HALVES = "learning how weights are rounded behind halves"
FEWER_HALVES = "fewer layers in halves"
FEWER_WEIGHT_HALVES = "fewer layers whose weights are halves"
FEWER_IN_FLOAT = "fewer layers in float"


#: The networks that are tried in halves, one after the other: those of :class:`Base`.
NETWORKS = ("int8", "nearest", "learned")


class Ladder:
    """Searches the cheapest network that holds a budget."""

    def __init__(self, base: Base, measurer: Measures, goal: Goal, task: Task) -> None:
        self._base, self._measurer, self._budget_excess, self._task = base, measurer, goal.excess, task
        self._margin, self._target, self._time = goal.margin, goal.margin, goal.time
        self._layers = qdq.layers_with_int8_weights(base.int8)
        scales = qdq.activation_scales(base.int8)
        margins = {network_shape(base.int8).input_name: INPUT_MARGIN}
        self._scales = {
            layer: margins.get(tensor, HALVES_MARGIN) * base.ranges[tensor] / 127
            if base.ranges.get(tensor)
            else scales[tensor]
            for layer, tensor in quantized_inputs(base.int8).items()
        }
        self._networks = {"int8": base.int8, "nearest": base.nearest}
        self._plain_on_few: Measurement | None = None
        self._rooms: dict[str, float] = {}
        self._orders: dict[tuple[tuple[str, ...], str], list[str]] = {}
        self.points: list[Point] = []

    def climb(self, start: Measurement, *, to_float: bool = True, strict: bool = False) -> Point:
        """Search, and return the best network that was seen.

        Args:
            start: the plain network's measurement on all patches.
            to_float: whether weights may become halves, and layers go back to float.
            strict: leave the margin over at any cost in INT8, before a network is taken that leaves over less.
        """
        plain = Point(start, complete=True)
        self.points.append(plain)
        halved = plain
        targets = (self._margin, 0.0) if self._margin else (0.0,)
        for target in targets:
            self._target = target
            if self._excess(start) <= 0:
                return plain
            halved, best = self._in_halves(plain)
            if best is None and strict and to_float:
                best = self._refined(halved, ((target, limit) for limit in self._limits))
            if best is not None:
                return best
        if to_float:
            if best := self._refined(halved, ((target, limit) for limit in self._limits for target in targets)):
                return best
            order = self._weights_order(halved)
            self._return_to_float(self._refine(halved, order, self._limits[0]), order)
        best = self._best()
        return self._fewest(best, best) if best.returned and self._holds(best) else best

    def _in_halves(self, plain: Point) -> tuple[Point, Point | None]:
        """The network with all layers in halves that is nearest to the target, or the plain one; and that with the fewest that holds it."""
        # In no order: what layers cost by themselves is measured when it is known that there is something to search.
        names = [name for name in self._layers if name in self._scales]
        plain_excess = self._excess(self._measured(plain))
        halved, helps = plain, False
        for network in NETWORKS if names else ():
            # Learning takes minutes: only where halves are of use.
            if network == "learned" and (not helps or self._time.is_over(LEARNED_FOR_HALVES)):
                continue
            if not self._make(network):
                continue
            other = self._try(names, replace(plain, network=network))
            if self._excess(other.measurement) >= (self._excess(halved.measurement) if helps else plain_excess):
                continue
            halved, helps = other, True
            if self._holds(halved):
                return halved, self._fewest(halved, replace(plain, network=network))
        return halved, None

    def _excess(self, measurement: Measurement) -> float:
        return self._budget_excess(measurement, self._target)

    def _measured(self, plain: Point) -> Measurement:
        """The plain network's measurement on a few patches, as others are measured first."""
        if self._plain_on_few is None:
            self._plain_on_few = self._measure(plain, FEW)
        return self._plain_on_few

    @cached_property
    def alone(self) -> dict[str, Measurement]:
        """What each layer costs by itself, on one patch; the one that costs most agreement first. Layers for which no time was left are
        missing: those in the middle of the network, which cost least as a rule."""
        alone, reserve = {}, self._time.left / 2
        with self._task.stage("finding the layers that INT8 cannot afford", len(self._layers)):
            for name in _from_the_ends(self._layers):
                # The order of layers is worth no more than what is searched by it.
                if self._time.lacks(reserve, LAYERS_ALONE):
                    break
                alone[name] = self._measured_alone(self._base.int8, name)
        # Of layers that cost the same the first in the network comes first.
        in_order = [(name, alone[name]) for name in self._layers if name in alone]
        return dict(sorted(in_order, key=lambda item: _cost(item[1]), reverse=True))

    def learn_from(self, earlier: Ladder) -> None:
        """Take over what an earlier search of the same network has measured of each layer by itself, which no target changes."""
        if earlier._base.int8 is self._base.int8 and "alone" in vars(earlier):
            self.alone = earlier.alone

    def _measured_alone(self, model: Any, name: str) -> Measurement:
        """What a network costs in which this layer alone is quantized: put back alone, a bad layer hides behind the others, whose error has
        saturated already."""
        network = qdq.without_quantization(model, set(self._layers) - {name}, self._base.fp32)
        measurement = self._measurer.measure(network, 1)
        self._task.step()
        return measurement

    @property
    def layers(self) -> int:
        """How many layers are quantized."""
        return len(self._layers)

    @cached_property
    def order(self) -> list[str]:
        """All layers, the one that costs most by itself first; last those that were not measured, from the ends of the network inwards."""
        alone = self.alone
        return [*alone, *(name for name in _from_the_ends(self._layers) if name not in alone)]

    def build(self, point: Point) -> Any:
        """Make a point's network."""
        whole = set(point.returned) - set(point.stored)
        model = qdq.without_quantization(self._networks[point.network], whole, self._base.fp32)
        model = qdq.without_quantization(model, set(point.stored))
        model = with_halves(model, {name: self._scales[name] for name in point.halved})
        return with_weight_halves(model, self._base.fp32, point.refined) if point.refined else model

    def size(self, point: Point) -> int:
        """Return the bytes of a point's network as a package keeps it."""
        return int(qdq.compacted(self.build(point)).ByteSize())

    def _make(self, network: str) -> bool:
        """Make one of the networks that are tried in halves; whether there is one."""
        if network not in self._networks:
            self._networks[network] = self._base.learn() if self._base.learn is not None else None
        return self._networks[network] is not None

    def _measure(self, point: Point, patches: int | None = None) -> Measurement:
        return self._measurer.measure(self.build(point), patches)

    def _complete(self, point: Point) -> Point:
        """Measure a point on all patches, where it was measured on a few."""
        if not point.complete:
            point.measurement, point.complete = self._measure(point), True
        return point

    def _try(self, halved: Sequence[str], like: Point) -> Point:
        """The network with these layers in halves and those of another point in float, measured on a few patches."""
        for known in self.points:
            same = (known.refined, known.returned, known.network) == (like.refined, like.returned, like.network)
            if same and known.halved == tuple(halved):
                return known
        point = replace(like, halved=tuple(halved), complete=False)
        point.measurement = self._measure(point, FEW)
        self.points.append(point)
        return point

    def _holds(self, point: Point) -> bool:
        """Whether the network holds the budget on all patches; a few tell that one is not good enough, but not that it is."""
        return self._excess(point.measurement) <= 0 and self._excess(self._complete(point).measurement) <= 0

    def _fewest(self, whole: Point, like: Point) -> Point:
        """The network with the fewest layers in halves, those first that cost most alone, that holds the budget as ``whole`` does.

        Args:
            like: what is in float, and whose weights are halves.
        """
        order = [name for name in self.order if name in whole.halved]
        low, high = 0 if like.returned or like.refined else 1, len(order)
        tried = {high: whole}

        def at(count: int) -> Point:
            if count not in tried:
                tried[count] = self._try(order[:count], like)
            return tried[count]

        with self._task.stage("finding the layers that need two INT8 halves", (high - low + 1).bit_length()):
            while low < high and not self._time.is_over(FEWER_HALVES):
                middle = (low + high) // 2
                if self._excess(at(middle).measurement) <= 0:
                    high = middle
                else:
                    low = middle + 1
                self._task.step()
            step = 1
            while high < len(order) and not self._holds(at(high)):
                step = len(order) if self._time.is_over(FEWER_HALVES) else step
                high, step = min(high + step, len(order)), 2 * step
        return at(high)

    @property
    def _limits(self) -> tuple[float, float]:
        """The bytes that a small file may have, and a larger one."""
        return SIZE_LIMIT * self._base.fp32.ByteSize(), math.inf

    def _refined(self, start: Point, aims: Iterable[tuple[float, float]]) -> Point | None:
        """The network whose weights are two halves in the fewest layers that reach an aim, the first that can be reached, and whose input is
        in the fewest; None if none can.

        Args:
            aims: targets, each with the most bytes of the file.
        """
        order = self._weights_order(start)
        for self._target, limit in aims:
            refined = self._refine(start, order, limit)
            if refined.refined and self._holds(refined):
                return self._fewest(refined, refined)
        return None

    def _refine(self, start: Point, order: Sequence[str], limit: float) -> Point:
        """The network whose weights are two halves in the fewest layers that hold the target; in as many as the file has room for, if that
        comes nearer to it; else the one at the start.

        Args:
            limit: the most bytes of the file.
        """
        fitting: tuple[str, ...] = ()
        for name in order:
            if math.isinf(limit) or self.size(replace(start, refined=(*fitting, name))) <= limit:
                fitting += (name,)
        if not fitting:
            return start
        before = self._excess(start.measurement if start.halved else self._measured(start))
        low, high = 1, len(fitting)

        def at(count: int) -> Point:
            return self._try(start.halved, replace(start, refined=fitting[:count]))

        with self._task.stage("finding the layers whose weights need two INT8 halves", high.bit_length() + 1):
            after = self._excess(at(high).measurement)
            if after > 0:
                return at(high) if after < before else start
            while low < high and not self._time.is_over(FEWER_WEIGHT_HALVES):
                middle = (low + high) // 2
                low, high = (low, middle) if self._excess(at(middle).measurement) <= 0 else (middle + 1, high)
                self._task.step()
            while high < len(fitting) and not self._holds(at(high)):
                high = len(fitting) if self._time.is_over(FEWER_WEIGHT_HALVES) else high + 1
        return at(high)

    def _return_to_float(self, start: Point, order: Sequence[str]) -> None:
        """Put layers back to float in this order, until the budget holds: one by one, or twice as many each time when the time is over."""
        room, point = self._room(start.network), start
        step, next_measured = 1, 1
        with self._task.stage("putting layers back to float", len(self._layers)):
            for count, name in enumerate(order, start=1):
                halved = tuple(layer for layer in point.halved if layer != name)
                refined = tuple(layer for layer in point.refined if layer != name)
                returned = (*point.returned, name)
                point = replace(point, halved=halved, refined=refined, returned=returned, complete=False)
                if self.size(point) > room:
                    point.stored = (*point.stored, name)
                self._task.step()
                if count < min(next_measured, len(order)):
                    continue
                step = 2 * step if self._time.is_over(FEWER_IN_FLOAT) else 1
                next_measured += step
                point.measurement = self._measure(point, FEW)
                self.points.append(point)
                if self._holds(point):
                    break

    def _room(self, network: str) -> float:
        """The most bytes that the network may have."""
        if network not in self._rooms:
            # Weights stored as INT8, everything computed in float: if even that is too coarse, size has to give way.
            as_int8 = qdq.without_quantization(self._networks[network], set(self._layers))
            holds = self._excess(self._measurer.measure(as_int8, FEW)) <= 0
            self._rooms[network] = SIZE_LIMIT * self._base.fp32.ByteSize() if holds else math.inf
        return self._rooms[network]

    def _weights_order(self, start: Point) -> list[str]:
        """The layers, the one first that costs most agreement as it is at the start: in halves only its weights cost."""
        known = (start.halved, start.network) in self._orders
        if not start.halved or (not known and self._time.is_over(WEIGHTS_ALONE)):
            return self.order
        if not known:
            self._orders[start.halved, start.network] = self._measured_order(start)
        return self._orders[start.halved, start.network]

    def _measured_order(self, start: Point) -> list[str]:
        alone, reserve = dict(self.alone), self._time.left / 2
        halves = self.build(start)
        with self._task.stage("finding the layers whose weights INT8 cannot afford", len(start.halved)):
            for name in start.halved:
                if self._time.lacks(reserve, WEIGHTS_ALONE):
                    break
                alone[name] = self._measured_alone(halves, name)
        rest = [name for name in self.order if name not in alone]
        return [*sorted(alone, key=lambda name: _cost(alone[name]), reverse=True), *rest]

    def _best(self) -> Point:
        """The last network if it holds the budget, else the one that misses it by least, measured on all patches; of equals the one with
        fewest layers in float, then in halves."""
        if self._holds(self.points[-1]):
            return self.points[-1]

        def rank(point: Point) -> tuple[float, int, int]:
            return self._excess(point.measurement), len(point.returned), len(point.halved) + len(point.refined)

        first, *others = self.points
        finalists = sorted(others, key=rank)[:_FINALISTS]
        return min([first, *map(self._complete, finalists)], key=rank)


def _from_the_ends(layers: Sequence[str]) -> list[str]:
    """The layers from both ends of the network inwards: the first and the last ones cost most as a rule."""
    last = len(layers) - 1
    return [layers[n] for n in sorted(range(len(layers)), key=lambda n: (min(n, last - n), n))]


def _cost(measurement: Measurement) -> tuple[float, float]:
    """How much a network loses, for ordering."""
    agreement = 1.0 if measurement.agreement is None else measurement.agreement
    return 1.0 - agreement, measurement.relative_error
