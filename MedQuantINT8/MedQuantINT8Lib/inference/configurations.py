"""The mean of networks that prepare a scan differently, as nnU-Net's ensembles of configurations: probabilities on the scan's own grid."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.volume import Volume
from ..system import available_memory
from .ensemble import Ensemble
from .margins import margins_of
from .mirroring import mirror_axes_of
from .postprocessing import cleaned
from .score_reduction import labels_of
from .segmentation_run import SegmentationRun, latency_of, parts_json, summed_seconds, worst_ranges
from .segmenter import SegmentationOptions, SegmentationResult, spec_in_force
from .task_engine import merged_engine

_GB = 1 << 30


def segment_by_mean(
    ensemble: Ensemble,
    volume: Volume,
    options: SegmentationOptions,
    run_group: Callable[[Ensemble, SegmentationOptions], SegmentationRun],
) -> SegmentationRun:
    """Segment a volume with each group of an ensemble, and average their probabilities, each group counting once.

    Args:
        run_group: segments with packages that prepare the volume alike.

    Raises:
        InputError: too little memory for the probabilities, or labels were asked for in their place.
    """
    began = time.perf_counter()
    spec = spec_in_force(ensemble.first.spec, options)
    if spec.output.resample in ("masks", "labels"):
        raise InputError(
            f"{spec.name} is averaged by probabilities, so its {spec.output.resample} cannot be resampled.",
            "Resample logits or probabilities, or leave it as the models say.",
        )
    _check_memory(volume, spec.output_channels)
    runs: list[tuple[str, SegmentationRun]] = []
    total: NDArray[np.float32] | None = None
    notes: list[str] = []
    for group in ensemble.groups:
        name = group[0].spec.name
        inner = replace(options, probabilities=True, margins=False)
        if options.mirroring is True and not group[0].spec.mirroring.axes:
            inner = replace(inner, mirroring=False)
            notes.append(f"{name} is not mirrored: its network was not trained for it")
        run = run_group(Ensemble(group), inner)
        probabilities, run.result.probabilities, run.network_input = run.result.probabilities, None, None
        assert probabilities is not None
        if total is None:
            total = probabilities
        else:
            total += probabilities
        runs.append((name, run))
        notes += [f"{name}: {note}" for note in run.result.notes if note not in volume.notes]
    assert total is not None
    total /= len(runs)
    averaging = time.perf_counter()
    labels = cleaned(labels_of(spec, total), spec.cleaning, 1000 * volume.grid.voxel_ml)
    margins = margins_of(total, spec) if options.margins else None
    seconds = summed_seconds(runs)
    seconds["averaging"] = time.perf_counter() - averaging
    seconds["total"] = time.perf_counter() - began
    names = " and ".join(name for name, _ in runs)
    notes.insert(0, f"the probabilities of {names} were averaged on the scan's grid")
    result = SegmentationResult(
        labels,
        volume.ijk_to_ras,
        seconds,
        sum(run.result.windows for _, run in runs),
        sum(run.result.skipped_windows for _, run in runs),
        [*volume.notes, *notes],
        margins,
        runs[0][1].result.mirror_axes,
    )
    return SegmentationRun(
        volume,
        result,
        seconds,
        merged_engine([(name, run.engine, run.result.windows) for name, run in runs]),
        latency_of([call for _, run in runs for call in run.calls_ms]),
        ranges=worst_ranges(runs),
        calls_ms=[call for _, run in runs for call in run.calls_ms],
        parts=parts_json(runs),
    )


def allows_mirroring(ensemble: Ensemble) -> bool:
    """Return whether one of the networks may be mirrored along some axis."""
    return any(group[0].spec.mirroring.axes for group in ensemble.groups)


def check_mirroring(ensemble: Ensemble, options: SegmentationOptions) -> None:
    """Refuse axes that one of the networks does not allow, before any is run.

    Raises:
        InputError: names the network and the axis.
    """
    for group in ensemble.groups:
        if options.mirroring is not True:
            mirror_axes_of(group[0].spec, options.mirroring)


def _check_memory(volume: Volume, classes: int) -> None:
    # Of the mean, of one network, and once more while its channels are put in their places.
    needed = 3 * classes * int(np.prod(volume.data.shape[1:])) * 4
    free = available_memory()
    if needed > free:
        raise InputError(
            f"The probabilities of {classes} classes on the grid of {volume.name} need {needed / _GB:.1f} GB, but only {free / _GB:.1f} GB are free.",
            "Close other programs, give a region (--roi), or use one of the networks alone.",
        )
