"""Five hundred cases through one worker: memory, open files, threads, child processes and temporary files of worker and driver stay flat.

python benchmarks/cohort_endurance.py [CASES] writes docs/results/endurance.json and endurance.md. Linux.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "MedQuantINT8"), str(HERE.parent / "Testing" / "support")]
RESULTS = HERE.parent / "docs" / "results"
SIZE, EVERY = 48, 10
#: Cases before which everything that is loaded once has been loaded.
WARM = 50


def status_of(pid: int) -> dict[str, float]:
    """Resident memory in MB, open files, threads and children of a process."""
    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        if ":" in line
    )
    return {
        "memory_mb": int(fields["VmRSS"].split()[0]) / 1024,
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(fields["Threads"]),
        "children": len(children(pid)),
    }


def children(pid: int) -> list[int]:
    pids: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        pids += map(int, (task / "children").read_text().split())
    return pids


def files_below(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def slope(values: list[float]) -> float:
    """Change over a hundred cases, by least squares."""
    places = np.arange(len(values)) * EVERY
    return float(100 * np.polyfit(places, values, 1)[0]) if len(values) > 1 else 0.0


def measure(count: int) -> dict[str, Any]:
    import SimpleITK as sitk

    import tiny
    from MedQuantINT8Lib.cohort.local_pool import LocalPool
    from MedQuantINT8Lib.cohort.segment import CohortRequest, segment_cohort
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.scratch import own_temporary_folder

    with tempfile.TemporaryDirectory(prefix="endurance-") as folder, own_temporary_folder():
        root = Path(folder)
        model = tiny.package(root / "model", size=16)
        rng = np.random.default_rng(0)
        # Both of this project's readers of files, and ITK's in a process of its own.
        for n in range(count):
            values = rng.random((SIZE, SIZE, SIZE)).astype(np.float32)
            ending = "nrrd" if n % 10 == 0 else "nii.gz"
            (root / "scans").mkdir(exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(values), str(root / f"scans/{n:04d}.{ending}"), useCompression=True)
        samples: list[dict[str, Any]] = []
        ended = 0

        def on_case(record: dict[str, Any], already: bool) -> None:
            nonlocal ended
            ended += 1
            assert record["state"] == "done", record["error"]
            if ended % EVERY == 0:
                worker = children(os.getpid())[0]
                temporary = Path(tempfile.gettempdir())
                samples.append(
                    {
                        "case": ended,
                        "worker": status_of(worker),
                        "driver": status_of(os.getpid()),
                        "temporary_files": files_below(temporary),
                    }
                )

        began = time.perf_counter()
        request = CohortRequest(
            str(model.folder), (str(root / "scans"),), root / "out", EngineChoice(threads=1), ending="nii.gz"
        )
        result = segment_cohort(request, LocalPool(["cpu"]), Task(), on_case)
        seconds = time.perf_counter() - began
        outputs = len(list((root / "out").glob("*.nii.gz")))
        left = [path.name for path in (root / "out").iterdir() if path.name.startswith(".writing")]
        stages: dict[str, list[float]] = {}
        for record in result.records:
            for stage, value in record["seconds"].items():
                stages.setdefault(stage, []).append(value)
    assert outputs == count and not left
    return {
        "cases": count,
        "voxels": SIZE**3,
        "seconds": seconds,
        "stage_median_ms": {stage: 1e3 * float(np.median(values)) for stage, values in stages.items()},
        "samples": samples,
    }


def summary(value: dict[str, Any]) -> list[tuple[str, str, float, float, float, float]]:
    """What was watched, of whom, after the warm-up, at the end, most, and the change over a hundred cases."""
    warm = [sample for sample in value["samples"] if sample["case"] >= WARM]
    rows = []
    for who in ("worker", "driver"):
        for key in ("memory_mb", "files", "threads", "children"):
            values = [sample[who][key] for sample in warm]
            rows.append(
                (
                    key.replace("_mb", ", MB").replace("files", "open files"),
                    who,
                    values[0],
                    values[-1],
                    max(values),
                    slope(values),
                )
            )
    values = [sample["temporary_files"] for sample in warm]
    rows.append(("temporary files", "both", values[0], values[-1], max(values), slope(values)))
    return rows


def page(value: dict[str, Any]) -> str:
    machine, versions = value["machine"], value["versions"]
    lines = [
        "# Endurance",
        "",
        "Made by `benchmarks/cohort_endurance.py`; do not edit.",
        f"Machine: {machine['processor']}, {machine['cores']} cores; {', '.join(f'{k} {v}' for k, v in versions.items())}; {value['date']}.",
        "",
        f"{value['cases']} scans of {SIZE} x {SIZE} x {SIZE} voxels, every tenth an NRRD file that ITK reads in a process of its own, through one worker with the smallest of networks:",
        f"{value['seconds']:.0f} s in all. The network takes next to nothing, so that whatever a case leaves behind shows. Values at case {WARM}, when all that is loaded once has been loaded, and later.",
        "",
        f"| | of | at case {WARM} | at the end | most | change over 100 cases |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {what} | {who} | {a:.4g} | {b:.4g} | {most:.4g} | {change:+.3f} |"
            for what, who, a, b, most, change in summary(value)
        ),
        "",
        "What goes wrong around a case (a full disk, an output folder that is gone, a drive that does not answer, a scan that changes while it is read) ends that case with its reason:",
        "`Testing/cohort/test_endurance.py`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    from MedQuantINT8Lib.system import installed_version, machine

    value = measure(count)
    value["machine"], value["date"] = machine(), time.strftime("%Y-%m-%d")
    value["versions"] = {"Python": platform.python_version()} | {
        name: version for name in ("numpy", "SimpleITK", "openvino") if (version := installed_version(name))
    }
    if count >= WARM + EVERY:
        (RESULTS / "endurance.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "endurance.md").write_text(page(value), encoding="utf-8")
        print(page(value))
    else:
        print(json.dumps(value["samples"][-1:], indent=1))


if __name__ == "__main__":
    main()
