"""The organs of the synthetic abdomen: liver, stomach, spleen, gallbladder and kidneys (see :mod:`.phantom_anatomy`)."""

from __future__ import annotations

import numpy as np

from .phantom_anatomy import (
    FAT,
    GALLBLADDER,
    GAS,
    LEFT_KIDNEY,
    LIVER,
    RIGHT_KIDNEY,
    SPLEEN,
    STOMACH,
    Array,
    Axes,
    Body,
    Canvas,
    Point,
    diaphragm,
    ellipsoid,
    grown,
)


def _vary_center(canvas: Canvas, center: Point, by: float = 4.0) -> Point:
    x, y, z = (float(c + canvas.rng.normal(0, by)) for c in center)
    return x, y, z


def _vary_radii(canvas: Canvas, radii: Point) -> Point:
    factor = canvas.rng.uniform(0.92, 1.07)
    x, y, z = (float(r * factor * canvas.rng.uniform(0.97, 1.03)) for r in radii)
    return x, y, z


def paint_liver(canvas: Canvas, body: Body, heights: tuple[float, float]) -> None:
    """Paint the liver: two lobes under the right dome, with vessels where contrast medium shows them and up to three lesions."""
    rng = canvas.rng
    where, axes = canvas.block((-75, -100, -95), (170, 110, 120))
    z = axes[2]
    right_radii, left_radii = _vary_radii(canvas, (76, 80, 92)), _vary_radii(canvas, (70, 44, 40))
    q = np.minimum(
        ellipsoid(axes, _vary_center(canvas, (76, 6, 26)), right_radii, 0.12),
        ellipsoid(axes, _vary_center(canvas, (4, 48, 54)), left_radii, -0.35),
    ) + canvas.wobble(axes, 0.05)
    dome = np.maximum(diaphragm(axes, 1, heights[0]), diaphragm(axes, -1, heights[1]))
    inside = body.cavity[where] & (canvas.labels[where] == 0) & (z < dome - 3)
    liver = inside & (q < 1)
    canvas.paint(where, liver, body.hu["liver"], LIVER)
    if abs(body.hu["vessels"]) > 6:
        canvas.image[where][liver & (_vessels(canvas, axes) < 1)] += body.hu["vessels"]
    for _ in range(rng.integers(0, 4)):
        center, radius = _vary_center(canvas, (80, 5, 30), 28), rng.uniform(5, 14)
        lesion = ellipsoid(axes, center, (radius, radius, radius)) < 1
        canvas.image[where][liver & lesion & (canvas.labels[where] == LIVER)] = rng.choice([8.0, body.hu["liver"] - 45])


def _vessels(canvas: Canvas, axes: Axes) -> Array:
    """Return the squared distance from branches that leave the liver's hilum, 1 on their walls."""
    hilum = np.array([34.0, 12.0, 10.0], np.float32)
    best = np.full((axes[2].shape[0], axes[1].shape[1], axes[0].shape[2]), 9, np.float32)
    for _ in range(7):
        end = hilum + np.array(
            [canvas.rng.uniform(-30, 95), canvas.rng.uniform(-50, 60), canvas.rng.uniform(-40, 75)], np.float32
        )
        along = end - hilum
        t = sum((axis - h) * a for axis, h, a in zip(axes, hilum, along, strict=True)) / np.float32(along @ along)
        t = np.clip(t, 0, 1)
        radius = 5 - 3 * t
        best = np.minimum(
            best, sum(((axis - h - a * t) / radius) ** 2 for axis, h, a in zip(axes, hilum, along, strict=True))
        )
    return best


def paint_stomach(canvas: Canvas, body: Body, heights: tuple[float, float]) -> None:
    """Paint the stomach: body and antrum under the left dome; gas rises to the front, liquid or contrast medium lies behind."""
    rng = canvas.rng
    where, axes = canvas.block((-115, -40, -65), (45, 105, 105))
    _, y, z = axes
    body_radii, antrum_radii = _vary_radii(canvas, (36, 37, 54)), _vary_radii(canvas, (40, 21, 21))
    center = _vary_center(canvas, (-52, 30, 40), 3)
    q = np.minimum(
        ellipsoid(axes, center, body_radii, -0.2),
        ellipsoid(axes, _vary_center(canvas, (-18, 50, -6), 3), antrum_radii, 0.35),
    ) + canvas.wobble(axes, 0.05)
    inside = body.cavity[where] & (canvas.labels[where] <= LIVER) & (z < diaphragm(axes, -1, heights[1]) - 3)
    canvas.paint(where, inside & (q < 1.22), FAT)
    canvas.paint(where, inside & (q < 1), body.hu["muscle"] - 6, STOMACH)
    content = rng.choice([12.0, 28.0, 210.0], p=[0.5, 0.35, 0.15])
    level = center[1] + rng.uniform(2, 26)
    canvas.paint(where, inside & (q < 0.78), np.where(y > level, np.float32(GAS), np.float32(content)) + 0 * z, STOMACH)


