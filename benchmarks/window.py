"""How the module's window behaves while a 512 x 512 x 300 scan is segmented: gaps in its event loop, and clicks.

A timer of 5 ms beats in the window's event loop; a gap is the time between two beats. The window is the stand-in of Testing/host
(PySide6 over Slicer's real core), so Slicer's own views are not part of it.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "Testing" / "host"), str(ROOT / "MedQuantINT8")]
SIZE, SPACING = (512, 512, 300), 0.8
BEAT_MS = 5
CLICKS = 5


def run() -> dict[str, Any]:
    import window

    window.install()
    import qt
    import slicer

    import MedQuantINT8
    from MedQuantINT8Lib.imaging.phantom import make_phantom
    from MedQuantINT8Lib.slicer_module import scene as mrml

    MedQuantINT8.MedQuantINT8(type("Parent", (), {})())
    widget = MedQuantINT8.MedQuantINT8Widget()
    widget.setup()
    widget.parent.show()
    view = widget.view
    beats: list[float] = []
    timer = qt.QTimer()
    timer.setTimerType(qt.Qt.PreciseTimer)
    timer.setInterval(BEAT_MS)
    timer.timeout.connect(lambda: beats.append(time.perf_counter()))
    timer.start()

    def click() -> dict[str, float]:
        beats.clear()
        began = time.perf_counter()
        computing = None
        view.ui.segmentButton.click()
        while view.runner.busy:
            qt.QApplication.processEvents(qt.QEventLoop.WaitForMoreEvents, 20)
            if computing is None and "reprocessing" in view.ui.segmentStatusLabel.text():
                computing = time.perf_counter()
        done = time.perf_counter()
        qt.QApplication.processEvents()
        times = [began, *[b for b in beats if b <= done], done]
        gaps = [1e3 * (b - a) for a, b in itertools.pairwise(times)]
        return {
            "seconds": done - began,
            "computing_after_s": (computing or done) - began,
            "longest_gap_ms": max(gaps),
            "gaps_over_100_ms": float(sum(g > 100 for g in gaps)),
            "p99_gap_ms": sorted(gaps)[int(0.99 * len(gaps))],
        }

    small = mrml.volume_node(make_phantom(5, (96, 88, 80), 4.0)[0], "small", slicer.mrmlScene)
    view.ui.volumeSelector.setCurrentNodeID(small.GetID())
    cold = click()
    warm = [click() for _ in range(CLICKS)]
    large = mrml.volume_node(make_phantom(4, SIZE, SPACING)[0], "large", slicer.mrmlScene)
    view.ui.volumeSelector.setCurrentNodeID(large.GetID())
    view.ui.surfaceCheck.setChecked(False)
    result = click()
    widget.cleanup()
    return {
        "cold_click_to_computing_s": cold["computing_after_s"],
        "warm_click_to_computing_s": statistics.median(c["computing_after_s"] for c in warm),
        "large": {"voxels": list(SIZE), **result},
        "module_import_ms": import_ms(),
    }


def import_ms() -> float:
    """Median of the module file's import, in fresh processes."""
    code = (
        "import sys, time; sys.path[:0] = ['Testing/host', 'MedQuantINT8']; import window; window.install();"
        "began = time.perf_counter(); import MedQuantINT8; print(1e3 * (time.perf_counter() - began))"
    )
    found = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout)
        for _ in range(5)
    ]
    return statistics.median(found)


if __name__ == "__main__":
    import json

    print(json.dumps(run()))
