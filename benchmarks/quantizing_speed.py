"""How long ``medquant quantize`` takes, stage by stage: writes docs/results/quantizing.json and the page made of it.

    python benchmarks/quantizing_speed.py                        all cases, each in a process of its own
    python benchmarks/quantizing_speed.py mindgrab               only that one; the other rows are kept
    python benchmarks/quantizing_speed.py --library OTHER/MedQuantINT8 --as before
    python benchmarks/quantizing_speed.py --output FILE.json     into a record of its own, such as of one of several runs side by side
    python benchmarks/quantizing_speed.py --cores 4              bound to four processors of those that this process may use, not to two
    python benchmarks/quantizing_speed.py --page [--merge FILE.json ...]   only the page, with what such records hold

mindgrab is quantized on one head of 137 x 137 x 93 voxels (``MEDQUANT_DATA``), U-Net and nnU-Net of the study's size with random
weights, whose last layer is fitted to a synthetic scan, on two synthetic scans; 20 patches of 96^3 each, effort normal. What lies between two stages is counted with the first. With ``--library``
another checkout's library is measured, such as the one before a change. The process is bound to two processors and its libraries are
told so; one that computes on more all the same is named on the page. Processor time is that of the process on all cores; it can
be compared where the machine had other work to do, seconds on the clock cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OWN_LIBRARY = HERE.parent / "MedQuantINT8"
RESULTS = HERE.parent / "docs" / "results" / "quantizing.json"
#: Seconds on the clock on two cores that each case is meant to stay below.
BARS = {"mindgrab": 90, "unet": 240, "nnunet": 240}
TITLES = {"mindgrab": "brain_mask_mindgrab", "unet": "U-Net, study's size", "nnunet": "nnU-Net, study's size"}
_ENDED = "the end"


def measure(name: str) -> dict[str, Any]:
    """Quantize one case in this process; seconds, processor seconds, memory, and what was said of the time left."""
    import resource

    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.system import cpu_name

    events: list[tuple[str, int, float, float, float | None]] = []
    started = time.perf_counter()

    def note(stage: str, done: int = 0, left: float | None = None) -> None:
        if not events or events[-1][0] != stage:
            print(
                f"{time.perf_counter() - started:7.1f} s, {name}: {stage or 'between stages'}",
                file=sys.stderr,
                flush=True,
            )
        events.append((stage, done, time.perf_counter(), time.process_time(), left))

    task = Task(lambda event: note(event.stage, event.done, event.seconds_left))
    with tempfile.TemporaryDirectory(prefix="medquant-quantizing-") as scratch:
        prepared = _prepared(name, Path(scratch))
        load = os.getloadavg()[0]
        note("loading")
        report = prepared(task)
        note(_ENDED)
    stages: dict[str, dict[str, float]] = {}
    for (stage, _, began, cpu, _), (_, _, ended, cpu_after, _) in pairwise(events):
        of_stage = stages.setdefault(stage or "between stages", {"seconds": 0.0, "processor_seconds": 0.0})
        of_stage["seconds"] += ended - began
        of_stage["processor_seconds"] += cpu_after - cpu
    first = next(event for event in events if event[0] == "calibrating" and event[1] == 1)
    return {
        "seconds": events[-1][2] - events[0][2],
        "processor_seconds": events[-1][3] - events[0][3],
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "stages": stages,
        "left_after_first_patch": {"said": first[4], "actual": events[-1][2] - first[2]},
        "agreement": report.agreement,
        "int8_share": report.int8_mac_share,
        "halves": len(report.guard.halves),
        "returned": len(report.guard.returned),
        "notes": report.guard.notes,
        "processor": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": load,
        "versions": _versions(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("openvino", "onnxruntime", "nvidia-modelopt", "numpy")}


def _prepared(name: str, folder: Path) -> Any:
    """What quantizes the case, with everything before it done: takes a task and gives the report."""
    from MedQuantINT8Lib.importers.onnx import import_onnx
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
    from MedQuantINT8Lib.quantization.latency import engine_stopwatch
    from MedQuantINT8Lib.quantization.pipeline import quantize
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, quantize_package

    options, policy = CalibrationOptions(), QuantizationPolicy()
    if name == "mindgrab":
        from data_models import DATA, specs

        network, scan = DATA / "networks" / f"{TITLES[name]}.onnx", DATA / "brain" / "t1_head_b.nii.gz"
        import_onnx(network, specs()[TITLES[name]], folder / name)
        return lambda task: quantize(folder / name, [scan], folder / "int8", options, policy, task)[1]
    from MedQuantINT8Lib.evaluation.study_tables import _labelled_patch, _scan, study_spec
    from MedQuantINT8Lib.importers.export import export_network
    from MedQuantINT8Lib.importers.networks import PATCH, make, study_network
    from MedQuantINT8Lib.importers.networks.fitting import fit_last_layer

    network = study_network(name)
    module = make(network)
    fit_last_layer(module, *_labelled_patch(study_spec(network)), network.classes)
    export_network(module, folder / f"{name}.onnx", PATCH)
    package = import_onnx(folder / f"{name}.onnx", study_spec(network), folder / name)

    def run(task: Any) -> Any:
        sampler = PatchSampler([partial(_scan, seed) for seed in (1, 3)], package.spec, PATCH, options, task=task)
        stopwatch = engine_stopwatch(package)
        return quantize_package(package, sampler, folder / "int8", options, policy, task, stopwatch)[1]

    return run


def _beyond_cores(spent: dict[str, float], cores: int) -> bool:
    """Whether a stage took more processor time than its cores have; a second is left for clocks that differ."""
    return spent["processor_seconds"] > cores * spent["seconds"] + 1


def _bind(cores: int) -> None:
    """Let this process, and the threads that it will start, compute on so many of the processors that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(cores)


