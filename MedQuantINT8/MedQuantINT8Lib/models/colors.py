"""Colors for structures that come without any."""

from __future__ import annotations

import colorsys

_GOLDEN = 0.618033988749895


def color_of(value: int) -> tuple[int, int, int]:
    """Return the color of a label value from 1 on, far from its neighbors' colors; red, green and blue from 0 to 255."""
    n = value - 1
    r, g, b = colorsys.hsv_to_rgb(n * _GOLDEN % 1, 0.55 + 0.3 * (n % 2), 0.95 - 0.2 * (n % 3) / 2)
    return round(255 * r), round(255 * g), round(255 * b)


def palette(count: int) -> list[tuple[int, int, int]]:
    """Return the colors of the label values from 1 to ``count``."""
    return [color_of(value) for value in range(1, count + 1)]
