"""Many scans by ``medquant segment`` on one GPU and on all: by this project's workers, and by those of Ray's local cluster, of which one is killed."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from several_gpus_setup import SPACING, Setup, scan

ROOT = Path(__file__).resolve().parent.parent
#: Of how many scans Ray's rows are, and that in which a worker is killed: its cluster takes most of the time that there is to start.
RAY_CASES, KILLED_CASES = 20, 12


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
    folder.mkdir(exist_ok=True)
    for path in sorted(scans.iterdir())[:count]:
        if not (folder / path.name).exists():
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


def many(setup: Setup, model: Path, kinds: str, keep: Callable[[dict[str, Any]], None]) -> None:
    """The cohort by this project's workers and by Ray's; ``keep`` is given all that there is after each row."""
    began = time.perf_counter()
    scans = write_scans(setup)
    result: dict[str, Any] = {"writing_scans": time.perf_counter() - began, "voxels": setup.options["cohort_shape"]}
    rows: dict[str, dict[str, Any]] = {}
    result["rows"] = rows
    expected: dict[str, str] = {}
    devices = ",".join(setup.gpus)
    number = setup.gpus[0].partition(":")[2]
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = given.split(",")[int(number)] if given and number else number

    def run(key: str, *options: str, scans: Path = scans, **how: str) -> None:
        if setup.left < 10:
            rows[key] = {"failed": "no time was left"}
        else:
            some = replace(setup, cases=len(list(scans.iterdir())))
            row = rows[key] = cohort(some, model, scans, key, *options, **how)
            labels = row.pop("labels", None)
            if labels is not None:
                # The hashes of one GPU's label maps are what the others' are compared with.
                expected.update({} if expected else labels)
                row["cases_with_other_labels"] = sum(expected.get(name) != digest for name, digest in labels.items())
            print(key, {k: v for k, v in row.items() if k != "warnings"}, flush=True)
        for one, other in (("one", "all"), ("ray, one", "ray, all")):
            if all("seconds_a_case" in rows.get(name, {}) for name in (one, other)):
                rows[other]["faster"] = rows[one]["seconds"] / rows[other]["seconds"]
                rows[other]["faster_after_start"] = rows[one]["seconds_a_case"] / rows[other]["seconds_a_case"]
        keep(result)

    run("one", "--devices", setup.gpus[0])
    run("all", "--devices", devices)
    if "d" not in kinds:
        return
    try:
        import ray

        result["ray"] = ray.__version__
    except ImportError as error:
        result["ray"] = f"not run: {error}"
        run("all, one worker killed", "--devices", devices, kill="MedQuantINT8Lib.cohort.process")
        return
    on = "cpu" if setup.gpus[0] == "cpu" else "gpu"
    of_ray = linked(setup, scans, min(setup.cases, RAY_CASES))
    run("ray, all", "--cluster", "local", "--device", on, scans=of_ray)
    run("ray, one", "--cluster", "local", "--device", on, scans=of_ray, CUDA_VISIBLE_DEVICES=visible)
    # Some of the scans are enough to see that each is done once.
    some = linked(setup, scans, min(setup.cases, KILLED_CASES))
    run("ray, one worker killed", "--cluster", "local", "--device", on, kill="ray::CaseActor", scans=some)
