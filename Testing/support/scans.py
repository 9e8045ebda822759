"""Sizes, geometries and descriptions of the tests' scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.models.spec import ModelSpec

#: Voxels along I, J, K and their millimeters of the tests' scans: all eleven structures in eight windows of the demo network.
PHANTOM_SIZE, PHANTOM_SPACING = (84, 64, 72), 4.0

OBLIQUE = np.array([[0.80, -0.52, 0.40, -40.0], [0.55, 1.30, -0.30, 12.0], [-0.21, 0.48, 2.70, 77.0], [0, 0, 0, 1.0]])


def orthogonal(
    spacing: tuple[float, float, float], angles: tuple[float, float, float] = (0, 0, 0), flips: str = ""
) -> np.ndarray:
    """An IJK-to-RAS matrix: rotations about R, A, S in degrees, ``flips`` naming axes (i, j, k) that run backwards."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.radians(angles)):
        rotation = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        rotation[a, a] = rotation[b, b] = np.cos(angle)
        rotation[a, b], rotation[b, a] = -np.sin(angle), np.sin(angle)
        matrix[:3, :3] = matrix[:3, :3] @ rotation
    matrix[:3, :3] *= [s * (-1 if letter in flips else 1) for s, letter in zip(spacing, "ijk", strict=True)]
    matrix[:3, 3] = [-31.0, 17.0, 240.0]
    return matrix


GEOMETRIES = {
    "axial": orthogonal((1.0, 1.0, 1.0)),
    "anisotropic": orthogonal((0.7, 0.7, 4.0)),
    "flipped": orthogonal((0.9, 1.2, 2.0), flips="ik"),
    "oblique": orthogonal((0.8, 1.1, 2.5), (12, -20, 31)),
    "oblique and flipped": orthogonal((1.5, 0.9, 3.0), (-25, 14, 40), flips="j"),
    "sagittal": orthogonal((1.0, 1.3, 1.1), (0, 90, 90)),
}


def spec_with(**changes) -> ModelSpec:
    return replace(phantom_spec(), **{"normalization": (), **changes})
