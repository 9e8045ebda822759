"""Images in space as a volume: one orientation, even steps, nothing missing, nothing twice; or a refusal that names the images.

Coordinates are DICOM's (LPS, millimeters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .dicom_image import SOP_INSTANCE, DicomImage, path_names

#: Directions that differ by less are one (its cosine).
_PARALLEL = np.cos(np.deg2rad(0.2))
#: How far a slice may lie from where even steps put it, in shares of a step.
_EVEN = 0.06
#: Images nearer than this share of a step are at one position.
_SAME = 0.02
#: A drift of the whole stack below this share of a pixel is rounding.
_DRIFT = 0.1


@dataclass(frozen=True)
class Stack:
    """Images in order along the normal of their planes.

    Attributes:
        heights: where each image lies along the normal, in millimeters, ascending.
        slice_heights: the heights of the volume's slices, in millimeters; more than ``heights`` where gaps are filled.
        step: from one slice of the volume to the next; along the normal unless the gantry was tilted.
    """

    images: list[DicomImage]
    heights: NDArray[np.float64]
    slice_heights: NDArray[np.float64]
    step: NDArray[np.float64]
    notes: list[str]

    @property
    def tilted(self) -> bool:
        """Whether planes are shifted against each other, as by a tilted gantry."""
        first = self.images[0]
        drift = self.step - (self.step @ first.normal) * first.normal
        return bool(np.linalg.norm(drift) * (len(self.slice_heights) - 1) > _DRIFT * min(first.spacing))


def group_by_geometry(images: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """Return groups of images of one orientation, size and pixel spacing, which can be one volume each, the largest first."""
    groups: list[list[DicomImage]] = []
    for image in images:
        for group in groups:
            first = group[0]
            if (
                (image.form.rows, image.form.columns) == (first.form.rows, first.form.columns)
                and np.allclose(image.spacing, first.spacing, rtol=1e-3)
                and image.across @ first.across > _PARALLEL
                and image.down @ first.down > _PARALLEL
            ):
                group.append(image)
                break
        else:
            groups.append([image])
    return sorted(groups, key=lambda group: -len(group))


def passes_of(images: Sequence[DicomImage]) -> tuple[str, list[list[DicomImage]]]:
    """Return images of several passes over the same positions, by the first element that tells them apart, and its name.

    One group, and no name, where no position is taken twice or nothing tells them apart.
    """
    if not _coincident_pairs(images):
        return "", [list(images)]
    for what in images[0].passes:
        groups: dict[str, list[DicomImage]] = {}
        for image in images:
            groups.setdefault(image.passes.get(what, ""), []).append(image)
        if len(groups) > 1 and not any(_coincident_pairs(group) for group in groups.values()):
            return what, list(groups.values())
    return "", [list(images)]


def _heights(images: Sequence[DicomImage]) -> NDArray[np.float64]:
    return np.array([image.position for image in images]) @ images[0].normal


def _coincident_pairs(images: Sequence[DicomImage]) -> list[tuple[DicomImage, DicomImage]]:
    """Return pairs of images at one position."""
    order = np.argsort(_heights(images), kind="stable")
    heights = _heights(images)[order]
    steps = np.diff(heights)
    usual = np.median(steps[steps > 1e-3]) if (steps > 1e-3).any() else images[0].thickness
    return [(images[order[n]], images[order[n + 1]]) for n in np.flatnonzero(steps < _SAME * usual)]


def without_copies(images: Sequence[DicomImage]) -> tuple[list[DicomImage], list[str]]:
    """Return images without those that are there twice under other file names, and a note of these."""
    originals: dict[tuple[str, int], DicomImage] = {}
    unique, copies = [], []
    for image in images:
        key = (image.file.data.text(SOP_INSTANCE), image.frame)
        if key[0] and key in originals and _equal(originals[key], image):
            copies.append(image)
        else:
            originals[key] = image
            unique.append(image)
    notes = (
        [f"{len(copies)} image(s) are there twice; the copies were left out: {path_names([c.name for c in copies])}"]
        if copies
        else []
    )
    return unique, notes


def _equal(first: DicomImage, second: DicomImage) -> bool:
    return (
        first.form == second.form
        and bool(np.allclose(first.position, second.position))
        and first.file.pixel_bytes() == second.file.pixel_bytes()
    )


def stack_of(images: Sequence[DicomImage], name: str, *, allow_gaps: bool) -> Stack:
    """Put images of one orientation in order and check their steps.

    Args:
        allow_gaps: missing slices and uneven steps are filled in by interpolation, and the notes say so.

    Raises:
        InputError: two images at one position, slices missing, or uneven steps, with the images and positions.
    """
    if pairs := _coincident_pairs(images):
        listing = ", ".join(f"{a.name} and {b.name}" for a, b in pairs[:3])
        raise InputError(
            f"{name} holds {len(pairs)} pair(s) of images at the same position: {listing}.",
            "It may be several passes or a copy: leave one image a position in the folder.",
        )
    normal = images[0].normal
    order = np.argsort(_heights(images))
    ordered = [images[n] for n in order]
    heights = _heights(images)[order]
    if len(ordered) == 1:
        return Stack(ordered, heights, heights, normal * ordered[0].thickness, [])
    places = np.array([image.position for image in ordered])
    steps = np.diff(heights)
    usual = float(np.median(steps[steps < 1.5 * steps.min()]))
    counts = np.rint(steps / usual).astype(int)
    notes: list[str] = []
    index = np.concatenate([[0], np.cumsum(counts)])
    usual = float(heights[-1] - heights[0]) / index[-1] if (counts > 0).all() else usual
    even = (counts > 0).all() and bool(np.abs(heights - heights[0] - index * usual).max() <= _EVEN * usual)
    if even and index[-1] == len(ordered) - 1:
        slice_heights = heights
    elif allow_gaps:
        slice_heights = heights[0] + usual * np.arange(round((heights[-1] - heights[0]) / usual) + 1)
        notes.append(
            f"{name}: "
            + (_describe_gaps(ordered, heights, counts, usual) if even else _describe_steps(steps))
            + "; what lies between was interpolated (--allow-gaps)"
        )
    elif even:
        raise InputError(
            f"{name}: {_describe_gaps(ordered, heights, counts, usual)}.",
            "Get the whole series, or give --allow-gaps to fill the gap by interpolation.",
        )
    else:
        raise InputError(
            f"{name}: {_describe_steps(steps)}.",
            "Give a series of even steps, or --allow-gaps to resample it to even steps.",
        )
    # The drift of planes against each other, by a straight line through all positions.
    along = heights - heights.mean()
    slope = (along[:, None] * (places - places.mean(axis=0))).sum(axis=0) / (along**2).sum()
    sideways = places - places.mean(axis=0) - along[:, None] * slope
    off = float(np.linalg.norm(sideways - (sideways @ normal)[:, None] * normal, axis=1).max())
    if off > 0.5 * min(ordered[0].spacing):
        raise InputError(
            f"{name}: the images do not lie in one line: they are shifted against it by up to {off:.2f} mm.",
            "Give images of one stack.",
        )
    return Stack(ordered, heights, slice_heights, slope / (slope @ normal) * usual, notes)


def _describe_gaps(images: Sequence[DicomImage], heights: NDArray[Any], counts: NDArray[Any], usual: float) -> str:
    gaps = np.flatnonzero(counts > 1)
    number = int((counts[gaps] - 1).sum())
    places = [height for n in gaps for height in heights[n] + usual * np.arange(1, counts[n])]
    positions = ", ".join(f"{place:.2f}" for place in places[:6]) + (
        f" and {len(places) - 6} more" if len(places) > 6 else ""
    )
    first = images[gaps[0]], images[gaps[0] + 1]
    numbers = ""
    if all(image.number is not None for image in first):
        low, high = sorted(image.number or 0 for image in first)
        numbers = (
            f", numbers {low + 1} to {high - 1}"
            if high - low == counts[gaps[0]] and high - low > 2
            else f", number {low + 1}"
            if high - low == 2
            else ""
        )
    return (
        f"{number} of {len(images) + number} slices are missing, at {positions} mm along the stack of {usual:.4g} mm steps "
        f"(the first gap is between {first[0].name} and {first[1].name}{numbers})"
    )


def _describe_steps(steps: NDArray[Any]) -> str:
    return f"the spacing of its slices is uneven: from {steps.min():.4g} to {steps.max():.4g} mm"


def straighten(data: NDArray[Any], stack: Stack) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return slices of a tilted gantry on a grid at right angles: each plane is shifted within itself, linearly between pixels.

    The grid grows sideways so that nothing is cut off; what no plane covers gets the scan's lowest value (air).

    Args:
        data: array (slices, rows, columns), slices as ``stack.slice_heights``.

    Returns:
        The slices, and where the first pixel lies now (LPS).
    """
    first, count = stack.images[0], len(data)
    # Of a slice relative to the first, in pixels along columns and rows.
    shifts = np.arange(count)[:, None] * np.array(
        [stack.step @ first.across / first.spacing[0], stack.step @ first.down / first.spacing[1]]
    )
    before = np.ceil(np.maximum(0, -shifts.min(axis=0)) - 1e-6).astype(int)
    behind = np.ceil(np.maximum(0, shifts.max(axis=0)) - 1e-6).astype(int)
    rows, columns = data.shape[1] + before[1] + behind[1], data.shape[2] + before[0] + behind[0]
    result = np.full((count, rows, columns), data.min(), np.float32)
    for n in range(count):
        plane = data[n].astype(np.float32)
        for axis, shift in ((1, shifts[n, 0] + before[0]), (0, shifts[n, 1] + before[1])):
            plane = _shift(plane, axis, float(shift), (columns, rows)[1 - axis], float(result[n, 0, 0]))
        result[n] = plane
    origin = first.position - before[0] * first.spacing[0] * first.across - before[1] * first.spacing[1] * first.down
    return result, origin


