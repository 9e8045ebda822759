"""What an import was compared with, and how well it agreed: the record that a package keeps as ``import.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import PackageError
from ..imaging.volume import Volume

#: The mean absolute difference of network inputs may be this share of the original's standard deviation. Interpolation in another
#: order of operations differs by 1e-6; a shift by half a voxel, or a statistic over other voxels, by more than 0.02.
INPUT_TOLERANCE = 0.005
#: The same for blended class scores, which a network may amplify.
SCORE_TOLERANCE = 0.02
#: The share of voxels that has to bear the same label.
LABEL_TOLERANCE = 0.995


class OriginalPipeline(Protocol):
    """The software that a network comes from, as it segments a scan itself.

    Attributes:
        title: name and version, such as "MONAI 1.5.1".
    """

    @property
    def title(self) -> str: ...

    def prepare(self, volume: Volume) -> NDArray[np.float32]:
        """Return the network's input for a scan: float32 (C, A0, A1, A2), axes in the tensor's order."""

    def scores(self, volume: Volume) -> NDArray[np.float32] | None:
        """Class scores of the scan as the network gives them, blended over its windows, before any activation that the network
        does not hold: float32 (classes, A0, A1, A2) in network space; None where the software has none."""

    def labels(self, volume: Volume) -> NDArray[Any] | None:
        """Return the label map on the scan's own grid, (K, J, I), with the package's label values, signed; -1 where the software gives no
        label; None where it gives no label map. Asked for after :meth:`scores`."""


@dataclass(frozen=True)
class ScanCheck:
    """How the import and the original compare on one synthetic scan.

    Attributes:
        scan: what the scan is, in words.
        input_difference: mean absolute difference of the network's inputs over the original's standard deviation; infinite where
            their shapes differ; None where it was not compared.
        score_difference: the same of the blended class scores.
        label_agreement: share of voxels of the scan's grid that bear the same label, 0 to 1.
        words: why something was not compared, or which shapes differ.
    """

    scan: str
    input_difference: float | None
    score_difference: float | None
    label_agreement: float | None
    words: str = ""

    def problem(self) -> str:
        """Which part disagrees and by how much, in words; empty if none does."""
        if self.input_difference is not None and not self.input_difference <= INPUT_TOLERANCE:
            return self._describe("the network's input", self.input_difference, INPUT_TOLERANCE)
        if self.score_difference is not None and not self.score_difference <= SCORE_TOLERANCE:
            return self._describe("the blended class scores", self.score_difference, SCORE_TOLERANCE)
        if self.label_agreement is not None and not self.label_agreement >= LABEL_TOLERANCE:
            shape = f" ({self.words})" if self.words else ""
            share = f"{100 * self.label_agreement:.2f} % of the voxels bear the same label, {100 * LABEL_TOLERANCE:g} % are needed"
            return f"{self.scan}: the label map: {share}{shape}"
        return ""

    def _describe(self, part: str, difference: float, tolerance: float) -> str:
        if not np.isfinite(difference):
            return f"{self.scan}: {part}: {self.words or 'its shape or a number in it'}"
        return (
            f"{self.scan}: {part} differs by {100 * difference:.2g} % of its spread, {100 * tolerance:g} % are allowed"
        )


@dataclass(frozen=True)
class ImportCheck:
    """How an import was compared with the software it comes from.

    Attributes:
        original: that software with its version, such as "nnU-Net 2.6.2"; empty where there is none.
        compared: whether anything was compared.
        reason: why nothing or not everything was compared, in words; empty otherwise.
        scans: the comparison of each synthetic scan.
    """

    original: str
    compared: bool
    reason: str
    scans: tuple[ScanCheck, ...] = ()

    @staticmethod
    def not_compared(reason: str, original: str = "") -> ImportCheck:
        """Return the record of an import that there was nothing to compare with; its summary is "not compared: " and ``reason``."""
        return ImportCheck(original, False, reason)

    @property
    def problem(self) -> str:
        """The first disagreement in words; empty if all agree."""
        return next((text for scan in self.scans if (text := scan.problem())), "")

    @property
    def acceptable(self) -> bool:
        """Whether every part that was compared agrees within the tolerances of this module."""
        return not self.problem

    def summary(self) -> str:
        """Return the comparison as one line of text."""
        if not self.compared:
            return f"not compared: {self.reason}"
        parts = []
        for name, word in (("input_difference", "input"), ("score_difference", "scores")):
            differences = [value for scan in self.scans if (value := getattr(scan, name)) is not None]
            if differences:
                parts.append(f"{word} on {len(differences)} equal up to {100 * max(differences):.1g} %")
        agreements = [scan.label_agreement for scan in self.scans if scan.label_agreement is not None]
        if agreements:
            parts.append(f"labels on {len(agreements)}: {100 * min(agreements):.2f} % of voxels the same")
        tail = f" ({self.reason})" if self.reason else ""
        return f"with {self.original} on {len(self.scans)} synthetic scan(s): {', '.join(parts) or 'nothing'}{tail}"

    def to_json(self) -> dict[str, Any]:
        """Return what import.json holds; infinite differences become null with their words."""
        value = asdict(self)
        value["scans"] = [
            {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in scan.items()}
            for scan in value["scans"]
        ]
        return {"schema": "medquant-import", "schema_version": "1.0", **value, "summary": self.summary()}

    @staticmethod
    def from_json(value: Any, where: str = "import.json") -> ImportCheck:
        """Read what :meth:`to_json` wrote.

        Raises:
            PackageError: The value is no such record.
        """
        try:
            if value["schema"] != "medquant-import":
                raise ValueError("no record of an import")
            scans = tuple(_scan_from_json(item) for item in value["scans"])
            return ImportCheck(str(value["original"]), bool(value["compared"]), str(value["reason"]), scans)
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(f"{where} is no record of an import: {error}.", "Import the network again.") from error


def _scan_from_json(item: Mapping[str, Any]) -> ScanCheck:
    def number(key: str) -> float | None:
        return None if item[key] is None else float(item[key])

    return ScanCheck(
        str(item["scan"]),
        number("input_difference"),
        number("score_difference"),
        number("label_agreement"),
        str(item.get("words", "")),
    )


def difference(ours: NDArray[Any], original: NDArray[Any]) -> float:
    """Mean absolute difference over the original's standard deviation; infinite where shapes differ or a number is none."""
    if ours.shape != original.shape or not (np.isfinite(ours).all() and np.isfinite(original).all()):
        return float("inf")
    spread = float(original.std(dtype=np.float64))
    mean = float(np.abs(ours.astype(np.float64) - original).mean())
    return mean / spread if spread > 0 else mean
