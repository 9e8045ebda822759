"""Qt's dialogs for files and folders, over the window of the panel that asks; an empty text where the user asked for nothing."""

from __future__ import annotations

from typing import Any

import qt


def open_file(parent: Any, title: str) -> str:
    """Ask for a file that exists."""
    return _path(qt.QFileDialog.getOpenFileName(parent, title))


def open_folder(parent: Any, title: str) -> str:
    """Ask for a folder that exists."""
    return _path(qt.QFileDialog.getExistingDirectory(parent, title))


def save_file(parent: Any, title: str, name: str, kinds: str) -> str:
    """A file to write; ``name`` is proposed, ``kinds`` is Qt's list of filters."""
    return _path(qt.QFileDialog.getSaveFileName(parent, title, name, kinds))


def _path(answer: Any) -> str:
    # PySide6 gives the name and the filter, PythonQt the name alone.
    return str((answer[0] if isinstance(answer, tuple) else answer) or "")
