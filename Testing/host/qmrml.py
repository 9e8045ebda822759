"""The qMRML widgets that the module uses, over the real MRML scene. Attributes that PythonQt hides are hidden here as well:
what is a property there has no method here, so that a call that fails in Slicer fails in a test."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Property, Qt, QTimer, Signal
from PySide6.QtGui import QStandardItem, QStandardItemModel
from PySide6.QtWidgets import QComboBox, QVBoxLayout, QWidget


class qMRMLWidget(QWidget):
    """Hands the scene on to the widgets that the .ui file connects with it."""

    mrmlSceneChanged = Signal(object)

    def setMRMLScene(self, scene: Any) -> None:
        self.mrmlSceneChanged.emit(scene)


class qMRMLNodeComboBox(QWidget):
    """The scene's nodes of some classes, one of them chosen."""

    currentNodeIDChanged = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._tags: list[int] = []
        self._values: dict[str, Any] = {
            "nodeTypes": [],
            "showChildNodeTypes": True,
            "noneEnabled": False,
            "noneDisplay": "None",
            "addEnabled": True,
            "removeEnabled": True,
        }
        self._combo = QComboBox(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self.setFocusProxy(self._combo)
        self._last = ""
        self._combo.currentIndexChanged.connect(self._told)

    # slots and invokable methods of the real one

    def setMRMLScene(self, scene: Any) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        if scene is not None:
            events = (
                scene.NodeAddedEvent,
                scene.NodeRemovedEvent,
                scene.EndCloseEvent,
                scene.EndImportEvent,
                scene.EndBatchProcessEvent,
            )
            self._tags = [scene.AddObserver(event, lambda *_: self._refill()) for event in events]
        self._refill()

    def currentNode(self) -> Any:
        identifier = self._combo.currentData()
        return self._scene.GetNodeByID(identifier) if identifier and self._scene is not None else None

    def setCurrentNodeID(self, identifier: str) -> None:
        index = self._combo.findData(identifier)
        self._combo.setCurrentIndex(index if index >= 0 else (0 if self._values["noneEnabled"] else -1))

    def nodeCount(self) -> int:
        return len(self._nodes())

    def nodeFromIndex(self, index: int) -> Any:
        return self._nodes()[index]

    # within

    def _nodes(self) -> list[Any]:
        found = []
        for kind in self._values["nodeTypes"]:
            for n in range(self._scene.GetNumberOfNodesByClass(kind) if self._scene is not None else 0):
                node = self._scene.GetNthNodeByClass(n, kind)
                if not node.GetHideFromEditors() and (
                    self._values["showChildNodeTypes"] or node.GetClassName() == kind
                ):
                    found.append(node)
        return found

    def _refill(self) -> None:
        current = self._combo.currentData()
        self._combo.blockSignals(True)
        self._combo.clear()
        if self._values["noneEnabled"]:
            self._combo.addItem(self._values["noneDisplay"], "")
        for node in self._nodes():
            self._combo.addItem(node.GetName(), node.GetID())
        # As the real one does, the first node is chosen where none was.
        index = self._combo.findData(current) if current else -1
        self._combo.setCurrentIndex(index if index >= 0 else 0 if self._combo.count() else -1)
        self._combo.blockSignals(False)
        self._told()

    def _told(self, _index: int = 0) -> None:
        identifier = self._combo.currentData() or ""
        if identifier != self._last:
            self._last = identifier
            self.currentNodeIDChanged.emit(identifier)

    def _value(name: str, kind: Any) -> Any:
        def get(self: Any) -> Any:
            return self._values[name]

        def put(self: Any, value: Any) -> None:
            self._values[name] = value
            self._refill()

        return Property(kind, get, put)

    nodeTypes = _value("nodeTypes", "QStringList")
    showChildNodeTypes = _value("showChildNodeTypes", bool)
    noneEnabled = _value("noneEnabled", bool)
    noneDisplay = _value("noneDisplay", str)
    addEnabled = _value("addEnabled", bool)
    removeEnabled = _value("removeEnabled", bool)


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """The scene's nodes of some classes, any of them checked.

    As the real one, it says that its checked nodes changed whenever its list was filled anew after a scene was closed or loaded, at
    once and again when the event loop comes round to it; blockSignals() does not hold the late one back.
    """

    checkedNodesChanged = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._checked: set[str] = set()
        self._combo.setModel(QStandardItemModel(self._combo))
        self._combo.model().itemChanged.connect(self._toggled)
        self._combo.currentIndexChanged.disconnect(self._told)

    def setMRMLScene(self, scene: Any) -> None:
        super().setMRMLScene(scene)
        if scene is not None:
            self._tags += [
                scene.AddObserver(event, lambda *_: self._tell_late())
                for event in (scene.EndCloseEvent, scene.EndImportEvent)
            ]

    def _tell_late(self) -> None:
        self.checkedNodesChanged.emit()
        QTimer.singleShot(0, self.checkedNodesChanged.emit)

    def checkedNodes(self) -> list[Any]:
        return [node for node in self._nodes() if node.GetID() in self._checked]

    def setCheckState(self, node: Any, state: Any) -> None:
        before = set(self._checked)
        (self._checked.add if state == Qt.Checked else self._checked.discard)(node.GetID())
        self._refill()
        if self._checked != before:
            self.checkedNodesChanged.emit()

    def _refill(self) -> None:
        if not hasattr(self, "_checked"):
            return
        model = self._combo.model()
        model.blockSignals(True)
        model.clear()
        nodes = self._nodes()
        self._checked &= {node.GetID() for node in nodes}
        for node in nodes:
            item = QStandardItem(node.GetName())
            item.setCheckable(True)
            item.setData(node.GetID(), Qt.UserRole)
            item.setCheckState(Qt.Checked if node.GetID() in self._checked else Qt.Unchecked)
            model.appendRow(item)
        model.blockSignals(False)
        self._combo.update()

    def _toggled(self, item: Any) -> None:
        identifier = item.data(Qt.UserRole)
        (self._checked.add if item.checkState() == Qt.Checked else self._checked.discard)(identifier)
        self.checkedNodesChanged.emit()
