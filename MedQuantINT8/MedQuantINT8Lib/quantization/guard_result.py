"""What INT8 may cost, and what the accuracy guard (:mod:`.accuracy_guard`) reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..models.engine_form import SYMMETRIC, EngineForm
from .measurer import Measurement


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

    def excess(self, measurement: Measurement, margin: float = 0.0) -> float:
        """By how much a network exceeds the budget, in Dice; 0 where it holds.

        Args:
            margin: the part of the agreement's budget that is to be left over.
        """
        least = self.agreement + margin * (1 - self.agreement) if self.agreement > 0 else 0.0
        short = 0.0 if measurement.agreement is None else least - measurement.agreement
        worst = measurement.worst_dice
        lost_structure = 0.0 if worst is None else self.worst_structure - worst
        return max(0.0, short) + max(0.0, measurement.dice_lost - self.dice_lost) + max(0.0, lost_structure)


@dataclass
class GuardResult:
    """The result of the guard: what INT8 costs, and what was done about it.

    Attributes:
        before, after: measured before and after layers were taken in halves or went back.
        halves: layers whose input or weights are two INT8 halves, with what was measured.
        returned: layers that went back to float, in that order, with what was measured.
        stored_as_int8: those of the returned layers whose weights are still stored as INT8.
        biases_corrected: whether correcting the biases brought INT8 nearer to FP32.
        equalized: whether channels were equalized, because that brought INT8 nearer to FP32.
        milliseconds: of the real engine for one window, before and after layers were taken in halves or went back; empty if
            none was, or it was not measured.
        notes: what a user should know, in words.
        source: of the candidate that was taken.
        form: that INT8 was simulated in: that of the engine that will run it.
        other_form: another form, that engines of another kind compute; None where both are the same network.
        in_other_form: measured in that form, on the same patches.
        to_be_timed: the networks before and after layers were taken in halves or went back, until they were timed.
    """

    budget: Budget
    before: Measurement
    after: Measurement
    halves: dict[str, str] = field(default_factory=dict)
    returned: dict[str, str] = field(default_factory=dict)
    stored_as_int8: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    biases_corrected: bool = False
    equalized: bool = False
    notes: list[str] = field(default_factory=list)
    source: Any = None
    form: EngineForm = SYMMETRIC
    other_form: EngineForm | None = None
    in_other_form: Measurement | None = None
    to_be_timed: list[Any] = field(default_factory=list)

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
        """What the layers in halves and in float cost on the real engine; times differ from run to run, and a cost below 0 is none."""
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
            "form": self.form.to_json(),
            "other_form": None
            if self.other_form is None or self.in_other_form is None
            else {**self.other_form.to_json(), "agreement": self.in_other_form.agreement},
            "dice_to_labels": None
            if self.dice_fp32 is None
            else {"fp32": self.dice_fp32, "before": self.before.dice, "after": self.after.dice},
            "halves": self.halves,
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
