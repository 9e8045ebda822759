"""Many scans: what a case costs beside a plain loop, how that scales over workers of one machine, and a model of a large run from measured stages.

python benchmarks/cohort_overhead.py [--cases N] [--seconds S] [--workers 1 2 4] writes docs/results/cohort.json and cohort.md.

The network takes a given time (it waits, as a GPU's caller does), so that what is measured is what this project adds: handing out, reading
ahead, writing behind, the journal. The plain loop reads, runs and writes one case after the other in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "MedQuantINT8"), str(HERE.parent / "Testing" / "support"), str(HERE)]
RESULTS = HERE.parent / "docs" / "results"
SIZE = 96
#: The model of a large run: cases and GPUs.
CASES, GPUS = 10_000, 8


class TimedWork:
    """Segments with a network that takes as long as it is told to, on top of the smallest of networks."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from MedQuantINT8Lib.cohort.segment_work import SegmentSettings, SegmentWork

        self._seconds = settings["network_seconds"]
        self._work = SegmentWork(SegmentSettings.from_json(settings))

    def read(self, case: dict[str, Any], task: Any) -> Any:
        return self._work.read(case, task)

    def run(self, loaded: Any, task: Any) -> Any:
        began = time.perf_counter()
        result = self._work.run(loaded, task)
        time.sleep(max(0.0, self._seconds - (time.perf_counter() - began)))
        return result

    def finish(self, result: Any, task: Any) -> Any:
        return self._work.finish(result, task)

    def close(self) -> None:
        self._work.close()


def settings_for(model: Path, output: Path, seconds: float) -> dict[str, Any]:
    from MedQuantINT8Lib.cohort.case_settings import model_hash
    from MedQuantINT8Lib.cohort.segment_work import SegmentSettings
    from MedQuantINT8Lib.imaging.volume_files import ReadOptions
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.inference.task_model import load_model

    with load_model(str(model)) as loaded:
        digest = model_hash(loaded)
    choice = EngineChoice(threads=1, device="cpu")
    settings = SegmentSettings(str(model), digest, choice, SegmentationOptions(), ReadOptions(), str(output), ".nii.gz")
    return {**settings.to_json(), "network_seconds": seconds}


def plain_loop(settings: dict[str, Any], cases: Sequence[dict[str, Any]]) -> tuple[float, list[dict[str, Any]]]:
    """Seconds from the first case's start to the last one's end, one after the other; the engine is loaded before."""
    from MedQuantINT8Lib.progress import Task

    work = TimedWork(settings)
    work.finish(work.run(work.read(cases[0], Task()), Task()), Task())
    records = []
    began = time.perf_counter()
    for case in cases[1:]:
        records.append(work.finish(work.run(work.read(case, Task()), Task()), Task()))
    seconds = time.perf_counter() - began
    work.close()
    return seconds, records


def pooled(settings: dict[str, Any], cases: Sequence[dict[str, Any]], pool: Any) -> float:
    """Seconds from the end of the first case of the last worker to be ready to the last case's end, for the cases in between."""
    from MedQuantINT8Lib.cohort.journal import Journal, Plan
    from MedQuantINT8Lib.cohort.pool import Order

    journal = Journal(settings["output"])
    journal.begin(Plan("segment", {}), [case["id"] for case in cases], {})
    ends = []
    for record in pool.run(Order("cohort_overhead:TimedWork", settings), cases, lambda: None):
        assert record["state"] == "done", record["error"]
        journal.add(record)
        ends.append(time.perf_counter())
    return ends[-1] - ends[0]


def measure(count: int, seconds: float, workers: Sequence[int], ray: bool) -> dict[str, Any]:
    import SimpleITK as sitk

    import tiny
    from MedQuantINT8Lib.cohort.local_pool import LocalPool

    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(HERE.parent / "MedQuantINT8"), str(HERE.parent / "Testing" / "support")]
    )
    with tempfile.TemporaryDirectory(prefix="cohort-", dir="/tmp") as folder:
        root = Path(folder)
        model = Path(tiny.package(root / "model", size=32).folder)
        rng = np.random.default_rng(0)
        ball = sum((axis - SIZE / 2) ** 2 for axis in np.ogrid[:SIZE, :SIZE, :SIZE]) < (SIZE / 3) ** 2
        (root / "scans").mkdir()
        cases = []
        # One more than is counted, by which each side is warm.
        for n in range(max(count, 4 * max(workers)) + 1):
            # A ball in noise, as an organ lies in a scan: a label map of noise would compress, and so be written, like no other.
            values = np.where(ball, 50, -1000) + rng.normal(0, 12, ball.shape)
            sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.int16)), str(root / f"scans/{n}.nii.gz"))
            cases.append({"id": str(n), "channels": [str(root / f"scans/{n}.nii.gz")]})

        def place(name: str) -> dict[str, Any]:
            (root / name).mkdir()
            return settings_for(model, root / name, seconds)

        loop_seconds, records = plain_loop(place("loop"), cases[: count + 1])
        stages = {
            "reading": [
                r["seconds"]["hashing"] + r["seconds"]["reading"] + r["seconds"]["preprocessing"] for r in records
            ],
            "writing": [r["seconds"]["writing"] for r in records],
        }
        rows = []
        for number in workers:
            # The workers' first cases are not counted: their processes start one after the other.
            used = cases[: number * count + 1] if number * count < len(cases) else cases
            took = pooled(place(f"pool{number}"), used, LocalPool(["cpu"] * number))
            rows.append({"where": f"{number} worker(s)", "workers": number, "cases": len(used) - 1, "seconds": took})
        if ray:
            from MedQuantINT8Lib.cohort.ray_cluster import ClusterOptions
            from MedQuantINT8Lib.cohort.ray_pool import RayPool

            took = pooled(place("ray"), cases[: count + 1], RayPool(ClusterOptions("local")))
            rows.append({"where": "Ray, 1 worker", "workers": 1, "cases": count, "seconds": took})
    return {
        "cases": count,
        "network_seconds": seconds,
        "voxels": SIZE**3,
        "loop_seconds_a_case": loop_seconds / count,
        "rows": rows,
        "stages": {name: float(np.median(values)) for name, values in stages.items()},
    }


