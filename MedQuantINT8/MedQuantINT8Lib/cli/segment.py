"""``medquant segment``: segment a scan, from its file to segmentation files, measurements and pictures; many scans are :mod:`.segment_cohort`'s."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
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
    check_order,
    choice_lines,
    choice_of,
    options_of,
    packages_of,
    reader_of,
)
from .segment_cohort import add_cohort_options
from .terminal import print_result

if TYPE_CHECKING:
    from ..inference.result_files import OutputOptions
    from ..inference.segmenter import SegmentationOptions
    from ..inference.task_model import LoadedModel
    from ..models.spec import Label
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
        "segment spleen dicom_folder --output spleen.dcm --output masks/",
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
        action="append",
        help="X.seg.nrrd, a label map as .nii.gz, .nrrd, .mha, a DICOM segmentation as .dcm, or a folder (ending in /) for one mask a structure; "
        "may be given several times (default: X.seg.nrrd beside the scan, under a free name); for many scans a folder of segmentations",
    )
    command.add_argument(
        "--dicom-segmentation",
        choices=["binary", "labelmap"],
        help="the kind of .dcm: one bit for each structure, or one number a voxel, which fewer programs read (default: binary)",
    )
    command.add_argument(
        "--statistics", metavar="FILE", help="volume, place and intensities of each structure, as .csv or .json"
    )
    command.add_argument(
        "--margins", metavar="FILE", help="by how much each voxel's label won, 0 to 1, as .nii.gz, .nrrd, .mha"
    )
    command.add_argument("--picture", metavar="FILE", help="three slices with the structures in their colors, as .png")
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
    from .pool_options import begun_workers
    from .segment_cohort import check_single, is_cohort, run_segment_cohort

    args.scans = args.scans or []
    with begun_workers(args) as pool:
        check_order(args)
        if is_cohort(args):
            run_segment_cohort(args, pool, task)
            return
    check_single(args)
    args.scan = args.scans[0]
    _run_one(args, task)


def _run_one(args: argparse.Namespace, task: Task) -> None:
    from ..files import split_paths
    from ..imaging.volume_files import scan_paths
    from ..inference.region_run import chosen_labels
    from ..inference.task_model import description_of, load_model
    from .overwriting import overwriting

    model = packages_of(args)
    scan = scan_paths(args.scan)
    with load_model(model) as loaded:
        description = description_of(loaded)
        options = options_of(args, description.labels)
        labels = chosen_labels(description.labels, options.structures, description.name)
        outputs = _outputs(args, description.name)
        outputs.check(labels, [*split_paths(model), *scan], scan)
        with overwriting(args, outputs.files(labels)):
            value, lines = _segment_to(outputs, labels, loaded, options, args, task)
    print_result(args, value, *lines)


def _outputs(args: argparse.Namespace, model: str) -> OutputOptions:
    """Return the files that were asked for; without any segmentation among them one beside the scan."""
    from ..imaging.volume_files import scan_paths
    from ..inference.result_files import OutputOptions
    from .overwriting import segmentation_beside

    paths = args.output or [str(segmentation_beside(scan_paths(args.scan)[0], model))]
    return OutputOptions(tuple(paths), args.dicom_segmentation, args.statistics, args.margins, args.picture)


def _segment_to(
    outputs: OutputOptions,
    labels: tuple[Label, ...],
    model: LoadedModel,
    options: SegmentationOptions,
    args: argparse.Namespace,
    task: Task,
) -> tuple[dict[str, Any], list[str]]:
    """Segment and write the files; what there is to say of it as JSON, and as lines for people."""
    from ..evaluation.reports.report import run_json
    from ..imaging.segmentation_files import present_labels
    from ..imaging.volume_files import scan_paths
    from ..inference.pipeline import segment
    from ..inference.result_files import prepare, result_of, write_results
    from .overwriting import free_path

    choice = choice_of(args)
    began = time.perf_counter()
    with task.stage("reading"):
        volume = reader_of(args, task)(scan_paths(args.scan))
        source = prepare(outputs, volume, labels)
    run = segment(model, volume, choice, outputs.with_margins(options), task, time.perf_counter() - began)
    began = time.perf_counter()
    with task.stage("writing"):
        if not args.output:
            # Something may have got that name meanwhile.
            outputs = replace(outputs, segmentations=(str(free_path(Path(outputs.segmentations[0]))),))
        written, notes = write_results(outputs, result_of(run, model, labels, source), task)
    run.result.notes += notes
    run.seconds["writing"] = time.perf_counter() - began
    run.seconds["total"] += run.seconds["writing"]
    voxels = present_labels(run.result.labels, labels)
    structures = [
        {"value": label.value, "name": label.name, "ml": voxels[label.value] * volume.grid.voxel_ml} for label in labels
    ]
    value = {
        **run_json(args.scan, run),
        "output": written[0]["path"],
        "outputs": written,
        "structures": structures,
    }
    engine = run.engine["description"]
    return value, [
        f"wrote {', '.join(entry['path'] for entry in written)}: structures found: {sum(v > 0 for v in voxels.values())} of {len(voxels)}, {run.seconds['total']:.2f} s "
        f"({run.seconds['network']:.2f} s in the network)",
        f"engine: {run.engine['title']}, {run.engine['precision']}: {engine['verdict']}, {100 * engine['int8_mac_share']:.1f} % of multiply-accumulates in INT8",
        *choice_lines(run.engine["choice"]),
        *_second_look(run.ranges),
        *(
            f"note: {note}"
            for note in [*run.result.notes, *filter(None, [run.engine["note"]])]
            if note != (run.engine["choice"] or {}).get("reason")
        ),
    ]


def _second_look(ranges: dict[str, Any] | None) -> list[str]:
    """What the windows have shown that FP32 has run as well; a warning about them is among the notes."""
    look = (ranges or {}).get("second_look")
    if ranges is None or look is None:
        return []
    agreement = "FP32 finds nothing in them" if look["agreement"] is None else f"agreement {look['agreement']:.4f}"
    worst = f", worst: {look['worst']['name']} {look['worst']['dice']:.4f}" if look["worst"] else ""
    share = f"{100 * ranges['share_of_time']:.1f} % of the time"
    return [
        f"second look in FP32: {look['windows']} window(s), {agreement}{worst} ({look['expected']:.4f} expected), {share}"
    ]
