"""What became of a network's layers, as a colored bar and in words."""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

from ..model_entries import LayerShares
from .theme import BAR_COLORS, line_height

_WIDTH, _HEIGHT = 1000, 16


def show_layers(bar: Any, text: Any, shares: LayerShares | None) -> None:
    """Show the shares of the work in a label that holds the bar, and in one that holds the words; hide both for None.

    Args:
        bar: a label that scales its contents.
    """
    for widget in (bar, text):
        widget.setVisible(shares is not None)
    if shares is None:
        text.setText("")
        return
    # The picture is as wide as the panel, not the panel as wide as the picture.
    bar.setMinimumWidth(1)
    bar.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
    bar.setPixmap(_picture(shares))
    bar.setFixedHeight(max(12, line_height(text) * 3 // 4))
    words = _words(shares)
    text.setTextFormat(qt.Qt.RichText)
    text.setText("<br>".join(f'<span style="color: {_hex(kind)}">■</span> {line}' for kind, line in words))
    summary = ", ".join(line for _kind, line in words)
    bar.setAccessibleDescription(summary)
    bar.setToolTip("\n".join([summary.replace(", ", "\n"), "", *_layer_lines(shares)]).strip())


def _picture(shares: LayerShares) -> Any:
    picture = qt.QPixmap(_WIDTH, _HEIGHT)
    painter = qt.QPainter(picture)
    start = 0.0
    for kind, color in BAR_COLORS.items():
        share = getattr(shares, kind)
        painter.fillRect(qt.QRect(round(start), 0, _WIDTH, _HEIGHT), qt.QColor(*color))
        start += _WIDTH * share
        if start >= _WIDTH - 0.5:
            break
    painter.end()
    return picture


def _words(shares: LayerShares) -> list[tuple[str, str]]:
    """A line for each kind of layer that there is, with its share of the work."""
    titles = {
        "int8": _("INT8: {share} of the work, {count} layers"),
        "halves": _("two INT8 halves: {share}, {count} layers"),
        "by_rule": _("float by rule: {share}, {count} layers"),
        "by_guard": _("float by the accuracy guard: {share}, {count} layers"),
    }
    return [
        (kind, title.format(share=f"{100 * getattr(shares, kind):.1f} %", count=shares.counts[kind]))
        for kind, title in titles.items()
        if shares.counts.get(kind)
    ]


def _layer_lines(shares: LayerShares) -> list[str]:
    lines = [f"{name}: {reason}" if reason else name for name, reason in shares.layers]
    return lines[:20] + ([_("and {count} more").format(count=len(lines) - 20)] if len(lines) > 20 else [])


def _hex(kind: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*BAR_COLORS[kind])
