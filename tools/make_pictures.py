"""Draws the icon and the sample's thumbnail, and takes the README's pictures: two of the module's real window, one of the demo's report.

    python tools/make_pictures.py [window] [report]

Times in them are those of the machine as it is. Where other programs run, they would be shown as the product's: there no time and no speed is
shown, only what does not depend on the load (agreement, sizes, milliliters, memory).
Slices and surfaces come from Slicer's own displayable managers; the window around the panel is the stand-in of Testing/host.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "Testing" / "host"), str(ROOT / "MedQuantINT8")]
ICONS, SHOTS = ROOT / "MedQuantINT8" / "Resources" / "Icons", ROOT / "Resources"
#: The README's screenshots, and a side of each of the four views in them; the panel has the rest.
WIDTH, HEIGHT, VIEW = 1280, 800, 396
PANEL = WIDTH - 2 * VIEW - 12
#: Other work on the machine, in busy cores, above which no time is shown.
MOST_LOAD = 0.5


def is_busy() -> bool:
    """Whether other programs keep the machine busy, so that times tell nothing."""
    return os.getloadavg()[0] > MOST_LOAD


def icon(qt: Any) -> None:
    """A head's outline in steps, as rounding makes them, over a smooth one; 128 x 128."""
    image = qt.QImage(128, 128, qt.QImage.Format_ARGB32)
    image.fill(0)
    painter = qt.QPainter(image)
    painter.setRenderHint(qt.QPainter.Antialiasing)
    painter.setPen(qt.Qt.NoPen)
    painter.setBrush(qt.QColor(24, 50, 74))
    painter.drawRoundedRect(4, 4, 120, 120, 22, 22)
    for y in range(8):
        for x in range(8):
            distance = ((x - 3.5) ** 2 / 9.5 + (y - 3.5) ** 2 / 12.5) ** 0.5
            if distance < 1:
                painter.setBrush(qt.QColor(242, 163, 65) if distance < 0.45 else qt.QColor(104, 182, 200))
                painter.drawRoundedRect(17 + 12 * x, 17 + 12 * y, 10, 10, 2, 2)
    pen = qt.QPen(qt.QColor(255, 255, 255, 210))
    pen.setWidth(3)
    painter.setPen(pen)
    painter.setBrush(qt.Qt.NoBrush)
    painter.drawEllipse(qt.QPointF(64, 64), 39, 45)
    painter.end()
    image.save(str(ICONS / "MedQuantINT8.png"))


def look(qt: Any, until: Any) -> None:
    end = time.monotonic() + 1200
    while not until() and time.monotonic() < end:
        qt.QApplication.processEvents()
        time.sleep(0.01)
    qt.QApplication.processEvents()


