"""Qt under the name that Slicer's Python has for it, with classes as PythonQt wraps them."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import *  # noqa: F403
from PySide6.QtGui import *  # noqa: F403
from PySide6.QtWidgets import *  # noqa: F403


class WrapperClass:
    """A class of Qt as PythonQt shows it: it makes objects and holds names, but the wrapped classes do not inherit from each other, so
    that isinstance() is true for objects of exactly this class alone. A real class where one is derived from it."""

    def __init__(self, cls: type) -> None:
        self.__dict__["_class"] = cls

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._class(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._class, name)

    def __instancecheck__(self, instance: Any) -> bool:
        return type(instance) is self._class

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type]:
        return (self._class,)


for _module in (QtCore, QtGui, QtWidgets):
    for _name, _class in vars(_module).items():
        if isinstance(_class, type) and issubclass(_class, QtCore.QObject):
            globals()[_name] = WrapperClass(_class)


class QDialog(QtWidgets.QDialog):
    """With the name that PythonQt has for running it."""

    def exec_(self) -> int:
        return int(self.exec())
