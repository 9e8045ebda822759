"""The part of ``medquant segment`` that takes many scans: a folder, a list, or several named one by one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import choice_of, options_of, packages_of
from .pool_options import POOL_OPTIONS, add_pool_options, most_cases, pool_of, worker_devices
from .terminal import say, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..cohort.journal import Record
    from ..cohort.pool import CasePool
    from ..cohort.sources import Sources
    from ..progress import Task

#: Lines of what was left out that a terminal gets; the page has them all.
_LEFT_OUT_LINES = 10


def add_cohort_options(command: argparse.ArgumentParser) -> None:
    """What ``medquant segment`` has for many scans."""
    add_pool_options(command)
    group = command.add_argument_group("many scans, with --output FOLDER")
    group.add_argument(
        "--list",
        metavar="CASES.CSV",
        help="cases from a CSV file with the heading id,image (a column for each channel; labels and series may follow)",
    )
    group.add_argument(
        "--type", metavar="TYPE", help="of the outputs: seg.nrrd, nii.gz, nrrd or mha (default: seg.nrrd)"
    )
    group.add_argument(
        "--bids", metavar="SUFFIX", help="of a BIDS folder: the suffix of each channel, such as T1w or T1w,FLAIR"
    )
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="go on with the journal in the output folder (default: where there is one that fits)",
    )


def is_cohort(args: argparse.Namespace) -> bool:
    """Whether many scans are meant: several, a list, a pattern, or a folder that is more than one DICOM series.

    Raises:
        InputError: there is neither a scan nor a list.
    """
    import glob

    from ..errors import InputError
    from ..files import there
    from ..imaging.segmentation_files import SINGLE_EXTENSIONS

    if args.list is None and not args.scans:
        raise InputError("No scan was given.", "Give a scan, a folder of scans, or --list CASES.CSV.")
    if args.list is not None or len(args.scans) != 1:
        return True
    scan = args.scans[0]
    if glob.has_magic(scan) and not there(scan):
        return True
    if not Path(scan).is_dir():
        return False
    names_file = any(output.lower().endswith(SINGLE_EXTENSIONS) for output in args.output or [])
    return not (args.series or names_file or _one_series(Path(scan)))


def _one_series(folder: Path) -> bool:
    """Whether a folder is one scan: it holds files of exactly one DICOM series, and neither scan files nor folders."""
    from ..cohort.dicom_sources import DicomSearch
    from ..imaging.volume_files import EXTENSIONS

    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if any(path.is_dir() or path.name.lower().endswith(EXTENSIONS) for path in files):
        return False
    search = DicomSearch(folder)
    search.look(files, lambda: None)
    return search.count <= 1


def _no_series(folder: Path) -> bool:
    """Whether a folder holds scan files or folders, and no file of a DICOM series."""
    from ..cohort.dicom_sources import DicomSearch
    from ..imaging.volume_files import EXTENSIONS

    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    search = DicomSearch(folder)
    search.look(files, lambda: None)
    return search.count == 0 and any(path.is_dir() or path.name.lower().endswith(EXTENSIONS) for path in files)


def check_single(args: argparse.Namespace) -> None:
    """Refuse what has no meaning for a single scan.

    Raises:
        InputError: an option for many scans was given.
    """
    from ..errors import InputError

    options = (*POOL_OPTIONS, "type", "bids", "resume")
    if given := [name for name in options if getattr(args, name) is not None]:
        raise InputError(
            f"--{given[0].replace('_', '-')} is for many scans, but one was given.",
            "Leave it out, or give a folder of scans.",
        )
    folder = Path(args.scans[0])
    if folder.is_dir() and not args.series and _no_series(folder):
        raise InputError(
            f"{folder} holds scans, or folders, but is no DICOM series, and {args.output[0]} is for one scan.",
            "Give one scan, or --output FOLDER for all that are in it.",
        )


def run_segment_cohort(args: argparse.Namespace, pool: CasePool | None, task: Task) -> None:
    """Segment every case that is not done yet, and write cohort.csv and cohort.html.

    Raises:
        CasesFailed: some cases could not be segmented.
    """
    folder = _output_folder(args)
    devices = None if args.cluster is not None else worker_devices(args)
    if pool is None:
        pool = pool_of(args, devices)
    # The workers load their libraries while this process loads its own, and looks for the cases.
    pool.begin("segment", most_cases(args))
    try:
        result = _segmented(args, folder, pool, task)
    finally:
        pool.close()
    say_result(args, folder, result)


def _segmented(args: argparse.Namespace, folder: Path, pool: CasePool, task: Task) -> Any:
    """Segment every case; the result of the cohort."""
    from ..cohort.driver import CohortOptions
    from ..cohort.segment import CohortRequest, segment_cohort
    from ..files import split_paths
    from ..imaging.volume_files import ReadOptions
    from ..models.task_package import describe

    model = packages_of(args)
    request = CohortRequest(
        model,
        tuple(args.scans),
        folder,
        choice_of(args),
        options_of(args, describe(split_paths(model)[0]).labels),
        ReadOptions(args.series, args.allow_gaps, args.allow_tilt, args.nifti_form),
        args.list,
        args.type or "seg.nrrd",
        suffixes=tuple(args.bids.split(",")) if args.bids else (),
        resuming=CohortOptions(args.resume, args.force),
    )
    return segment_cohort(
        request,
        pool,
        task,
        lambda record, already: _say_case(args, record, already),
        _say_left_out,
    )


def _output_folder(args: argparse.Namespace) -> Path:
    from ..errors import InputError
    from ..imaging.segmentation_files import SINGLE_EXTENSIONS

    single = ("dicom_segmentation", "statistics", "margins", "picture")
    if given := [name for name in single if getattr(args, name, None) is not None]:
        raise InputError(
            f"--{given[0].replace('_', '-')} is for one scan, but many were given.", "Leave it out, or give one scan."
        )
    if not args.output:
        raise InputError("Several scans need a folder for their outputs.", "Give --output FOLDER.")
    if len(args.output) > 1:
        raise InputError(
            "Several scans are written into one folder, but several outputs were given.", "Give one --output FOLDER."
        )
    folder = Path(args.output[0])
    if (folder.exists() and not folder.is_dir()) or args.output[0].lower().endswith(SINGLE_EXTENSIONS):
        raise InputError(f"{folder} is no folder, and several scans need one.", "Give --output FOLDER.")
    return folder


def _say_left_out(sources: Sources) -> None:
    for item in sources.skipped[:_LEFT_OUT_LINES]:
        warn(f"note: left out {item.path}: {item.reason}")
    if len(sources.skipped) > _LEFT_OUT_LINES:
        warn(f"note: {len(sources.skipped) - _LEFT_OUT_LINES} more were left out; cohort.html lists them")


def _say_case(args: argparse.Namespace, record: Record, already: bool) -> None:
    import json

    from .terminal import flush

    if args.json:
        say(json.dumps({**record, "already": already}))
        flush()


def say_result(args: argparse.Namespace, folder: Path, result: Any) -> None:
    """Say how a cohort ended.

    Raises:
        CasesFailed: some cases failed.
    """
    from ..cohort.outliers import outliers
    from ..cohort.report import CSV, PAGE, table_lines
    from ..errors import CasesFailed

    done = len(result.records) - len(result.failed)
    lines = [
        f"{done} of {len(result.records)} cases done" + (f" ({len(result.already)} before)" if result.already else "")
    ]
    if first := outliers(result.records):
        lines.append(f"to look at first: {_listed([item.id for item in first])}")
    lines += [f"note: {note}" for note in result.notes]
    if result.failed:
        lines += [f"failed: {len(result.failed)}", *table_lines(result.failed)]
    lines.append(f"wrote {folder / CSV} and {folder / PAGE}")
    if not args.json:
        say(*lines)
    if result.failed:
        raise CasesFailed(
            f"{len(result.failed)} of {len(result.records)} cases failed.",
            "The same command repeats those alone.",
        )


def _listed(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:5]) + (f" and {len(distinct) - 5} more" if len(distinct) > 5 else "")
