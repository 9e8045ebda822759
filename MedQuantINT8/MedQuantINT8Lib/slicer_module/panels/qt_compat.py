"""One rule lets the same code run in Slicer (PythonQt) and in the tests' window (PySide6).

PythonQt turns Qt's properties into attributes (``edit.text`` is a string) where PySide6 has methods (``edit.text()``). So values
are read by :func:`read`, which goes through QObject.property(), and those of Slicer's own widgets are set by setProperty();
everything else is a call of a Qt setter, a slot or an invokable method. Signals are connected by ``signal.connect``, and only those
that have one form (no overloads).
"""

from __future__ import annotations

from typing import Any

import qt


def read(widget: Any, name: str) -> Any:
    """The value of a widget's Qt property."""
    return widget.property(name)


def id_of(node: Any) -> str:
    """A node's ID, for selectors that take None as an empty one."""
    return node.GetID() if node is not None else ""


def choose(combo: Any, data: str) -> None:
    """Select the entry of a combo box that was added with ``data``; the first if there is none."""
    combo.setCurrentIndex(max(0, combo.findData(data)))


def chosen(combo: Any) -> str:
    """The data of the combo box's current entry."""
    return combo.itemData(read(combo, "currentIndex")) or ""


def silently(widget: Any, call: Any, *arguments: Any) -> None:
    """Change a widget without its signals telling anyone."""
    before = widget.blockSignals(True)
    call(*arguments)
    widget.blockSignals(before)


def enable(widget: Any, hindrance: str = "") -> None:
    """Enable a widget; or disable it and say where the pointer rests on it what hinders it.

    Args:
        hindrance: a sentence; an empty text enables the widget and gives it the tip that it had.
    """
    tip = read(widget, "enabledTip")
    if tip is None:
        tip = read(widget, "toolTip")
        widget.setProperty("enabledTip", tip)
    widget.setEnabled(not hindrance)
    widget.setToolTip(hindrance or tip)


def check_nodes(selector: Any, nodes: list[Any]) -> None:
    """Check these nodes of a checkable node selector, and uncheck all others, without its signals telling anyone."""
    wanted = {node.GetID() for node in nodes}
    before = selector.blockSignals(True)
    for node in selector.checkedNodes():
        if node.GetID() not in wanted:
            selector.setCheckState(node, qt.Qt.Unchecked)
    for node in nodes:
        selector.setCheckState(node, qt.Qt.Checked)
    selector.blockSignals(before)


def quiet_fill(combo: Any, entries: list[tuple[str, str]], current: str) -> None:
    """Fill a combo box with (data, text) entries and select one."""
    before = combo.blockSignals(True)
    combo.clear()
    for data, text in entries:
        combo.addItem(text, data)
    choose(combo, current)
    combo.blockSignals(before)


def set_columns(table: Any, titles: list[str]) -> None:
    """Give a table its columns: the first takes the width that the others leave, so that the table is as wide as the panel."""
    table.setColumnCount(len(titles))
    table.setHorizontalHeaderLabels(titles)
    # A name that is cut is whole where the pointer rests on it.
    table.setWordWrap(False)
    header = table.horizontalHeader()
    header.setMinimumSectionSize(30)
    header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
    rows = table.verticalHeader()
    rows.setMinimumSectionSize(1)
    rows.setSectionResizeMode(qt.QHeaderView.ResizeToContents)


def fill_table(table: Any, rows: list[list[str]], tips: list[str] | None = None) -> None:
    """Put text into a table.

    Args:
        tips: what is said of each row where the pointer rests on it; by default the whole row, of which a narrow panel cuts the first cell.
    """
    table.setRowCount(len(rows))
    for r, row in enumerate(rows):
        for c, text in enumerate(row):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(tips[r] if tips else "  ".join(row))
            if c:
                item.setTextAlignment(int(qt.Qt.AlignRight) | int(qt.Qt.AlignVCenter))
            table.setItem(r, c, item)