def _shift(plane: NDArray[np.float32], axis: int, shift: float, size: int, outside: float) -> NDArray[np.float32]:
    """Return a plane moved by ``shift`` pixels along an axis onto ``size`` pixels, linearly interpolated."""
    whole = int(np.floor(shift))
    part = np.float32(shift - whole)
    plane = np.moveaxis(plane, axis, 0)
    wide = np.full((size + 1, plane.shape[1]), outside, np.float32)
    wide[whole : whole + plane.shape[0]] = plane[: size + 1 - whole]
    shifted = wide[:size].copy() if part < 1e-6 else (1 - part) * wide[:size]
    if part >= 1e-6:
        shifted[1:] += part * wide[: size - 1]
        shifted[0] += part * np.float32(outside)
    return np.moveaxis(shifted, 0, axis)


def fill_gaps(data: NDArray[Any], stack: Stack) -> NDArray[Any]:
    """Return slices at ``stack.slice_heights`` from those at ``stack.heights``, linearly interpolated where they differ; float32 then."""
    if len(stack.slice_heights) == len(stack.heights) and np.allclose(stack.slice_heights, stack.heights):
        return data
    result = np.empty((len(stack.slice_heights), *data.shape[1:]), np.float32)
    above = np.clip(np.searchsorted(stack.heights, stack.slice_heights), 1, len(stack.heights) - 1)
    for n, (upper, height) in enumerate(zip(above, stack.slice_heights, strict=True)):
        low, high = stack.heights[upper - 1], stack.heights[upper]
        share = np.float32(np.clip((height - low) / (high - low), 0.0, 1.0))
        result[n] = (1 - share) * data[upper - 1] + share * data[upper]
    return result
