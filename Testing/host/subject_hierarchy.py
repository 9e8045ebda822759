"""The part of Slicer's subject hierarchy that a plugin written in Python meets."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject


class AbstractScriptedSubjectHierarchyPlugin:
    """The base class of plugins written in Python."""

    def __init__(self, scriptedPlugin: Any) -> None:
        self.scriptedPlugin = scriptedPlugin


class qSlicerSubjectHierarchyScriptedPlugin(QObject):
    """Loads a plugin's file by its path, by itself, and takes the class that is called as the file."""

    #: Python's side of every plugin, by its name.
    loaded: dict[str, Any]

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        self.name = ""

    def setPythonSource(self, path: str) -> None:
        name = Path(path).stem
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        plugin = getattr(module, name)(self)
        assert self.name, "a plugin gives itself a name before the base class is called"
        type(self).loaded[self.name] = plugin


qSlicerSubjectHierarchyScriptedPlugin.loaded = {}


def menu_of(item: int) -> dict[str, Any]:
    """What a click with the right button on an item shows: the actions of each shown submenu, by their text."""
    shown: dict[str, Any] = {}
    for plugin in qSlicerSubjectHierarchyScriptedPlugin.loaded.values():
        for action in plugin.itemContextMenuActions():
            action.setVisible(False)
        plugin.showContextMenuActionsForItem(item)
        for action in plugin.itemContextMenuActions():
            if action.isVisible():
                shown[action.text()] = {line.text(): line for line in action.menu().actions()}
    return shown
