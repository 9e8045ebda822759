"""Colours for structures that come without any."""

from __future__ import annotations

import colorsys

_GOLDEN = 0.618033988749895


def palette(count: int) -> list[tuple[int, int, int]]:
    """Colours that are far from their neighbours in the list, 0 to 255 each."""
    made = []
    for n in range(count):
        r, g, b = colorsys.hsv_to_rgb(n * _GOLDEN % 1, 0.55 + 0.3 * (n % 2), 0.95 - 0.2 * (n % 3) / 2)
        made.append((round(255 * r), round(255 * g), round(255 * b)))
    return made
