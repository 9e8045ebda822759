"""Screenshots of the panel's sections, to look at: at 400 and 600 pixels, light and dark, at any scale.

    python tools/make_screenshots.py FOLDER [--scale 2]

The panel is the real one, in the stand-in of Testing/host; the demo's model segments the synthetic abdomen. Nothing of the project is
changed: what README shows is made by make_pictures.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "Testing" / "host"), str(ROOT / "MedQuantINT8")]
WIDTHS = (400, 600)
HEIGHT = 1400
SECONDS = 900
DARK = {
    "Window": (45, 45, 48), "WindowText": (228, 228, 228), "Base": (30, 30, 32), "AlternateBase": (40, 40, 43), "Text": (228, 228, 228),
    "Button": (56, 56, 60), "ButtonText": (228, 228, 228), "Highlight": (42, 130, 218), "HighlightedText": (255, 255, 255),
    "ToolTipBase": (56, 56, 60), "ToolTipText": (228, 228, 228), "PlaceholderText": (150, 150, 150), "Mid": (80, 80, 84),
}  # fmt: skip


class Panel:
    """The module's panel in a scroll area, as Slicer has it."""

    def __init__(self) -> None:
        import qt
        import slicer

        import MedQuantINT8

        self._qt = qt
        MedQuantINT8.MedQuantINT8(SimpleNamespace(path=MedQuantINT8.__file__))
        self._parent = slicer.qMRMLWidget()
        self._parent.setLayout(qt.QVBoxLayout())
        self.widget = MedQuantINT8.MedQuantINT8Widget(self._parent)
        self.widget.setup()
        self.area = qt.QScrollArea()
        self.area.setWidgetResizable(True)
        self.area.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)
        self.area.setWidget(self._parent)
        self.area.show()

    @property
    def ui(self) -> Any:
        return self.widget.view.ui

    def look(self, seconds: float = 0.3) -> None:
        """Let the event loop run."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._qt.QApplication.processEvents()
            time.sleep(0.01)

    def wait(self) -> None:
        """Until nothing runs any more."""
        end = time.monotonic() + SECONDS
        while self.widget.view.runner.busy and time.monotonic() < end:
            self.look(0.05)
        self.look()

    def unfold(self, *names: str) -> None:
        """Unfold these sections, and fold all others."""
        for name, section in vars(self.ui).items():
            if name.endswith("Section"):
                section.setProperty("collapsed", name not in names)

    def save(self, path: Path, width: int) -> None:
        """Take a picture; a panel that is wider than it may be is an error."""
        self.area.resize(width, HEIGHT)
        self.look()
        needed = self._parent.minimumSizeHint().width()
        room = self.area.viewport().width()
        if needed > room:
            print(f"{path.name}: the panel needs {needed} pixels, and has {room}")
        height = min(HEIGHT, self._parent.sizeHint().height() + 8)
        self.area.resize(width, height)
        self.look()
        self.area.grab().save(str(path))
        self.area.resize(width, HEIGHT)


def themes(qt: Any) -> dict[str, Any]:
    """The palettes by name."""
    dark = qt.QPalette()
    for name, color in DARK.items():
        dark.setColor(getattr(qt.QPalette, name), qt.QColor(*color))
        if name.endswith("Text"):
            dark.setColor(qt.QPalette.Disabled, getattr(qt.QPalette, name), qt.QColor(130, 130, 130))
    return {"light": qt.QApplication.style().standardPalette(), "dark": dark}


def take(folder: Path, theme: str) -> None:
    """All pictures of one theme."""
    import slicer

    from MedQuantINT8Lib.slicer_module.sample_data import show_scan

    show_scan()
    panel = Panel()
    ui = panel.ui

    def shots(name: str, *sections: str) -> None:
        panel.unfold(*sections)
        for width in WIDTHS:
            panel.save(folder / f"{name}-{width}-{theme}.png", width)

    panel.look()
    shots("segment-before", "segmentSection")
    ui.segmentButton.click()
    end = time.monotonic() + SECONDS
    while "egmenting" not in ui.segmentStatusLabel.text() and time.monotonic() < end and panel.widget.view.runner.busy:
        panel.look(0.05)
    panel.look(0.7)
    panel.unfold("segmentSection")
    panel.save(folder / f"segment-running-{WIDTHS[0]}-{theme}.png", WIDTHS[0])
    panel.wait()
    shots("segment-done", "segmentSection", "warningsSection")
    shots("segment-options", "segmentSection", "structuresSection", "outputSection", "advancedSection", "batchSection")
    shots("models", "modelsSection", "storageSection", "ownModelSection")
    shots("make", "buildSection", "buildOptionsSection", "buildLogSection")
    ui.compareButton.click()
    panel.wait()
    shots("compare", "compareSection", "structureSection", "regionSection", "summarySection")
    panel.widget.cleanup()
    slicer.mrmlScene.Clear(0)


def dialog_and_settings(qt: Any, folder: Path, theme: str) -> None:
    """The dialog before packages are installed, and the page of settings."""
    from MedQuantINT8Lib.slicer_module.dependencies import GROUPS
    from MedQuantINT8Lib.slicer_module.installation import InstallQuestion
    from MedQuantINT8Lib.slicer_module.panels.packages_dialog import PackagesDialog
    from MedQuantINT8Lib.slicer_module.panels.settings_page import settings_page

    group = GROUPS["segment"]
    question = InstallQuestion(
        tuple(group.lines()),
        (group.purpose,),
        (group.size,),
        (group.license,),
        "/opt/Slicer/lib/Python/site-packages",
        "/media/wheels",
    )
    for name, shown in (("packages", PackagesDialog(question).dialog), ("settings", settings_page())):
        shown.show()
        qt.QApplication.processEvents()
        shown.grab().save(str(folder / f"{name}-{theme}.png"))
        shown.hide()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="of the screen: 1 to 2")
    parser.add_argument("--theme", choices=("light", "dark"), action="append", help="only this one")
    arguments = parser.parse_args()
    os.environ["QT_SCALE_FACTOR"] = str(arguments.scale)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="medquant-screenshots-") as models:
        os.environ["MEDQUANT_MODELS"] = models
        import window

        window.install()
        import qt

        qt.QApplication.setStyle("Fusion")
        for theme, palette in themes(qt).items():
            if not arguments.theme or theme in arguments.theme:
                qt.QApplication.setPalette(palette)
                take(arguments.folder, theme)
                dialog_and_settings(qt, arguments.folder, theme)


if __name__ == "__main__":
    main()
