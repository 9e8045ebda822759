"""What the panel looks like: colors that can be read on a light and on a dark background, sizes that follow the font."""

from __future__ import annotations

from typing import Any

import qt

#: What became of a layer, by colors that color-blind readers tell apart (Okabe and Ito): INT8, two halves, by rule, by guard.
BAR_COLORS = {"int8": (0, 114, 178), "halves": (86, 180, 233), "by_rule": (230, 159, 0), "by_guard": (213, 94, 0)}
_WARNING = {"light": "#9a5200", "dark": "#ffb74d"}
_QUIET = {"light": "#5f6368", "dark": "#a9adb3"}


def is_dark(widget: Any) -> bool:
    """Whether the widget's text is lighter than its background."""
    palette = value_of(widget, "palette")
    background, text = palette.color(qt.QPalette.Window), palette.color(qt.QPalette.WindowText)
    return bool(background.lightness() < text.lightness())


def value_of(widget: Any, name: str) -> Any:
    """A widget's font or palette: a method in PySide6, an attribute in PythonQt."""
    value = getattr(widget, name)
    return value() if callable(value) else value


def make_primary(button: Any) -> None:
    """Show that this is the section's one main button."""
    font = qt.QFont(value_of(button, "font"))
    font.setBold(True)
    button.setFont(font)
    button.setMinimumHeight(2 * line_height(button))


def make_warning(label: Any) -> None:
    """Show a label's text as a warning."""
    _color_text(label, _WARNING)


def make_quiet(label: Any) -> None:
    """Show a label's text as one that is less important than the rest."""
    _color_text(label, _QUIET)


def _color_text(label: Any, colors: dict[str, str]) -> None:
    palette = qt.QPalette(value_of(label, "palette"))
    palette.setColor(qt.QPalette.WindowText, qt.QColor(colors["dark" if is_dark(label) else "light"]))
    label.setPalette(palette)


def make_number(label: Any) -> None:
    """Show a label as one of the numbers that are looked at first."""
    label.setFrameShape(qt.QFrame.StyledPanel)
    label.setMargin(4)


def line_height(widget: Any) -> int:
    """Pixels from one line of the widget's text to the next."""
    return int(qt.QFontMetrics(value_of(widget, "font")).lineSpacing())


def show_rows(view: Any, rows: int, most: int, header: int = 0) -> None:
    """Make a list or table as high as its rows, up to so many of them; ``header`` is the height of what stands above them."""
    height = view.sizeHintForRow(0) if rows else line_height(view)
    view.setFixedHeight(max(1, min(rows, most)) * max(height, line_height(view)) + header + 6)
