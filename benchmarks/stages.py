"""Where the time of a segmentation goes, stage by stage, from a file to the written label map, with the engine loaded.

    python benchmarks/stages.py                          all rows: writes docs/results/stages.md
    python benchmarks/stages.py --rows "3 mm" "1.5 mm"   these rows anew, the others from docs/results/stages.json
    python benchmarks/stages.py --packages FOLDER        keep the packages that are made, and use them the next time

Wall time, and beside it the processor time of all threads, which a machine that does other work at the same time changes less. A scan is
segmented several times in one process; the medians of all but the first are given, and the share is that of processor time.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(HERE.parent / "MedQuantINT8")]

from data_models import DATA, ROOT  # noqa: E402
from MedQuantINT8Lib.models.package import ModelPackage, write_package  # noqa: E402
from MedQuantINT8Lib.models.spec import Crop, Geometry, Label, Normalization, Output  # noqa: E402

PAGE = ROOT / "docs" / "results" / "stages"
#: Stages in the order in which a scan goes through them.
STAGES = ("reading", "reorienting and cropping", "resampling", "normalizing", "network", "blending", "back to the scan", "looking at ranges", "writing", "the rest")  # fmt: skip


class Stopwatch:
    """Wall and processor seconds of stages; the time of a stage inside another is its own alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {name: [0.0, 0.0] for name in STAGES}
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
        seconds, self.seconds = self.seconds, {name: [0.0, 0.0] for name in STAGES}
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
    from MedQuantINT8Lib.inference import pipeline, score_reduction, segmenter
    from MedQuantINT8Lib.inference.blending import LabelSink
    from MedQuantINT8Lib.inference.resampling_sink import ResamplingSink

    steps = preprocessing.Preparation
    for place, name, stage in (
        (steps, "crop", "reorienting and cropping"),
        (steps, "reorient", "reorienting and cropping"),
        (steps, "result", "reorienting and cropping"),
        (steps, "resample", "resampling"),
        (steps, "normalize", "normalizing"),
        (OpenVINOEngine, "infer", "network"),
        (segmenter, "slide", "blending"),
        (ResamplingSink, "__call__", "back to the scan"),
        (LabelSink, "__call__", "back to the scan"),
        (score_reduction.ScoreReduction, "labels", "back to the scan"),
        (pipeline, "check_ranges", "looking at ranges"),
    ):
        setattr(place, name, stopwatch.timed(stage, getattr(place, name)))


def measure(package: Path, scan: Path, precision: str, cases: int) -> dict[str, Any]:
    """Segment a scan several times with the engine loaded; medians of the stages in seconds."""
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.engine_pool import KeepingPool
    from MedQuantINT8Lib.inference.pipeline import segment
    from MedQuantINT8Lib.inference.result_files import OutputOptions, prepare, result_of, write_results
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.inference.task_model import labels_of, load_model
    from MedQuantINT8Lib.progress import Task

    stopwatch, pool, laps = Stopwatch(), KeepingPool(), []
    watch(stopwatch)
    choice = EngineChoice("openvino", precision)
    with tempfile.TemporaryDirectory() as folder, load_model(str(package)) as model:
        outputs, labels = OutputOptions((str(Path(folder) / "labels.seg.nrrd"),)), labels_of(model)
        for _ in range(cases + 1):
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
    return {"windows": run.result.windows, "voxels": list(volume.data.shape[:0:-1]), "cases": cases, "stages": medians}


@dataclass(frozen=True)
class Row:
    """A network and a scan.

    Attributes:
        package: makes the package in a folder, or finds it there.
        scan: the scan's file, made in that folder where it is a synthetic one.
    """

    package: Callable[[Path], Path]
    scan: Callable[[Path], Path]
    precision: str = "int8"
    cases: int = 10


def nnunet(spacing: float) -> Callable[[Path], Path]:
    """nnU-Net's plain network of the study's size, described as nnU-Net's importer does, on a grid of that spacing."""

    def package(folder: Path) -> Path:
        target = folder / f"nnunet-{spacing:g}"
        if not target.exists():
            from networks import quantized, torch_networks

            if not (folder / "nnunet.int8").exists():
                quantized(torch_networks()["nnU-Net-like (DynUNet, InstanceNorm)"], "nnunet", folder)
            with ModelPackage.load(folder / "nnunet.int8") as source:
                spec = replace(
                    source.spec,
                    geometry=Geometry("KJI", "native", (spacing,) * 3, anchor="edges", interpolation="nnunet", tolerance=0.0),
                    normalization=(Normalization("nnunet_ct", -900, 900, 0, 250),),
                    window=replace(source.spec.window, placement="nnunet"),
                    output=Output(resample="logits"),
                    crop=Crop("nonzero"),
                    normalize_in="input",
                    labels=tuple(Label(n, f"structure {n}", n) for n in range(1, 14)),
                )  # fmt: skip
                write_package(target, spec, {name: source.folder / name for name in source.hashes})
        return target

    return package


