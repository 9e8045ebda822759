"""Calibration: representative patches out of real volumes, and activation ranges from them.

There is no road without data: random numbers are never used in place of patches.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .histogram import METHODS, ActivationHistogram, activation_range
from .model_spec import ModelSpec
from .preprocessing import NetworkInput, preprocess
from .progress import Task
from .volume import Volume

Patch = NDArray[np.float32]
#: A mask of foreground, bool (A0, A1, A2), for a volume in network space.
ForegroundFinder = Callable[[NetworkInput], NDArray[np.bool_]]
VolumeSource = Callable[[], Volume]

#: The study (arXiv 2501.17343) calibrated on 20 to 200 cases.
STUDY_VOLUMES = (20, 200)
#: Activations of all quantized tensors that are held at once while one patch is looked at.
_GROUP_BYTES = 1 << 30


@dataclass(frozen=True)
class CalibrationOptions:
    """What to draw and how to read it.

    Attributes:
        method: "max", "entropy", "percentile" or "mse".
        patches: in total, over all volumes.
        foreground, air: shares of the patches centred on foreground and on air; the rest is drawn at random.
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
                f"A percentile of {self.percentile} makes no sense for a range.", "Give one between 50 and 100, such as 99.99."
            )


def foreground_by_intensity(network_input: NetworkInput) -> NDArray[np.bool_]:
    """Voxels brighter than the mean of the first channel: body or head against air."""
    first = network_input.data[0]
    return first > first.mean()


@dataclass(frozen=True)
class Sample:
    """A patch float32 (C, A0, A1, A2), and its label values (A0, A1, A2) where the scan came with labels."""

    patch: Patch
    labels: NDArray[Any] | None = None


