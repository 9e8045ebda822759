"""A second look: some windows of an INT8 run are run in FP32 as well, and both are compared.

Only this sees a scan on which INT8 agrees less with FP32, whatever the cause (docs/results/warning_signs.md): such a scan may
stay within the calibrated ranges. What is expected is what quantization measured on held-out scans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.fidelity import labels_of
from ..models.package import ModelPackage
from ..models.spec import ModelSpec
from .structure_dice import PooledDice, StructureDice, WorstStructures, mean_of, network_voxel_ml
from .windows import middle_of

#: A user is warned where the agreement is this much below the expected one, or more than two deviations of so many windows' mean: but
#: at the latest from the second figure on, since a window that shows little of a structure can be far off by a few voxels.
LEAST_LOSS, MOST_LOSS = 0.01, 0.03
#: What is expected of a package that does not say, with the deviation of a window.
_USUAL, _USUAL_DEVIATION = 0.99, 0.01


@dataclass(frozen=True)
class Expected:
    """The agreement that quantization measured.

    Attributes:
        agreement: Dice with FP32, on held-out scans where there were any.
        deviation: of single windows.
    """

    agreement: float = _USUAL
    deviation: float = _USUAL_DEVIATION

    @classmethod
    def of(cls, package: ModelPackage) -> Expected:
        """Read it from calibration.json; a package of an earlier version says it of calibration patches, or not at all."""
        quantization = (package.calibration() or {}).get("quantization") or {}
        held_out = quantization.get("held_out") or {}
        guard = quantization.get("guard") or {}
        measured = [held_out.get("agreement"), guard.get("agreement")]
        agreement = next((value for value in measured if value is not None), _USUAL)
        windows = [value for scan in held_out.get("scans", ()) for value in scan.get("windows", ())]
        deviation = float(np.std(windows, ddof=1)) if len(windows) > 2 else _USUAL_DEVIATION
        return cls(float(agreement), deviation)

    def least(self, windows: int) -> float:
        """The agreement of so many windows below which a user is warned."""
        return self.agreement - min(MOST_LOSS, max(LEAST_LOSS, 2 * self.deviation / max(1, windows) ** 0.5))


@dataclass(frozen=True)
class SecondLook:
    """INT8 beside FP32 on some windows of a run.

    Attributes:
        windows: how many were looked at; of these ``shown`` show a structure in FP32.
    """

    structures: tuple[StructureDice, ...]
    expected: Expected
    windows: int
    shown: int

    @property
    def agreement(self) -> float | None:
        """Mean Dice with FP32 over structures; None where FP32 finds nothing in the windows."""
        return mean_of(self.structures)

    @property
    def worst(self) -> WorstStructures:
        return WorstStructures.of((item.name, item.dice, item.ml) for item in self.structures)

    @property
    def text(self) -> str:
        """What was found, in words."""
        where = f"{self.windows} window{'' if self.windows == 1 else 's'}"
        if self.agreement is None:
            return f"FP32 finds no structure in the {where} that both precisions ran"
        worst = f" ({self.worst.text})" if self.worst.text else ""
        return f"INT8 agrees with FP32 at {self.agreement:.4f} in {where} that both ran{worst}"

    @property
    def warning(self) -> str:
        """A sentence for the user, or an empty string."""
        if self.agreement is None or self.agreement >= self.expected.least(self.shown):
            return ""
        return f"on this scan {self.text}; {self.expected.agreement:.4f} was measured when it was quantized: compare with FP32"

    def to_json(self) -> dict[str, Any]:
        return {
            "windows": self.windows,
            "agreement": self.agreement,
            "expected": self.expected.agreement,
            "least": self.expected.least(self.shown),
            "structures": [item.to_json() for item in self.structures],
            **self.worst.to_json(),
            "warning": self.warning,
        }


class SecondLooker:
    """Compares windows one after the other.

    Args:
        infer: the INT8 engine: float32 (1, C, p0, p1, p2) to scores (1, classes, p0, p1, p2).
    """

    def __init__(self, package: ModelPackage, infer: Callable[[NDArray[np.float32]], Any]) -> None:
        spec: ModelSpec = package.spec
        self._infer, self._expected = infer, Expected.of(package)
        self._labels, self._exclusive = labels_of(spec.output), spec.output.activation == "softmax"
        self._pooled = PooledDice(
            self._exclusive, {label.channel: label.name for label in spec.labels}, network_voxel_ml(spec)
        )
        self._overlap = spec.window.overlap
        self._windows = self._shown = 0

    def add(self, patch: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        """Run a window (C, p0, p1, p2) in INT8 and compare it with FP32's scores (1, classes, p0, p1, p2)."""
        middle: Any = (..., *middle_of(patch.shape[1:], self._overlap))
        output = np.asarray(self._infer(np.ascontiguousarray(patch[None], np.float32)), np.float32)[:1]
        ours, theirs = self._labels(output[middle]), self._labels(expected[middle])
        self._pooled.add(ours, theirs)
        self._windows += 1
        self._shown += bool((theirs > 0).any())

    def result(self) -> SecondLook:
        """What was seen so far."""
        return SecondLook(tuple(self._pooled.structures), self._expected, self._windows, self._shown)
