"""Measures the module's panel and those of other segmentation modules in the same way: at 400 pixels of width, in the stand-in of Testing/host.

    python benchmarks/panels.py [FOLDER]

FOLDER holds the .ui files of the others, each under its own name, from the addresses in docs/results/panels.md; without it the module's own panel is
measured alone. Nothing of theirs belongs to this project. Their Python does not run here: what it hides when a module is opened is named below.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "Testing" / "host"), str(ROOT / "MedQuantINT8")]
WIDTH, SCREEN = 400, 700
FONTS = (1.0, 1.5)
#: What takes input, by Qt's and Slicer's names; a part of another one is not counted.
INPUTS = (
    "qMRMLNodeComboBox",
    "QAbstractButton",
    "QComboBox",
    "QLineEdit",
    "QAbstractSpinBox",
    "QListWidget",
    "QTableWidget",
)


@dataclass(frozen=True)
class Other:
    """Another module's panel.

    Attributes:
        files: the .ui files; the first holds the rest.
        places: for each of the rest, the widget whose layout takes it, and where in it (-1: at its end).
        hidden: widgets that the module hides when it is opened with a model of one scan.
    """

    files: tuple[str, ...]
    places: tuple[tuple[str, int], ...] = ()
    hidden: tuple[str, ...] = ()


OTHERS = {
    "MONAIAuto3DSeg": Other(
        ("MONAIAuto3DSeg.ui",), hidden=tuple(f"inputNode{kind}{n}" for kind in ("Label", "Selector") for n in (1, 2, 3))
    ),
    "TotalSegmentator": Other(("TotalSegmentator.ui",), hidden=("fastNotAvailableLabel",)),
    "KonfAI": Other(
        ("KonfAICore.ui", "KonfAIAppTemplate.ui", "KonfAIAppSelection.ui", "KonfAIAppInference.ui"),
        (("KonfAICoreWidget", 1), ("appSelectionPlaceholder", -1), ("inferenceCollapsible", -1)),
        ("segmentationShow3DButton",),
    ),
}


def is_input(widget: Any) -> bool:
    # The title of a fold is a nameless button of the stand-in alone.
    title = is_fold(widget.parentWidget()) and not widget.objectName()
    return not title and any(widget.inherits(name) for name in INPUTS)


def is_fold(widget: Any) -> bool:
    return widget is not None and "CollapsibleButton" in type(widget).__name__


def shown_inputs(root: Any) -> list[Any]:
    """What takes input and can be seen without a click, beside what is a part of another one."""
    from PySide6.QtWidgets import QWidget

    found = []
    for widget in root.findChildren(QWidget):
        parent, inner = widget.parentWidget(), False
        while parent is not None and parent is not root:
            inner = inner or is_input(parent)
            parent = parent.parentWidget()
        if is_input(widget) and not inner and widget.isVisibleTo(root):
            found.append(widget)
    return found


def unfold(root: Any) -> None:
    from PySide6.QtWidgets import QApplication, QWidget

    for widget in root.findChildren(QWidget):
        if is_fold(widget):
            widget.setProperty("collapsed", False)
    QApplication.processEvents()


def measure(make: Any, factor: float) -> dict[str, Any]:
    """The figures of a panel as it is opened, with fonts so many times as large; ``make`` returns its root widget."""
    from PySide6.QtCore import QPoint, Qt
    from PySide6.QtGui import QFont
    from PySide6.QtWidgets import QApplication, QScrollArea

    application = QApplication.instance()
    before = application.font()
    larger = QFont(before)
    larger.setPointSizeF(before.pointSizeF() * factor)
    application.setFont(larger)
    try:
        root, area = make(), QScrollArea()
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarAlwaysOff)
        area.setWidget(root)
        area.resize(WIDTH, SCREEN)
        area.show()
        for _ in range(3):
            application.processEvents()
        inputs = shown_inputs(root)
        bottoms = [widget.mapTo(root, QPoint(0, widget.height())).y() for widget in inputs]
        figures = {
            "width": root.minimumSizeHint().width(),
            "height": root.minimumSizeHint().height(),
            "inputs": len(inputs),
            "below": sum(bottom > SCREEN for bottom in bottoms),
            "fields": sum(
                not widget.inherits("QPushButton") and not widget.inherits("QToolButton") for widget in inputs
            ),
            "without tip": sum(not widget.toolTip() for widget in inputs),
        }
        unfold(root)
        figures["unfolded width"] = root.minimumSizeHint().width()
        area.takeWidget()
        return figures
    finally:
        application.setFont(before)


def own() -> Any:
    """The module's own panel, with a scan in the scene."""
    import qt
    import slicer

    import MedQuantINT8

    MedQuantINT8.MedQuantINT8(SimpleNamespace(path=MedQuantINT8.__file__))
    parent = slicer.qMRMLWidget()
    parent.setLayout(qt.QVBoxLayout())
    parent.layout().setContentsMargins(0, 0, 0, 0)
    widget = MedQuantINT8.MedQuantINT8Widget(parent)
    widget.setup()
    return parent