def kept(name: str) -> Callable[[Path], Path]:
    """A network of the results page (``benchmarks/real_networks.py``), quantized as there."""

    def package(folder: Path) -> Path:
        target = folder / name.replace(" ", "-") / "package"
        if not target.exists():
            from real_networks import cases, quantized_package

            target.parent.mkdir(exist_ok=True)
            quantized_package(cases(folder)[name], target.parent)
        return target

    return package


def ct(folder: Path) -> Path:
    """512 x 512 x 400 voxels of 0.8 x 0.8 x 1 mm, a synthetic body with the noise of a CT."""
    from MedQuantINT8Lib.imaging.nifti_file import write_nifti
    from MedQuantINT8Lib.imaging.phantom import make_phantom
    from MedQuantINT8Lib.imaging.volume import Grid, resample

    path = folder / "ct.nii.gz"
    if not path.exists():
        volume, _ = make_phantom(2)
        extent = np.array(volume.grid.size) * volume.grid.spacing
        size = (512, 512, 400)
        matrix = volume.ijk_to_ras.copy()
        matrix[:3, :3] = matrix[:3, :3] / volume.grid.spacing * (extent / size)
        data = resample(volume.data[0].astype(np.float32), volume.grid, Grid(size, matrix), "linear")
        data += np.random.default_rng(0).normal(0, 12, data.shape).astype(np.float32)
        matrix[:3, :3] = matrix[:3, :3] / (extent / size) * (0.8, 0.8, 1.0)
        write_nifti(path, np.rint(data).astype(np.int16), matrix)
    return path


def head(folder: Path) -> Path:
    return DATA / "brain" / "t1_head_a.nii.gz"


def hippocampus(folder: Path) -> Path:
    return min((DATA / "hippocampus" / "images").glob("*.nii.gz"))


ROWS = {
    "nnU-Net, 3 mm": Row(nnunet(3.0), ct, cases=3),
    "nnU-Net, 1.5 mm": Row(nnunet(1.5), ct, cases=1),
    "hippocampus U-Net, INT8": Row(kept("hippocampus U-Net"), hippocampus),
    "hippocampus U-Net, FP32": Row(kept("hippocampus U-Net"), hippocampus, "fp32"),
    "brain_torchio_4mm, INT8": Row(kept("brain_torchio_4mm"), head),
    "brain_torchio_4mm, FP32": Row(kept("brain_torchio_4mm"), head, "fp32"),
}


def page(record: dict[str, Any]) -> str:
    lines = [
        "# Where the time of a segmentation goes",
        "",
        "Made by `benchmarks/stages.py`; do not edit. From the file to the written label map, in one process with the engine loaded; medians.",
        f"Machine: {record['machine']['processor']}, {record['machine']['cores']} cores ({', '.join(record['machine']['features'])}), Python {record['machine']['python']}. Each cell: wall time / processor time of all threads, in milliseconds. Share: of processor time, everything but the network.",
    ]
    if record.get("note"):
        lines += ["", f"Note on this run: {record['note']}"]
    names = list(record["rows"])
    lines += ["", f"| stage | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for stage in STAGES:
        cells = [" / ".join(f"{1e3 * s:.0f}" for s in record["rows"][name]["stages"][stage]) for name in names]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    shares = [f"{100 * share_beside(record['rows'][name]):.1f} %" for name in names]
    return "\n".join([*lines, f"| **beside the network** | {' | '.join(shares)} |", ""])


def share_beside(row: dict[str, Any]) -> float:
    """The share of processor time that is not the network's."""
    total = sum(cpu for _, cpu in row["stages"].values())
    return float(1 - row["stages"]["network"][1] / total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], help="words of the rows that are measured")
    parser.add_argument("--packages", help="a folder where packages, scans and engines are kept")
    parser.add_argument("--note", default="", help="what whoever reads the page should know of this run")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        row, folder = ROWS[args.one[0]], Path(args.one[1])
        print(json.dumps(measure(row.package(folder), row.scan(folder), row.precision, row.cases)))
        return
    import subprocess

    from MedQuantINT8Lib.system import machine

    chosen = [name for name in ROWS if not args.rows or any(word in name for word in args.rows)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.packages or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        file = PAGE.with_suffix(".json")
        record = json.loads(file.read_text()) if file.exists() else {"rows": {}}
        for name in chosen:
            environment = {**os.environ, "MEDQUANT_CACHE": str(folder / "engines")}
            command = [sys.executable, __file__, "--one", name, str(folder)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            record["rows"][name] = json.loads(done.stdout.splitlines()[-1])
            print(name, f"{100 * share_beside(record['rows'][name]):.1f} % beside the network", file=sys.stderr)
            # After each row: what was measured is not lost where a later one fails.
            record["rows"] = {known: record["rows"][known] for known in ROWS if known in record["rows"]}
            record |= {"machine": machine(), "note": args.note or record.get("note", "")}
            file.write_text(json.dumps(record, indent=2) + "\n")
            PAGE.with_suffix(".md").write_text(page(record))


if __name__ == "__main__":
    main()
