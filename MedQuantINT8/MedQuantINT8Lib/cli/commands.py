"""What each ``medquant`` command does with its arguments, and what it prints."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..errors import Cancelled, EngineError, InputError, MedQuantError
from ..evaluation.reports.report import REPORT_FILES, run_json, write_report
from ..files import split_paths
from ..imaging.segmentation_files import check_output_path, output_files, present_labels, write_segmentation
from ..imaging.volume_files import ReadOptions, ScanReader, scan_paths
from ..inference import pipeline
from ..inference.engine_choice import EngineChoice
from ..inference.ensemble import Ensemble, load_ensemble
from ..inference.segmenter import SegmentationOptions
from ..models.installed import both_meant, resolve, resolve_one
from ..models.package import CALIBRATION, INT8, KNOWN_FILES, MODEL_JSON, ModelPackage, peek
from ..outputs import check_output_folder, check_output_package
from ..progress import Task
from ..resources import resource
from ..system import library_environment, module_arguments
from .overwriting import free_path, overwriting, segmentation_beside
from .terminal import print_result, warn


def options_of(args: argparse.Namespace) -> SegmentationOptions:
    memory = int(args.memory * (1 << 30)) if args.memory is not None else None
    return SegmentationOptions(
        tuple(args.patch) if args.patch else None,
        args.overlap,
        args.batch,
        args.skip_air,
        memory,
        check_ranges=not args.no_range_check,
    )


def reader_of(args: argparse.Namespace, task: Task) -> ScanReader:
    """Reads scans as the command's options say."""
    series = getattr(args, "series", None)
    return ScanReader(ReadOptions(series, args.allow_gaps, args.allow_tilt, args.nifti_form), task.check)


def _choice(args: argparse.Namespace) -> EngineChoice:
    return EngineChoice(args.engine, args.precision, args.threads, args.device)


def packages_of(args: argparse.Namespace, *, one: bool = False) -> str:
    """The packages of the model that was named, joined by commas; says so where the name can mean two.

    Raises:
        InputError: several packages where only ``one`` can be used.
    """
    if note := both_meant(args.model):
        warn(f"note: {note}")
    return (resolve_one if one else resolve)(args.model)


def doctor(args: argparse.Namespace, task: Task) -> None:
    from .doctor import examined, lines_of

    found = examined()
    print_result(args, found, *lines_of(found))


def quantize(args: argparse.Namespace, task: Task) -> None:
    from ..quantization.accuracy_guard import Budget
    from ..quantization.calibration import CalibrationOptions
    from ..quantization.pipeline import quantize as quantize_scans
    from ..quantization.quantize import QuantizationPolicy

    calibration = CalibrationOptions(args.method, args.patches, args.percentile, args.foreground, args.air, args.seed)
    calibration.check()
    budget = Budget(args.agreement, args.dice_lost, not args.no_fallback)
    policy = QuantizationPolicy(first=args.keep_first, head=args.keep_head, keep=tuple(args.keep), budget=budget)
    model = packages_of(args, one=True)
    target = args.output or model
    inputs = [path for scan in (*args.calibrate, *(args.labels or [])) for path in scan_paths(scan)]
    if Path(target).resolve() == resource("demo.zip").resolve():
        raise InputError("The demo model is part of the program, and stays as it is.", "Give --output.")
    check_output_package(target, inputs, itself=model)
    reader = reader_of(args, task)
    with overwriting(args, _replaced_by_quantizing(Path(target), Path(model))):
        package, report = quantize_scans(
            model,
            [scan_paths(s) for s in args.calibrate],
            target,
            calibration,
            policy,
            task,
            by_network=args.foreground_by == "network",
            labels=args.labels or [],
            reader=reader,
            engine_required=not args.without_engine,
        )
    kept = [layer for layer in report.layers if not layer.quantized]
    print_result(
        args,
        {"package": str(target), "calibration": package.calibration(), "notes": reader.notes},
        f"wrote {target}: {report.int8_bytes / 1e6:.2f} MB instead of {report.fp32_bytes / 1e6:.2f} MB ({report.size_ratio:.3f}), "
        f"{100 * report.int8_mac_share:.1f} % of multiply-accumulates in INT8, agreement with FP32 {_dice(report.guard.agreement)} (simulated)",
        *_guard_lines(report.guard),
        *(f"  in high precision: {layer.name}: {layer.reason}" for layer in kept),
        *(f"warning: {text}" for text in report.warnings),
        *(f"note: {text}" for text in reader.notes),
    )


