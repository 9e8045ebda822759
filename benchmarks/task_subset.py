"""What some structures of a task cost beside all of them.

python benchmarks/task_subset.py [--runs N] [--data FOLDER] writes docs/results/subset.json and subset.md.
python benchmarks/task_subset.py --model total --scan scan.nii.gz liver spleen pancreas prints a measurement of an installed task.

The first form runs the catalog's task "total" with its structures, spacings, steps and merging, on a real scan. In the place of the published
weights stand networks of three convolutions with random weights, for the five parts, and a pretrained network of eight organs, for the step that
finds the box. Every run is one of a process that has the engines built and the packages loaded; the first of each kind is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "MedQuantINT8"), str(HERE.parent / "Testing" / "support")]
RESULTS = HERE.parent / "docs" / "results"
PATCH = (96, 96, 96)
#: Of the parts' networks.
FEATURES = 2
#: The rows of the page: what is chosen, and why.
CHOICES = {
    "all 117": None,
    "liver, spleen, pancreas": ("liver", "spleen", "pancreas"),
    "stomach, gallbladder, duodenum": ("stomach", "gallbladder", "duodenum"),
}
#: At most this share of the time of all structures.
BAR = 1 / 3


def measure(model: Any, volume: Any, choices: dict[str, tuple[str, ...] | None], args: Any) -> dict[str, Any]:
    """Seconds, processor seconds, windows and boxes of runs with each choice of structures."""
    from MedQuantINT8Lib.inference import pipeline
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.engine_pool import KeepingPool
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.progress import Task

    choice = EngineChoice(precision=args.precision, device=args.device, threads=args.threads)
    options = SegmentationOptions(check_ranges=False)
    rows: dict[str, Any] = {}
    for name, structures in choices.items():
        pool = KeepingPool()
        wanted = replace(options, structures=structures)
        seconds, processor = [], []
        for number in range(1 + max(1, args.runs)):
            began, work = time.perf_counter(), time.process_time()
            run = pipeline.segment(model, volume, choice, wanted, Task(), pool=pool)
            if number:
                seconds.append(time.perf_counter() - began)
                processor.append(time.process_time() - work)
        pool.clear()
        rows[name] = {
            "seconds": statistics.median(seconds),
            "processor_seconds": statistics.median(processor),
            "windows": run.result.windows,
            "parts": {part["name"]: part["windows"] for part in run.parts},
            "boxes": run.boxes,
            "engine": f"{run.engine['title']}, {run.engine['precision']}",
        }
        print(name, json.dumps(rows[name]), flush=True)
    whole = next(iter(rows.values()))
    for row in rows.values():
        row["share"] = {key: row[key] / whole[key] for key in ("seconds", "processor_seconds", "windows")}
    return rows


def write_part(folder: Path, name: str, names: list[str], seed: int) -> None:
    """Install a network of three convolutions with random weights under a name of the catalog."""
    import onnx

    from MedQuantINT8Lib.models.package import FP32, write_package
    from MedQuantINT8Lib.models.spec import Channel, Geometry, Label, ModelSpec, Normalization, Output, Window
    from tiny import convolutions

    rng, path, classes = np.random.default_rng(seed), folder / f"{name}.onnx", 1 + len(names)
    shapes = {"a": (FEATURES, 1, 3, 3, 3), "b": (FEATURES, FEATURES, 3, 3, 3), "c": (classes, FEATURES, 1, 1, 1)}
    weights = {layer: rng.normal(0, 0.3, shape) for layer, shape in shapes.items()}
    onnx.save(convolutions(weights, {}, PATCH[0]), str(path))
    spec = ModelSpec(
        name=name,
        version="1",
        modality="CT",
        channels=(Channel("CT"),),
        geometry=Geometry("KJI", "RAS", spacing=(1.5, 1.5, 1.5)),
        normalization=(Normalization("window", low=-160, high=400),),
        window=Window(PATCH, overlap=0.2),
        output=Output(),
        labels=tuple(Label(n, label, n) for n, label in enumerate(names, 1)),
        license="Apache-2.0",
    )
    (folder / "models" / name).mkdir(parents=True)
    write_package(folder / "models" / name / name, spec, {FP32: path})


def write_finder(folder: Path, name: str, names: dict[int, str], network: Path) -> None:
    """Install the pretrained network of eight organs in the place of the one that finds, with the values that ``names`` gives them."""
    from data_models import OBELISK_TO_TOTAL, specs
    from MedQuantINT8Lib.models.package import FP32, write_package
    from MedQuantINT8Lib.models.spec import Label

    labels = tuple(Label(value, names[value], channel) for channel, value in OBELISK_TO_TOTAL.items())
    spec = replace(specs()["abdomen_ct_obelisk"], name=name, labels=labels)
    (folder / "models" / name).mkdir(parents=True)
    write_package(folder / "models" / name / name, spec, {FP32: network})


def write_total(folder: Path, data: Path) -> Path:
    """Install stand-ins for all that "total" runs, and the task."""
    from data_models import OBELISK_TO_TOTAL
    from MedQuantINT8Lib.models.task import parse_task
    from MedQuantINT8Lib.models.task_writing import write_task
    from MedQuantINT8Lib.resources import resource

    catalog = json.loads(resource("Models.json").read_text(encoding="utf-8"))
    spec = parse_task(next(entry["spec"] for entry in catalog["models"] if entry["name"] == "total"))
    os.environ["MEDQUANT_MODELS"] = str(folder / "models")
    for seed, part in enumerate(spec.parts):
        write_part(folder, str(part.installed), [item.name for item in part.labels], seed)
    step = spec.find[0]
    network = data / "networks" / "abdomen_ct_obelisk.onnx"
    write_finder(folder, str(step.installed), {item.value: item.name for item in step.labels}, network)
    known = tuple(item for item in step.labels if item.value in OBELISK_TO_TOTAL.values())
    write_task(folder / "models" / "total", replace(spec, find=(replace(step, labels=known),)), {})
    return folder / "models" / "total"


def machine_in_words() -> str:
    from MedQuantINT8Lib.system import machine

    value = machine()
    programs = ", ".join(f"{name} {version(name)}" for name in ("numpy", "SimpleITK", "onnxruntime", "openvino"))
    name = value["processor"]
    return (
        f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, {programs}; {time.strftime('%Y-%m-%d')}"
    )


def page(value: dict[str, Any]) -> str:
    rows = value["rows"]
    lines = [
        "# Some structures of a task",
        "",
        "Made by `benchmarks/task_subset.py`; do not edit.",
        f"Machine: {value['machine']}.",
        "",
        "How much of the time of all 117 structures the catalog's task `total` takes for three. The scan is a CT of the abdomen, "
        f"{value['scan']}. Structures, spacing, the step that finds and the merging are the task's own. In the place of the published weights stand five "
        f"networks of three convolutions ({FEATURES} features, random weights) at 1.5 mm, with windows of {' x '.join(map(str, PATCH))} voxels, and a pretrained network of eight organs (OBELISK) that finds the box. "
        f"{value['runs']} run(s) each after one that is not counted, {value['threads']} thread(s), engine: {rows['all 117']['engine']}.",
        "",
        "| structures | networks run | windows | seconds | of all | processor seconds | of all |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        parts = ", ".join(f"{part} ({windows})" for part, windows in row["parts"].items())
        lines.append(
            f"| {name} | {parts} | {row['windows']} | {row['seconds']:.1f} | {100 * row['share']['seconds']:.0f} % | {row['processor_seconds']:.1f} | {100 * row['share']['processor_seconds']:.0f} % |"
        )
    lines += [
        "",
        "In parentheses: windows. Seconds are from the scan in memory to the label map on its grid; other programs ran on the machine meanwhile, and processor seconds count this one alone.",
        "",
        f"The bar is a third. {value['verdict']}",
        "",
        "What is saved depends on two things: how many of the five networks have what was chosen, and how much of the scan its box takes. A network of an equal size for every step says nothing of",
        "the published ones' speed, and the box is that of this scan.",
        "",
    ]
    return "\n".join(lines)


def verdict(rows: dict[str, Any]) -> str:
    """Which rows are above the bar, in words."""
    above = [name for name, row in rows.items() if row["share"]["seconds"] > BAR and name != "all 117"]
    if not above:
        return "All rows of three structures are below it."
    return f"Above it: {'; '.join(above)}. The others are below."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", nargs="*")
    parser.add_argument("--model")
    parser.add_argument("--scan")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("MEDQUANT_DATA", HERE.parent.parent / "shared/data"))
    )
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()

    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.inference.task_model import load_model
    from MedQuantINT8Lib.models.installed import resolve

    if args.model is not None:
        if not (args.scan and args.structures):
            parser.error("--model needs --scan and structures")
        with load_model(resolve(args.model)) as model:
            choices = {"all": None, ", ".join(args.structures): tuple(args.structures)}
            print(json.dumps(measure(model, read_volume(args.scan), choices, args), indent=2))
        return
    with tempfile.TemporaryDirectory() as scratch:
        task = write_total(Path(scratch), args.data)
        volume = read_volume(str(args.data / "ct" / "abdomen_3mm.nii.gz"))
        with load_model(str(task)) as model:
            rows = measure(model, volume, CHOICES, args)
    size = " x ".join(map(str, volume.grid.size))
    spacing = " x ".join(f"{value:.3g}" for value in volume.grid.spacing)
    value = {
        "machine": machine_in_words(),
        "scan": f"{size} voxels of {spacing} mm",
        "runs": args.runs,
        "threads": args.threads or os.cpu_count(),
        "rows": rows,
        "verdict": verdict(rows),
    }
    (RESULTS / "subset.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "subset.md").write_text(page(value), encoding="utf-8")


if __name__ == "__main__":
    main()
