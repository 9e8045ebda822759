"""The list of structures: which of them the segmentation shall hold, looked for by words and by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

from ..model_entries import Color
from ..structure_groups import matching, structure_groups
from .model_icons import color_icon
from .qt_compat import chosen, quiet_fill, read
from .theme import line_height, show_rows

_ROWS = 12


class StructureList:
    """Connects the search, the groups and the list with the structures that were chosen.

    Args:
        ui: the widgets of the .ui file by name.
        changed: called with the names that are checked, or None for all, whenever the user has changed them.
    """

    def __init__(self, ui: Any, changed: Callable[[list[str] | None], None]) -> None:
        self._ui, self._changed = ui, changed
        self._names: list[str] = []
        self._wanted: set[str] = set()
        side = line_height(ui.classList)
        ui.classList.setIconSize(qt.QSize(side, side))
        ui.structureSearchEdit.textChanged.connect(self._filter)
        ui.structureGroupCombo.currentTextChanged.connect(self._filter)
        ui.classList.itemChanged.connect(self._toggled)
        ui.allClassesButton.clicked.connect(lambda *_arguments: self._check(True))
        ui.noClassesButton.clicked.connect(lambda *_arguments: self._check(False))

    def show(self, names: Sequence[str], colors: Sequence[Color], wanted: Sequence[str] | None) -> None:
        """List the structures of a model.

        Args:
            wanted: those that are checked; None for all.
        """
        self._names = list(names)
        self._wanted = set(self._names if wanted is None else wanted)
        items = self._ui.classList
        before = items.blockSignals(True)
        items.clear()
        for name, color in zip(names, colors, strict=True):
            item = qt.QListWidgetItem(name)
            item.setIcon(color_icon(color))
            item.setToolTip(name)
            item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
            item.setCheckState(qt.Qt.Checked if name in self._wanted else qt.Qt.Unchecked)
            items.addItem(item)
        items.blockSignals(before)
        groups = structure_groups(self._names)
        entries = [("", _("All structures ({count})").format(count=len(self._names)))]
        entries += [(group, f"{title} ({len(members)})") for group, (title, members) in groups.items()]
        combo = self._ui.structureGroupCombo
        quiet_fill(combo, entries, chosen(combo))
        combo.setVisible(bool(groups))
        self._filter()

    def _shown(self) -> list[str]:
        """The names that the search and the group leave."""
        groups = structure_groups(self._names)
        group = chosen(self._ui.structureGroupCombo)
        members = groups[group][1] if group in groups else frozenset(self._names)
        return [name for name in matching(self._names, read(self._ui.structureSearchEdit, "text")) if name in members]

    def _filter(self, _text: str = "") -> None:
        shown = set(self._shown())
        for number, name in enumerate(self._names):
            self._ui.classList.item(number).setHidden(name not in shown)
        show_rows(self._ui.classList, len(shown), _ROWS)
        self._title()

    def _title(self) -> None:
        text = _("Structures: {wanted} of {count}").format(wanted=len(self._wanted), count=len(self._names))
        self._ui.structuresSection.setProperty("text", text)

    def _toggled(self, item: Any) -> None:
        (self._wanted.add if item.checkState() == qt.Qt.Checked else self._wanted.discard)(item.text())
        self._tell()

    def _check(self, wanted: bool) -> None:
        """Check or uncheck all structures that are shown."""
        shown = set(self._shown())
        items = self._ui.classList
        before = items.blockSignals(True)
        for number, name in enumerate(self._names):
            if name in shown:
                items.item(number).setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)
        items.blockSignals(before)
        self._wanted = self._wanted | shown if wanted else self._wanted - shown
        self._tell()

    def _tell(self) -> None:
        self._title()
        checked = [name for name in self._names if name in self._wanted]
        self._changed(None if len(checked) == len(self._names) else checked)
