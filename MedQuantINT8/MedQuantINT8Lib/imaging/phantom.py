"""A synthetic abdomen that resembles a CT scan: nothing of a patient, for the demo, its training and tests.

A trunk on a table with skin, fat, muscles, ribs and bowel around eleven structures, before or after contrast medium, with
noise and a smooth change of brightness. Grey values are in Hounsfield units; voxels lie as CT's do (LPS, slices thicker than
their pixels).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..models.spec import (
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
from . import phantom_anatomy as anatomy
from . import phantom_organs as organs
from .volume import Grid, Volume, nearest_axes

#: Name, color, SNOMED CT code and meaning of the structures, by label value from 1 on.
_STRUCTURES = (
    ("liver", (221, 130, 101), "10200004", "Liver"),
    ("right kidney", (185, 102, 83), "64033007", "Kidney"),
    ("left kidney", (207, 138, 90), "64033007", "Kidney"),
    ("spleen", (157, 108, 162), "78961009", "Spleen"),
    ("vertebral column", (226, 202, 134), "51282000", "Vertebral column"),
    ("aorta", (224, 97, 76), "15825003", "Aorta"),
    ("inferior vena cava", (0, 151, 206), "64131007", "Inferior vena cava"),
    ("stomach", (216, 160, 150), "69695003", "Stomach"),
    ("gallbladder", (139, 150, 98), "28231008", "Gallbladder"),
    ("right lung", (197, 165, 145), "39607008", "Lung"),
    ("left lung", (172, 138, 115), "39607008", "Lung"),
)
_SIDES = {"right": Code("SCT", "24028007", "Right"), "left": Code("SCT", "7771000", "Left")}

#: Contrast phases that a scan can be made in.
PHASES = tuple(anatomy.PHASES)
#: The demo's scan: voxels along I, J, K and their millimeters.
SCAN_SIZE, SCAN_SPACING = (224, 184, 92), (1.7, 1.7, 3.0)


def phantom_labels() -> tuple[Label, ...]:
    """Return the structures of the phantom, values 1 to 11."""
    category = Code("SCT", "123037004", "Anatomical Structure")
    return tuple(
        Label(n + 1, name, n + 1, color, Terminology(category, Code("SCT", code, meaning), _SIDES.get(name.split()[0])))
        for n, (name, color, code, meaning) in enumerate(_STRUCTURES)
    )


def phantom_spec() -> ModelSpec:
    """Return how the demo network wants its input."""
    return ModelSpec(
        name="phantom-unet",
        version="2.0.0",
        modality="CT",
        channels=(Channel("CT"),),
        title="Demo: organs of a synthetic abdomen",
        description="A small 3D U-Net trained on volumes that MedQuantINT8 makes itself. For trying the software, not for patients.",
        geometry=Geometry("KJI", "RAS", spacing=(3.0, 2.0, 2.0)),
        normalization=(Normalization("window", low=-160, high=400),),
        # Wide from left to right: every window sees the spine or the wall beside it, which tells the sides apart.
        window=Window((64, 80, 96), multiples=(16, 16, 16), overlap=0.5, air_threshold=0.0),
        output=Output("softmax"),
        labels=phantom_labels(),
        license="Apache-2.0",
        citation="MedQuantINT8",
        source_url="",
    )


def make_phantom(
    seed: int,
    size: tuple[int, int, int] = SCAN_SIZE,
    spacing: float | tuple[float, float, float] = SCAN_SPACING,
    phase: str | None = None,
) -> tuple[Volume, NDArray[np.uint8]]:
    """Return a volume (one channel, int16, HU) and its labels (K, J, I), the same for the same arguments.

    Args:
        size: voxels along I, J, K, which run to the left, to the back and to the head.
        spacing: millimeters along I, J, K, or of all three. The trunk takes about 330 x 225 mm at any size, the table 40 mm more.
        phase: one of :data:`PHASES`; drawn by the seed if None.
    """
    steps = (float(spacing),) * 3 if isinstance(spacing, float | int) else spacing
    matrix = np.diag([-steps[0], -steps[1], steps[2], 1.0])
    # The table lies behind: the trunk's middle is in front of the scan's.
    matrix[:3, 3] = [steps[0] * (size[0] - 1) / 2, steps[1] * (size[1] - 1) / 2 - 18, -steps[2] * (size[2] - 1) / 2]
    canvas = paint_phantom(seed, Grid(size, matrix), phase)
    image = _simulate_scanner(canvas.image, canvas.rng)
    return Volume(np.rint(image).astype(np.int16), matrix, f"synthetic abdomen {seed}"), canvas.labels


def demo_scan() -> tuple[Volume, NDArray[np.uint8]]:
    """Return the scan of the demo and of the tutorial, with its labels: the portal venous phase of a patient that no network was trained on."""
    return make_phantom(1000, phase="portal venous")


def paint_phantom(seed: int, grid: Grid, phase: str | None = None) -> anatomy.Canvas:
    """Return tissues and labels before a scanner sees them, the same patient for the same seed on any grid that is not rotated."""
    rng = np.random.default_rng(seed)
    random_phase = PHASES[int(rng.integers(len(PHASES)))]
    scale = rng.uniform(0.95, 1.05, 3)
    axes: list[NDArray[np.float32]] = []
    for number, (world, _) in enumerate(nearest_axes(grid.ijk_to_ras)):
        along = (grid.ijk_to_ras[world, number] * np.arange(grid.size[number]) + grid.ijk_to_ras[world, 3]) / scale[
            world
        ]
        axes.append(along.astype(np.float32).reshape([-1 if axis == 2 - number else 1 for axis in range(3)]))
    canvas = anatomy.Canvas((axes[0], axes[1], axes[2]), rng)
    body = anatomy.paint_trunk(canvas, phase or random_phase)
    anatomy.paint_pelvis(canvas, body)
    heights = anatomy.paint_chest(canvas, body)
    anatomy.paint_bowel(canvas, body)
    organs.paint_liver(canvas, body, heights)
    organs.paint_stomach(canvas, body, heights)
    organs.paint_spleen(canvas, body, heights)
    organs.paint_gallbladder(canvas, body)
    organs.paint_kidneys(canvas, body)
    anatomy.paint_muscles_and_spine(canvas, body)
    anatomy.paint_vessels(canvas, body)
    return canvas


def _simulate_scanner(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the image (K, J, I; HU) as a scanner would show it: blurred, brighter here and darker there, with noise whose neighbors resemble each other."""
    noise = rng.standard_normal(image.shape, np.float32)
    for axis in (1, 2):
        noise = (noise + 0.6 * np.roll(noise, 1, axis)).astype(np.float32)
    image = _blur(image) + noise * np.float32(rng.uniform(5, 11))
    image += anatomy.soft_noise(rng, image.shape, 8) * np.float32(5)
    return np.maximum(image, -1024)


def _blur(image: NDArray[np.float32]) -> NDArray[np.float32]:
    for axis in range(3):
        edge = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        wide = np.pad(image, edge, mode="edge")
        before, after = (np.take(wide, range(s, s + image.shape[axis]), axis) for s in (0, 2))
        image = (0.2 * before + 0.6 * image + 0.2 * after).astype(np.float32)
    return image
