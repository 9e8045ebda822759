"""Five recipes for Slicer's Python console and for scripts of your own modules.

In Slicer, the logic and the volume come from the application:

    logic = slicer.util.getModuleLogic("MedQuantINT8")
    volume = slicer.util.getNode("CTLiver")
    print(segment_and_measure(logic, volume, "demo"))

On slicer-core, ``logic`` is a ``MedQuantINT8Lib.slicer_module.logic.MedQuantINT8Logic()``. ``model`` is the name of an installed model
(``logic.models()`` lists them) or the path of a package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer


def segment_and_measure(logic: Any, volume: Any, model: str) -> dict[str, float]:
    """1. Segment a volume, and measure what was found: milliliters of each structure, by its name."""
    segmentation = logic.segment(volume, model=model)
    voxel_ml = float(np.prod(volume.GetSpacing())) / 1000
    inside = segmentation.GetSegmentation()
    ids = [inside.GetNthSegmentID(n) for n in range(inside.GetNumberOfSegments())]
    masks = {
        inside.GetSegment(i).GetName(): slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, i, volume) for i in ids
    }
    return {name: float(np.count_nonzero(mask)) * voxel_ml for name, mask in masks.items()}


def segment_in_background(
    logic: Any, volume: Any, model: str, idle: Callable[[], None], give_up: Callable[[], bool] = lambda: False
) -> Any | None:
    """2. Segment while the application goes on; the segmentation node, or None if it was given up.

    Args:
        idle: called again and again; ``slicer.app.processEvents`` in Slicer.
        give_up: whether to stop now.
    """
    from MedQuantINT8Lib.errors import Cancelled

    job = logic.segment(volume, model=model, waitForCompletion=False)
    try:
        while not job.poll():
            idle()
            if give_up():
                job.cancel()
            time.sleep(0.01)
    except Cancelled:
        return None
    return job.value


def segment_series(logic: Any, database: Any, series: Sequence[str], model: str, folder: Path) -> dict[str, Path]:
    """3. Segment series that were chosen in the DICOM database, one after the other; the files that were written, by series.

    Nothing stays in the scene: each scan and its segmentation are removed before the next is read.

    Args:
        database: ``slicer.dicomDatabase``.
        series: UIDs; in Slicer, those that are selected in the DICOM browser.
    """
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.slicer_module import scene

    written = {}
    for uid in series:
        first = Path(database.filesForSeries(uid)[0])
        volume = scene.volume_node(read_volume(first.parent, series=uid), uid)
        segmentation = logic.segment(volume, model=model)
        written[uid] = folder / f"{uid}.seg.nrrd"
        scene.save_segmentation(segmentation, written[uid])
        for node in (segmentation, volume):
            node.GetScene().RemoveNode(node)
    return written


def compare_precisions(logic: Any, volume: Any, model: str, page: Path) -> float | None:
    """4. What INT8 changes on this scan: mean Dice with FP32, a page to keep, and in the scene the regions that differ, with a table."""
    comparison = logic.compare(volume, model)
    comparison.save(page)
    if logic.showDifferences(comparison) is not None:
        logic.differencesTable(comparison)
    return comparison.meanDice


def label_map_for_other_modules(logic: Any, volume: Any, model: str) -> Any:
    """5. A label map volume on the scan's own grid, for modules that know no segmentations."""
    segmentation = logic.segment(volume, model=model)
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", f"{volume.GetName()} labels")
    segmentations = slicer.modules.segmentations.logic()
    if not segmentations.ExportAllSegmentsToLabelmapNode(
        segmentation, labels, slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
    ):
        raise RuntimeError(f"{segmentation.GetName()} could not be written into a label map.")
    return labels
