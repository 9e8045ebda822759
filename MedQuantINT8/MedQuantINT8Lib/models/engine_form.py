"""The form of an INT8 network that an engine computes: the package's own, or one that its kernels allow or need.

A package holds symmetric activations and weights of 8 bits, which every engine can run. OpenVINO gives activations that are bounded below a
zero point of their own (:mod:`.one_sided`), and weights 7 bits on processors whose kernels overflow with more. What INT8 costs differs
from form to form, so that it is measured, and rounding is learned, in the form that will run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .one_sided import with_one_sided_ranges
from .qdq import as_run


@dataclass(frozen=True)
class EngineForm:
    """The form of INT8 networks that an engine computes.

    Attributes:
        zero_points: whether activations that are bounded below have zero points of their own.
        weight_bits: 8, or 7 where its kernels overflow with more.
    """

    zero_points: bool = False
    weight_bits: int = 8

    @property
    def title(self) -> str:
        """What it is, in words."""
        activations = "activations with zero points" if self.zero_points else "symmetric activations"
        return activations if self.weight_bits == 8 else f"{activations}, weights of {self.weight_bits} bits"

    def of(self, model: Any) -> Any:
        """Return the network (a package's INT8 network, or one on the way to it) as the engine computes it."""
        return as_run(model, zero_points=self.zero_points, weight_bits=self.weight_bits)

    def activations_of(self, model: Any) -> Any:
        """Return the network with the engine's activations and the package's weights."""
        return with_one_sided_ranges(model) if self.zero_points else model

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


#: What a package holds, and engines without zero points compute.
SYMMETRIC = EngineForm()
