"""Calibration: representative patches out of real volumes. Ranges are taken from them by :mod:`.activation_ranges`.

There is no road without data: random numbers are never used in place of patches.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.label_map_checks import check_label_values, check_same_place, in_words
from ..imaging.patches import KINDS, ForegroundFinder, Patch, Sample, draw_samples, foreground_by_intensity
from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.volume import Volume
from ..models.spec import ModelSpec
from ..progress import Task
from .histogram import METHODS

VolumeSource = Callable[[], Volume]

#: The study (arXiv 2501.17343) calibrated on 20 to 200 cases.
STUDY_VOLUMES = (20, 200)
#: Parts of calibration that ranges can be had without: each scan in turn where there are no more, else groups of scans.
MOST_FOLDS = 6
#: Of the patches that are kept once they are drawn, and of the last volume, so that scans are read once.
_KEPT_BYTES = 1 << 29


@dataclass(frozen=True)
class CalibrationOptions:
    """The options of a calibration: which patches to draw and how to read scans.

    Attributes:
        method: "max", "entropy", "percentile" or "mse".
        patches: in total, over all volumes.
        foreground, air: shares of all patches together that are centred on foreground and on air; the rest is drawn at random.
        seed: of the draw.
    """

    method: str = "max"
    patches: int = 20
    percentile: float = 99.99
    foreground: float = 0.6
    air: float = 0.1
    seed: int = 0

    def check(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"There is no calibration method {self.method!r}.", f"Choose one of {', '.join(METHODS)}.")
        if self.patches < 1:
            raise InputError(f"{self.patches} patches cannot calibrate a network.", "Give --patches of at least 1.")
        if not (0 <= self.foreground <= 1 and 0 <= self.air <= 1 and self.foreground + self.air <= 1):
            raise InputError(
                "The shares of foreground and air must lie between 0 and 1 and not exceed 1 together.",
                "Correct --foreground and --air.",
            )
        if not 50 <= self.percentile <= 100:
            raise InputError(
                f"A percentile of {self.percentile} makes no sense for a range.",
                "Give one between 50 and 100, such as 99.99.",
            )


def counts_by_kind(options: CalibrationOptions) -> dict[str, int]:
    """How many of all patches are drawn of each kind, by the largest remainder: they add up to ``options.patches``."""
    shares = (options.foreground, options.air, max(0.0, 1 - options.foreground - options.air))
    # Twelve digits: 20 * 0.3 is 6.000000000000001.
    exact = [round(options.patches * share, 12) for share in shares]
    counts = [int(value) for value in exact]
    most_left = sorted(range(len(exact)), key=lambda n: (counts[n] - exact[n], n))
    for n in most_left[: options.patches - sum(counts)]:
        counts[n] += 1
    return dict(zip(KINDS, counts, strict=True))


def allotted(options: CalibrationOptions, volumes: int) -> list[dict[str, int]]:
    """How many patches of each kind each volume gives.

    The shares hold over all volumes together: rounded a volume, one patch of each of 20 scans would always be foreground. The kinds
    are spread as evenly as they can be, so that none comes from one volume alone.
    """
    counts = counts_by_kind(options)
    # Each kind's patches at even distances on a line from 0 to 1; the volumes take theirs from the line, one after the other.
    line = sorted(((n + 0.5) / count, KINDS.index(kind), kind) for kind, count in counts.items() for n in range(count))
    share, rest = divmod(options.patches, volumes)
    allotments, begin = [], 0
    for index in range(volumes):
        end = begin + share + (index < rest)
        allotments.append({kind: sum(name == kind for *_, name in line[begin:end]) for kind in KINDS})
        begin = end
    return allotments


class PatchSampler:
    """Draws patches from volumes, one volume in memory at a time.

    Iterating twice gives the same patches. The last volume and up to 512 MB of patches are kept, so that a scan is read and
    preprocessed once where they fit. ``volume_hashes`` is filled as volumes are seen.

    Args:
        labels: label maps of the volumes, with the model's label values; or none.
    """

    def __init__(
        self,
        volumes: Sequence[VolumeSource],
        spec: ModelSpec,
        patch: tuple[int, int, int],
        options: CalibrationOptions,
        find_foreground: ForegroundFinder = foreground_by_intensity,
        task: Task | None = None,
        labels: Sequence[VolumeSource] = (),
    ) -> None:
        if not volumes:
            raise InputError("Calibration needs at least one scan.", "Give one or more with --calibrate.")
        if labels and len(labels) != len(volumes):
            raise InputError(
                f"{len(labels)} label map(s) were given for {len(volumes)} scan(s).",
                "Give one for each scan, in the same order.",
            )
        options.check()
        self._volumes, self._spec, self._options, self._labels = volumes, spec, options, labels
        self.patch = patch
        self._find_foreground = find_foreground
        self._task = task or Task()
        self._allotted = allotted(options, len(volumes))
        self.volume_hashes: dict[str, str] = {}
        self._seen: dict[str, str] = {}
        #: The different volumes that gave patches, by hash, in the order in which they were seen.
        self._different: list[str] = []
        self._last: tuple[int, NetworkInput, NDArray[Any] | None] | None = None
        self._kept: dict[int, list[Sample]] = {}
        self._kept_bytes = 0

    @property
    def warnings(self) -> list[str]:
        few = len(self._volumes) < STUDY_VOLUMES[0]
        return (
            [
                f"calibrated on {len(self._volumes)} volume{'' if len(self._volumes) == 1 else 's'}; the study used {STUDY_VOLUMES[0]} to {STUDY_VOLUMES[1]}. "
                "Check the result on scans that were not used for calibration."
            ]
            if few
            else []
        )

    def __len__(self) -> int:
        """How many patches are asked for; volumes that are no larger than a patch give fewer."""
        return self._options.patches

    @property
    def drawn(self) -> dict[str, int]:
        """How many different patches were drawn so far, by where they lie (:data:`KINDS`, or "whole")."""
        return dict(Counter(self._seen.values()))

    def __iter__(self) -> Iterator[Patch]:
        return (patch for _, patch in self.by_volume())

    def by_volume(self) -> Iterator[tuple[int, Patch]]:
        """Yield each patch with the number of its volume, volume by volume."""
        for index, counts in enumerate(self._allotted):
            for sample in self._samples(index) if any(counts.values()) else ():
                self._seen.setdefault(hashlib.sha256(sample.patch.data).hexdigest(), sample.kind)
                volume_hash = self.volume_hashes[f"volume {index}"]
                if volume_hash not in self._different:
                    self._different.append(volume_hash)
                yield index, sample.patch

    @property
    def volumes(self) -> int:
        """How many volumes were given."""
        return len(self._volumes)

    @property
    def different_volumes(self) -> int:
        """How many volumes that differ have given patches so far; one that is given twice counts once."""
        return len(self._different)

    def fold(self, index: int) -> int | None:
        """The part of calibration to which a volume's patches belong; None of a volume that gave none."""
        volume_hash = self.volume_hashes.get(f"volume {index}")
        return self._different.index(volume_hash) % MOST_FOLDS if volume_hash in self._different else None

    def windows(self, index: int, count: int) -> tuple[list[Patch], float]:
        """Windows of a volume around foreground, which calibration has not drawn, and the millilitres of their voxels."""
        network_input, _ = self._network_input(index)
        samples = draw_samples(
            network_input,
            self.patch,
            self._spec.window.pad_value,
            {"foreground": count},
            np.random.default_rng((self._options.seed, index, 1)),
            self._find_foreground,
        )
        return [sample.patch for sample in samples], network_input.grid.voxel_ml

    def check_labels(self) -> None:
        """Read the label maps and refuse what is none of this model, before any work.

        Raises:
            InputError: values that the model does not know, no label of the model in any of them, or another grid than the scan's.
        """
        known = {label.value for label in self._spec.labels}
        label_values: set[int] = set()
        for source, scan in zip(self._labels, self._volumes, strict=False):
            self._task.check()
            labels = source()
            label_values |= check_label_values(labels, known)
            check_same_place(labels, scan())
        if self._labels and not label_values:
            raise InputError(
                f"The label maps hold none of the model's structures (label values {in_words(known)}).",
                "Give label maps of those scans, with the model's label values.",
            )

    def first_samples(self, count: int) -> list[Sample]:
        """Patches with labels for comparing networks: of as many volumes as there are, around foreground before the rest."""
        places = [
            (n, index, n < counts["foreground"])
            for index, counts in enumerate(self._allotted)
            for n in range(sum(counts.values()))
        ]
        # The first patch of each volume, then the second of each; one in air shows nothing to compare.
        first_places = sorted(places, key=lambda place: (not place[2], place[0], place[1]))[:count]
        counts_by_volume: dict[int, int] = {}
        for n, index, _ in first_places:
            counts_by_volume[index] = max(counts_by_volume.get(index, 0), n + 1)
        by_volume = {
            index: list(itertools.islice(self._samples(index), most)) for index, most in counts_by_volume.items()
        }
        # A volume that is no larger than a patch gives one, however many were asked of it.
        return [by_volume[index][n] for n, index, _ in first_places if n < len(by_volume[index])]

    def _network_input(self, index: int) -> tuple[NetworkInput, NDArray[Any] | None]:
        """A volume in network space and its label values there, or None; the last one is kept unless it is very large."""
        self._task.check()
        if self._last is not None and self._last[0] == index:
            return self._last[1:]
        # The one before goes first: two may be more than there is room for.
        self._last = None
        volume = self._volumes[index]()
        self.volume_hashes[f"volume {index}"] = hashlib.sha256(np.ascontiguousarray(volume.data).data).hexdigest()
        network_input, labels = preprocess(volume, self._spec), None
        if self._labels:
            reference = self._labels[index]()
            check_same_place(reference, volume)
            labels = network_input.labels_in_network_space(np.rint(reference.data[0]).astype(np.int32))
        if network_input.data.nbytes <= _KEPT_BYTES:
            self._last = index, network_input, labels
        return network_input, labels

    def _samples(self, index: int) -> Iterable[Sample]:
        """The samples of a volume, with labels where there are some; they are kept while all that are kept are few enough."""
        if index not in self._kept:
            samples = self._drawn(index)
            size = 4 * math.prod(self.patch) * (len(self._spec.channels) + bool(self._labels))
            self._kept_bytes += size * sum(self._allotted[index].values())
            if self._kept_bytes > _KEPT_BYTES:
                return samples
            self._kept[index] = list(samples)
        return self._kept[index]

    def _drawn(self, index: int) -> Iterator[Sample]:
        network_input, labels = self._network_input(index)
        samples = draw_samples(
            network_input,
            self.patch,
            self._spec.window.pad_value,
            self._allotted[index],
            np.random.default_rng((self._options.seed, index)),
            self._find_foreground,
            labels,
        )
        for sample in samples:
            # A view would keep the whole label map alive.
            own = None if sample.labels is None else np.ascontiguousarray(sample.labels)
            yield replace(sample, labels=own)


@dataclass
class Calibration:
    """Ranges of the quantized tensors, and where they came from; what calibration.json holds.

    Attributes:
        drawn: how many different patches were drawn, by where they lie.
        input: name of the network's input, so that a run can find its range without reading the network.
        limits: the largest magnitudes that INT8 holds of FP32's tensors, where channels were equalized: the scales are
            those of the equalized network then.
    """

    options: CalibrationOptions
    scales: dict[str, float]
    maxima: dict[str, float]
    drawn: dict[str, int]
    volume_hashes: dict[str, str]
    warnings: list[str]
    versions: dict[str, str]
    input: str = ""
    limits: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "medquant-calibration",
            "schema_version": "1.0",
            **asdict(self.options),
            "patches_used": sum(self.drawn.values()),
            "patches_drawn": self.drawn,
            "volumes": self.volume_hashes,
            "warnings": self.warnings,
            "versions": self.versions,
            "input": self.input,
            "tensors": {
                name: {"scale": scale, "seen_maximum": self.maxima[name]}
                | ({"limit": self.limits[name]} if name in self.limits else {})
                for name, scale in self.scales.items()
            },
        }
