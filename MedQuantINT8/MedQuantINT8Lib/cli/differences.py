"""``medquant differences``: the boundary report of a scan, as files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import number
from .common import (
    PACKAGE,
    SCAN,
    Add,
    add_command,
    add_force,
    add_model,
    add_reading_options,
    add_region_options,
    add_running_options,
    choice_of,
    options_of,
    packages_of,
    reader_of,
)
from .terminal import print_result

if TYPE_CHECKING:
    from ..progress import Task

#: What is written into the folder.
FILES = ("differences.seg.nrrd", "regions.csv", "report.json", "report.html")


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    command = add_command(
        add,
        "differences",
        run,
        "where INT8 differs from FP32 on a scan: regions, margins, changed volumes",
        "differences spleen scan3.nii.gz --output differences",
    )
    add_model(command, f"{PACKAGE}, with both networks")
    command.add_argument("scan", help=SCAN)
    command.add_argument(
        "--output",
        "-o",
        default="differences",
        help="folder for differences.seg.nrrd, regions.csv, report.html and .json (default: %(default)s)",
    )
    add_force(command)
    command.add_argument(
        "--volume-change",
        type=number(0, 100_000),
        default=5.0,
        metavar="PERCENT",
        help="point out structures that change by more (default: %(default)s)",
    )
    add_running_options(command, precision=False)
    add_region_options(command)
    add_reading_options(command)


def run(args: argparse.Namespace, task: Task) -> None:
    """Segment in FP32 and INT8, and write what differs into a folder."""
    from ..evaluation.reports.pages import require_templates
    from ..files import split_paths
    from ..imaging.volume_files import scan_paths
    from ..outputs import check_output_folder
    from .overwriting import overwriting

    require_templates()
    folder = Path(args.output)
    model = packages_of(args)
    check_output_folder(folder, FILES, [*split_paths(model), *scan_paths(args.scan)])
    with overwriting(args, [folder / name for name in FILES]):
        _examine(args, task, folder, model)


def _examine(args: argparse.Namespace, task: Task, folder: Path, model: str) -> None:
    from ..evaluation.boundary import examine, region_labels, regions_csv
    from ..evaluation.reports.boundary_page import boundary_page, gains, verdict
    from ..files import write_json, write_text
    from ..imaging.segmentation_files import write_segmentation
    from ..imaging.volume_files import scan_paths
    from ..inference.task_model import description_of, load_model, require_int8

    with load_model(model) as loaded:
        require_int8(loaded)
        with task.stage("reading"):
            volume = reader_of(args, task)(scan_paths(args.scan))
        choice = choice_of(args, "int8")
        examination = examine(
            loaded, volume, choice, options_of(args, description_of(loaded).labels), task, change=args.volume_change
        )
        spec = description_of(loaded)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"scan": Path(args.scan).name, "model": spec.name, **examination.report}
    numbers, labels = region_labels(examination.differences, examination.differences.numbers)
    write_segmentation(folder / "differences.seg.nrrd", numbers, volume.ijk_to_ras, tuple(labels))
    write_text(folder / "regions.csv", regions_csv(report["differences"]["regions"]))
    write_json(folder / "report.json", report)
    write_text(
        folder / "report.html",
        boundary_page(
            f"{spec.title or spec.name}: FP32 beside INT8 on {Path(args.scan).name}",
            examination.report,
            examination.viewed(volume, spec.labels),
        ),
    )
    differences = report["differences"]
    share = (
        ""
        if differences["boundary_share"] is None
        else f"; {100 * differences['boundary_share']:.1f} % of it within one voxel of a boundary"
    )
    margin = (
        "" if differences["mean_margin"] is None else f"; FP32's mean margin there is {differences['mean_margin']:.3f}"
    )
    dice = "–" if report["mean_dice"] is None else f"{report['mean_dice']:.4f}"
    rows = [("", "FP32", "INT8"), *gains(examination.report)]
    width = 2 + max(len(text) for row in rows for text in row[1:])
    print_result(
        args,
        report,
        *(f"{what:22}{fp32:>{width}}{int8:>{width}}" for what, fp32, int8 in rows),
        f"mean Dice of INT8 with FP32: {dice}",
        f"{differences['ml']:.2f} ml differ in {differences['region_count']} regions{share}{margin}",
        verdict(examination.report),
        *(f"note: {text}" for text in volume.notes),
        f"wrote {folder / 'report.html'}",
    )