def other(folder: Path, panel: Other) -> Any:
    """Another module's panel, put together from its .ui files."""
    from PySide6.QtUiTools import QUiLoader
    from PySide6.QtWidgets import QWidget

    def load(name: str) -> Any:
        import window

        loader = QUiLoader()
        for cls in custom_classes():
            loader.registerCustomWidget(cls)
        widget = loader.load(window._translated(str(folder / name)))
        assert widget is not None, f"{name}: {loader.errorString()}"
        return widget

    root = load(panel.files[0])
    for name, (place, index) in zip(panel.files[1:], panel.places, strict=True):
        parent = root if root.objectName() == place else root.findChild(QWidget, place)
        parent.layout().insertWidget(index, load(name))
    for name in panel.hidden:
        root.findChild(QWidget, name).hide()
    return root


@cache
def custom_classes() -> list[type]:
    """The widgets of CTK and Slicer that the others use, beside those that the stand-in has."""
    import ctk
    import qmrml
    from PySide6.QtWidgets import QLineEdit, QPushButton, QTextBrowser

    made = {
        "ctkFittedTextBrowser": QTextBrowser,
        "ctkMenuButton": QPushButton,
        "qMRMLSegmentationShow3DButton": QPushButton,
        "ctkSearchBox": QLineEdit,
        "qMRMLCollapsibleButton": ctk.ctkCollapsibleButton,
    }
    return [
        ctk.ctkCollapsibleButton,
        qmrml.qMRMLWidget,
        qmrml.qMRMLNodeComboBox,
        *(type(name, (base,), {}) for name, base in made.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="with the .ui files of the others")
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of each, to look at")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medquant-panels-") as models:
        os.environ["MEDQUANT_MODELS"] = os.environ["MEDQUANT_CACHE"] = models
        import window

        window.install()
        import qt

        from MedQuantINT8Lib.slicer_module.sample_data import show_scan

        qt.QApplication.setStyle("Fusion")
        show_scan()
        makers = {"MedQuantINT8": own}
        if arguments.folder is not None:
            makers |= {name: lambda p=panel: other(arguments.folder, p) for name, panel in OTHERS.items()}
        print(f"At {WIDTH} pixels, on a screen of {SCREEN}; fonts " + " and ".join(f"{f:g} times" for f in FONTS))
        for name, make in makers.items():
            usual, large = (measure(make, factor) for factor in FONTS)
            print(name, *(f"{key}: {usual[key]}" + f" / {large[key]}" for key in usual), sep="\n  ")
            if arguments.pictures is not None:
                arguments.pictures.mkdir(parents=True, exist_ok=True)
                picture = make()
                picture.resize(WIDTH, SCREEN)
                picture.show()
                qt.QApplication.processEvents()
                picture.grab().save(str(arguments.pictures / f"{name}.png"))


if __name__ == "__main__":
    main()
