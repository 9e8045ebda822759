"""Slices of a scan with a segmentation over it, as pictures (PNG)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.spec import Label
from .volume import Volume, axis_map

_DISAGREEMENT = (255, 0, 64)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: How much of the label's color a painted voxel has; the rest is the scan.
_OPACITY = 0.45
#: Around what a picture shows, and how high or wide it becomes.
_MARGIN_MM, _PIXELS = 30.0, 330


class SlicePainter:
    """Draws axial, coronal and sagittal slices of one scan, cropped to what its label maps hold.

    Args:
        volume: its first channel is drawn.
        label_maps: arrays (K, J, I) on the volume's grid; the box around all of their structures is shown, with a margin, or the
            whole scan where they hold none.
        labels: the colors of the values.
    """

    def __init__(self, volume: Volume, label_maps: Sequence[NDArray[Any]], labels: tuple[Label, ...]) -> None:
        self._turn = axis_map(volume.grid, "RAS")
        self._spacing = self._turn.map_grid(volume.grid).spacing
        self._labels = labels
        scan, *maps = (self._turn.apply(array) for array in (volume.data[0], *label_maps))
        inside = np.zeros(scan.shape, bool)
        for label_map in maps:
            inside |= label_map > 0
        self._box = around(inside, (self._spacing[2], self._spacing[1], self._spacing[0]))
        low, high = display_range(scan)
        window = (scan[self._box].astype(np.float32) - low) / max(high - low, 1e-6) * 255
        self._gray = np.clip(window, 0, 255).astype(np.uint8)

    def cropped(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array (K, J, I) on the volume's grid, turned to RAS and cut to the box that is drawn."""
        return self._turn.apply(array)[self._box]

    def row(
        self, label_map: NDArray[Any], center: tuple[int, int, int], marked: NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint8]:
        """Return three slices side by side as pixels (height, width, 3).

        Args:
            label_map, marked: cropped arrays; voxels that are marked are painted red.
            center: the voxel of the cropped arrays (K, J, I) through which the slices go.
        """
        panels = []
        for axis, (up, across) in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
            index: list[Any] = [slice(None)] * 3
            index[axis] = center[axis]
            where = tuple(index)
            picture = _paint(
                self._gray[where], label_map[where], None if marked is None else marked[where], self._labels
            )
            # spacing is (I, J, K), array axes are (K, J, I).
            panels.append(_scaled(picture[::-1, ::-1], self._spacing[2 - up], self._spacing[2 - across]))
        height = max(panel.shape[0] for panel in panels)
        return np.concatenate([_padded(panel, height) for panel in panels], axis=1)


def segmentation_picture(volume: Volume, label_map: NDArray[Any], labels: tuple[Label, ...]) -> bytes:
    """Return a PNG of axial, coronal and sagittal slices (left is the patient's right) with the structures in their colors.

    The slices go where most of the structures is; without any, through the middle of the scan.

    Args:
        label_map: array (K, J, I) on the volume's grid.
    """
    painter = SlicePainter(volume, [label_map], labels)
    cropped = painter.cropped(label_map)
    return png(painter.row(cropped, densest(cropped > 0)))


def display_range(values: NDArray[Any]) -> tuple[float, float]:
    """Return the gray values to show as black and white: soft tissue in a CT scan (air is there, in Hounsfield units), else all but outliers."""
    sample = values.ravel()[:: max(1, values.size // 200_000)]
    low, high = np.percentile(sample, (1, 99.5))
    return (-160.0, 240.0) if low < -800 else (float(low), float(high))


def densest(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Return the slice along each axis (K, J, I) with the most true voxels; the middle of an empty mask."""
    if not mask.any():
        k, j, i = (n // 2 for n in mask.shape)
        return k, j, i
    k, j, i = (int(np.argmax(mask.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3))
    return k, j, i


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return RGB rows from top to bottom, (height, width, 3), as a PNG file."""
    height, width, _ = pixels.shape
    # Each row begins with the number of its filter; 0 is none.
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * 3)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def around(mask: NDArray[np.bool_], spacing: tuple[float, float, float]) -> tuple[slice, slice, slice]:
    """Return the box of a mask with 30 mm around, within the array; all of it where the mask is empty.

    Args:
        mask: (K, J, I).
        spacing: millimeters along K, J and I.
    """
    box = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        more = int(_MARGIN_MM / spacing[axis])
        box.append(slice(max(0, int(inside[0]) - more), int(inside[-1]) + 1 + more) if inside.size else slice(None))
    return box[0], box[1], box[2]


def _paint(
    gray: NDArray[np.uint8], label_map: NDArray[Any], marked: NDArray[np.bool_] | None, labels: tuple[Label, ...]
) -> NDArray[np.uint8]:
    colors = np.zeros((int(max(label_map.max(), max(label.value for label in labels))) + 1, 3), np.float32)
    for label in labels:
        colors[label.value] = label.color
    picture = np.repeat(gray[..., None], 3, axis=2).astype(np.float32)
    inside = label_map > 0
    picture[inside] = (1 - _OPACITY) * picture[inside] + _OPACITY * colors[label_map[inside]]
    if marked is not None:
        picture[marked] = _DISAGREEMENT
    return picture.astype(np.uint8)


def _scaled(picture: NDArray[np.uint8], up: float, across: float) -> NDArray[np.uint8]:
    """Return a picture scaled by nearest neighbors to square pixels.

    Args:
        up, across: millimeters from row to row and from column to column.
    """
    height, width = picture.shape[0] * up, picture.shape[1] * across
    scale = _PIXELS / max(height, width)
    rows = np.minimum((np.arange(max(1, round(height * scale))) / (up * scale)).astype(int), picture.shape[0] - 1)
    columns = np.minimum((np.arange(max(1, round(width * scale))) / (across * scale)).astype(int), picture.shape[1] - 1)
    return picture[rows][:, columns]


def _padded(picture: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    missing = height - picture.shape[0]
    return np.pad(picture, ((missing // 2, missing - missing // 2), (2, 2), (0, 0)))
