"""Several GPUs beside one, in one run: one scan, a task of several parts, a cohort, and Ray's local cluster with a worker killed.

    python benchmarks/cuda_int8.py networks FOLDER nnunet14                   # any machine with the build road: the INT8 network
    python benchmarks/several_gpus.py run FOLDER RESULT.json [--gpus 0,1]     # a machine with the GPUs; onnx, SimpleITK, cuda-python
    python benchmarks/several_gpus.py page RESULT.json [LATER.json ...]       # writes docs/results/several_gpus.json and .md

(a) 512 x 512 x 400 voxels of 0.8 x 0.8 x 1 mm in memory to labels in memory, resampled to 1.5 mm and back, windows of 128^3 half over each
other, by ``pipeline.segment`` with the engines loaded; the same with nnU-Net's mirroring, eight times the network's work; on demand (w) at the scan's own
spacing, four to five times the work. (b) The first of these by a task of four such networks. One GPU and all of them, turn and
turn about; the first run of each, which builds and checks, is left out. What crosses the bus, and how long that takes, is counted in a run of
its own. (c) ``medquant segment`` of a folder of scans with a worker on each GPU. (d) The same on Ray's local cluster, once more with a worker
killed when a third of the cases are done. Labels are compared with those of one GPU everywhere. Weights are random: the comparison of engines
with the simulation is left out, and says so in the engine's note.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8")]
RESULTS = ROOT / "docs" / "results"
#: Along (K, J, I).
SHAPE, SPACING, TARGET, PATCH = (400, 512, 512), (1.0, 0.8, 0.8), 1.5, 128
PARTS, ROUNDS, CASES, RETRIES = 4, 5, 40, 2


@dataclass
class Setup:
    """What is run, and on what."""

    folder: Path
    engine: str
    gpus: list[str]
    shape: tuple[int, int, int]
    patch: int
    rounds: int
    cases: int
    until: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def together(self) -> str:
        return "cpu" if self.gpus == ["cpu"] else "gpu:" + ",".join(name.partition(":")[2] for name in self.gpus)

    @property
    def left(self) -> float:
        return self.until - time.monotonic()


def scan(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A made-up scan (K, J, I): blocks of like voxels in noise, so that label maps are packed as those of organs are."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(-160, 400, [-(-side // 32) for side in shape]).astype(np.int16)
    coarse = np.kron(blocks, np.ones((32, 32, 32), np.int16))[tuple(slice(side) for side in shape)]
    return coarse + rng.integers(-20, 20, (1, *shape[1:])).astype(np.int16)


def package(
    setup: Setup, network: Path, name: str, seed: int, spacing: float | None = TARGET, mirrored: bool = False
) -> Path:
    """Write a model package of an INT8 network with random weights.

    Args:
        spacing: in mm; without one scans are not resampled.
        mirrored: whether each window is run in eight mirrored forms, as nnU-Net does unless it is told not to.
    """
    import onnx

    from cuda_int8 import int8_weights
    from MedQuantINT8Lib.models.package import FP32, INT8, write_package
    from MedQuantINT8Lib.models.spec import (
        Channel,
        Geometry,
        Label,
        Mirroring,
        ModelSpec,
        Normalization,
        Output,
        Window,
    )

    model, rng = onnx.load(network), np.random.default_rng(seed)
    for tensor in int8_weights(model):
        tensor.raw_data = rng.integers(-127, 128, tuple(tensor.dims)).astype(np.int8).tobytes()
    path = setup.folder / f"{name}.onnx"
    onnx.save(model, path)
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    spec = ModelSpec(
        name=name,
        version="1",
        modality="CT",
        channels=(Channel("CT"),),
        license="Apache-2.0",
        geometry=Geometry("KJI", "LPS", None if spacing is None else (spacing,) * 3),
        normalization=(Normalization("window", low=-160.0, high=400.0),),
        labels=tuple(Label(n, f"s{n}", n) for n in range(1, classes)),
        output=Output(),
        window=Window((setup.patch,) * 3, overlap=0.5),
        mirroring=Mirroring((0, 1, 2), on=True) if mirrored else Mirroring(),
    )
    # A package holds an FP32 network; nothing here runs it.
    target = setup.folder / (name + " mirrored" * mirrored + " not resampled" * (spacing is None))
    write_package(target, spec, {FP32: path, INT8: path})
    return target


def task_of(setup: Setup, packages: list[Path]) -> Path:
    """Write a task whose parts are these packages; each structure is one of the task's own."""
    from MedQuantINT8Lib.models.package import ModelPackage
    from MedQuantINT8Lib.models.task_writing import write_task
    from task_packages import task_spec

    names: list[Any] = []
    parts: list[dict[str, Any]] = []
    for path in packages:
        with ModelPackage.load(path) as one:
            own = [{"value": label.value, "name": f"{path.name} {label.name}"} for label in one.spec.labels]
        names += [label["name"] for label in own]
        parts.append({"name": path.name, "packages": [f"packages/{path.name}"], "labels": own})
    spec = task_spec(names, parts, modality="CT", channels=[{"name": "CT"}])
    write_task(setup.folder / "task", spec, {f"packages/{path.name}": path for path in packages})
    return setup.folder / "task"


