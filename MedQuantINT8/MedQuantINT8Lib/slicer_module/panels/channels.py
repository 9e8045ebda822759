"""A selector for each channel that a network takes beyond the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

_SETTINGS = {
    "nodeTypes": ["vtkMRMLScalarVolumeNode"],
    "showChildNodeTypes": False,
    "noneEnabled": True,
    "addEnabled": False,
    "removeEnabled": False,
}


class ChannelSelectors:
    """The selectors of further channels, in a widget of their own.

    Args:
        widget: holds them, one above the other.
        changed: called with the chosen nodes whenever the user has chosen another.
    """

    def __init__(self, widget: Any, changed: Callable[[list[Any]], None]) -> None:
        self._widget, self._changed = widget, changed
        #: Selector and label of each.
        self.rows: list[tuple[Any, Any]] = []

    def __bool__(self) -> bool:
        return bool(self.rows)

    def show(self, names: Sequence[str], nodes: Sequence[Any]) -> None:
        """Make a selector for each channel but the first.

        Args:
            names: of all channels.
            nodes: that are chosen, from the second channel on.
        """
        while len(self.rows) >= len(names) and self.rows:
            row = self.rows.pop()
            row[0].setMRMLScene(None)
            for widget in row:
                self._widget.layout().removeWidget(widget)
                widget.deleteLater()
        for number in range(len(self.rows) + 1, len(names)):
            selector, label = slicer.qMRMLNodeComboBox(), qt.QLabel(names[number])
            for name, value in _SETTINGS.items():
                selector.setProperty(name, value)
            selector.setMRMLScene(slicer.mrmlScene)
            selector.setAccessibleName(names[number])
            selector.setToolTip(_("The scan for the channel {name}").format(name=names[number]))
            if number - 1 < len(nodes):
                selector.setCurrentNodeID(nodes[number - 1].GetID())
            selector.currentNodeIDChanged.connect(self._tell)
            self._widget.layout().addWidget(label)
            self._widget.layout().addWidget(selector)
            self.rows.append((selector, label))
        self._widget.setVisible(bool(self.rows))

    def close(self) -> None:
        """Follow the scene no more: a panel that was reloaded lives on, and its root widget reaches only what the .ui file holds."""
        for selector, _label in self.rows:
            selector.currentNodeIDChanged.disconnect(self._tell)
            selector.setMRMLScene(None)

    def _tell(self, _id: str) -> None:
        nodes = [selector.currentNode() for selector, _label in self.rows]
        self._changed([node for node in nodes if node is not None])
