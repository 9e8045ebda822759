"""A picture of each model, drawn from its description: a ring with a piece for each structure, in its color, around the modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt

from ..model_entries import Color, ModelEntry

#: Pixels that a picture is drawn with; it is shown smaller, so that it stays sharp on screens of high density.
_SIZE = 128
_FULL_CIRCLE = 360 * 16
_BACKGROUND = {"CT": (44, 62, 80), "MR": (62, 48, 92), "PT": (96, 56, 24), "PET": (96, 56, 24)}
_OTHER = (60, 64, 67)
_pictures: dict[Any, Any] = {}


def model_icon(entry: ModelEntry) -> Any:
    """The picture of a model as an icon; the same model's is drawn once."""
    key = (entry.modality, entry.colors, entry.networks)
    if key not in _pictures:
        _pictures[key] = qt.QIcon(_draw(entry.modality, entry.colors, entry.networks))
    return _pictures[key]


def _draw(modality: str, colors: Sequence[Color], networks: int) -> Any:
    picture = qt.QPixmap(_SIZE, _SIZE)
    picture.fill(qt.QColor(0, 0, 0, 0))
    painter = qt.QPainter(picture)
    painter.setRenderHint(qt.QPainter.Antialiasing)
    painter.setPen(qt.Qt.NoPen)
    _ring(painter, 2, colors)
    if networks > 1:
        # A ring within the ring: it is made of several networks.
        painter.setBrush(qt.QColor(255, 255, 255))
        painter.drawEllipse(20, 20, _SIZE - 40, _SIZE - 40)
        _ring(painter, 23, colors)
    inner = 40 if networks > 1 else 26
    painter.setBrush(qt.QColor(*_BACKGROUND.get(modality.upper(), _OTHER)))
    painter.drawEllipse(inner - 3, inner - 3, _SIZE - 2 * inner + 6, _SIZE - 2 * inner + 6)
    font = qt.QFont()
    font.setBold(True)
    font.setPixelSize(22 if networks > 1 or len(modality) > 2 else 34)
    painter.setFont(font)
    painter.setPen(qt.QColor(255, 255, 255))
    painter.drawText(qt.QRect(0, 0, _SIZE, _SIZE), int(qt.Qt.AlignCenter), modality[:5])
    painter.end()
    return picture


def _ring(painter: Any, margin: int, colors: Sequence[Color]) -> None:
    place = qt.QRect(margin, margin, _SIZE - 2 * margin, _SIZE - 2 * margin)
    shown = list(colors) or [_OTHER]
    for number, color in enumerate(shown):
        start = round(_FULL_CIRCLE * number / len(shown))
        stop = round(_FULL_CIRCLE * (number + 1) / len(shown))
        painter.setBrush(qt.QColor(*color))
        # From the top, clockwise.
        painter.drawPie(place, _FULL_CIRCLE // 4 - start, start - stop)


def color_icon(color: Color, size: int = 32) -> Any:
    """A square of a structure's color."""
    picture = qt.QPixmap(size, size)
    picture.fill(qt.QColor(*color))
    return qt.QIcon(picture)
