"""``medquant segment``: segment a scan, from its file to a segmentation file; many scans are :mod:`.segment_cohort`'s."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    SCAN,
    Add,
    add_command,
    add_force,
    add_model,
    add_reading_options,
    add_region_options,
    add_running_options,
    choice_lines,
    choice_of,
    options_of,
    packages_of,
    reader_of,
)
from .segment_cohort import add_cohort_options
from .terminal import print_result

if TYPE_CHECKING:
    from ..inference.task_model import LoadedModel
    from ..progress import Task


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    command = add_command(
        add,
        "segment",
        run,
        "segment a scan, or many",
        "segment demo scan.nii.gz",
        "segment spleen dicom_folder --output spleen.nii.gz --device cpu",
        "segment spleen scans --output results --devices all",
        "segment total scan.nii.gz --structures liver,spleen",
    )
    add_model(
        command,
        "model package, task or installed model; or several packages joined by commas, whose class scores are averaged",
    )
    scans = command.add_argument(
        "scans", nargs="+", metavar="SCAN", help=f"{SCAN}; several, a folder of them or a pattern need --output FOLDER"
    )
    # A list of cases stands for them.
    scans.required = False
    command.add_argument(
        "--output",
        "-o",
        help="X.seg.nrrd, or a label map as .nii.gz, .nrrd, .mha (default: beside the scan, under a free name); a folder for many scans",
    )
    add_force(command)
    command.add_argument(
        "--series",
        help="DICOM: series instance UID where a folder holds several; UID:N is the N-th stack of that series",
    )
    add_running_options(command)
    add_region_options(command)
    add_reading_options(command)
    add_cohort_options(command)


def run(args: argparse.Namespace, task: Task) -> None:
    """Segment the scan, or the scans, and say which structures were found and how."""
    from .segment_cohort import check_single, is_cohort, run_segment_cohort

    args.scans = args.scans or []
    if is_cohort(args):
        run_segment_cohort(args, task)
        return
    check_single(args)
    args.scan = args.scans[0]
    _run_one(args, task)


def _run_one(args: argparse.Namespace, task: Task) -> None:
    from ..files import split_paths
    from ..imaging.segmentation_files import check_output_path, output_files
    from ..imaging.volume_files import scan_paths
    from ..inference.task_model import description_of, load_model
    from .overwriting import overwriting, segmentation_beside

    model = packages_of(args)
    inputs = [*split_paths(model), *scan_paths(args.scan)]
    if args.output is not None:
        check_output_path(args.output, inputs)
    with load_model(model) as loaded:
        output = (
            Path(args.output)
            if args.output is not None
            else segmentation_beside(scan_paths(args.scan)[0], description_of(loaded).name)
        )
        if args.output is None:
            check_output_path(output, inputs)
        with overwriting(args, output_files(output)):
            value, lines = _segment_to(output, loaded, args, task)
    print_result(args, value, *lines)


def _segment_to(
    output: Path, model: LoadedModel, args: argparse.Namespace, task: Task
) -> tuple[dict[str, Any], list[str]]:
    """Segment and write the label map; what there is to say of it as JSON, and as lines for people."""
    from ..evaluation.reports.report import run_json
    from ..imaging.segmentation_files import present_labels, write_segmentation
    from ..imaging.volume_files import scan_paths
    from ..inference.pipeline import segment
    from ..inference.region_run import chosen_labels
    from ..inference.task_model import description_of
    from .overwriting import free_path

    description = description_of(model)
    options = options_of(args, description.labels)
    labels = chosen_labels(description.labels, options.structures, description.name)
    began = time.perf_counter()
    with task.stage("reading"):
        volume = reader_of(args, task)(scan_paths(args.scan))
    run = segment(model, volume, choice_of(args), options, task, time.perf_counter() - began)
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
    engine = run.engine["description"]
    return value, [
        f"wrote {output}: structures found: {sum(v > 0 for v in voxels.values())} of {len(voxels)}, {run.seconds['total']:.2f} s "
        f"({run.seconds['network']:.2f} s in the network)",
        f"engine: {run.engine['title']}, {run.engine['precision']}: {engine['verdict']}, {100 * engine['int8_mac_share']:.1f} % of multiply-accumulates in INT8",
        *choice_lines(run.engine["choice"]),
        *(
            f"note: {note}"
            for note in [*run.result.notes, *filter(None, [run.engine["note"]])]
            if note != (run.engine["choice"] or {}).get("reason")
        ),
    ]
