"""Slices for the report: the scan with a segmentation over it, and where two segmentations differ, as PNG."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...imaging.volume import Volume, axis_map
from ...models.spec import Label

_DISAGREEMENT = (255, 0, 64)


def comparison_slices(volume: Volume, first: NDArray[Any], second: NDArray[Any], labels: tuple[Label, ...]) -> bytes:
    """PNG of axial, coronal and sagittal slices through the largest disagreement (or the largest structure).

    Above ``second`` in the labels' colors, voxels that differ from ``first`` in red; below ``first``. Arrays are (K, J, I).
    """
    turn = axis_map(volume.grid, "RAS")
    scan, ours, theirs = (turn.apply(a) for a in (volume.data[0], first, second))
    spacing = turn.map_grid(volume.grid).spacing
    box = around((ours > 0) | (theirs > 0), (spacing[2], spacing[1], spacing[0]))
    low, high = display_range(scan)
    scan, ours, theirs = scan[box], ours[box], theirs[box]
    differs = ours != theirs
    center = _densest(differs if differs.any() else ours > 0)
    grey = np.clip((scan.astype(np.float32) - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    rows = []
    for painted, marked in ((theirs, differs), (ours, np.zeros_like(differs))):
        panels = []
        for axis, (up, across) in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
            index: list[Any] = [slice(None)] * 3
            index[axis] = center[axis]
            picture = _paint(grey[tuple(index)], painted[tuple(index)], marked[tuple(index)], labels)
            # spacing is (I, J, K), array axes are (K, J, I).
            panels.append(_scaled(picture[::-1, ::-1], spacing[2 - up], spacing[2 - across]))
        height = max(panel.shape[0] for panel in panels)
        rows.append(np.concatenate([_padded(panel, height) for panel in panels], axis=1))
    return png(np.concatenate([rows[0], np.zeros_like(rows[0][:8]), rows[1]], axis=0))


def around(
    mask: NDArray[np.bool_], spacing: tuple[float, float, float], margin: float = 30.0
) -> tuple[slice, slice, slice]:
    """The box of a mask with ``margin`` millimetres around, within the array; all of it where the mask is empty."""
    box = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        more = int(margin / spacing[axis])
        box.append(slice(max(0, int(inside[0]) - more), int(inside[-1]) + 1 + more) if inside.size else slice(None))
    return box[0], box[1], box[2]


def comparison_title(scan: str, first: NDArray[Any], second: NDArray[Any]) -> str:
    """What :func:`comparison_slices` shows, with how much differs."""
    differing = int((first != second).sum())
    return (
        f"{scan}: INT8 above, FP32 below, where they differ most; in red the voxels that differ, {differing:,} of {first.size:,} "
        f"({100 * differing / first.size:.3f} %)"
    )


def display_range(values: NDArray[Any]) -> tuple[float, float]:
    """Grey values to show as black and white: soft tissue in a CT scan (air is there, in Hounsfield units), else all but outliers."""
    sample = values.ravel()[:: max(1, values.size // 200_000)]
    low, high = np.percentile(sample, (1, 99.5))
    return (-160.0, 240.0) if low < -800 else (float(low), float(high))


def _densest(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    if not mask.any():
        k, j, i = (n // 2 for n in mask.shape)
        return k, j, i
    k, j, i = (int(np.argmax(mask.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3))
    return k, j, i


def _paint(
    grey: NDArray[np.uint8], labels: NDArray[Any], differs: NDArray[np.bool_], names: tuple[Label, ...]
) -> NDArray[np.uint8]:
    colors = np.zeros((int(max(labels.max(), max(n.value for n in names))) + 1, 3), np.float32)
    for name in names:
        colors[name.value] = name.color
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    inside = labels > 0
    picture[inside] = 0.55 * picture[inside] + 0.45 * colors[labels[inside]]
    picture[differs] = _DISAGREEMENT
    return picture.astype(np.uint8)


def _scaled(picture: NDArray[np.uint8], up: float, across: float, target: int = 330) -> NDArray[np.uint8]:
    """Nearest-neighbour scaling to square pixels, about ``target`` high."""
    height, width = picture.shape[0] * up, picture.shape[1] * across
    scale = target / max(height, width)
    rows = np.minimum((np.arange(max(1, round(height * scale))) / (up * scale)).astype(int), picture.shape[0] - 1)
    columns = np.minimum((np.arange(max(1, round(width * scale))) / (across * scale)).astype(int), picture.shape[1] - 1)
    return picture[rows][:, columns]


def _padded(picture: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    missing = height - picture.shape[0]
    return np.pad(picture, ((missing // 2, missing - missing // 2), (2, 2), (0, 0)))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """RGB rows from top to bottom, (height, width, 3), as PNG."""
    import SimpleITK as sitk

    with TemporaryDirectory(prefix="medquant-png-") as scratch:
        path = Path(scratch) / "picture.png"
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(pixels), isVector=True), str(path))
        return path.read_bytes()
