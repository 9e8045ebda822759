"""Where the time of a segmentation goes, stage by stage, from a file to the written label map, with the engine loaded.

    python benchmarks/stages.py                          all rows: writes docs/results/stages.md
    python benchmarks/stages.py --rows "3 mm" "1.5 mm"   these rows anew, the others from docs/results/stages.json
    python benchmarks/stages.py --starts                 how long commands take to start
    python benchmarks/stages.py --packages FOLDER        keep the packages that are made, and use them the next time
    python benchmarks/stages.py --output FILE.json       into a record of its own, such as of one of several runs side by side
    python benchmarks/stages.py --merge FILE.json ...    records of several runs into docs/results/stages.json, and its page

Wall time, and beside it the processor time of all threads, which a machine that does other work at the same time changes less. A scan is
segmented several times in one process; the medians of all but the first are given, and the share is that of processor time.

Where rows say "scores of a label map", the network runs and is blended as in the others, and the blended result is put aside: brought back are
scores that were made of TotalSegmentator's labels of a real CT (smoothed over about two voxels, with noise), as certain as a trained network's.
Random weights give every class the same chance everywhere, which no trained network does, and which is the worst case on the way back.

A wide last layer is applied to what was blended (``models/pointwise_head.py``): it is a stage of its own, and counts as the network.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(HERE.parent / "MedQuantINT8")]

from data_models import ROOT  # noqa: E402
from stage_page import STAGES, STARTS, merge, share_beside, write  # noqa: E402
from stage_rows import ROWS, Row, label_scores  # noqa: E402

PAGE = ROOT / "docs" / "results" / "stages"
#: A stage of this program, which no other is charged with.
ASIDE = "put aside"


class Stopwatch:
    """Wall and processor seconds of stages; the time of a stage inside another is its own alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {name: [0.0, 0.0] for name in (*STAGES, ASIDE)}
        self._running = ["the rest"]
        self._since = time.perf_counter(), time.process_time()

    def _settle(self) -> None:
        now = time.perf_counter(), time.process_time()
        for clock in (0, 1):
            self.seconds[self._running[-1]][clock] += now[clock] - self._since[clock]
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._settle()
        self._running.append(name)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def lap(self) -> dict[str, list[float]]:
        """The seconds since the last call."""
        self._settle()
        seconds, self.seconds = self.seconds, {name: [0.0, 0.0] for name in self.seconds}
        return seconds

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return run


def watch(stopwatch: Stopwatch) -> None:
    """Time the parts of the segment road, for the life of this process."""
    from MedQuantINT8Lib.engines.openvino import OpenVINOEngine
    from MedQuantINT8Lib.imaging import preprocessing
    from MedQuantINT8Lib.inference import network_run, score_reduction, segmenter
    from MedQuantINT8Lib.inference.blending import LabelSink
    from MedQuantINT8Lib.inference.head_sink import HeadSink
    from MedQuantINT8Lib.inference.resampling_sink import ResamplingSink

    steps = preprocessing.Preparation
    for place, name, stage in (
        (steps, "crop", "reorienting and cropping"),
        (steps, "reorient", "reorienting and cropping"),
        (steps, "result", "reorienting and cropping"),
        (steps, "resample", "resampling"),
        (steps, "normalize", "normalizing"),
        (OpenVINOEngine, "infer", "network"),
        (OpenVINOEngine, "infer_features", "network"),
        (segmenter, "slide", "blending"),
        (HeadSink, "__call__", "last layer"),
        (HeadSink, "filled", "last layer"),
        (ResamplingSink, "__call__", "back to the scan"),
        (ResamplingSink, "room", "back to the scan"),
        (ResamplingSink, "filled", "back to the scan"),
        (LabelSink, "__call__", "back to the scan"),
        (score_reduction.ScoreReduction, "labels", "back to the scan"),
        (network_run, "check_ranges", "looking at ranges"),
    ):
        setattr(place, name, stopwatch.timed(stage, getattr(place, name)))


