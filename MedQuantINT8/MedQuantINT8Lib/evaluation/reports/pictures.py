"""Slices for the report: where two segmentations of a scan differ, as PNG."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...imaging.pictures import SlicePainter, densest, png
from ...imaging.volume import Volume
from ...models.spec import Label


def comparison_slices(volume: Volume, first: NDArray[Any], second: NDArray[Any], labels: tuple[Label, ...]) -> bytes:
    """Return a PNG of axial, coronal and sagittal slices through the largest disagreement (or the largest structure).

    Above ``second`` in the labels' colors, voxels that differ from ``first`` in red; below ``first``. Arrays are (K, J, I).
    """
    painter = SlicePainter(volume, [first, second], labels)
    first, second = painter.cropped(first), painter.cropped(second)
    differs = first != second
    center = densest(differs if differs.any() else first > 0)
    above, below = painter.row(second, center, differs), painter.row(first, center)
    return png(np.concatenate([above, np.zeros_like(above[:8]), below], axis=0))


def comparison_title(scan: str, first: NDArray[Any], second: NDArray[Any]) -> str:
    """Return what :func:`comparison_slices` shows, with how much differs."""
    differing = int((first != second).sum())
    return (
        f"{scan}: INT8 above, FP32 below, where they differ most; in red the voxels that differ, {differing:,} of {first.size:,} "
        f"({100 * differing / first.size:.3f} %)"
    )