def page(value: dict[str, Any]) -> str:
    machine, versions = value["machine"], value["versions"]
    loop, network = value["loop_seconds_a_case"], value["network_seconds"]
    stages = value["stages"]
    lines = [
        "# Many scans: overhead and scaling",
        "",
        "Made by `benchmarks/cohort_overhead.py`; do not edit.",
        f"Machine: {machine['processor']}, {machine['cores']} cores; {', '.join(f'{k} {v}' for k, v in versions.items())}; {value['date']}.",
        "",
        f"Scans of {SIZE} x {SIZE} x {SIZE} voxels; the network takes {network:g} s a case by waiting, as the caller of a GPU does. The plain loop reads, runs and writes one case after the other in one process: "
        f"{loop:.3f} s a case, of which reading and preprocessing take {stages['reading']:.3f} s and writing {stages['writing']:.3f} s.",
        "",
        "| | cases | s a case | beside the plain loop | beside the network alone | times one worker |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = next(row for row in value["rows"] if row["workers"] == 1)
    base = first["seconds"] / first["cases"]
    for row in value["rows"]:
        each = row["seconds"] / row["cases"]
        share = each * row["workers"]
        lines.append(
            f"| {row['where']} | {row['cases']} | {each:.3f} | {100 * (share / loop - 1):+.1f} % | {100 * (share / network - 1):+.1f} % | {base / each:.2f} |"
        )
    lines += [
        "",
        "Beside the plain loop and the network alone: the time of one worker for a case. Below zero, since the next case is read and the last one written while the network runs.",
        "",
        f"## {CASES:,} cases on {GPUS} GPUs, on paper",
        "",
        "A worker reads and preprocesses one case, runs another and writes a third at the same time: a case costs the longest of the three. Reading and writing grow with the voxels; those of the table are",
        f"this machine's, measured above for {value['voxels'] / 1e6:.2f} million voxels, times the scan's. Two workers on a GPU read two scans at once and share the network.",
        "",
        "| scan, million voxels | network, s | reading, s | writing, s | what binds | hours, a worker a GPU | two workers a GPU |",
        "| ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for voxels in (8, 80):
        for seconds in (0.5, 2.0, 10.0):
            reading, writing = (stages[name] * voxels * 1e6 / value["voxels"] for name in ("reading", "writing"))
            times = {"reading": reading, "network": seconds, "writing": writing}
            binds = max(times, key=lambda name: times[name])
            one = max(times.values())
            two = max(reading / 2, seconds, writing / 2)
            lines.append(
                f"| {voxels} | {seconds:g} | {reading:.2f} | {writing:.2f} | {binds} | {CASES / GPUS * one / 3600:.2f} | {CASES / GPUS * two / 3600:.2f} |"
            )
    lines += [
        "",
        "That many workers read at once has to be borne by the file system and the processors: the model leaves both out. Two GPUs on one host stand on [a page of their own](several_gpus.md); a cluster of real machines was not measured.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="that the network takes")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--print", action="store_true", help="write nothing")
    args = parser.parse_args()
    from MedQuantINT8Lib.system import installed_version, machine

    value = measure(args.cases, args.seconds, args.workers, not args.no_ray)
    value["machine"], value["date"] = machine(), time.strftime("%Y-%m-%d")
    value["versions"] = {"Python": platform.python_version()} | {
        name: version for name in ("numpy", "SimpleITK", "ray") if (version := installed_version(name))
    }
    if not args.print:
        (RESULTS / "cohort.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "cohort.md").write_text(page(value), encoding="utf-8")
    print(page(value))


if __name__ == "__main__":
    main()
