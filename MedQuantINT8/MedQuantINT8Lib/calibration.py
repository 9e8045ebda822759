"""Calibration: representative patches out of real volumes, and activation ranges from them.

There is no road without data: random numbers are never used in place of patches.
"""

from __future__ import annotations

import hashlib
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


class PatchSampler:
    """Draws patches from volumes, one volume in memory at a time.

    Iterating twice gives the same patches. ``volume_hashes`` is filled as volumes are seen.
    """

    def __init__(
        self,
        volumes: Sequence[VolumeSource],
        spec: ModelSpec,
        patch: tuple[int, int, int],
        options: CalibrationOptions,
        find_foreground: ForegroundFinder = foreground_by_intensity,
        task: Task | None = None,
    ) -> None:
        if not volumes:
            raise InputError("Calibration needs at least one scan.", "Give one or more with --calibrate.")
        options.check()
        self._volumes, self._spec, self._options = volumes, spec, options
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
        for index, (source, count) in enumerate(zip(self._volumes, self._counts(), strict=True)):
            if count == 0:
                continue
            self._task.check()
            volume = source()
            self.volume_hashes[f"volume {index}"] = hashlib.sha256(np.ascontiguousarray(volume.data).data).hexdigest()
            yield from self.draw(preprocess(volume, self._spec), count, np.random.default_rng((self._options.seed, index)))

    def draw(self, network_input: NetworkInput, count: int, rng: np.random.Generator) -> Iterator[Patch]:
        """Patches of one volume in network space."""
        data = network_input.data
        missing = [max(0, p - n) for p, n in zip(self.patch, data.shape[1:], strict=True)]
        if any(missing):
            pads = [(0, 0), *((m // 2, m - m // 2) for m in missing)]
            data = np.pad(data, pads, constant_values=self._spec.window.pad_value)
        if data.shape[1:] == self.patch:
            # A network that sees the whole volume: one patch is all there is to draw.
            yield data
            return
        foreground = self._find_foreground(network_input)
        inside = np.flatnonzero(foreground)
        outside = np.flatnonzero(~foreground)
        wanted = round(count * self._options.foreground), round(count * self._options.air)
        for number in range(count):
            pool = inside if number < wanted[0] else outside if number < sum(wanted) else None
            center = None
            if pool is not None and pool.size:
                voxel = np.unravel_index(int(rng.choice(pool)), foreground.shape)
                center = [int(v) + m // 2 for v, m in zip(voxel, missing, strict=True)]
            starts = []
            for axis, (size, p) in enumerate(zip(data.shape[1:], self.patch, strict=True)):
                start = int(rng.integers(0, size - p + 1)) if center is None else center[axis] - p // 2
                starts.append(min(max(start, 0), size - p))
            yield np.ascontiguousarray(data[(slice(None), *(slice(s, s + p) for s, p in zip(starts, self.patch, strict=True)))])


@dataclass
class Calibration:
    """Ranges of the quantized tensors, and where they came from; what calibration.json holds."""

    options: CalibrationOptions
    scales: dict[str, float]
    maxima: dict[str, float]
    patches: int
    volume_hashes: dict[str, str]
    warnings: list[str]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "medquant-calibration",
            "schema_version": "1.0",
            **asdict(self.options),
            "patches_used": self.patches,
            "volumes": self.volume_hashes,
            "warnings": self.warnings,
            "versions": self.versions,
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
