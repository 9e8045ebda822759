"""Several GPUs beside one, in one run: one scan, a task of several parts, a cohort, and Ray's local cluster with a worker killed.

    python benchmarks/cuda_int8.py networks FOLDER nnunet14                   # any machine with the build road: the INT8 network
    python benchmarks/several_gpus.py run FOLDER RESULT.json [--gpus 0,1]     # a machine with the GPUs; onnx, SimpleITK, cuda-python
    python benchmarks/several_gpus.py page RESULT.json [LATER.json ...]       # writes docs/results/several_gpus.json and .md

(a) 512 x 512 x 400 voxels of 0.8 x 0.8 x 1 mm in memory to labels in memory, resampled to 1.5 mm and back, windows of 128^3 half over each
other, by ``pipeline.segment`` with the engines loaded; (w) the same at the scan's own spacing, which is 4.6 times the windows, and (m) the first with
nnU-Net's mirroring, eight times the network's work. (b) The first of these by a task of four such networks. One GPU and all of them, turn and
turn about; the first run of each, which checks, is left out, and all engines are built before. What crosses the bus, and how long that takes, is
counted in a run of its own. (c) ``medquant segment`` of a folder of scans with a worker on each GPU. (d) The same on Ray's local cluster, of fewer
scans, once more with a worker killed when a third of the cases are done. Labels are compared with those of one GPU everywhere. Weights are
random: the comparison of engines with the simulation is left out, and says so in the engine's note. Results are written as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8")]
#: Along (K, J, I).
SHAPE, COHORT_SHAPE, PATCH = (400, 512, 512), (300, 512, 512), 128
ROUNDS, CASES, SECONDS = 5, 40, 220.0
LETTERS = {
    "a": "one scan",
    "b": "a task of several parts",
    "c": "many scans",
    "d": "many scans by Ray",
    "m": "one scan with mirroring",
    "w": "one scan that is not resampled",
}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(("counted", "timeline", "notes"))}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for; the result is written after each part."""
    from MedQuantINT8Lib.system import machine
    from several_gpus_cohort import many
    from several_gpus_memory import in_memory
    from several_gpus_setup import PARTS, Setup, build, link, package, task_of

    wanted = set(arguments.only)
    with tempfile.TemporaryDirectory(prefix="several gpus ") as scratch:
        os.environ["MEDQUANT_CACHE"] = str(Path(scratch) / "cache")
        gpus = ["cpu"] if arguments.gpus == "cpu" else [f"gpu:{n}" for n in arguments.gpus.split(",")]
        setup = Setup(
            Path(scratch), arguments.engine, gpus, tuple(arguments.shape), arguments.patch, arguments.rounds, arguments.cases,
            time.monotonic() + arguments.seconds, {"cohort_shape": tuple(arguments.cohort_shape)},
        )  # fmt: skip
        result: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "network": arguments.network}
        network = Path(arguments.folder) / f"{arguments.network}.onnx"
        result["network_bytes"] = network.stat().st_size
        # What was said of an earlier run is not true of this one.
        result["note"] = ""

        def keep(key: str, value: Any) -> None:
            result[key] = value
            Path(arguments.result).write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")

        if gpus != ["cpu"]:
            keep("link", link(setup))
            print(result["link"], flush=True)
        packages = [package(setup, network, f"part{n}", n) for n in range(PARTS if "b" in wanted else 1)]
        forms: dict[str, dict[str, Any]] = {"w": {"spacing": None}, "m": {"mirrored": True}}
        others = {key: package(setup, network, "part0", 0, **form) for key, form in forms.items() if key in wanted}
        keep("build_seconds", build(setup, [*packages, *others.values()]))
        print("built in", round(result["build_seconds"], 1), "s", flush=True)

        def measure(letter: str, key: str, model: Callable[[], Path], what: str, *, looked_into: bool = True) -> None:
            if letter not in wanted:
                return
            try:
                keep(key, in_memory(setup, model(), what, looked_into=looked_into))
                print(_shown(result[key]), f"{setup.left:.0f} s left", flush=True)
            except Exception:
                # What was measured before, and what comes after it, counts all the same.
                traceback.print_exc()

        measure("a", "scan", lambda: packages[0], "one scan")
        measure("b", "task", lambda: task_of(setup, packages), f"a task of {PARTS} parts")
        measure("w", "whole", lambda: others["w"], "one scan, not resampled")
        measure("m", "mirrored", lambda: others["m"], "one scan, with nnU-Net's mirroring", looked_into=False)
        if wanted & {"c", "d"}:
            many(setup, packages[0], arguments.only, lambda rows: keep("cohort", rows))
    return result


def letters(text: str) -> str:
    """Return what is measured, checked: letters of :data:`LETTERS`."""
    if not text or set(text) - set(LETTERS):
        raise argparse.ArgumentTypeError(f"give some of {''.join(LETTERS)}")
    return text


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = command.add_subparsers(dest="do", required=True)
    runs = kinds.add_parser("run")
    runs.add_argument("folder")
    runs.add_argument("result")
    runs.add_argument("--network", default="nnunet14")
    runs.add_argument("--engine", default="cuda_int8")
    runs.add_argument("--gpus", default="0,1", help="their numbers")
    what = "; ".join(f"{letter}: {words}" for letter, words in LETTERS.items())
    runs.add_argument("--only", type=letters, default="".join(LETTERS), help=what)
    runs.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    runs.add_argument("--cohort-shape", type=int, nargs=3, default=COHORT_SHAPE)
    runs.add_argument("--patch", type=int, default=PATCH)
    runs.add_argument("--rounds", type=int, default=ROUNDS)
    runs.add_argument("--cases", type=int, default=CASES)
    runs.add_argument("--seconds", type=float, default=SECONDS, help="leave out what is not begun by then")
    pages = kinds.add_parser("page")
    pages.add_argument("results", nargs="+", help="what a later one has stands for the same of an earlier one")
    arguments = command.parse_args()
    if arguments.do == "run":
        run(arguments)
        return
    from several_gpus_page import write_page

    result: dict[str, Any] = {}
    for path in arguments.results:
        result |= json.loads(Path(path).read_text(encoding="utf-8"))
    write_page(result)


if __name__ == "__main__":
    main()