def resample_label_scores(stopwatch: Stopwatch) -> None:
    """From here on scores of a label map are brought back to the scan where blending gave the network's own; what that takes is no stage's."""
    from MedQuantINT8Lib.inference.resampling_sink import ResamplingSink

    begin, take, filled = ResamplingSink.__init__, ResamplingSink.__call__, ResamplingSink.filled
    known: dict[tuple[int, ...], np.ndarray] = {}

    def begun(self: Any, shape: tuple[int, int, int], classes: int, *args: Any) -> None:
        begin(self, shape, classes, *args)
        with stopwatch.stage(ASIDE):
            if (classes, *shape) not in known:
                known[(classes, *shape)] = label_scores(classes, shape, (0, 1, 2))
            self.label_scores = known[(classes, *shape)]

    def put(self: Any, start: tuple[int, int, int], size: tuple[int, ...], scores: np.ndarray) -> None:
        with stopwatch.stage(ASIDE):
            index = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
            scores[...] = self.label_scores[(slice(None), *index)]

    def taken(self: Any, start: tuple[int, int, int], block: np.ndarray) -> None:
        put(self, start, block.shape[1:], block)
        take(self, start, block)

    def written(self: Any, start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        put(self, start, size, self.room(start, size))
        filled(self, start, size)

    for name, function in (("__init__", begun), ("__call__", taken), ("filled", written)):
        setattr(ResamplingSink, name, function)


def measure(row: Row, folder: Path) -> dict[str, Any]:
    """Segment a scan several times with the engine loaded; medians of the stages in seconds."""
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.engine_pool import KeepingPool
    from MedQuantINT8Lib.inference.pipeline import segment
    from MedQuantINT8Lib.inference.result_files import OutputOptions, prepare, result_of, write_results
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.inference.task_model import labels_of, load_model
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.system import machine

    package, scan = row.package(folder), row.scan(folder)
    stopwatch, pool, laps = Stopwatch(), KeepingPool(), []
    watch(stopwatch)
    if row.of_labels:
        resample_label_scores(stopwatch)
    choice = EngineChoice("openvino", row.precision)
    with tempfile.TemporaryDirectory() as scratch, load_model(str(package)) as model:
        outputs, labels = OutputOptions((str(Path(scratch) / "labels.seg.nrrd"),)), labels_of(model)
        for _ in range(row.cases + 1):
            stopwatch.lap()
            with stopwatch.stage("reading"):
                volume = read_volume(scan)
                source = prepare(outputs, volume, labels)
            run = segment(model, volume, choice, SegmentationOptions(), Task(), 0.0, pool)
            with stopwatch.stage("writing"):
                write_results(outputs, result_of(run, model, labels, source), Task())
            laps.append(stopwatch.lap())
        pool.clear()
    medians = {name: [float(np.median([lap[name][clock] for lap in laps[1:]])) for clock in (0, 1)] for name in STAGES}
    voxels = list(volume.data.shape[:0:-1])
    return {
        "windows": run.result.windows,
        "voxels": voxels,
        "cases": row.cases,
        "notes": run.result.notes,
        "machine": machine(),
        "stages": medians,
    }


def starts(rounds: int = 15) -> dict[str, float]:
    """Median seconds on the clock of each command, from its start to its end, turn and turn about."""
    import subprocess

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "MedQuantINT8"), os.environ.get("PYTHONPATH", "")]),
    }
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(rounds + 1):
        for name, (arguments, _) in STARTS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - began)
    # Of the first, files were not in the memory yet.
    return {name: float(np.median(seconds[1:])) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], help="words of the rows that are measured")
    parser.add_argument("--starts", action="store_true", help="measure only how long commands take to start")
    parser.add_argument("--packages", help="a folder where packages, scans and engines are kept")
    parser.add_argument(
        "--output", type=Path, default=PAGE.with_suffix(".json"), help="the record; its page lies beside it"
    )
    parser.add_argument("--merge", nargs="+", type=Path, help="records of other runs")
    parser.add_argument("--note", default="", help="what whoever reads the page should know of this run")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(ROWS[args.one[0]], Path(args.one[1]))))
        return
    import subprocess

    from MedQuantINT8Lib.system import machine

    record = json.loads(args.output.read_text()) if args.output.exists() else {"rows": {}}
    if args.note:
        record["note"] = args.note
    if args.merge:
        for file in args.merge:
            merge(record, json.loads(file.read_text()), ROWS)
        write(args.output, record)
        return
    if args.starts:
        merge(record, {"starts": starts(), "machine": machine()}, ROWS)
        write(args.output, record)
        return
    chosen = [name for name in ROWS if not args.rows or any(word in name for word in args.rows)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.packages or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            environment = {**os.environ, "MEDQUANT_CACHE": str(folder / "engines")}
            command = [sys.executable, __file__, "--one", name, str(folder)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            print(name, f"{100 * share_beside(measured):.1f} % beside the network", file=sys.stderr)
            # After each row: what was measured is not lost where a later one fails.
            merge(record, {"rows": {name: measured}, "machine": machine()}, ROWS)
            write(args.output, record)


if __name__ == "__main__":
    main()
