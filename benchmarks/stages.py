"""Where the time of a segmentation goes, stage by stage, from a file to the written label map, with the engine loaded.

    python benchmarks/stages.py                          all rows: writes docs/results/stages.md
    python benchmarks/stages.py --rows "3 mm" "1.5 mm"   these rows anew, the others from docs/results/stages.json
    python benchmarks/stages.py --starts                 how long commands take to start
    python benchmarks/stages.py --packages FOLDER        keep the packages that are made, and use them the next time
    python benchmarks/stages.py --output FILE.json       into a record of its own, such as of one of several runs side by side
    python benchmarks/stages.py --merge FILE.json ...    records of several runs into docs/results/stages.json, and its page

Wall time, and beside it the processor time of all threads, which a machine that does other work at the same time changes less. A scan is
segmented several times in one process; the medians of all but the first are given, and the share is that of processor time.

Where rows say "scores of a label map", the network runs as in the row before, and what it gives is put aside: blended and brought back are scores
that were made of TotalSegmentator's labels of a real CT (smoothed over about two voxels, with noise), as certain as a trained network's. Random
weights give every class the same chance everywhere, which no trained network does, and which is the worst case on the way back.
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

from data_models import DATA, ROOT, hippocampus_spec  # noqa: E402
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
    from MedQuantINT8Lib.inference import network_run, score_reduction, segmenter
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
        (network_run, "check_ranges", "looking at ranges"),
    ):
        setattr(place, name, stopwatch.timed(stage, getattr(place, name)))


def label_scores(classes: int, shape: tuple[int, int, int], order: tuple[int, ...]) -> np.ndarray:
    """Scores (C, n0, n1, n2) of a label map, as certain as a trained network's: logarithms of smoothed masks, with noise.

    Args:
        order: the axes of the scores, of the scan's K, J and I.
    """
    from scipy.ndimage import gaussian_filter, zoom

    from MedQuantINT8Lib.imaging.volume_files import read_volume

    labels = read_volume(DATA / "ct" / "abdomen_3mm_labels_totalsegmentator.nii.gz").data[0].transpose(order)
    # As many voxels as the labels have at 3 mm, or twice as many along each axis, in the middle of the volume.
    labels = zoom(labels, max(1, round(shape[0] / 137)), order=0)
    whole = np.zeros(shape, labels.dtype)
    begin = [(outer - min(inner, outer)) // 2 for inner, outer in zip(labels.shape, shape, strict=True)]
    inside = tuple(slice(b, b + min(n, m)) for b, n, m in zip(begin, labels.shape, shape, strict=True))
    whole[inside] = labels[tuple(slice(0, s.stop - s.start) for s in inside)]
    whole[whole >= classes] = 0
    rng, scores = np.random.default_rng(0), np.empty((classes, *shape), np.float32)
    for number, score in enumerate(scores):
        gaussian_filter((whole == number).astype(np.float32), 1.0, output=score)
        np.log(score + np.float32(1e-4), out=score)
        score += rng.normal(0, 0.2, shape).astype(np.float32)
    return scores


def blend_label_scores() -> None:
    """From here on the sliding window blends scores of a label map where the network gave its own."""
    from MedQuantINT8Lib.inference.blending import OverlapAdd

    add, known = OverlapAdd.add, {}

    def replaced(self: Any, start: tuple[int, int, int], block: Any) -> None:
        plan = self._plan
        if self._channels > 1:
            if plan.volume_shape not in known:
                outside = [
                    (b, n - v - b) for b, n, v in zip(plan.pad_before, plan.shape, plan.volume_shape, strict=True)
                ]
                scores = label_scores(self._channels, plan.volume_shape, (0, 1, 2))
                known[plan.volume_shape] = np.pad(scores, [(0, 0), *outside], mode="edge")
            window = tuple(slice(s, s + p) for s, p in zip(start, plan.patch, strict=True))
            block = known[plan.volume_shape][(slice(None), *window)]
        add(self, start, block)

    OverlapAdd.add = replaced  # type: ignore[method-assign]


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
        of_labels: scores of a label map are blended in place of the network's.
    """

    package: Callable[[Path], Path]
    scan: Callable[[Path], Path]
    precision: str = "int8"
    cases: int = 10
    of_labels: bool = False


def nnunet(spacing: float, classes: int) -> Callable[[Path], Path]:
    """nnU-Net's plain network as TotalSegmentator's plans have it, described as nnU-Net's importer does, on a grid of that spacing."""

    def package(folder: Path) -> Path:
        target = folder / f"nnunet-{spacing:g}"
        if not target.exists():
            from networks import quantized, totalsegmentator

            name = f"nnunet{classes}"
            if not (folder / f"{name}.int8").exists():
                quantized(totalsegmentator(classes), name, folder, classes=classes)
            with ModelPackage.load(folder / f"{name}.int8") as source:
                spec = replace(
                    source.spec,
                    geometry=Geometry("KJI", "native", (spacing,) * 3, anchor="edges", interpolation="nnunet", tolerance=0.0),
                    normalization=(Normalization("nnunet_ct", -900, 900, 0, 250),),
                    window=replace(source.spec.window, patch_size=(128, 128, 128), overlap=0.5, placement="nnunet"),
                    output=Output(resample="logits"),
                    crop=Crop("nonzero"),
                    normalize_in="input",
                    labels=tuple(Label(n, f"structure {n}", n) for n in range(1, classes)),
                )  # fmt: skip
                write_package(target, spec, {name: source.folder / name for name in source.hashes})
        return target

    return package


