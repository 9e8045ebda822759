"""Pretrained networks that resist INT8, each quantized as a user would and compared with FP32 on a scan that was kept apart.

    python experiments/resisting.py [NAME ...] [--effort fast|normal|best] [--target FILE.json]
    python experiments/resisting.py --page FILE.json ...

Each row is two commands in processes of their own: ``medquant quantize`` with the product's own budget (agreement 0.99), and
``medquant compare`` on scans that calibration never saw, with labels where there are some. Writes docs/results/resisting.json and
.md, or the JSON file of --target and a page beside it; rows that are there are kept. Rows of different efforts stand beside each other.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from data_models import DATA, specs  # noqa: E402
from MedQuantINT8Lib.imaging.volume_files import read_volume  # noqa: E402
from real_networks import Case, _labelled, cases, medquant, quantized_package, row  # noqa: E402
from run_days import dated, days_of, today  # noqa: E402

TARGET = ROOT / "docs" / "results" / "resisting.json"
#: Networks whose case is that of another one, but for the file and the description.
_LIKE = {
    "brain18_meshnet": "brain18_meshnet30",
    "brain18_meshnet (labeled scan)": "brain18_meshnet30 (labeled scan)",
    "brain3_meshnet5": "brain3_meshnet20",
    "head_hippodeep": "brain_torchio_4mm",
}


def all_cases(scratch: Path) -> dict[str, Case]:
    """The cases of the table of pretrained networks and those that it lacks, all with the product's own budget and ranges."""
    known = cases(scratch)
    for name, other in _LIKE.items():
        stem = name.split(" ")[0]
        like = known[other]
        spec = replace(specs()[stem], normalization=like.spec.normalization) if "labeled" in name else specs()[stem]
        known[name] = replace(like, network=DATA / "networks" / f"{stem}.onnx", spec=spec)
    # Networks are compared on the first six, and rounding is learned on the others.
    few = {name: ("--patches", "10") if "mesh" in name or "mindgrab" in name else () for name in known}
    others = [_labelled(scratch, case)[0] for case in ("1001", "1003")]
    return {
        name: replace(case, options=few[name], calibrate=others if "labeled" in name else case.calibrate)
        for name, case in known.items()
    }


def row_key(name: str, effort: str) -> str:
    """The name of a network's row: rows of an effort that is not the normal one stand beside the normal ones."""
    return name if effort == "normal" else f"{name} --effort {effort}"


def measured(case: Case, effort: str, scratch: Path, save: Callable[[dict[str, Any]], None]) -> None:
    """Give ``save`` the figures of a network once it is quantized, and all of them once it is compared with FP32."""
    folder = scratch / "package of one row"
    folder.mkdir()
    began = time.perf_counter()
    package, quantized = quantized_package(replace(case, options=(*case.options, "--effort", effort)), folder)
    seconds = time.perf_counter() - began
    labels = ["--labels", *map(str, case.labels)] if case.labels else []
    calibration = quantized["calibration"]
    quantization = calibration["quantization"]
    figures = {
        "effort": effort,
        "seconds": seconds,
        "work": quantization["work"],
        "int8_mac_share": quantization["int8_mac_share"],
        "halves": list(quantization["guard"]["halves"]),
        "returned": list(quantization["guard"]["returned"]),
        "split": quantization["split"],
        "patches": [quantization["guard"]["agreement_before"], quantization["guard"]["agreement"]],
        "held_out": quantization["agreement"],
        "other_form": quantization["guard"]["other_form"],
        "notes": quantization["guard"].get("notes", []),
    }
    save(figures)
    labels = ["--labels", *map(str, case.labels)] if case.labels else []
    report = medquant("compare", package, *map(str, case.scans), *labels)
    figures |= {
        "row": row(report, calibration),
        "worst": [a.get("worst") for a in report["agreement"] if (a["first"], a["second"]) == ("int8", "fp32")],
    }
    save(figures)
    save(figures | {"own_masks": own_masks(package, case)})


