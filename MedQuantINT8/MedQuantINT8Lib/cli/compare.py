"""``medquant compare``: FP32 against INT8 on scans, each run in a process of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    PACKAGE,
    Add,
    add_command,
    add_force,
    add_model,
    add_reading_options,
    add_running_options,
    choice_of,
    packages_of,
    reader_of,
)
from .terminal import print_result

if TYPE_CHECKING:
    from ..errors import MedQuantError
    from ..evaluation.reports.viewer import ViewerScan
    from ..models.package import ModelPackage
    from ..progress import Task


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    command = add_command(
        add,
        "compare",
        run,
        "FP32 against INT8: size, time, memory, agreement",
        "compare spleen scan3.nii.gz --labels labels3.nii.gz --report report",
    )
    add_model(command, f"{PACKAGE}, with both networks")
    command.add_argument("scans", nargs="+", help="scans")
    command.add_argument("--labels", nargs="+", help="reference label maps, one a scan, with the model's label values")
    command.add_argument("--report", help="folder for report.json and report.html")
    add_force(command)
    add_running_options(command, precision=False)
    add_reading_options(command)


def run(args: argparse.Namespace, task: Task) -> None:
    """Run every scan in FP32 and INT8, print what differs, and write the report."""
    from ..errors import InputError
    from ..evaluation.comparison import compare_scans
    from ..evaluation.reports.pages import require_templates
    from ..evaluation.reports.report import REPORT_FILES, write_report
    from ..imaging.volume_files import scan_paths
    from ..models.package import ModelPackage
    from ..outputs import check_output_folder
    from .overwriting import overwriting

    if args.labels and len(args.labels) != len(args.scans):
        raise InputError(
            f"{len(args.labels)} label map(s) were given for {len(args.scans)} scan(s).",
            "Give one for each scan, in the same order.",
        )
    model = packages_of(args, one=True)
    reports = [Path(args.report) / name for name in REPORT_FILES] if args.report else []
    if args.report:
        require_templates()
        check_output_folder(
            args.report, REPORT_FILES, [model, *(p for s in (*args.scans, *(args.labels or [])) for p in scan_paths(s))]
        )
    with ModelPackage.load(model) as package, overwriting(args, reports):
        package.onnx_path("int8")
        reader = reader_of(args, task)
        viewed: list[ViewerScan] | None = [] if args.report else None
        report = compare_scans(
            package,
            args.scans,
            args.labels or [],
            lambda scan, precision, output: _segment_in_own_process(args, package, scan, precision, output, task),
            task,
            reader,
            viewed,
        )
        if args.report:
            write_report(report, Path(args.report), viewed or ())
    print_result(
        args,
        report,
        *_comparison_lines(report),
        *(f"note: {text}" for text in reader.notes),
        *([f"wrote {Path(args.report) / 'report.html'}"] if args.report else []),
    )


def _segment_in_own_process(
    args: argparse.Namespace, package: ModelPackage, scan: str, precision: str, output: Path, task: Task
) -> dict[str, Any]:
    """Segment in a process of its own, so that its time and peak memory are those of a user's command."""
    choice = choice_of(args, "int8").beside(precision)
    common = [str(package.folder), "--engine", choice.name, "--precision", precision, "--device", choice.device]
    for name, values in (
        ("--batch", [args.batch]),
        ("--threads", [args.threads]),
        ("--patch", args.patch),
        ("--overlap", [args.overlap] if args.overlap is not None else None),
        ("--memory", [args.memory] if args.memory else None),
        ("--check-share", [args.check_share] if args.check_share is not None and precision == "int8" else None),
        ("--mirror-axes", [",".join(map(str, args.mirror_axes))] if args.mirror_axes else None),
    ):
        common += [name, *map(str, values)] if values else []
    for flag in ("skip_air", "no_range_check", "allow_gaps", "allow_tilt"):
        if getattr(args, flag):
            common.append("--" + flag.replace("_", "-"))
    if args.mirroring is not None:
        common.append("--mirroring" if args.mirroring else "--no-mirroring")
    common += ["--nifti-form", args.nifti_form]
    _run_command(["build", *common, "--scan", scan], task)
    return _run_command(["segment", *common[:1], scan, *common[1:], "--output", str(output)], task)


def _run_command(arguments: list[str], task: Task) -> dict[str, Any]:
    """Run ``medquant`` in a process of its own; what it prints with ``--json``.

    Raises:
        MedQuantError: the error that the process ended with.
    """
    import json
    import subprocess
    import sys
    import tempfile
    import time

    from ..system import library_environment, module_arguments

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
    """The kind of error that ends a process with this exit code."""
    from ..errors import Cancelled, EngineError, MedQuantError

    kinds = {kind.exit_code: kind for kind in MedQuantError.__subclasses__()}
    return Cancelled if code == Cancelled.exit_code else kinds.get(code, EngineError)


def _comparison_lines(report: dict[str, Any]) -> list[str]:
    """What was compared, as lines for people."""
    from ..inference.structure_dice import WorstStructures

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
        if worst := WorstStructures.of_rows(item["structures"]).text:
            lines.append(f"  {worst}")
    return lines