def paint_spleen(canvas: Canvas, body: Body, heights: tuple[float, float]) -> None:
    """Paint the spleen behind the stomach at the left wall, hollowed towards the kidney."""
    center, radii = _vary_center(canvas, (-98, -22, 44)), _vary_radii(canvas, (34, 48, 54))
    where, axes = canvas.around(center, 75)
    q = ellipsoid(axes, center, radii, 0.15) + canvas.wobble(axes, 0.05)
    hollow = ellipsoid(axes, (center[0] + 42, center[1] + 8, center[2] - 12), (26, 30, 42))
    inside = (
        body.cavity[where]
        & (axes[2] < diaphragm(axes, -1, heights[1]) - 3)
        & (axes[0] < -20)
        & (canvas.labels[where] == 0)
    )
    near = body.cavity[where] & (axes[2] < diaphragm(axes, -1, heights[1]) - 3) & (canvas.labels[where] == STOMACH)
    canvas.paint(where, near & (q < grown(radii, 3)), FAT)
    mottled = body.hu["spleen"] + (18 if body.hu["aorta"] > 250 else 2) * canvas.wobble(axes, 1.0, 22)
    canvas.paint(where, (inside | near) & (q < 1) & (hollow > 1), mottled, SPLEEN)


def paint_gallbladder(canvas: Canvas, body: Body) -> None:
    """Paint the gallbladder under the liver, full of bile."""
    center, radii = _vary_center(canvas, (58, 42, -32), 3), _vary_radii(canvas, (17, 19, 30))
    where, axes = canvas.around(center, 50)
    q = ellipsoid(axes, center, radii, 0.2) + canvas.wobble(axes, 0.03)
    inside = body.cavity[where]
    canvas.paint(where, inside & (q < grown(radii, 3)) & (canvas.labels[where] != LIVER), FAT)
    canvas.paint(where, inside & (q < grown(radii, 2)), body.hu["muscle"] + 8)
    canvas.paint(where, inside & (q < 1), 9.0 + canvas.rng.normal(0, 3), GALLBLADDER)


def paint_kidneys(canvas: Canvas, body: Body) -> None:
    """Paint the kidneys, each in its own fat beside the spine, the right one lower; cortex, medulla and a sinus of fat that opens inwards."""
    rng = canvas.rng
    for side, height, label in ((1, -46.0, RIGHT_KIDNEY), (-1, -34.0, LEFT_KIDNEY)):
        center, radii = (
            _vary_center(canvas, (side * 70.0, body.spine + 14, height), 3),
            _vary_radii(canvas, (28, 27, 54)),
        )
        where, axes = canvas.around(center, 85)
        tilt = -side * rng.uniform(0.1, 0.25)
        q = ellipsoid(axes, center, radii, tilt) + canvas.wobble(axes, 0.03)
        sinus = ellipsoid(axes, (center[0] - side * 25, center[1] + 8, center[2]), (17, 12, 19), tilt)
        inside = body.cavity[where]
        canvas.paint(where, inside & (q < grown(radii, 6)), FAT)
        kidney = inside & (q < 1) & (sinus > 1)
        rays = np.sin(axes[2] / 5) * np.sin(axes[1] / 6) * 0.1
        tissue = np.where(q + rays > 0.55, np.float32(body.hu["cortex"]), np.float32(body.hu["medulla"]))
        canvas.paint(where, kidney, tissue, label)
        if rng.random() < 0.3:
            spot = (center[0] + side * 12, center[1] + rng.normal(0, 8), center[2] + rng.normal(0, 25))
            size = rng.uniform(5, 10)
            canvas.image[where][kidney & (ellipsoid(axes, spot, (size, size, size)) < 1)] = 8.0
