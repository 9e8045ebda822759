"""What a search for the cheapest network (:mod:`.ladder`) begins with, comes by, and is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .measurer import Measurement
from .search_time import SearchTime


class Measures(Protocol):
    """The part of :class:`.measurer.Measurer` that is needed."""

    def measure(self, candidate: Any, patches: int | None = None) -> Measurement:
        """Measure a network on all patches, or on the first of them."""
        ...


@dataclass(frozen=True)
class Base:
    """The network in plain INT8 from which the ladder starts.

    Attributes:
        fp32: the same network before quantization.
        ranges: largest magnitude of each quantized tensor; where one is missing, what its scale holds.
        nearest: ``int8`` with biases as they were, where it has corrected ones: what makes up for the errors of plain inputs may be an
            error of its own behind halves; or None.
        learn: makes ``int8`` with weights that are rounded for exact inputs; or None.
    """

    fp32: Any
    int8: Any
    ranges: Mapping[str, float] = field(default_factory=dict)
    nearest: Any = None
    learn: Callable[[], Any] | None = None


@dataclass
class Point:
    """A network that the search came by; :meth:`.ladder.Ladder.build` makes it.

    Attributes:
        halved: layers whose input is two halves.
        refined: layers whose weights are two halves.
        returned: layers in float, in the order in which they went back.
        stored: those of them whose weights are still stored as INT8.
        network: whose weights and biases it has, by its name in :data:`.ladder.NETWORKS`.
        complete: whether it was measured on all patches.
    """

    measurement: Measurement
    halved: tuple[str, ...] = ()
    refined: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    network: str = "int8"
    complete: bool = False


@dataclass(frozen=True)
class Goal:
    """What a search is for.

    Attributes:
        excess: by how much a measured network exceeds the budget less a margin, a part of it; 0 where it holds.
        margin: what halves leave over of the budget, where they can. No layer goes to float for it.
        time: that the search has. When it is over, the fewest layers are searched no further, and nothing is learned.
    """

    excess: Callable[[Measurement, float], float]
    margin: float
    time: SearchTime = field(default_factory=SearchTime)