def page(results: dict[str, Any]) -> str:
    """The page of the documentation."""
    lines = [
        "# How long quantizing takes",
        "",
        "Written by `benchmarks/quantizing_speed.py`, which says what is measured. Processor seconds are those of the process on all its cores. Where the load of the",
        "machine before a run is above its cores, other work ran beside it: processor seconds can be compared then, seconds on the clock cannot.",
        "",
        *([results["note"], ""] if "note" in results else []),
        "| network | library | seconds | bar | processor seconds | memory, GB | said after the first patch, s | it took, s | agreement | load before |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows = [
        (name, which, results[which][name])
        for name in TITLES
        for which in ("before", "now")
        if name in results.get(which, {})
    ]
    for name, which, row in rows:
        left = row["left_after_first_patch"]
        said = "–" if left["said"] is None else f"{left['said']:.0f}"
        lines.append(
            f"| {TITLES[name]} | {which} | {row['seconds']:.0f} | {BARS[name]} | {row['processor_seconds']:.0f} | {row['peak_bytes'] / 1e9:.1f} "
            f"| {said} | {left['actual']:.0f} | {row['agreement'] or 0:.4f} | {row['load_before']:.1f} |"
        )
    for name, which, row in rows:
        kept = f"{row['halves']} layers in two INT8 halves, {row['returned']} in float" if "notes" in row else ""
        lines += [
            "",
            f"## {TITLES[name]}, {which}",
            "",
            "| stage | seconds | processor seconds |",
            "| --- | ---: | ---: |",
        ]
        for stage, spent in row["stages"].items():
            lines.append(f"| {stage} | {spent['seconds']:.1f} | {spent['processor_seconds']:.1f} |")
        if kept:
            lines += ["", f"{kept}.", *(f"Said: {note}." for note in row["notes"])]
        if beyond := [stage for stage, spent in row["stages"].items() if _beyond_cores(spent, row["cores"])]:
            lines += ["", f"More than {row['cores']} cores computed in: {', '.join(beyond)}."]
        versions = ", ".join(f"{package} {version}" for package, version in row["versions"].items())
        lines += ["", f"{row['cores']} cores of {row['processor']}, {versions}, {row['date']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TITLES)}")
    parser.add_argument("--library", type=Path, default=OWN_LIBRARY, help="folder that holds MedQuantINT8Lib")
    parser.add_argument("--as", dest="which", choices=("now", "before"), default="now")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the record; its page lies beside it")
    parser.add_argument("--merge", nargs="+", type=Path, default=[], help="records of other runs")
    parser.add_argument("--note", help="what whoever reads the page should know of these runs")
    parser.add_argument("--cores", type=int, default=2, help="that the process is bound to (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="write the page of what was measured before")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.names) - set(TITLES):
        parser.error(f"there is no case {sorted(unknown)[0]!r}; choose of {', '.join(TITLES)}")
    if args.measure:
        _bind(args.cores)
        sys.path[:0] = [str(HERE.parent / "Testing" / "support"), str(args.library)]
        print(json.dumps(measure(args.names[0])))
        return
    results = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    for file in args.merge:
        record = json.loads(file.read_text(encoding="utf-8"))
        for which in ("before", "now"):
            results.setdefault(which, {}).update(record.get(which, {}))
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.note is not None:
        results["note"] = args.note
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name in () if args.page else args.names or TITLES:
        command = [sys.executable, __file__, name, "--measure", "--library", str(args.library.resolve())]
        command += ["--cores", str(args.cores)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.setdefault(args.which, {})[name] = json.loads(done.stdout.splitlines()[-1])
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    args.output.with_suffix(".md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