def build(setup: Setup, paths: list[Path]) -> float:
    """Build the engines; seconds."""
    from MedQuantINT8Lib.engines import cache
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.pipeline import build as build_engine
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.models.package import ModelPackage
    from MedQuantINT8Lib.progress import Task

    began = time.perf_counter()
    for path in paths:
        with ModelPackage.load(path) as one:
            choice = EngineChoice(setup.engine, "int8", device=setup.gpus[0])
            build_engine(one, choice, SegmentationOptions(), None, Task()).close()
    nothing = dict.fromkeys(
        ("relative_error", "label_disagreement", "simulated_relative_error", "simulated_label_disagreement"), 0.0
    )
    for entry in cache.entries():
        entry.update(
            fidelity={"patches": 0, **nothing, "real_relative_error": 0.0, "real_label_disagreement": 0.0},
            note="not compared with the simulation in this benchmark: weights are random",
        )
    return time.perf_counter() - began


class Counter:
    """Counts, per GPU, what crosses the bus and how long that takes, and the most memory that was allocated at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes: dict[tuple[int, str], int] = {}
        self._times: dict[tuple[int, str], list[tuple[float, float]]] = {}
        self._allocated: dict[int, int] = {}
        self._most: dict[int, int] = {}
        self._waiting: dict[int, int] = {}

    def add(self, index: int, what: str, size: int, began: float, ended: float) -> None:
        with self._lock:
            key = index, what
            self._bytes[key] = self._bytes.get(key, 0) + size
            self._times.setdefault(key, []).append((began, ended))

    def allocate(self, index: int, size: int) -> None:
        with self._lock:
            self._allocated[index] = self._allocated.get(index, 0) + size
            self._most[index] = max(self._most.get(index, 0), self._allocated[index])

    def keep(self, index: int, size: int) -> None:
        """Note how much freed memory waits for its next use."""
        with self._lock:
            self._waiting[index] = max(self._waiting.get(index, 0), size)

    def forget_copies(self) -> None:
        with self._lock:
            self._bytes, self._times = {}, {}

    def rows(self) -> dict[int, dict[str, float]]:
        """Return the figures of each GPU; copies that run at the same time on several threads count once."""
        rows = {}
        for index, most in sorted(self._most.items()):
            row: dict[str, float] = {"most_allocated": most, "most_waiting": self._waiting.get(index, 0)}
            for what in ("up", "down", "from_gpus"):
                row[f"bytes_{what}"] = self._bytes.get((index, what), 0)
                row[f"seconds_{what}"] = _covered(self._times.get((index, what), []))
            rows[index] = row
        return rows


def _covered(times: list[tuple[float, float]]) -> float:
    """Return how long at least one of some spans of time lasted."""
    total, reached = 0.0, -math.inf
    for began, ended in sorted(times):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


@contextmanager
def counted(counter: Counter) -> Iterator[None]:
    """Count what this process's GPUs allocate, and what is copied; each copy waits for what is before it, and is waited for."""
    from MedQuantINT8Lib.engines.cuda.device import DeviceBuffer
    from MedQuantINT8Lib.inference import gpu_spread, gpu_strip_run, gpu_team

    create, free = DeviceBuffer.__init__, DeviceBuffer.free
    upload, pinned, download = DeviceBuffer.upload, DeviceBuffer.upload_bytes, DeviceBuffer.download
    between = gpu_spread.copy_between

    def timed(gpu: Any, stream: Any, what: str, size: int, copy: Callable[[], None]) -> None:
        stream.synchronize()
        began = time.perf_counter()
        copy()
        stream.synchronize()
        counter.add(gpu.info.index, what, size, began, time.perf_counter())

    def created(self: Any, gpu: Any, shape: Any, dtype: Any) -> None:
        create(self, gpu, shape, dtype)
        counter.allocate(gpu.info.index, self.nbytes)

    def freed(self: Any) -> None:
        if self.pointer:
            counter.allocate(self.gpu.info.index, -self.nbytes)
        free(self)
        counter.keep(self.gpu.info.index, self.gpu.blocks.nbytes)

    def up(self: Any, array: Any, stream: Any, **how: Any) -> None:
        timed(self.gpu, stream, "up", array.nbytes, lambda: upload(self, array, stream, **how))

    def up_pinned(self: Any, array: Any, stream: Any, to: int = 0) -> None:
        timed(self.gpu, stream, "up", array.nbytes, lambda: pinned(self, array, stream, to))

    def down(self: Any, array: Any, stream: Any, offset: int = 0) -> None:
        timed(self.gpu, stream, "down", array.nbytes, lambda: download(self, array, stream, offset))

    def across(source: Any, target: Any, stream: Any, first: int = 0, size: int | None = None, to: int = 0) -> None:
        if source.gpu.info.index == target.gpu.info.index:
            between(source, target, stream, first, size, to)
            return
        count = source.nbytes - first if size is None else size
        timed(target.gpu, stream, "from_gpus", count, lambda: between(source, target, stream, first, size, to))

    patches: list[tuple[Any, str, Any]] = [
        (DeviceBuffer, "__init__", created),
        (DeviceBuffer, "free", freed),
        (DeviceBuffer, "upload", up),
        (DeviceBuffer, "upload_bytes", up_pinned),
        (DeviceBuffer, "download", down),
        (gpu_spread, "copy_between", across),
        (gpu_team, "copy_between", across),
        (gpu_strip_run, "copy_between", across),
    ]
    before = [getattr(where, name) for where, name, _ in patches]
    for where, name, new in patches:
        setattr(where, name, new)
    try:
        yield
    finally:
        for (where, name, _), old in zip(patches, before, strict=True):
            setattr(where, name, old)


