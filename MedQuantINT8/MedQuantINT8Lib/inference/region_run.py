"""A run in a region of interest: the region is cut out of the scan, segmented, and put back; outside of it is background."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import InputError
from ..imaging.region_of_interest import (
    Box,
    at_least_two,
    box_in_words,
    box_json,
    box_slices,
    cut_volume,
    inside_region,
    is_oblique,
    region_box,
)
from ..imaging.volume import Volume
from ..models.spec import Label, ModelSpec
from .margins import ONE
from .segmentation_run import SegmentationRun
from .segmenter import SegmentationOptions, SegmentationResult

#: Normalizations whose figures come from the voxels that the network is given, and what stands for these figures.
_FROM_VOXELS = {
    "minmax": ("low", "high"),
    "percentile": (),
    "zscore": ("mean", "std"),
    "clip_percentile": (),
    "spread": (),
}
#: Of a model's structures, so many are listed where one is not known.
_MOST_NAMES = 20


def run_in_region(
    volume: Volume, options: SegmentationOptions, run: Callable[[Volume, SegmentationOptions], SegmentationRun]
) -> SegmentationRun:
    """Segment the region that the options name, or the whole volume where they name none.

    The network sees the box of voxels around the region and nothing else; in an oblique scan that box holds voxels outside of the region
    as well, which become background.

    Raises:
        InputError: no voxel of the volume lies in the region.
    """
    if options.roi is None:
        return run(volume, options)
    grid = volume.grid
    region = region_box(grid, options.roi, volume.name)
    box = at_least_two(region, grid.size)
    segmentation = run(cut_volume(volume, box), replace(options, roi=None))
    inside = inside_region(grid, options.roi, box)
    result = segmentation.result
    result.labels[~inside] = 0
    segmentation.result = placed(result, volume, box)
    segmentation.volume = volume
    start = [first for first, _ in box]
    for found in segmentation.boxes:
        for end in ("start", "stop"):
            found[end] = [n + offset for n, offset in zip(found[end], start, strict=True)]
    segmentation.boxes.insert(0, {"name": "region of interest", **box_json(box, grid)})
    note = f"region of interest: {box_in_words(box, grid)}; outside of it is background"
    if is_oblique(grid):
        note += "; the scan is oblique: the network saw the box of voxels around the region, and what of that box lies outside of the region is background, too"
    result.notes.insert(0, note)
    return segmentation


def placed(result: SegmentationResult, volume: Volume, box: Box) -> SegmentationResult:
    """Return the result of a box of a volume as one of the whole volume, background outside."""
    shape = volume.data.shape[1:]
    labels = np.zeros(shape, result.labels.dtype)
    labels[box_slices(box)] = result.labels
    margins = None
    if result.margins is not None:
        margins = np.full(shape, ONE, np.uint8)
        margins[box_slices(box)] = result.margins
    return replace(result, labels=labels, ijk_to_ras=volume.ijk_to_ras, margins=margins)


def box_notes(spec: ModelSpec, name: str) -> list[str]:
    """Return what a user should know of a network that sees a box of the scan alone, in words."""
    for step in spec.normalization:
        fixed = _FROM_VOXELS.get(step.kind)
        if fixed is not None and not (fixed and all(getattr(step, field) is not None for field in fixed)):
            return [f"{name} normalizes intensities by the voxels of the box alone, not by those of the whole scan"]
    return []


def chosen_labels(labels: Sequence[Label], structures: Sequence[str] | None, name: str) -> tuple[Label, ...]:
    """Return the labels of the structures that were chosen by their names; all of them for None.

    Raises:
        InputError: a name that the model does not know.
    """
    if structures is None:
        return tuple(labels)
    known = {label.name for label in labels}
    if unknown := next((wanted for wanted in structures if wanted not in known), None):
        raise InputError(f"{name} does not know {unknown!r}.", _known_in_words(unknown, sorted(known)))
    return tuple(label for label in labels if label.name in set(structures))


def _known_in_words(unknown: str, known: Sequence[str]) -> str:
    """Say what was perhaps meant, and what there is: all of it, or where it is listed."""
    plain = {text.casefold().replace("_", " "): text for text in known}
    close = difflib.get_close_matches(unknown.casefold().replace("_", " "), plain, 3, 0.7)
    meant = f"Perhaps {' or '.join(plain[text] for text in close)} is meant. " if close else ""
    if len(known) <= _MOST_NAMES:
        return f"{meant}It finds: {', '.join(known)}."
    return f"{meant}It finds {len(known)}, such as {', '.join(known[:3])}; medquant models show NAME --classes lists those of an installed model."


def keep_structures(result: SegmentationResult, labels: Sequence[Label]) -> None:
    """Make background of what is not among the labels, in place."""
    values = [label.value for label in labels]
    kept = np.zeros(1 + max(int(result.labels.max(initial=0)), *values, 0), result.labels.dtype)
    kept[values] = values
    result.labels[...] = kept[result.labels]