def _replaced_by_quantizing(target: Path, model: Path) -> list[Path]:
    """What a package loses that is written anew: all of another package; of its own only an INT8 network, and what is no part of it."""
    if not (target.exists() and model.exists() and target.samefile(model)):
        return [target]
    if not target.is_dir():
        return [target] if INT8 in peek(target)[1] else []
    kept = {MODEL_JSON, *KNOWN_FILES} - {INT8, CALIBRATION}
    return [path for path in target.iterdir() if path.name not in kept]


def _dice(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _guard_lines(result: Any) -> list[str]:
    lines = []
    if result.dice_fp32 is not None:
        lines.append(
            f"mean Dice to the labels: FP32 {_dice(result.dice_fp32)}, INT8 {_dice(result.after.dice)} (simulated)"
        )
    if result.returned:
        lines.append(
            f"the guard put {len(result.returned)} layer(s) back to float: agreement {_dice(result.before.agreement)} before, {_dice(result.agreement)} after"
        )
    if result.cost_ms is not None:
        lines.append(f"  which costs {result.cost_ms:.1f} ms of {result.milliseconds[-1]:.1f} ms a window")
    if result.judged and not result.kept:
        lines.append(
            "warning: the budget does not hold: see 'guard' in calibration.json. Try --method, more scans, or --keep."
        )
    return lines


def build(args: argparse.Namespace, task: Task) -> None:
    with ModelPackage.load(packages_of(args, one=True)) as package:
        reader = reader_of(args, task)
        scan = reader(scan_paths(args.scan)) if args.scan else None
        prepared = pipeline.build(package, _choice(args), options_of(args), scan, task)
        description = prepared.describe()
        value: dict[str, Any] = {
            "folder": str(prepared.entry.folder),
            "cached": prepared.cached,
            "note": prepared.note,
            "choice": prepared.choice.to_json() if prepared.choice else None,
            "fidelity": prepared.fidelity.to_json() if prepared.fidelity else None,
            "description": description.to_json(),
        }
        lines = [
            f"{'found' if prepared.cached else 'built'} {prepared.backend.title}, {prepared.options.precision}: {description.verdict}, "
            f"{100 * description.int8_mac_share:.1f} % of multiply-accumulates in INT8"
        ]
        if prepared.fidelity:
            lines.append(
                f"real against simulated INT8: relative error {prepared.fidelity.relative_error:.4f}, {100 * prepared.fidelity.label_disagreement:.3f} % other labels"
            )
        lines += _choice_lines(value["choice"])
        if prepared.note and prepared.note != (value["choice"] or {}).get("reason"):
            lines.append(f"note: {prepared.note}")
        prepared.close()
    print_result(args, value, *lines)


def segment(args: argparse.Namespace, task: Task) -> None:
    model = packages_of(args)
    inputs = [*split_paths(model), *scan_paths(args.scan)]
    if args.output is not None:
        check_output_path(args.output, inputs)
    with load_ensemble(model) as ensemble:
        output = (
            Path(args.output)
            if args.output is not None
            else segmentation_beside(scan_paths(args.scan)[0], ensemble.first.spec.name)
        )
        if args.output is None:
            check_output_path(output, inputs)
        with overwriting(args, output_files(output)):
            value, lines = _segment_to(output, ensemble, args, task)
    print_result(args, value, *lines)


def _segment_to(
    output: Path, ensemble: Ensemble, args: argparse.Namespace, task: Task
) -> tuple[dict[str, Any], list[str]]:
    """Segment, write the label map, and what there is to say of it: for machines and for people."""
    labels = ensemble.first.spec.labels
    began = time.perf_counter()
    with task.stage("reading"):
        volume = reader_of(args, task)(scan_paths(args.scan))
    run = pipeline.segment(ensemble, volume, _choice(args), options_of(args), task, time.perf_counter() - began)
    began = time.perf_counter()
    with task.stage("writing"):
        if args.output is None:
            # Something may have got that name meanwhile.
            output = free_path(output)
        write_segmentation(output, run.result.labels, run.result.ijk_to_ras, labels)
    run.seconds["writing"] = time.perf_counter() - began
    run.seconds["total"] += run.seconds["writing"]
    voxels = present_labels(run.result.labels, labels)
    structures = [
        {"value": label.value, "name": label.name, "ml": voxels[label.value] * volume.grid.voxel_ml} for label in labels
    ]
    value = {**run_json(args.scan, run), "output": str(output), "structures": structures}
    description = run.engine["description"]
    return value, [
        f"wrote {output}: structures found: {sum(v > 0 for v in voxels.values())} of {len(voxels)}, {run.seconds['total']:.2f} s "
        f"({run.seconds['network']:.2f} s in the network)",
        f"engine: {run.engine['title']}, {run.engine['precision']}: {description['verdict']}, {100 * description['int8_mac_share']:.1f} % of multiply-accumulates in INT8",
        *_choice_lines(run.engine["choice"]),
        *(
            f"note: {note}"
            for note in [*run.result.notes, *filter(None, [run.engine["note"]])]
            if note != (run.engine["choice"] or {}).get("reason")
        ),
    ]


def _choice_lines(choice: dict[str, Any] | None) -> list[str]:
    """Why a precision that was left to the program was taken, and when that was decided."""
    if choice is None:
        return []
    return [f"precision: {choice['reason']}" + (f" (decided {choice['decided'][:10]})" if choice["decided"] else "")]


#: What the demo writes.
DEMO_FILES = (*REPORT_FILES, "segmentation.seg.nrrd", "picture.png", "model.zip")


def compare(args: argparse.Namespace, task: Task) -> None:
    from ..evaluation.comparison import compare_scans

    if args.labels and len(args.labels) != len(args.scans):
        raise InputError(
            f"{len(args.labels)} label map(s) were given for {len(args.scans)} scan(s).",
            "Give one for each scan, in the same order.",
        )
    model = packages_of(args, one=True)
    written = [Path(args.report) / name for name in REPORT_FILES] if args.report else []
    if args.report:
        check_output_folder(
            args.report, REPORT_FILES, [model, *(p for s in (*args.scans, *(args.labels or [])) for p in scan_paths(s))]
        )
    with ModelPackage.load(model) as package, overwriting(args, written):
        package.onnx_path("int8")
        reader = reader_of(args, task)
        report = compare_scans(
            package,
            args.scans,
            args.labels or [],
            lambda scan, precision, output: _run_apart(args, package, scan, precision, output, task),
            task,
            reader,
        )
        if args.report:
            write_report(report, Path(args.report))
    print_result(
        args,
        report,
        *_comparison_lines(report),
        *(f"note: {text}" for text in reader.notes),
        *([f"wrote {Path(args.report) / 'report.html'}"] if args.report else []),
    )


def _run_apart(
    args: argparse.Namespace, package: ModelPackage, scan: str, precision: str, output: Path, task: Task
) -> dict[str, Any]:
    """Segment in a process of its own, so that its time and peak memory are those of a user's command."""
    choice = EngineChoice(args.engine, threads=args.threads, device=args.device).beside(precision)
    common = [str(package.folder), "--engine", choice.name, "--precision", precision, "--device", choice.device]
    for name, values in (
        ("--batch", [args.batch]),
        ("--threads", [args.threads]),
        ("--patch", args.patch),
        ("--overlap", [args.overlap] if args.overlap is not None else None),
        ("--memory", [args.memory] if args.memory else None),
    ):
        common += [name, *map(str, values)] if values else []
    for flag in ("skip_air", "no_range_check", "allow_gaps", "allow_tilt"):
        if getattr(args, flag):
            common.append("--" + flag.replace("_", "-"))
    common += ["--nifti-form", args.nifti_form]
    _apart(["build", *common, "--scan", scan], task)
    return _apart(["segment", *common[:1], scan, *common[1:], "--output", str(output)], task)


def _apart(arguments: list[str], task: Task) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *module_arguments("MedQuantINT8Lib.cli.main"), *arguments, "--json"],
            stdout=output,
            stderr=errors,
            env=library_environment(),
        )
        try:
            while process.poll() is None:
                task.check()
                time.sleep(0.02)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            message = (errors.read().strip().splitlines() or ["the run ended without a word"])[-1].removeprefix(
                "medquant: "
            )
            raise _error_for(process.returncode)(message)
        return json.loads(output.read().strip().splitlines()[-1])