def timeline_of(gpus: list[str], run: Callable[[], Any]) -> dict[str, Any]:
    """Run once more, and return what each thread and each GPU did when; nothing without GPUs."""
    from MedQuantINT8Lib.engines.cuda.device import Gpu
    from several_gpus_timeline import printed, recorded

    if gpus == ["cpu"]:
        return {}
    opened = [Gpu(int(name.partition(":")[2])) for name in gpus]
    with recorded() as timeline:
        timeline.start(opened)
        began = time.perf_counter()
        run()
        took = time.perf_counter() - began
        result = {"seconds": took, **timeline.result()}
    for gpu in opened:
        gpu.enter()
        gpu.close()
    printed(", ".join(gpus), result, took)
    return result


def in_memory(setup: Setup, model: Path, what: str) -> dict[str, Any]:
    """One scan, or a task of several parts, on one GPU and on all."""
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
        for name, numbers in (("one", setup.gpus[:1]), ("all", setup.gpus)):
            row[f"timeline_{name}"] = timeline_of(numbers, lambda name=name: run(name))
        for name in devices:
            pool.clear()
            counter = Counter()
            with counted(counter):
                run(name)
                # Loading took the weights up; they are none of a run's copies.
                counter.forget_copies()
                began = time.perf_counter()
                run(name)
                row[f"counted_{name}"] = {"seconds": time.perf_counter() - began, "gpus": counter.rows()}
            pool.clear()
    return row


