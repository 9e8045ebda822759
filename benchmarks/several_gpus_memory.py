"""One scan, or a task of several parts, in memory, on one GPU and on all of them, turn and turn about."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from several_gpus_counting import Counter, counted, timeline_of
from several_gpus_setup import PARTS, SPACING, Setup, scan


def in_memory(setup: Setup, model: Path, what: str, *, looked_into: bool = True) -> dict[str, Any]:
    """One scan, or a task of several parts, on one GPU and on all.

    Args:
        looked_into: whether further runs say where the time goes, and what crosses the bus.
    """
    from MedQuantINT8Lib.imaging.volume import Volume
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.engine_pool import KeepingPool
    from MedQuantINT8Lib.inference.pipeline import segment
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.inference.task_model import load_model
    from MedQuantINT8Lib.progress import Task

    k, j, i = SPACING
    volume = Volume(scan(setup.shape)[None], np.diag([-i, -j, k, 1.0]))
    devices = {"one": setup.gpus[0], "all": setup.together}
    pool = KeepingPool()
    options = SegmentationOptions(check_ranges=False)
    row: dict[str, Any] = {"what": what, "voxels": setup.shape, "gpus": setup.gpus}
    with load_model(str(model)) as loaded:

        def run(name: str) -> Any:
            choice = EngineChoice(setup.engine, "int8", device=devices[name])
            return segment(loaded, volume, choice, options, Task(), pool=pool)

        # The pool has room for the engines of both.
        pool.reserve(len(setup.gpus) * 2 * PARTS)
        labels, times = {}, {name: [] for name in devices}
        for number in range(setup.rounds + 1):
            for name in devices:
                began = time.perf_counter()
                result = run(name)
                if number:
                    times[name].append(time.perf_counter() - began)
                    row[f"stages_{name}"] = result.seconds
                else:
                    labels[name] = result.result.labels
                    row[f"notes_{name}"], row["windows"] = result.result.notes, result.result.windows
        for name in devices:
            row[name] = {
                "seconds": statistics.median(times[name]),
                "least": min(times[name]),
                "most": max(times[name]),
            }
        row["other_labels"] = int((labels["one"] != labels["all"]).sum())
        row["distinct_labels"] = len(np.unique(labels["one"]))
        row["faster"] = row["one"]["seconds"] / row["all"]["seconds"]
        try:
            if looked_into:
                _look_into(setup, row, run, pool)
        except Exception:
            # The times count, whatever becomes of the look at them.
            traceback.print_exc()
        pool.clear()
    return row


def _look_into(setup: Setup, row: dict[str, Any], run: Callable[[str], Any], pool: Any) -> None:
    """Note where the time of a run goes, and what crosses the bus, on one GPU and on all."""
    for name, numbers in (("one", setup.gpus[:1]), ("all", setup.gpus)):
        row[f"timeline_{name}"] = timeline_of(numbers, partial(run, name))
    for name in ("one", "all"):
        pool.clear()
        counter = Counter()
        with counted(counter):
            run(name)
            # Loading took the weights up; they are none of a run's copies.
            counter.forget_copies()
            began = time.perf_counter()
            run(name)
            row[f"counted_{name}"] = {"seconds": time.perf_counter() - began, "gpus": counter.rows()}
