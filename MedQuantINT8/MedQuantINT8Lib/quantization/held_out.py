"""Agreement on scans that the ranges do not come from, how it moves from scan to scan, and how many scans would be enough.

Each scan (where there are many: each group of scans) is held out in turn: the INT8 network gets the ranges that calibration gives
without it, and is compared with FP32 on windows of that scan. Weights, biases and the layers in float are those of the
package, so that a scan costs a few windows and not a quantization. On the same windows the network is measured with all ranges,
too: what it loses there less is what calibrating on the scan has brought (:mod:`.scan_spread`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inference.structure_dice import StructureDice, WorstStructures, mean_of
from ..inference.windows import middle_of
from ..models.spec import ModelSpec
from ..progress import Task
from .calibration import PatchSampler
from .fold_networks import Calibrated, FoldNetworks
from .measurer import Patch
from .scan_spread import MOST_ESTIMATED, TOLERANCE, EnoughScans, Spread
from .score_agreement import ScoreAgreement

#: Windows in all, at most of one scan, and scans that are looked at.
MOST_WINDOWS, WINDOWS_A_SCAN, MOST_SCANS = 12, 4, 12
#: From so many voxels on a window is large: one of each of three scans has to do.
_LARGE_WINDOW, _FEW_SCANS = 1 << 21, 3


@dataclass(frozen=True)
class ScanAgreement:
    """How INT8 agrees with FP32 on the windows of one scan.

    Attributes:
        volume: the number of the scan, from 0.
        agreement: with ranges that do not come from it; None where FP32 finds nothing in the windows.
        own_ranges: with the package's ranges, which come from it as well; None of a scan that gave calibration no patch.
        structures: the agreement structure by structure.
        windows: the agreement window by window, of those that show a structure.
    """

    volume: int
    agreement: float | None
    own_ranges: float | None
    structures: tuple[StructureDice, ...]
    windows: tuple[float, ...]

    @property
    def worst(self) -> WorstStructures:
        return WorstStructures.of((item.name, item.dice, item.ml) for item in self.structures)

    def to_json(self) -> dict[str, Any]:
        return {
            "scan": f"volume {self.volume}",
            "agreement": self.agreement,
            "own_ranges": self.own_ranges,
            "structures": [item.to_json() for item in self.structures],
            "windows": list(self.windows),
            **self.worst.to_json(),
        }


@dataclass
class HeldOut:
    """The agreement that is reported of a quantization.

    Attributes:
        given: how many different scans calibration had.
        held_out: whether the ranges came from other scans; otherwise the figures are of the calibration scan itself.
        calibrated: how many scans the ranges came from while one (or a group) was held out.
    """

    given: int
    held_out: bool
    calibrated: int
    scans: list[ScanAgreement] = field(default_factory=list)

    @property
    def agreements(self) -> list[float]:
        return [scan.agreement for scan in self.scans if scan.agreement is not None]

    @property
    def agreement(self) -> float | None:
        """The mean over scans; None where FP32 finds nothing in any."""
        return float(np.mean(self.agreements)) if self.agreements else None

    @property
    def spread(self) -> Spread | None:
        return Spread.of(self.agreements) if self.agreements else None

    @property
    def structures(self) -> list[StructureDice]:
        """Each structure's mean over the scans that show it; its volume is that of the scan that shows most of it."""
        by_name: dict[str, list[StructureDice]] = {}
        for scan in self.scans:
            for item in scan.structures:
                by_name.setdefault(item.name, []).append(item)
        return [
            StructureDice(
                name,
                float(np.mean([item.dice for item in items])),
                max(item.ml for item in items),
                sum(item.voxels for item in items),
            )
            for name, items in by_name.items()
        ]

    @property
    def worst(self) -> WorstStructures:
        return WorstStructures.of((item.name, item.dice, item.ml) for item in self.structures)

    @property
    def enough(self) -> EnoughScans | None:
        """How many scans would be enough; None where no scan was held out."""
        pairs = [
            (scan.own_ranges, scan.agreement)
            for scan in self.scans
            if scan.own_ranges is not None and scan.agreement is not None
        ]
        if not self.held_out or not pairs:
            return None
        own, held_out = zip(*pairs, strict=True)
        return EnoughScans.of(own, held_out, self.calibrated)

    def lines(self) -> list[str]:
        """What a user should know, in sentences."""
        spread = self.spread
        if spread is None:
            return []
        if not self.held_out:
            return [
                f"the agreement of {spread.mean:.4f} is of the calibration scan itself; give a second scan, and it is measured on scans that the ranges do not come from"
            ]
        count = len(self.agreements)
        text = f"agreement on scans held out in turn: {spread.mean:.4f} on average over {count} scan{'s' if count > 1 else ''}"
        if count > 1:
            text += f", {spread.lowest:.4f} to {spread.highest:.4f}"
        if spread.next_low is not None:
            text += f"; the next scan is expected between {spread.next_low:.4f} and {spread.next_high:.4f} (95 %)"
        lines = [text, *filter(None, [self.worst.text])]
        if count > 1:
            least = min(
                (scan for scan in self.scans if scan.agreement is not None), key=lambda scan: scan.agreement or 0.0
            )
            lines.append(
                f"scan {least.volume + 1} agrees least" + (f" ({least.worst.text})" if least.worst.text else "")
            )
        return [*lines, self._enough_line()]

    def _enough_line(self) -> str:
        enough = self.enough
        assert enough is not None
        loss = f"a scan loses {enough.excess:.4f} more where the ranges do not come from it"
        if enough.scans is None:
            return f"{loss}: more than {MOST_ESTIMATED} scans would be needed to make that {TOLERANCE}; look for what differs among them"
        upper = "" if enough.at_most is None or enough.at_most == enough.scans else f", at most {enough.at_most}"
        if enough.scans <= self.given:
            return f"{loss}: the {self.given} scans are enough (estimated: {enough.scans}{upper})"
        return f"{loss}: about {enough.scans} scans would be enough{upper}, with an agreement of {enough.expected:.4f} expected on a new one"

    def warning(self, wanted: float) -> str:
        """A sentence where a new scan is expected below the agreement that was asked for, or an empty string."""
        if not self.held_out or self.agreement is None or self.agreement >= wanted:
            return ""
        return f"on scans that the ranges do not come from INT8 agrees with FP32 at {self.agreement:.4f}, less than the {wanted:g} that was asked for"

    def to_json(self) -> dict[str, Any]:
        spread = self.spread
        return {
            "held_out": self.held_out,
            "given": self.given,
            "calibrated": self.calibrated,
            "agreement": self.agreement,
            "spread": None if spread is None else vars(spread),
            "structures": [item.to_json() for item in self.structures],
            **self.worst.to_json(),
            "enough": None if self.enough is None else self.enough.to_json(),
            "scans": [scan.to_json() for scan in self.scans],
            "lines": self.lines(),
        }