def _error_for(code: int) -> type[MedQuantError]:
    kinds = {kind.exit_code: kind for kind in MedQuantError.__subclasses__()}
    return Cancelled if code == Cancelled.exit_code else kinds.get(code, EngineError)


def _comparison_lines(report: dict[str, Any]) -> list[str]:
    sizes = report["sizes"]
    lines = [
        f"{'':32}{'FP32':>10}{'INT8':>10}{'ratio':>8}",
        f"{'network file, MB':32}{sizes['fp32_bytes'] / 1e6:10.2f}{sizes['int8_bytes'] / 1e6:10.2f}{sizes['ratio']:8.3f}",
    ]
    by_scan: dict[str, dict[str, dict[str, Any]]] = {}
    for run in report["runs"]:
        by_scan.setdefault(run["scan"], {})[run["precision"]] = run
    engines = {precision: run["engine"]["title"] for pair in by_scan.values() for precision, run in pair.items()}
    if engines["fp32"] != engines["int8"]:
        lines.append(f"{'engine':32}FP32 by {engines['fp32']}, INT8 by {engines['int8']}")
    for scan, pair in by_scan.items():
        lines.append(scan)
        for name, key in (
            ("  network, one call, ms", lambda r: r["latency_ms"]["median"]),
            ("  scan to file, s", lambda r: r["seconds"]["total"]),
            ("  peak memory, MB", lambda r: r["peak_memory_bytes"] / 1e6),
            ("  INT8 share of work, %", lambda r: 100 * r["engine"]["description"]["int8_mac_share"]),
        ):
            first, second = key(pair["fp32"]), key(pair["int8"])
            lines.append(
                f"{name:32}{first:10.2f}{second:10.2f}{(f'{first / second:7.2f}x' if second and first else ''):>8}"
            )
    for item in report["agreement"]:
        mean = "–" if item["mean_dice"] is None else f"{item['mean_dice']:.4f}"
        left_out = (
            f" (left out, as the labels do not have them: {', '.join(item['left_out'])})" if item["left_out"] else ""
        )
        lines.append(f"{item['scan']}: {item['first']} against {item['second']}: mean Dice {mean}{left_out}")
    return lines


def cache(args: argparse.Namespace, task: Task) -> None:
    from ..engines import cache as engines
    from ..engines import choices

    if args.action == "clear":
        count = engines.clear(args.model)
        choices.forget_failures()
        print_result(args, {"removed": count}, f"removed {count} engine(s)")
        return
    found = [e for e in engines.entries() if args.model in (None, e.record["key"].get("model_name"))]
    rows = [
        {"folder": str(e.folder), "bytes": e.bytes, "built": e.record.get("built"), **e.record["key"]} for e in found
    ]
    print_result(
        args,
        {"engines": rows},
        *(
            f"{row['model_name']:28}{row['engine']:13}{row['options']['precision']:6}{'x'.join(map(str, row['options']['patch'])):14}{row['bytes'] / 1e6:8.1f} MB  {row['built']}"
            for row in rows
        )
        if rows
        else ("no engines",),
    )


def demo(args: argparse.Namespace, task: Task) -> None:
    from .demo import run_demo

    check_output_folder(args.output, DEMO_FILES)
    with overwriting(args, [Path(args.output) / name for name in DEMO_FILES]):
        value = run_demo(Path(args.output), task, args.scan)
    print_result(args, value, *value["lines"])
