"""The tissues of the synthetic abdomen: a body on a CT table, painted organ by organ on a grid of voxels.

All lengths are millimeters from the middle of the body: x grows to the patient's right, y to the front, z to the head.
Shapes are ellipsoids, tubes and half spaces with wobbling surfaces; a later organ takes the place of an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Point = tuple[float, float, float]
Axes = tuple[Array, Array, Array]

FAT, AIR, GAS = -100.0, -1000.0, -960.0
#: Mean Hounsfield units of a tissue before and after contrast medium.
PHASES: dict[str, dict[str, float]] = {
    "native": {
        "liver": 58,
        "cortex": 34,
        "medulla": 30,
        "spleen": 48,
        "aorta": 44,
        "cava": 42,
        "muscle": 52,
        "vessels": -12,
    },
    "arterial": {
        "liver": 72,
        "cortex": 180,
        "medulla": 85,
        "spleen": 125,
        "aorta": 320,
        "cava": 95,
        "muscle": 56,
        "vessels": 25,
    },
    "portal venous": {
        "liver": 112,
        "cortex": 195,
        "medulla": 165,
        "spleen": 124,
        "aorta": 168,
        "cava": 152,
        "muscle": 62,
        "vessels": 48,
    },
    "delayed": {
        "liver": 92,
        "cortex": 165,
        "medulla": 185,
        "spleen": 98,
        "aorta": 118,
        "cava": 116,
        "muscle": 60,
        "vessels": 22,
    },
}
#: Label values of the structures that are told apart.
LIVER, RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN, SPINE, AORTA, CAVA, STOMACH, GALLBLADDER, RIGHT_LUNG, LEFT_LUNG = range(1, 12)


@dataclass
class Canvas:
    """Voxels to paint on.

    Attributes:
        axes: x, y and z of the voxels, shaped to broadcast to (K, J, I).
        image: Hounsfield units (K, J, I).
        labels: uint8 (K, J, I).
    """

    axes: Axes
    rng: np.random.Generator
    image: Array = field(init=False)
    labels: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        x, y, z = self.axes
        shape = (z.shape[0], y.shape[1], x.shape[2])
        self.image, self.labels = np.full(shape, AIR, np.float32), np.zeros(shape, np.uint8)

    def block(self, low: Point, high: Point) -> tuple[tuple[slice, slice, slice], Axes]:
        """Return the voxels between two corners: their (K, J, I) slices and their axes."""
        bounds, cut = [], []
        for number, axis in enumerate(self.axes):
            inside = np.flatnonzero((axis.ravel() > low[number]) & (axis.ravel() < high[number]))
            part = slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)
            bounds.append(part)
            cut.append(axis[tuple(part if a == 2 - number else slice(None) for a in range(3))])
        return (bounds[2], bounds[1], bounds[0]), (cut[0], cut[1], cut[2])

    def around(self, center: Point, reach: float) -> tuple[tuple[slice, slice, slice], Axes]:
        """Return the block (:meth:`block`) that is a cube of half width ``reach``."""
        x, y, z = center
        return self.block((x - reach, y - reach, z - reach), (x + reach, y + reach, z + reach))

    def paint(
        self, where: tuple[slice, slice, slice], mask: NDArray[np.bool_], hu: float | Array, label: int = 0
    ) -> None:
        """Give the voxels of a block that ``mask`` chooses their Hounsfield units and label."""
        self.image[where][mask] = hu if np.isscalar(hu) else np.broadcast_to(hu, mask.shape)[mask]
        self.labels[where][mask] = label

    def wobble(self, axes: Axes, amount: float, length: float = 55.0) -> Array:
        """Return three waves across a block in random directions, about ``length`` millimeters long; adds to a squared distance."""
        x, y, z = axes
        total = np.float32(0)
        for _ in range(3):
            a, b, c = self.rng.normal(0, 4.4 / length, 3).astype(np.float32)
            total = total + np.sin(a * x + b * y + c * z + np.float32(self.rng.uniform(0, 6.28)))
        return np.asarray(total * np.float32(amount), np.float32)


def ellipsoid(axes: Axes, center: Point, radii: Point, tilt: float = 0.0) -> Array:
    """Return the squared distance from a center, 1 on the surface; ``tilt`` (radians) turns the upper end to +x."""
    x, y, z = (axis - np.float32(c) for axis, c in zip(axes, center, strict=True))
    if tilt:
        sine, cosine = np.float32(np.sin(tilt)), np.float32(np.cos(tilt))
        x, z = x * cosine - z * sine, x * sine + z * cosine
    return np.asarray((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2, np.float32)


def grown(radii: Point, by: float) -> float:
    """Return the squared distance at which an ellipsoid is ``by`` millimeters larger at its smallest radius."""
    return (1 + by / min(radii)) ** 2


@dataclass
class Body:
    """What the organs of one patient share.

    Attributes:
        half_width, half_depth: of the trunk.
        spine: y of the vertebral bodies' middle.
        hu: Hounsfield units by tissue (:data:`PHASES`, with a patient's own differences).
        cavity: (K, J, I), where organs can lie.
    """

    half_width: float
    half_depth: float
    spine: float
    hu: dict[str, float]
    cavity: NDArray[np.bool_]


def paint_trunk(canvas: Canvas, phase: str) -> Body:
    """Paint the table, skin, fat, muscles and ribs; the cavity is left full of fat."""
    rng = canvas.rng
    x, y, z = canvas.axes
    half_width, half_depth = 164 * rng.uniform(0.95, 1.04), 112 * rng.uniform(0.95, 1.06)
    hu = {tissue: value + rng.normal(0, 4) for tissue, value in PHASES[phase].items()}
    _table(canvas, -half_depth - rng.uniform(3, 7))
    waist = 1 - 0.035 * np.cos((z + 30) / 60)
    # A lying back is flatter than a belly: a higher power behind.
    across = np.abs(x / (half_width * waist)) ** 2.5 + np.where(
        y > 0, np.abs(y / half_depth) ** 2.1, np.abs(y / half_depth) ** 3.2
    )
    fat, wall = rng.uniform(0.74, 0.84), rng.uniform(0.60, 0.66)
    everywhere = (slice(None), slice(None), slice(None))
    canvas.paint(everywhere, across < 1, 30.0)
    canvas.paint(everywhere, across < 0.965, FAT + rng.normal(0, 5))
    canvas.paint(everywhere, across < fat, hu["muscle"])
    # Ribs run forwards and down within the wall.
    turn = np.sin((z + 0.42 * y + rng.uniform(0, 34)) * (2 * np.pi / 33))
    ribs = (
        (across > wall + 0.03) & (across < fat - 0.025) & (turn > 0.62) & (z > -25 - 0.2 * y) & (y > -half_depth * 0.75)
    )
    canvas.image[ribs] = 330 + 60 * rng.normal()
    cavity = across < wall
    canvas.paint(everywhere, cavity, FAT)
    # Organs keep a film of fat between themselves and the wall.
    return Body(half_width, half_depth, -half_depth + rng.uniform(50, 56), hu, across < wall - 0.045)


def _table(canvas: Canvas, top: float) -> None:
    where, (x, y, _) = canvas.block((-215, top - 60, -1e4), (215, top + 30, 1e4))
    depth = y - (np.float32(top) + x**2 * np.float32(0.0007))
    shape = canvas.image[where].shape
    canvas.paint(where, np.broadcast_to((depth < 0) & (depth > -34), shape), -890.0)
    canvas.paint(where, np.broadcast_to(((depth < 0) & (depth > -4)) | ((depth < -30) & (depth > -34)), shape), -60.0)


def diaphragm(axes: Axes, side: int, height: float) -> Array:
    """Return z of the diaphragm's dome on one side (+1 right, -1 left) over x and y."""
    x, y, _ = axes
    return np.asarray(height - ((x - side * 72) ** 2 + (y * 0.8) ** 2) * np.float32(0.0042), np.float32)


def paint_chest(canvas: Canvas, body: Body) -> tuple[float, float]:
    """Paint the lungs and the heart; return the heights of the right and left dome."""
    rng = canvas.rng
    x, y, z = canvas.axes
    heights = (rng.uniform(98, 108), rng.uniform(92, 101))
    for side, height, label in ((1, heights[0], RIGHT_LUNG), (-1, heights[1], LEFT_LUNG)):
        dome = diaphragm(canvas.axes, side, height) + canvas.wobble((x, y, np.float32(0) * z[:1]), 2.0)
        inner = 20 + 10 * (y > -30) + canvas.wobble((np.float32(0) * x[..., :1], y, z), 2.5)
        lung = body.cavity & (side * x > inner) & (z > dome)
        texture = -845 + 25 * canvas.wobble(canvas.axes, 1.0, 30)
        canvas.paint((slice(None),) * 3, lung, texture, label)
    center, radii = (-28.0 + rng.normal(0, 3), 30.0, 140.0 + rng.normal(0, 4)), (58.0, 46.0, 42.0)
    where, axes = canvas.around(center, 75)
    heart = ellipsoid(axes, center, radii, -0.3) + canvas.wobble(axes, 0.05)
    inside = body.cavity[where]
    canvas.paint(where, inside & (heart < grown(radii, 5)), FAT)
    canvas.paint(where, inside & (heart < 1), 0.8 * body.hu["aorta"] + 10)
    return heights


def paint_bowel(canvas: Canvas, body: Body) -> None:
    """Paint the colon and the small bowel, which have no label: a network has to leave them alone."""
    rng = canvas.rng
    x, y, z = canvas.axes
    loops = (
        np.sin(x / 11 + 1.4 * np.sin(z / 23))
        + np.sin(y / 12 + 1.2 * np.sin(x / 26))
        + np.sin(z / 12 + rng.uniform(0, 6))
    )
    region = (
        body.cavity
        & (z < -34 - 0.2 * x + 10 * np.sin(x / 31 + rng.uniform(0, 6)))
        & (np.abs(x) < 92)
        & (y > body.spine + 48)
    )
    content = rng.choice([35.0, 45.0, 180.0], p=[0.45, 0.4, 0.15])
    everywhere = (slice(None),) * 3
    canvas.paint(everywhere, region & (loops > -0.4), body.hu["muscle"] - 8)
    canvas.paint(everywhere, region & (loops > 0.5), content)
    for side, back, top in ((1, 0.0, -55.0), (-1, -16.0, -4.0)):
        center, radius = side * (104 + rng.normal(0, 3)), rng.uniform(16, 21)
        where, (u, v, w) = canvas.block((center - 40, -70, -1e4), (center + 40, 70, top + 8 * rng.normal()))
        _colon(
            canvas,
            body,
            where,
            ((u - center - 5 * np.sin(w / 24)) / radius) ** 2
            + ((v - back) / (radius + 3)) ** 2
            + 0.16 * np.sin(w / 5.5),
        )
    height, radius = -42 + 6 * rng.normal(), rng.uniform(15, 19)
    where, (u, v, w) = canvas.block((-105, 10, -110), (105, 100, 10))
    _colon(
        canvas,
        body,
        where,
        ((w - height - 0.002 * u**2) / radius) ** 2 + ((v - 62 + 0.002 * u**2) / radius) ** 2 + 0.16 * np.sin(u / 5.5),
    )


def _colon(canvas: Canvas, body: Body, where: tuple[slice, slice, slice], tube: Array) -> None:
    inside = body.cavity[where]
    canvas.paint(where, inside & (tube < 1), 40.0)
    stool = 25 + 70 * soft_noise(canvas.rng, inside.shape, 14)
    canvas.paint(where, inside & (tube < 0.72), np.where(stool < -20, np.float32(GAS), stool).astype(np.float32))


def paint_muscles_and_spine(canvas: Canvas, body: Body) -> None:
    """Paint the psoas and erector muscles, then the vertebrae with discs, canal and processes as one structure."""
    rng, hu, ys = canvas.rng, body.hu, body.spine
    where, (x, y, z) = canvas.block((-90, ys - 70, -1e4), (90, ys + 50, 1e4))
    inside = canvas.image[where] > -800
    size = np.clip((40 - z) / 90, 0.05, 1)
    for side in (-1, 1):
        psoas = ((x - side * (30 + 12 * size)) / (17 * size + 2)) ** 2 + ((y - ys - 2) / (20 * size + 2)) ** 2
        canvas.paint(where, inside & (psoas < 1), hu["muscle"])
        erector = ((x - side * 30) / 27) ** 2 + ((y - ys + 34) / 17) ** 2
        canvas.paint(where, inside & (erector < 1 + 0 * z), hu["muscle"] - 4)
    bend = 4 * rng.normal() * np.sin(z / 90 + rng.uniform(0, 6))
    x = np.asarray(x - bend, np.float32)
    level = (z + rng.uniform(0, 34)) % 34
    disc = level < 8
    swell = 1 + 0.06 * np.cos(level * (2 * np.pi / 34))
    vertebra = (x / (22 * swell)) ** 2 + ((y - ys) / (17 * swell)) ** 2
    canal = (x / 10) ** 2 + ((y - ys + 24) / 9) ** 2 + 0 * z
    arch = (x / 17) ** 2 + ((y - ys + 25) / 15) ** 2 + 0 * z
    spinous = (np.abs(x) < 5) & (y < ys - 30) & (y > ys - 58) & (level > 9) & (level < 31)
    transverse = (np.abs(x) < 36) & (np.abs(y - ys + 20) < 6) & (level > 11) & (level < 25)
    processes = spinous | transverse | (arch < 1)
    bone = 190 + 35 * rng.normal()
    canvas.paint(where, processes, bone + 160, SPINE)
    canvas.paint(where, (canal < 1), 30.0, SPINE)
    marrow = np.where(disc, 85.0, np.where(vertebra > 0.8, bone + 220, bone)).astype(np.float32)
    canvas.paint(where, vertebra < 1, marrow, SPINE)


def paint_pelvis(canvas: Canvas, body: Body) -> None:
    """Paint the wings of the iliac bones, where the scan reaches them."""
    for side in (-1, 1):
        center, radii = (side * 88.0, body.spine + 22, -158.0), (40.0, 52.0, 52.0)
        where, axes = canvas.around(center, 70)
        q = ellipsoid(axes, center, radii)
        inside = canvas.image[where] > -800
        canvas.paint(where, inside & (q < 1), body.hu["muscle"])
        canvas.paint(where, inside & (q < 1) & (q > 0.74) & (side * axes[0] > 62), 420.0)


def paint_vessels(canvas: Canvas, body: Body) -> None:
    """Paint the aorta and the inferior vena cava in front of the spine."""
    rng, ys = canvas.rng, body.spine
    where, (x, y, z) = canvas.block((-60, ys, -1e4), (80, ys + 75, 1e4))
    sway = rng.uniform(0, 6)
    aorta = 11.5 * rng.uniform(0.9, 1.15)
    a = ((x + 10 - 5 * np.sin(z / 70 + sway)) / aorta) ** 2 + ((y - ys - 17 - aorta - 3 * np.sin(z / 60)) / aorta) ** 2
    wide, deep = 13.0 * rng.uniform(0.9, 1.12), 10.5 * rng.uniform(0.9, 1.1)
    v = ((x - 22 - 4 * np.sin(z / 80 + sway)) / wide) ** 2 + (
        (y - ys - 20 - deep - np.clip(z, 0, 90) * 0.12) / deep
    ) ** 2
    lung = canvas.labels[where] >= RIGHT_LUNG
    for q, radius, tissue, label in ((v, deep, "cava", CAVA), (a, aorta, "aorta", AORTA)):
        canvas.paint(where, (q < (1 + 3 / radius) ** 2) & ~lung & (canvas.labels[where] != CAVA), FAT)
        canvas.paint(where, q < 1, body.hu[tissue], label)


def soft_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Array:
    """Return random values at ``cells`` points an axis, interpolated to a whole volume; standard deviation about 0.5."""
    coarse: Array = rng.normal(0, 1, (cells, cells, cells)).astype(np.float32)
    for axis, n in enumerate(shape):
        at = np.linspace(0, cells - 1, n)
        low = np.minimum(at.astype(int), cells - 2)
        weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = np.take(coarse, low, axis) * (1 - weight) + np.take(coarse, low + 1, axis) * weight
    return coarse.astype(np.float32)