def measure_held_out(network: Calibrated, sampler: PatchSampler, spec: ModelSpec, task: Task) -> HeldOut:
    """Measure the agreement on windows of scans, with ranges that do not come from them where there are several scans."""
    folds = {sampler.fold(index) for index in range(sampler.volumes)} - {None}
    several = sampler.different_volumes > 1
    networks = FoldNetworks(network, sampler.patch)
    largest = max((_size(sampler, fold) for fold in folds), default=1)
    result = HeldOut(
        sampler.different_volumes,
        several and networks.scaled > 0,
        sampler.different_volumes - largest if several else sampler.different_volumes,
    )
    chosen = _chosen(sampler)
    comparison = _Comparison(networks, sampler, spec, several, network.fp32_labels)
    with task.stage(stage_name(several=several), sum(count for _, count in chosen)):
        for index, count in chosen:
            result.scans.append(comparison.scan(index, count, task))
    return result


def stage_name(*, several: bool) -> str:
    """Return the name of the stage that :func:`measure_held_out` is, with several scans or with one."""
    return "comparing on held-out scans" if several else "comparing on the scan"


def expected_runs(sampler: PatchSampler) -> int:
    """Return how many runs of a network the comparison takes if all scans differ, before any of them is read."""
    scans, windows = _scans_and_windows(sampler.volumes, sampler.patch)
    return scans * windows * (3 if sampler.volumes > 1 else 2)


