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
    options_of,
    packages_of,
    reader_of,
)
from .pool_options import add_pool_options, pool_of, uses_pool
from .terminal import print_result

if TYPE_CHECKING:
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
    add_pool_options(command)


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
    if uses_pool(args) and not args.report:
        raise InputError("Workers need a folder for their journal.", "Give --report FOLDER.")
    with ModelPackage.load(model) as package, overwriting(args, reports):
        package.onnx_path("int8")
        if uses_pool(args):
            _run_pool(args, package, model, task)
            return
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


def _run_pool(args: argparse.Namespace, package: ModelPackage, model: str, task: Task) -> None:
    """Compare over many workers; a journal in the folder of the report lets the next run go on.

    Raises:
        CasesFailed: some scans could not be compared; the report is of the others.
    """
    from ..cohort.case_settings import model_hash
    from ..cohort.compare_work import CompareSettings, compare_cohort
    from ..cohort.driver import CohortOptions
    from ..cohort.report import table_lines
    from ..errors import CasesFailed
    from ..evaluation.reports.report import write_report
    from ..imaging.volume_files import ReadOptions
    from ..inference.ensemble import Ensemble

    settings = CompareSettings(
        model,
        model_hash(Ensemble([package])),
        choice_of(args, "int8"),
        options_of(args),
        ReadOptions(None, args.allow_gaps, args.allow_tilt, args.nifti_form),
        str(Path(args.report).absolute()),
        tuple(_flags(args)),
    )
    resuming = CohortOptions(force=args.force)
    report, result, viewed = compare_cohort(
        package, args.scans, args.labels or [], settings, pool_of(args), task, resuming
    )
    write_report(report, Path(args.report), viewed)
    warnings = dict.fromkeys(text for record in result.records for text in record.get("warnings", []))
    print_result(
        args,
        report,
        *_comparison_lines(report),
        *(f"note: {text}" for text in (*result.notes, *warnings)),
        *table_lines(result.failed),
        f"wrote {Path(args.report) / 'report.html'}",
    )
    if result.failed:
        raise CasesFailed(
            f"{len(result.failed)} of {len(result.records)} cases failed.", "The same command repeats those alone."
        )


def _segment_in_own_process(
    args: argparse.Namespace, package: ModelPackage, scan: str, precision: str, output: Path, task: Task
) -> dict[str, Any]:
    """Segment in a process of its own, so that its time and peak memory are those of a user's command."""
    from ..evaluation.own_process import segment_commands

    choice = choice_of(args, "int8").beside(precision)
    build, segment = segment_commands(str(package.folder), scan, choice, _flags(args), output)
    _run_command(build, task)
    return _run_command(segment, task)


def _flags(args: argparse.Namespace) -> list[str]:
    """The arguments of this command that those for one scan take, too, beside engine, precision and device."""
    flags: list[str] = []
    for name, values in (
        ("--batch", [args.batch]),
        ("--threads", [args.threads]),
        ("--patch", args.patch),
        ("--overlap", [args.overlap] if args.overlap is not None else None),
        ("--memory", [args.memory] if args.memory else None),
        ("--resample", [args.resample] if args.resample else None),
        ("--mirror-axes", [",".join(map(str, args.mirror_axes))] if args.mirror_axes else None),
    ):
        flags += [name, *map(str, values)] if values else []
    for flag in ("skip_air", "no_range_check", "allow_gaps", "allow_tilt"):
        if getattr(args, flag):
            flags.append("--" + flag.replace("_", "-"))
    if args.mirroring is not None:
        flags.append("--mirroring" if args.mirroring else "--no-mirroring")
    return [*flags, "--nifti-form", args.nifti_form]


def _run_command(arguments: list[str], task: Task) -> dict[str, Any]:
    """Run ``medquant`` in a process of its own; what it prints with ``--json``; errors as :func:`..evaluation.own_process.run_command`."""
    from ..evaluation.own_process import run_command

    return run_command(arguments, task.check)


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