def own_masks(package: str, case: Case) -> dict[str, float] | None:
    """The Dice of each structure's own mask with FP32's, the mean over the scans; None where structures do not overlap.

    A label map shows of masks that overlap only what no later one covers: of a head with the brain inside a shell.
    """
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.pipeline import segment
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.models.package import ModelPackage
    from MedQuantINT8Lib.progress import Task

    output = case.spec.output
    if output.activation == "softmax" or len(case.spec.labels) < 2:
        return None
    found: dict[str, list[float]] = {}
    with ModelPackage.load(package) as loaded:
        for scan in case.scans:
            volume, masks = read_volume(scan), []
            for precision in ("fp32", "int8"):
                options = SegmentationOptions(probabilities=True)
                run = segment(loaded, volume, EngineChoice(precision=precision), options, Task())
                assert run.result.probabilities is not None
                masks.append(run.result.probabilities > output.threshold)
            for label in case.spec.labels:
                first, second = (mask[label.channel] for mask in masks)
                if total := int(first.sum()) + int(second.sum()):
                    found.setdefault(label.name, []).append(2 * int((first & second).sum()) / total)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _f(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _own(masks: dict[str, float] | None) -> str:
    """The mean over structures, and the least of them."""
    return f"{sum(masks.values()) / len(masks):.4f}, {min(masks.values()):.4f}" if masks else "–"


def _worst(structures: list[dict[str, Any] | None]) -> str:
    """The structure that agrees least with FP32 on any of the scans."""
    known = [structure for structure in structures if structure]
    if not known:
        return "–"
    least = min(known, key=lambda structure: structure["dice"])
    return f"{least['name']} {least['dice']:.4f}"


def page(value: dict[str, Any]) -> str:
    complete = {name: r for name, r in value["rows"].items() if "row" in r}
    machines = {r["row"]["machine"]["processor"] for r in complete.values()}
    versions = {
        ", ".join(
            [
                *(f"{name} {version}" for name, version in r["row"]["versions"].items()),
                f"{r['row']['int8']['engine']} {r['row']['int8']['engine_version']}",
            ]
        )
        for r in complete.values()
    }
    lines = [
        "# Networks that resist INT8",
        "",
        "Made by `experiments/resisting.py`; do not edit. Each network is quantized with the product's own budget (agreement 0.99 with FP32), and compared with FP32 on scans that",
        f"calibration did not see. {'; '.join(sorted(machines))}; {'; '.join(sorted(versions))}; {value['date']}.",
        "",
        "Work is of the network as it runs: a layer in two INT8 halves counts twice. Agreement on patches is before and after the guard's cures. Each row had cores of its own, as many as the last column but one says, while",
        "others were made beside it on the same processor: they shared its caches and memory; its time includes the import. Agreement on patches and on held-out scans is that of the form that OpenVINO runs, with zero points; the column",
        "of the symmetric form, which engines of a GPU compute, has a dash where no tensor has a zero point. The scan is always real INT8 in OpenVINO. The maps of head_hippodeep overlap: of the",
        "first, a label map shows a thin shell; by its own masks each map is compared whole.",
    ]
    for effort in ("normal", "best", "fast"):
        rows = {name: r for name, r in complete.items() if r["effort"] == effort}
        if rows:
            lines += ["", f"## With `--effort {effort}`", "", *_table(rows)]
            lines += ["", *notes] if (notes := _notes(rows)) else []
    return "\n".join(lines) + "\n"


def _notes(rows: dict[str, Any]) -> list[str]:
    """What the guard said of a network beside its figures, as a list."""
    return [f"- **{_title(name)}**: {note}." for name, r in rows.items() for note in r.get("notes", ())]


def _title(key: str) -> str:
    return key.split(" --effort")[0]


def _table(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| network | work in plain INT8 | in halves | in float | agreement on patches before, after | in symmetric form | on held-out scans | on the scan | worst structure | by its own masks | Dice lost to labels | layers in halves | in float | split | file | one window, FP32 / INT8 | quantized in s, on cores | measured |",
        "| --- |" + " ---: |" * 7 + " --- |" + " ---: |" * 8 + " --- |",
    ]
    for name, r in rows.items():
        work, measured_row = r["work"], r["row"]
        lost = None if measured_row["dice_fp32"] is None else measured_row["dice_fp32"] - measured_row["dice_int8"]
        cells = [
            _title(name),
            *(f"{100 * work[kind]:.1f} %" for kind in ("plain", "halves", "float")),
            ", ".join(_f(v) for v in r["patches"]),
            _f((r["other_form"] or {}).get("agreement")),
            _f(r["held_out"]),
            _f(measured_row["agreement"]),
            _worst(r["worst"]),
            _own(r.get("own_masks")),
            "–" if lost is None else f"{lost:+.4f}",
            *(str(len(r[kind])) for kind in ("halves", "returned", "split")),
            _f(measured_row["size_ratio"], 3),
            " / ".join(f"{measured_row[precision]['latency_ms']:.0f} ms" for precision in ("fp32", "int8")),
            f"{r['seconds']:.0f}, {measured_row['machine']['cores']}",
            r["date"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks (default: all)")
    parser.add_argument("--effort", choices=("fast", "normal", "best"), default="normal")
    parser.add_argument("--target", type=Path, default=TARGET, help="the JSON file (default: %(default)s)")
    parser.add_argument(
        "--page", nargs="*", type=Path, metavar="JSON", help="take in the rows of other files, and measure nothing"
    )
    args = parser.parse_args()
    target: Path = args.target
    rows = dated(json.loads(target.read_text())) if target.exists() else {}

    def save() -> None:
        value = {"date": days_of(rows.values()), "rows": rows}
        target.write_text(json.dumps(value, indent=1) + "\n")
        target.with_suffix(".md").write_text(page(value))

    if args.page is not None:
        for path in args.page:
            rows |= {name: r for name, r in dated(json.loads(path.read_text())).items() if "row" in r}
        save()
        return
    with tempfile.TemporaryDirectory() as scratch:
        known = all_cases(Path(scratch))
        for name in args.names or known:
            key = row_key(name, args.effort)

            def keep(figures: dict[str, Any], key: str = key) -> None:
                rows[key] = {"date": today(), **figures}
                print(key, json.dumps(figures)[:400], flush=True)
                save()

            with tempfile.TemporaryDirectory() as own:
                measured(known[name], args.effort, Path(own), keep)


if __name__ == "__main__":
    main()
