"""A made volume that resembles an abdominal CT: nothing of a patient, for the demo, its training and tests.

Ellipsoids with wobbling surfaces stand for liver, kidneys, spine and spleen in a body of fat and muscle, with noise, a
smooth change of brightness and air around. Grey values are in Hounsfield units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .model_spec import (
    Channel,
    Code,
    Geometry,
    Label,
    ModelSpec,
    Normalization,
    Output,
    Terminology,
    Window,
)
from .volume import Volume

#: name, colour, SNOMED code, HU, centre and radii as shares of the body (left-right, back-front, down-up).
_ORGANS = (
    ("liver", (221, 130, 101), "10200004", "Liver", 95.0, (0.38, 0.10, 0.15), (0.40, 0.42, 0.42)),
    ("right kidney", (185, 102, 83), "64033007", "Kidney", 160.0, (0.42, -0.42, -0.45), (0.17, 0.18, 0.30)),
    ("left kidney", (185, 102, 83), "64033007", "Kidney", 160.0, (-0.42, -0.42, -0.38), (0.17, 0.18, 0.30)),
    ("spleen", (157, 108, 162), "78961009", "Spleen", 115.0, (-0.58, -0.20, 0.38), (0.20, 0.28, 0.30)),
    ("vertebral column", (226, 202, 134), "51282000", "Vertebral column", 320.0, (0.0, -0.62, 0.0), (0.14, 0.15, 2.0)),
)
_SIDES = {"right kidney": Code("SCT", "24028007", "Right"), "left kidney": Code("SCT", "7771000", "Left")}


def phantom_labels() -> tuple[Label, ...]:
    """The structures of the phantom, values 1 to 5."""
    anatomy = Code("SCT", "123037004", "Anatomical Structure")
    return tuple(
        Label(n + 1, name, n + 1, color, Terminology(anatomy, Code("SCT", code, meaning), _SIDES.get(name)))
        for n, (name, color, code, meaning, *_) in enumerate(_ORGANS)
    )


def phantom_spec() -> ModelSpec:
    """How the demo network wants its input."""
    return ModelSpec(
        name="phantom-unet",
        version="1.0.0",
        modality="CT",
        channels=(Channel("CT"),),
        title="Demo: organs of a made abdomen",
        description="A small 3D U-Net trained on volumes that MedQuantINT8 makes itself. For trying the software, not for patients.",
        geometry=Geometry("KJI", "RAS", spacing=(2.5, 2.5, 2.5)),
        normalization=(Normalization("window", low=-160, high=400),),
        window=Window((64, 64, 64), multiples=(4, 4, 4), overlap=0.5, air_threshold=0.0),
        output=Output("softmax"),
        labels=phantom_labels(),
        license="Apache-2.0",
        citation="MedQuantINT8",
        source_url="",
    )


def make_phantom(
    seed: int, size: tuple[int, int, int] = (160, 128, 112), spacing: float = 2.5
) -> tuple[Volume, NDArray[np.uint8]]:
    """A volume (one channel, int16, HU) and its labels (K, J, I), the same for the same seed.

    Args:
        size: voxels along I, J, K.
        spacing: millimetres, isotropic; the body fills about 380 x 300 mm at any size.
    """
    rng = np.random.default_rng(seed)
    extent = [n * spacing / 2 for n in size]
    half = (190.0 * rng.uniform(0.9, 1.05), 145.0 * rng.uniform(0.9, 1.05), 140.0)
    axes = np.meshgrid(*[(np.arange(n) * spacing - e) for n, e in zip(size[::-1], extent[::-1], strict=True)], indexing="ij")
    z, y, x = (axis.astype(np.float32) / h for axis, h in zip(axes, half[::-1], strict=True))
    body = x**2 + y**2
    image = np.where(body < 1, np.where(body < 0.8, 45.0, -100.0), -1000.0).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    for value, (_, _, _, _, hu, center, radii) in enumerate(_ORGANS, start=1):
        at = [c + rng.normal(0, 0.03) for c in center]
        size_factor = rng.uniform(0.85, 1.12)
        wobble = _wobble(rng, (x, y, z))
        distance = sum(((axis - c) / (r * size_factor)) ** 2 for axis, c, r in zip((x, y, z), at, radii, strict=True)) + wobble
        inside = (distance < 1) & (body < 0.78) & (labels == 0)
        labels[inside] = value
        image[inside] = hu + rng.normal(0, 12)
    image += _smooth_noise(rng, image.shape, 8) * 12
    image = _blur(image) + rng.normal(0, 18, image.shape).astype(np.float32) * (image > -900)
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = [-e for e in extent]
    return Volume(np.rint(image).astype(np.int16), matrix, f"phantom {seed}"), labels


def _wobble(rng: np.random.Generator, axes: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
    total = np.zeros_like(axes[0])
    for _ in range(3):
        direction = rng.normal(0, 4, 3)
        total += np.sin(sum(d * axis for d, axis in zip(direction, axes, strict=True)) + rng.uniform(0, 6.28)).astype(np.float32)
    return total * np.float32(0.07)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> NDArray[np.float32]:
    coarse: NDArray[Any] = rng.normal(0, 1, (cells, cells, cells)).astype(np.float32)
    for axis, n in enumerate(shape):
        at = np.linspace(0, cells - 1, n)
        low = np.minimum(at.astype(int), cells - 2)
        weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = np.take(coarse, low, axis) * (1 - weight) + np.take(coarse, low + 1, axis) * weight
    return coarse.astype(np.float32)


def _blur(image: NDArray[np.float32]) -> NDArray[np.float32]:
    for axis in range(3):
        before, after = np.roll(image, 1, axis), np.roll(image, -1, axis)
        image = ((before + 2 * image + after) / 4).astype(np.float32)
    return image