def write_scans(setup: Setup) -> Path:
    """Write the scans of the cohort, uncompressed."""
    import SimpleITK as sitk

    folder = setup.folder / "scans"
    folder.mkdir()
    k, j, i = SPACING
    base = scan(setup.options["cohort_shape"], 1)
    for number in range(setup.cases):
        image = sitk.GetImageFromArray(np.roll(base, 7 * number, axis=2) + np.int16(number))
        image.SetSpacing((i, j, k))
        sitk.WriteImage(image, str(folder / f"case{number:02}.nrrd"), useCompression=False)
    return folder


def linked(setup: Setup, scans: Path, count: int) -> Path:
    """Return a folder of the first of some scans."""
    folder = setup.folder / f"{count} scans"
    folder.mkdir()
    for path in sorted(scans.iterdir())[:count]:
        os.link(path, folder / path.name)
    return folder


def cohort(
    setup: Setup, model: Path, scans: Path, name: str, *options: str, kill: str = "", **more: str
) -> dict[str, Any]:
    """Run ``medquant segment`` on the scans.

    Args:
        kill: end the first process below the command whose command line has these words, when a third of the cases are done.
        more: environment variables.
    """
    output = setup.folder / f"out {name}"
    command = [sys.executable, "-m", "MedQuantINT8Lib.cli", "segment", str(model), str(scans), "--output", str(output)]
    command += ["--engine", setup.engine, "--precision", "int8", "--no-range-check", "--json", *options]
    paths = [str(ROOT / "MedQuantINT8"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}
    began, times, records, killed = time.perf_counter(), [], [], []
    with (setup.folder / f"{name}.err").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        watchdog = threading.Timer(max(5.0, setup.left), process.terminate)
        watchdog.start()
        for line in process.stdout or ():
            if not line.startswith("{"):
                continue
            records.append(json.loads(line))
            times.append(time.perf_counter() - began)
            if kill and not killed and len(records) >= setup.cases // 3:
                killed = _kill_one(process.pid, kill)
        code = process.wait()
        watchdog.cancel()
    took = time.perf_counter() - began
    if code or not records:
        words = (setup.folder / f"{name}.err").read_text()[-1500:]
        return {"what": name, "failed": f"exit {code}: {words}", "cases": len(records), "seconds": took}
    done = [record for record in records if record["state"] == "done"]
    stages = {
        key: round(statistics.median(r["seconds"].get(key, 0.0) for r in done), 3)
        for key in sorted({k for r in done for k in r["seconds"]})
    }
    workers = 1 if name.endswith("one") else len(setup.gpus)
    return {
        "what": name,
        "seconds": took,
        "to_first": times[0],
        # Between the first case of each worker and the last case: without the start of the processes.
        "seconds_a_case": (times[-1] - times[workers - 1]) / max(1, len(times) - workers),
        "cases": len(records),
        "distinct": len({record["id"] for record in records}),
        "done": len(done),
        "attempts": sorted(record["attempts"] for record in done)[-3:],
        "killed": killed,
        "by_device": {d: sum(r["device"] == d for r in done) for d in sorted({r["device"] for r in done})},
        "stages": stages,
        "engines": sorted({r["engine"]["name"] for r in done}),
        "warnings": sorted({w for r in done for w in r["warnings"]})[:12],
        "labels": {r["id"]: next(iter(r["output_sha256"].values())) for r in done},
    }


def _kill_one(parent: int, words: str) -> list[str]:
    """End one worker that this command started; what it was."""
    import psutil

    for process in psutil.Process(parent).children(recursive=True):
        line = " ".join(process.cmdline())
        if words in line:
            os.kill(process.pid, signal.SIGKILL)
            return [line[:80]]
    return []


def compared(rows: dict[str, dict[str, Any]]) -> None:
    """Say of each cohort how many cases have other labels than on one GPU, and leave the hashes out."""
    expected = rows["one"].get("labels", {})
    for row in rows.values():
        labels = row.pop("labels", None)
        if labels is not None:
            row["cases_with_other_labels"] = sum(expected.get(name) != digest for name, digest in labels.items())


def many(setup: Setup, model: Path, kinds: str) -> dict[str, Any]:
    """The cohort by this project's workers and by Ray's."""
    began = time.perf_counter()
    scans = write_scans(setup)
    result: dict[str, Any] = {"writing_scans": time.perf_counter() - began, "voxels": setup.options["cohort_shape"]}
    rows: dict[str, dict[str, Any]] = {}
    devices = ",".join(setup.gpus)
    number = setup.gpus[0].partition(":")[2]
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = given.split(",")[int(number)] if given and number else number

    def run(key: str, *options: str, scans: Path = scans, **how: str) -> None:
        if setup.left < 10:
            rows[key] = {"failed": "no time was left"}
            return
        some = replace(setup, cases=len(list(scans.iterdir())))
        rows[key] = cohort(some, model, scans, key, *options, **how)
        print(key, {k: v for k, v in rows[key].items() if k not in ("labels", "warnings")}, flush=True)

    run("one", "--devices", setup.gpus[0])
    run("all", "--devices", devices)
    if "d" in kinds:
        try:
            import ray

            result["ray"] = ray.__version__
        except ImportError as error:
            result["ray"] = f"not run: {error}"
            run("all, one worker killed", "--devices", devices, kill="MedQuantINT8Lib.cohort.process")
        else:
            on = "cpu" if setup.gpus[0] == "cpu" else "gpu"
            run("ray, all", "--cluster", "local", "--device", on)
            run("ray, one", "--cluster", "local", "--device", on, CUDA_VISIBLE_DEVICES=visible)
            # Half of the scans are enough to see that each is done once.
            some = linked(setup, scans, setup.cases // 2)
            run("ray, one worker killed", "--cluster", "local", "--device", on, kill="ray::CaseActor", scans=some)
    compared(rows)
    for one, other in (("one", "all"), ("ray, one", "ray, all")):
        if all("seconds_a_case" in rows.get(key, {}) for key in (one, other)):
            rows[other]["faster"] = rows[one]["seconds"] / rows[other]["seconds"]
            rows[other]["faster_after_start"] = rows[one]["seconds_a_case"] / rows[other]["seconds_a_case"]
    return {**result, "rows": rows}


def link(setup: Setup) -> dict[str, Any]:
    """Which GPUs there are, and whether they copy from each other without a detour."""
    from MedQuantINT8Lib.engines.cuda import device as cuda
    from MedQuantINT8Lib.engines.cuda.several import connect, copy_between

    indices = [int(name.partition(":")[2]) for name in setup.gpus]
    infos = [info for info in cuda.gpus() if info.index in indices]
    found: dict[str, Any] = {"gpus": [info.title for info in infos], "bytes": [info.total_bytes for info in infos]}
    if len(infos) < 2:
        return found
    one, other = cuda.Gpu(indices[0]), cuda.Gpu(indices[1])
    connect([one, other])
    access = cuda.checked(one.driver.cuDeviceCanAccessPeer(one.device, other.device), "look for a link")
    other.enter()
    there, stream = other.allocate((1 << 28,), np.uint8), other.stream()
    one.enter()
    here, times = one.allocate((1 << 28,), np.uint8), []
    other.enter()
    for _ in range(4):
        began = time.perf_counter()
        copy_between(here, there, stream)
        stream.synchronize()
        times.append(time.perf_counter() - began)
    stream.free()
    one.close()
    other.close()
    return {**found, "peer_access": bool(access), "gb_a_second": (1 << 28) / min(times) / 1e9}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(("counted", "timeline", "notes"))}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from MedQuantINT8Lib.system import machine

    with tempfile.TemporaryDirectory(prefix="several gpus ") as scratch:
        os.environ["MEDQUANT_CACHE"] = str(Path(scratch) / "cache")
        gpus = ["cpu"] if arguments.gpus == "cpu" else [f"gpu:{n}" for n in arguments.gpus.split(",")]
        shape = tuple(arguments.shape)
        setup = Setup(
            Path(scratch), arguments.engine, gpus, shape, arguments.patch, arguments.rounds, arguments.cases,
            time.monotonic() + arguments.seconds, {"cohort_shape": tuple(arguments.cohort_shape)},
        )  # fmt: skip
        result: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "network": arguments.network}
        network = Path(arguments.folder) / f"{arguments.network}.onnx"
        if gpus != ["cpu"]:
            result["link"] = link(setup)
            print(result["link"], flush=True)
        count = PARTS if "b" in arguments.only else 1
        packages = [package(setup, network, f"part{n}", n) for n in range(count)]
        result["build_seconds"] = build(setup, packages)
        print("built in", round(result["build_seconds"], 1), "s", flush=True)

        def keep(key: str, value: Any) -> None:
            result[key] = value
            Path(arguments.result).write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")

        def built(**form: Any) -> Path:
            """A package of another form, whose engine may be another one, for another batch."""
            path = package(setup, network, "part0", 0, **form)
            result["build_seconds"] += build(setup, [path])
            return path

        def measure(key: str, model: Callable[[], Path], what: str) -> None:
            try:
                keep(key, in_memory(setup, model(), what))
                print(_shown(result[key]), flush=True)
            except Exception:
                # What was measured before, and what comes after it, counts all the same.
                traceback.print_exc()

        if "a" in arguments.only:
            measure("scan", lambda: packages[0], "one scan")
        if "m" in arguments.only:
            measure("mirrored", partial(built, mirrored=True), "one scan, with nnU-Net's mirroring")
        if "w" in arguments.only:
            measure("whole", partial(built, spacing=None), "one scan, not resampled")
        if "b" in arguments.only:
            measure("task", partial(task_of, setup, packages), f"a task of {PARTS} parts")
        if "c" in arguments.only or "d" in arguments.only:
            keep("cohort", many(setup, packages[0], arguments.only))
        keep("network_bytes", network.stat().st_size)
    return result


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = command.add_subparsers(dest="do", required=True)
    runs = kinds.add_parser("run")
    runs.add_argument("folder")
    runs.add_argument("result")
    runs.add_argument("--network", default="nnunet14")
    runs.add_argument("--engine", default="cuda_int8")
    runs.add_argument("--gpus", default="0,1", help="their numbers")
    runs.add_argument(
        "--only",
        default="ambcd",
        help="which of a, b, c, d, m, which is (a) with mirroring, and w, which is (a) at the scan's own spacing, not resampled",
    )
    runs.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    runs.add_argument("--cohort-shape", type=int, nargs=3, default=(300, 512, 512))
    runs.add_argument("--patch", type=int, default=PATCH)
    runs.add_argument("--rounds", type=int, default=ROUNDS)
    runs.add_argument("--cases", type=int, default=CASES)
    runs.add_argument("--seconds", type=float, default=290.0, help="leave out what is not begun by then")
    pages = kinds.add_parser("page")
    pages.add_argument("results", nargs="+", help="what a later one has stands for the same of an earlier one")
    arguments = command.parse_args()
    if arguments.do == "run":
        run(arguments)
    else:
        from several_gpus_page import write_page

        result: dict[str, Any] = {}
        for path in arguments.results:
            result |= json.loads(Path(path).read_text(encoding="utf-8"))
        write_page(result)


if __name__ == "__main__":
    main()
