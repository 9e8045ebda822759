"""Which scans a page's viewer shows, and what of them: FP32 and INT8 with the regions that differ; of a data set the cases that lose most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ..imaging.volume import Volume
from ..models.spec import Label
from .differences import Differences, find_differences
from .reports.viewer import MOST_BYTES, ViewerScan, region_places, viewer_module, viewer_scan

#: Cases of a data set that its page's viewer shows.
MOST_CASES = 3


def viewer_pair(
    volume: Volume,
    fp32: NDArray[Any],
    int8: NDArray[Any],
    labels: Sequence[Label],
    most_bytes: int = MOST_BYTES,
    differences: Differences | None = None,
) -> ViewerScan:
    """Return what a page's viewer shows of a scan in FP32 and INT8 (label maps (K, J, I)): both, and the regions that differ as places."""
    regions = differences or find_differences(fp32, int8, labels, volume.grid)
    places = region_places(regions.to_json()["regions"])
    return viewer_scan(volume, {"FP32": fp32, "INT8": int8}, labels, places, most_bytes)


def viewer_case(volume: Volume, label_maps: Mapping[str, NDArray[Any]], labels: Sequence[Label]) -> ViewerScan:
    """Return what a page's viewer shows of one of :data:`MOST_CASES` cases: "FP32", "INT8" and "labels", (K, J, I) each."""
    differences = find_differences(label_maps["FP32"], label_maps["INT8"], labels, volume.grid)
    places = region_places(differences.to_json()["regions"])
    return viewer_scan(volume, label_maps, labels, places, MOST_BYTES // MOST_CASES)


class WorstCases:
    """Gathers the cases in which INT8 loses most against FP32, as a page's viewer shows them; none where no viewer is installed."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels
        self._kept: list[tuple[float, ViewerScan]] = []

    @property
    def scans(self) -> list[ViewerScan]:
        """The cases, the one that loses most first."""
        return [scan for _lost, scan in self._kept]

    def offer(self, lost: float, volume: Volume, label_maps: Mapping[str, NDArray[Any]]) -> None:
        """Take a case if it is one of the worst so far.

        Args:
            lost: by how much INT8's Dice is below FP32's.
            label_maps: "FP32", "INT8" and "labels", (K, J, I) each.
        """
        if not viewer_module() or (len(self._kept) == MOST_CASES and lost <= self._kept[-1][0]):
            return
        scan = viewer_case(volume, label_maps, self._labels)
        self._kept = sorted([*self._kept, (lost, scan)], key=lambda item: -item[0])[:MOST_CASES]
