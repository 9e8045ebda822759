"""The widgets of CTK that the module uses."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Property, QEvent, Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QToolButton, QWidget


class ctkCollapsibleButton(QWidget):
    """A titled section that can be folded. The .ui file gives it its layout, as it does with the real one."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._collapsed = False
        self._button: Any = None
        self._button = QToolButton(self)
        self.setFocusPolicy(Qt.StrongFocus)
        self._button.setToolButtonStyle(Qt.ToolButtonTextBesideIcon)
        self._button.setStyleSheet("QToolButton { border: none; font-weight: bold; }")
        self._button.clicked.connect(lambda: self._setCollapsed(not self._collapsed))
        self._arrow()

    def _arrow(self) -> None:
        self._button.setArrowType(Qt.RightArrow if self._collapsed else Qt.DownArrow)

    def _getText(self) -> str:
        return self._button.text()

    def _setText(self, text: str) -> None:
        self._button.setText(text)
        self._button.adjustSize()

    def _getCollapsed(self) -> bool:
        return self._collapsed

    def _setCollapsed(self, collapsed: bool) -> None:
        self._collapsed = collapsed
        self._arrow()
        self._showContents()

    def _showContents(self) -> None:
        for child in self.children():
            if isinstance(child, QWidget) and child is not self._button:
                if self._collapsed and not child.isHidden():
                    child.setProperty("_folded", True)
                    child.hide()
                elif not self._collapsed and child.property("_folded"):
                    child.setProperty("_folded", False)
                    child.show()

    def childEvent(self, event: Any) -> None:
        if event.type() == QEvent.ChildAdded and isinstance(event.child(), QWidget):
            event.child().installEventFilter(self)
        super().childEvent(event)

    def eventFilter(self, child: Any, event: Any) -> bool:
        # As the real one: what is shown while the section is folded appears when it is unfolded.
        if event.type() == QEvent.ShowToParent and self._collapsed and child is not self._button:
            child.setProperty("_folded", True)
            child.hide()
        elif event.type() == QEvent.HideToParent and not self._collapsed:
            child.setProperty("_folded", False)
        return False

    def showEvent(self, event: Any) -> None:
        # The .ui file sets "collapsed" before the section has children.
        self._showContents()
        if self.layout() is not None:
            margins = self.layout().contentsMargins()
            self.layout().setContentsMargins(
                margins.left(), self._button.sizeHint().height() + 6, margins.right(), margins.bottom()
            )
        super().showEvent(event)

    def resizeEvent(self, event: Any) -> None:
        self._button.resize(self.width(), self._button.sizeHint().height())
        super().resizeEvent(event)

    text = Property(str, _getText, _setText)
    collapsed = Property(bool, _getCollapsed, _setCollapsed)


class ctkPathLineEdit(QWidget):
    """A path."""

    currentPathChanged = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._edit = QLineEdit(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._edit)
        self._edit.textChanged.connect(self.currentPathChanged)

    def _get(self) -> str:
        return self._edit.text()

    def _set(self, path: str) -> None:
        self._edit.setText(path)

    currentPath = Property(str, _get, _set, notify=currentPathChanged)


class ctkSettingsPanel(QWidget):
    """A page of the application's settings: widgets whose properties are kept under a name."""

    settings: Any = None

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._bound: dict[str, tuple[Any, str]] = {}

    def registerProperty(self, key: str, widget: Any, name: str, signal: str) -> None:
        """Show what is kept; a signal that the widget lacks is an error, as it is one in the application."""
        assert hasattr(widget, signal.lstrip("2").split("(")[0]), signal
        self._bound[key] = (widget, name)
        kept = ctkSettingsPanel.settings.value(key)
        if kept is not None:
            widget.setProperty(name, kept)

    def applySettings(self) -> None:
        """The user has pressed OK."""
        for key, (widget, name) in self._bound.items():
            ctkSettingsPanel.settings.setValue(key, widget.property(name))
