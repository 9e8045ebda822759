"""Several INT8 networks on the way to one, each compared with FP32 on held-out scans (:mod:`.held_out`) once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ..models.engine_form import EngineForm
from ..models.spec import ModelSpec
from ..progress import Task
from .calibration import CalibrationOptions, PatchSampler
from .candidates import Form
from .fold_networks import Calibrated
from .fp32_network import Fp32Network
from .held_out import HeldOut, measure_held_out


@dataclass
class HeldOutComparison:
    """Compares INT8 networks with FP32 on held-out scans.

    Attributes:
        network: FP32, with what is known of it on patches.
        form: that INT8 is simulated in: that of the engine that will run it.
    """

    network: Fp32Network
    options: CalibrationOptions
    sampler: PatchSampler
    spec: ModelSpec
    form: EngineForm
    task: Task
    _known: list[tuple[Any, HeldOut]] = field(default_factory=list)
    _fp32_labels: dict[bytes, NDArray[Any]] = field(default_factory=dict)

    def of(self, int8: Any, form: Form) -> HeldOut:
        """Return the agreement of a network that was made of a form."""
        for model, known in self._known:
            if model is int8:
                return known
        calibrated = Calibrated(self.network, int8, form.histograms, self.options, self.form, self._fp32_labels)
        self._known.append((int8, measure_held_out(calibrated, self.sampler, self.spec, self.task)))
        return self._known[-1][1]

    def agreement(self, int8: Any, source: Any) -> float | None:
        """Return the agreement alone, for the guard; the source is that of a candidate (:class:`.candidates.Candidates`)."""
        return self.of(int8, source[0]).agreement