def screenshot(qt: Any, panel: Any, views: Any, path: Path) -> None:
    """The panel on the left, the views on the right, as in Slicer; a panel that would be cut is an error."""
    panel.resize(PANEL, HEIGHT)
    for _ in range(20):
        # What a widget needs goes up through the layouts, a level a turn of the event loop.
        qt.QApplication.processEvents()
    if (panel.width(), panel.height()) != (PANEL, HEIGHT):
        raise SystemExit(
            f"The panel needs {panel.width()} x {panel.height()} pixels: it does not fit {PANEL} x {HEIGHT}."
        )
    picture = qt.QPixmap(WIDTH, HEIGHT)
    picture.fill(qt.QColor(18, 18, 24))
    painter = qt.QPainter(picture)
    painter.drawPixmap(0, 0, panel.grab())
    for n in range(4):
        x, y = PANEL + 6 + (n % 2) * (VIEW + 4), 2 + (n // 2) * (VIEW + 4)
        painter.drawPixmap(x, y, VIEW, VIEW, views, n * VIEW, 0, VIEW, VIEW)
    painter.end()
    picture.toImage().convertToFormat(qt.QImage.Format_RGB888).save(str(path))


def report(path: Path) -> None:
    """The first screen of the page that ``medquant demo`` writes, by headless Chromium."""
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser is None:
        print(f"{path.name} is not made again: there is no Chromium here")
        return
    from MedQuantINT8Lib.cli.demo_run import run_demo
    from MedQuantINT8Lib.evaluation.reports import report as page_writer
    from MedQuantINT8Lib.progress import Task

    if is_busy():
        gained = page_writer.gained
        # Of the gains, the size of the file depends on no load.
        page_writer.gained = lambda value: [item for item in gained(value) if " MB " in item[1]]
    with tempfile.TemporaryDirectory() as scratch:
        run_demo(Path(scratch) / "demo", Task())
        page = (Path(scratch) / "demo" / "report.html").as_uri()
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={scratch}/profile",
        ]
        subprocess.run(
            [browser, *arguments, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={path}", page],
            check=True,
            capture_output=True,
        )


def without_times(ui: Any, compare: Any) -> None:
    """Take times and speed out of what the panel shows."""
    for label, pattern in ((ui.segmentStatusLabel, r" in [^(]*(?= \()"), (ui.forecastLabel, r", about [^,]*")):
        label.setText(re.sub(pattern, "", label.text()))
    for comparison in compare.comparisons:
        for run in comparison.report["runs"].values():
            run["seconds"]["network"] = 0.0
    compare._showResult()


def window_pictures() -> None:
    busy = is_busy()
    import window

    window.install()
    import qt
    import slicer

    import MedQuantINT8
    from MedQuantINT8Lib.slicer_module.sample_data import show_scan
    from MedQuantINT8Lib.slicer_module.views import save_picture

    icon(qt)
    MedQuantINT8.MedQuantINT8(SimpleNamespace(path=MedQuantINT8.__file__))
    widget = MedQuantINT8.MedQuantINT8Widget()
    widget.setup()
    widget.parent.show()
    node = show_scan()
    ui, runner = widget.view.ui, widget.view.runner

    def newest_segmentation() -> Any:
        return slicer.mrmlScene.GetNthNodeByClass(
            slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") - 1, "vtkMRMLSegmentationNode"
        )

    def segmented() -> Any:
        ui.segmentButton.click()
        look(qt, lambda: runner.busy)
        look(qt, lambda: not runner.busy)
        return newest_segmentation()

    with tempfile.TemporaryDirectory() as scratch:

        def views(segmentation: Any) -> Any:
            save_picture(node, segmentation, Path(scratch) / "views.png", VIEW)
            return qt.QPixmap(str(Path(scratch) / "views.png"))

        # What INT8 brings is not timed against FP32 where INT8 is asked for.
        ui.precisionCombo.setCurrentIndex(ui.precisionCombo.findData("int8"))
        # The first click builds the engine; what a user sees from then on is the second.
        slicer.mrmlScene.RemoveNode(segmented())
        result = segmented()
        pictures = views(result)
        look(qt, lambda: "Choose" not in ui.forecastLabel.text())
        if busy:
            without_times(ui, widget.view.compare)
        screenshot(qt, widget.parent, pictures, SHOTS / "segment.png")
        surfaces = pictures.copy(3 * VIEW, 0, VIEW, VIEW)
        surfaces.scaled(260, 260, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation).save(
            str(ICONS / "SyntheticAbdomen.png")
        )
        ui.segmentSection.setProperty("collapsed", True)
        ui.structureSection.setProperty("collapsed", True)
        ui.compareSection.setProperty("collapsed", False)
        ui.compareButton.click()
        look(qt, lambda: runner.busy)
        look(qt, lambda: not runner.busy)
        if busy:
            without_times(ui, widget.view.compare)
        ui.showDifferencesButton.click()
        result.GetDisplayNode().SetVisibility(False)
        look(qt, lambda: True)
        shown = views(newest_segmentation())
        # Single voxels have no surface to show: the organs stay in the 3D view.
        painter = qt.QPainter(shown)
        painter.drawPixmap(3 * VIEW, 0, surfaces)
        painter.end()
        screenshot(qt, widget.parent, shown, SHOTS / "compare.png")
    widget.cleanup()


def main() -> None:
    for folder in (ICONS, SHOTS):
        folder.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[1:] or ["window", "report"]
    if "window" in wanted:
        window_pictures()
    if "report" in wanted:
        report(SHOTS / "demo.png")


if __name__ == "__main__":
    main()
