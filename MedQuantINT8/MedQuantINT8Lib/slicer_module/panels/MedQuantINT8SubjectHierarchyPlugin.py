"""A volume's context menu in Slicer's subject hierarchy: "Segment with" each installed model.

Slicer loads this file by its path, and takes the class that is called as the file.
"""

from __future__ import annotations

from typing import Any

import qt
import slicer
from AbstractScriptedSubjectHierarchyPlugin import AbstractScriptedSubjectHierarchyPlugin
from slicer.i18n import tr as _


class MedQuantINT8SubjectHierarchyPlugin(AbstractScriptedSubjectHierarchyPlugin):  # type: ignore[misc]
    """Owns no items; adds a menu to those of scalar volumes.

    Args:
        scriptedPlugin: the application's side of the plugin.
    """

    filePath = __file__

    def __init__(self, scriptedPlugin: Any) -> None:
        scriptedPlugin.name = "MedQuantINT8"
        AbstractScriptedSubjectHierarchyPlugin.__init__(self, scriptedPlugin)
        self._action = qt.QAction(_("Segment with (INT8)"), scriptedPlugin)
        self._menu = qt.QMenu()
        self._action.setMenu(self._menu)

    def itemContextMenuActions(self) -> list[Any]:
        """All actions that this plugin may show; the application hides them before it asks which to show."""
        return [self._action]

    def showContextMenuActionsForItem(self, itemID: int) -> None:
        """Show the menu, with a line for each model, where the item is a scan."""
        node = self._node(itemID) if itemID else None
        models = self._models() if node is not None and node.GetClassName() == "vtkMRMLScalarVolumeNode" else {}
        self._menu.clear()
        for name, title in models.items():
            line = self._menu.addAction(title)
            line.triggered.connect(lambda *_checked, name=name, node=node: self._segment(node, name))
        self._action.setVisible(bool(models))

    @staticmethod
    def _node(itemID: int) -> Any:
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        return hierarchy.GetItemDataNode(itemID)

    @staticmethod
    def _models() -> dict[str, str]:
        from MedQuantINT8Lib.slicer_module.logic import MedQuantINT8Logic
        from MedQuantINT8Lib.slicer_module.panels.base import distinct_titles

        return distinct_titles([m for m in MedQuantINT8Logic.modelEntries() if m.installed and not m.problem])

    @staticmethod
    def _segment(node: Any, model: str) -> None:
        """In the module's own panel, where progress, errors and the cancel button are."""
        slicer.util.selectModule("MedQuantINT8")
        slicer.util.getModuleWidget("MedQuantINT8").segmentVolume(node, model)