def draw_samples(
    network_input: NetworkInput,
    patch: tuple[int, int, int],
    pad_value: float,
    options: CalibrationOptions,
    count: int,
    rng: np.random.Generator,
    find_foreground: ForegroundFinder = foreground_by_intensity,
    labels: NDArray[Any] | None = None,
) -> Iterator[Sample]:
    """Patches of one volume in network space, drawn around foreground, in air and at random as ``options`` says.

    A volume that is no larger than the patch gives one.

    Args:
        labels: label values of the volume (A0, A1, A2), cut in the same places.
    """
    missing = [max(0, p - n) for p, n in zip(patch, network_input.data.shape[1:], strict=True)]
    pads = [(m // 2, m - m // 2) for m in missing]
    data = network_input.data
    if any(missing):
        data = np.pad(data, [(0, 0), *pads], constant_values=pad_value)
        labels = None if labels is None else np.pad(labels, pads)
    if data.shape[1:] == patch:
        yield Sample(data, labels)
        return
    foreground = find_foreground(network_input)
    inside, outside = np.flatnonzero(foreground), np.flatnonzero(~foreground)
    wanted = round(count * options.foreground), round(count * options.air)
    for number in range(count):
        pool = inside if number < wanted[0] else outside if number < sum(wanted) else None
        center = None
        if pool is not None and pool.size:
            voxel = np.unravel_index(int(rng.choice(pool)), foreground.shape)
            center = [int(v) + m // 2 for v, m in zip(voxel, missing, strict=True)]
        starts = []
        for axis, (size, p) in enumerate(zip(data.shape[1:], patch, strict=True)):
            start = int(rng.integers(0, size - p + 1)) if center is None else center[axis] - p // 2
            starts.append(min(max(start, 0), size - p))
        index = tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))
        yield Sample(np.ascontiguousarray(data[(slice(None), *index)]), None if labels is None else labels[index])


class PatchSampler:
    """Draws patches from volumes, one volume in memory at a time.

    Iterating twice gives the same patches. ``volume_hashes`` is filled as volumes are seen.

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
        self.volume_hashes: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        few = len(self._volumes) < STUDY_VOLUMES[0]
        return (
            [
                f"calibrated on {len(self._volumes)} volume(s); the study used {STUDY_VOLUMES[0]} to {STUDY_VOLUMES[1]}. "
                "Check the result on scans that were not used for calibration."
            ]
            if few
            else []
        )

    def __len__(self) -> int:
        return sum(self._counts())

    def _counts(self) -> list[int]:
        share, rest = divmod(self._options.patches, len(self._volumes))
        return [share + (index < rest) for index in range(len(self._volumes))]

    def __iter__(self) -> Iterator[Patch]:
        for index, count in enumerate(self._counts()):
            for sample in self._samples(index, count, None) if count else ():
                yield sample.patch

    def first_samples(self, count: int) -> list[Sample]:
        """The first patch of each of the first volumes, then the second of each, with labels: what is compared."""
        counts = self._counts()
        volumes = min(count, len([c for c in counts if c]))
        by_volume = [
            list(itertools.islice(self._samples(index, counts[index], self._reference(index)), -(-count // volumes)))
            for index in range(volumes)
        ]
        rounds = itertools.zip_longest(*by_volume)
        return [sample for group in rounds for sample in group if sample is not None][:count]

    def _reference(self, index: int) -> Volume | None:
        return self._labels[index]() if self._labels else None

    def _samples(self, index: int, count: int, reference: Volume | None) -> Iterator[Sample]:
        self._task.check()
        volume = self._volumes[index]()
        self.volume_hashes[f"volume {index}"] = hashlib.sha256(np.ascontiguousarray(volume.data).data).hexdigest()
        network_input = preprocess(volume, self._spec)
        labels = None
        if reference is not None:
            if reference.grid.size != volume.grid.size:
                raise InputError(
                    f"{reference.name} has {reference.grid.size} voxels, but {volume.name} has {volume.grid.size}.",
                    "Give the label map of that scan.",
                )
            labels = network_input.labels_in_network_space(np.rint(reference.data[0]).astype(np.int32))
        rng = np.random.default_rng((self._options.seed, index))
        yield from draw_samples(
            network_input, self.patch, self._spec.window.pad_value, self._options, count, rng, self._find_foreground, labels
        )


@dataclass
class Calibration:
    """Ranges of the quantized tensors, and where they came from; what calibration.json holds.

    Attributes:
        input: name of the network's input, so that a run can find its range without reading the network.
    """

    options: CalibrationOptions
    scales: dict[str, float]
    maxima: dict[str, float]
    patches: int
    volume_hashes: dict[str, str]
    warnings: list[str]
    versions: dict[str, str]
    input: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "medquant-calibration",
            "schema_version": "1.0",
            **asdict(self.options),
            "patches_used": self.patches,
            "volumes": self.volume_hashes,
            "warnings": self.warnings,
            "versions": self.versions,
            "input": self.input,
            "tensors": {name: {"scale": scale, "seen_maximum": self.maxima[name]} for name, scale in self.scales.items()},
        }


def collect_histograms(
    model: Any,
    tensors: Sequence[str],
    patches: Iterable[Patch],
    count: int,
    patch: tuple[int, int, int],
    task: Task,
) -> dict[str, ActivationHistogram]:
    """Histograms of the named tensors of an FP32 network over a stream of patches (C, A0, A1, A2).

    Tensors are looked at in groups of at most 1 GB, so memory depends neither on their number nor on that of patches.
    """
    from . import graph
    from .engines.onnxruntime import session

    fixed = graph.fixed_shape(model, patch)
    shapes = graph.Graph(fixed).shapes
    input_name = graph.network_shape(fixed).input_name
    groups = _groups([t for t in tensors if t != input_name], shapes)
    sessions = [session(graph.with_outputs(fixed, group).SerializeToString(), "fp32") for group in groups]
    histograms = {name: ActivationHistogram() for name in tensors}
    with task.stage("calibrating", count):
        for drawn in patches:
            if input_name in histograms:
                histograms[input_name].add(drawn)
            for group, run in zip(groups, sessions, strict=True):
                for name, values in zip(group, run.run(group, {input_name: drawn[None]}), strict=True):
                    histograms[name].add(values)
                task.check()
            task.step()
    return histograms


def _groups(tensors: Sequence[str], shapes: dict[str, list[int]]) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name in tensors:
        size = 4 * int(np.prod(shapes.get(name) or [0]))
        if not groups or size > room:
            groups.append([])
            room = _GROUP_BYTES
        groups[-1].append(name)
        room -= size
    return groups


def scales_from(histograms: dict[str, ActivationHistogram], options: CalibrationOptions) -> dict[str, float]:
    """INT8 scale of each tensor: its range over 127."""
    return {name: activation_range(h, options.method, options.percentile) / 127 for name, h in histograms.items()}