def hippocampus_package(folder: Path) -> Path:
    """The hippocampus U-Net of the results page, quantized as there."""
    target = folder / "hippocampus" / "package"
    if not target.exists():
        from real_networks import Case, quantized_package

        split = json.loads((DATA / "hippocampus" / "split.json").read_text())
        images = [DATA / "hippocampus" / "images" / f"{name}.nii.gz" for name in split["train"][:20]]
        target.parent.mkdir(exist_ok=True)
        network = ROOT / "Testing" / "Networks" / "hippocampus_unet.onnx"
        quantized_package(Case(network, hippocampus_spec(), images, []), target.parent)
    return target


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
    "nnU-Net, 118 classes, 3 mm, scores of a label map": Row(nnunet(3.0, 118), ct, cases=3, of_labels=True),
    "nnU-Net, 118 classes, 3 mm, random weights": Row(nnunet(3.0, 118), ct, cases=2),
    "nnU-Net, 25 classes, 1.5 mm, scores of a label map": Row(nnunet(1.5, 25), ct, cases=1, of_labels=True),
    "nnU-Net, 25 classes, 1.5 mm, random weights": Row(nnunet(1.5, 25), ct, cases=1),
    "hippocampus U-Net, INT8": Row(hippocampus_package, hippocampus),
    "hippocampus U-Net, FP32": Row(hippocampus_package, hippocampus, "fp32"),
    "brain_torchio_4mm, INT8": Row(kept("brain_torchio_4mm"), head),
    "brain_torchio_4mm, FP32": Row(kept("brain_torchio_4mm"), head, "fp32"),
}


#: Commands whose start is timed, and what it is meant to stay below, in seconds.
STARTS = {
    "python -c pass": (["-c", "pass"], None),
    "python -c 'import numpy'": (["-c", "import numpy"], None),
    "medquant --help": (["-m", "MedQuantINT8Lib.cli", "--help"], 0.25),
    "medquant doctor": (["-m", "MedQuantINT8Lib.cli", "doctor"], 2.0),
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


def page(record: dict[str, Any]) -> str:
    lines = [
        "# Where the time of a segmentation goes",
        "",
        "Made by `benchmarks/stages.py`; do not edit. From the file to the written label map, in one process with the engine loaded; medians.",
        f"Machine: {record['machine']['processor']}, {record['machine']['cores']} cores ({', '.join(record['machine']['features'])}), Python {record['machine']['python']}. Each cell: wall time / processor time of all threads, in milliseconds. Share: everything but the network, of wall time / of processor time.",
    ]
    if record.get("note"):
        lines += ["", record["note"]]
    names = list(record["rows"])
    lines += ["", f"| stage | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for stage in STAGES:
        cells = [" / ".join(f"{1e3 * s:.0f}" for s in record["rows"][name]["stages"][stage]) for name in names]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    totals = [
        " / ".join(
            f"{1e3 * sum(stage[clock] for stage in record['rows'][name]['stages'].values()):.0f}" for clock in (0, 1)
        )
        for name in names
    ]
    lines.append(f"| all | {' | '.join(totals)} |")
    shares = [
        " / ".join(f"{100 * share_beside(record['rows'][name], clock):.1f} %" for clock in (0, 1)) for name in names
    ]
    lines.append(f"| **beside the network** | {' | '.join(shares)} |")
    lines.append(f"| windows | {' | '.join(str(record['rows'][name]['windows']) for name in names)} |")
    if record.get("starts"):
        lines += [
            "",
            "## How long commands take to start",
            "",
            "From the start of the process to its end; medians.",
            "",
            "| command | seconds | bar |",
            "| --- | ---: | ---: |",
        ]
        lines += [
            f"| `{name}` | {seconds:.3f} | {STARTS[name][1] or ''} |" for name, seconds in record["starts"].items()
        ]
    return "\n".join([*lines, ""])


def share_beside(row: dict[str, Any], clock: int = 1) -> float:
    """The share of wall time (0) or of processor time (1) that is not the network's."""
    total = sum(seconds[clock] for seconds in row["stages"].values())
    return float(1 - row["stages"]["network"][clock] / total)


def merge(record: dict[str, Any], other: dict[str, Any]) -> None:
    """Put what another run measured into a record."""
    rows = record.get("rows", {}) | other.get("rows", {})
    record |= {key: value for key, value in other.items() if key not in ("rows", "note") or key not in record}
    record["rows"] = {known: rows[known] for known in ROWS if known in rows}


def write(file: Path, record: dict[str, Any]) -> None:
    file.write_text(json.dumps(record, indent=2) + "\n")
    file.with_suffix(".md").write_text(page(record))


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
        row, folder = ROWS[args.one[0]], Path(args.one[1])
        package, scan = row.package(folder), row.scan(folder)
        if row.of_labels:
            blend_label_scores()
        print(json.dumps(measure(package, scan, row.precision, row.cases)))
        return
    import subprocess

    from MedQuantINT8Lib.system import machine

    record = json.loads(args.output.read_text()) if args.output.exists() else {"rows": {}}
    if args.note:
        record["note"] = args.note
    if args.merge:
        for file in args.merge:
            merge(record, json.loads(file.read_text()))
        write(args.output, record)
        return
    if args.starts:
        merge(record, {"starts": starts(), "machine": machine()})
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
            merge(record, {"rows": {name: measured}, "machine": machine()})
            write(args.output, record)


if __name__ == "__main__":
    main()