def _scans_and_windows(scans: int, patch: tuple[int, int, int]) -> tuple[int, int]:
    """How many scans of so many are looked at, and how many windows of each."""
    if math.prod(patch) > _LARGE_WINDOW:
        return min(scans, _FEW_SCANS), 1
    scans = min(scans, MOST_SCANS)
    return scans, max(1, min(WINDOWS_A_SCAN, MOST_WINDOWS // scans))


def _size(sampler: PatchSampler, fold: int | None) -> int:
    """How many different volumes belong to a fold."""
    return len({sampler.volume_hashes[f"volume {n}"] for n in range(sampler.volumes) if sampler.fold(n) == fold})


def _chosen(sampler: PatchSampler) -> list[tuple[int, int]]:
    """The scans that are looked at, each once, and how many windows of each."""
    seen: dict[str, int] = {}
    for index in range(sampler.volumes):
        # A scan that gave no patch was not read; it is another one for all that is known.
        seen.setdefault(sampler.volume_hashes.get(f"volume {index}", f"not read {index}"), index)
    indices = list(seen.values())
    most, windows = _scans_and_windows(len(indices), sampler.patch)
    if len(indices) > most:
        indices = [indices[round(n * (len(indices) - 1) / (most - 1))] for n in range(most)]
    return [(index, windows) for index in indices]


class _Comparison:
    """Compares INT8 with FP32 on the windows of one scan after the other.

    Args:
        several: whether scans are held out.
        fp32_labels: as in :class:`Calibrated`.
    """

    def __init__(
        self,
        networks: FoldNetworks,
        sampler: PatchSampler,
        spec: ModelSpec,
        several: bool,
        fp32_labels: dict[bytes, NDArray[Any]],
    ) -> None:
        self._networks, self._sampler, self._spec, self._several = networks, sampler, spec, several
        self._fp32_labels = fp32_labels
        self._middle: Any = (..., *middle_of(sampler.patch, spec.window.overlap))

    def scan(self, index: int, count: int, task: Task) -> ScanAgreement:
        """Compare on so many windows of a scan, each a step of the task; a scan no larger than a window has one."""
        windows, voxel_ml = self._sampler.windows(index, count)
        fold = self._sampler.fold(index) if self._several else None
        held_out, own = (ScoreAgreement(self._spec, voxel_ml) for _ in range(2))
        by_window = []
        for window in windows:
            expected = self._expected(window, held_out)
            labels = held_out.labels(self._run(fold, window))
            single = ScoreAgreement(self._spec)
            for pooled in (held_out, single):
                pooled.add_labels(labels, expected)
            if (value := single.value) is not None:
                by_window.append(value)
            if fold is not None:
                own.add_labels(own.labels(self._run(None, window)), expected)
            task.step()
        task.step(count - len(windows))
        structures = tuple(held_out.structures)
        agreement = mean_of(structures)
        # A scan of several that gave no patch has no ranges of its own.
        own_ranges = own.value if fold is not None else None if self._several else agreement
        return ScanAgreement(index, agreement, own_ranges, structures, tuple(by_window))

    def _expected(self, window: Patch, agreement: ScoreAgreement) -> NDArray[Any]:
        """FP32's labels of a window, which are the same for every INT8 network."""
        known, key = self._fp32_labels, hashlib.sha256(window.data).digest()
        if key not in known:
            known[key] = agreement.labels(self._run("fp32", window))
        return known[key]

    def _run(self, which: int | str | None, window: Patch) -> NDArray[np.float32]:
        return self._networks.run(which, window)[self._middle]
