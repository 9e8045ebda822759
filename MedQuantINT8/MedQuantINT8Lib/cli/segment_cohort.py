"""The part of ``medquant segment`` that takes many scans: a folder, a list, or several named one by one."""

from __future__ import annotations

import argparse
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import single_devices
from .arguments import device, number, whole
from .common import choice_of, options_of, packages_of
from .terminal import say, warn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..cohort.journal import Record
    from ..cohort.pool import CasePool
    from ..cohort.sources import Sources
    from ..progress import Task

#: Commas between devices, not between the numbers of one.
_EACH_DEVICE = re.compile(r",(?![0-9])")
#: Lines of what was left out that a terminal gets; the page has them all.
_LEFT_OUT_LINES = 10
_POOL_OPTIONS = ("devices", "workers", "time_limit", "cluster", "retries")


def devices(text: str) -> tuple[str, ...]:
    """A type for argparse: devices joined by commas, or "all"."""
    if text == "all":
        return ("all",)
    # gpu:0,1 is gpu:0,gpu:1.
    parts = [part for name in _EACH_DEVICE.split(text) for part in single_devices(device(name))]
    return tuple("all" if part == "gpu:all" else part for part in parts)


def add_pool_options(command: argparse.ArgumentParser) -> None:
    """Where many cases run; the same for every command that takes many."""
    group = command.add_argument_group("many cases")
    group.add_argument(
        "--devices",
        type=devices,
        metavar="DEVICES",
        help="a worker for each: gpu:0,1 or all (every GPU) or cpu (default: a worker for each device of --device)",
    )
    group.add_argument(
        "--workers",
        type=whole(1, 256),
        metavar="N",
        help="workers in all, dealt out to the devices (default: one each)",
    )
    group.add_argument(
        "--time-limit",
        type=number(0, 10_000_000, above=True),
        metavar="SECONDS",
        help="give a case up after so long without progress, as on a stalled network drive (default: 3600)",
    )
    group.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="run on a Ray cluster: local (one on this machine), auto (the one it belongs to) or HOST:PORT; --workers counts on each node",
    )
    group.add_argument(
        "--retries",
        type=whole(0, 100),
        metavar="N",
        help="run a case again whose worker or node was lost (default: 2)",
    )


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

    options = (*_POOL_OPTIONS, "type", "bids", "resume")
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


def check_gpus(devices: Sequence[str]) -> None:
    """Look whether GPUs that were named by their numbers are there; without cuda-python the engine that does without it will say so.

    Raises:
        EngineError: one is not there, or is too old.
    """
    from contextlib import suppress

    from ..engines.cuda.device import choose_gpu
    from ..errors import DependencyError

    for name in devices:
        if name.startswith("gpu:"):
            with suppress(DependencyError):
                choose_gpu(name)


def worker_devices(args: argparse.Namespace) -> list[str]:
    """The device of each worker.

    Raises:
        InputError: --device and --devices together, or --devices all without a GPU.
        EngineError: a GPU that is not there.
    """
    from ..engines.cuda.setup_hints import gpu_names
    from ..engines.cuda.several import gpus_of
    from ..errors import InputError

    if args.devices and args.device != "auto":
        raise InputError("--device and --devices were given.", "Give one of them.")
    chosen = list(args.devices or gpus_of(args.device))
    if "all" in chosen:
        if len(chosen) > 1:
            raise InputError("--devices: all GPUs, and a device by itself, were given.", "Give one of both.")
        chosen = [name for name, _ in gpu_names()]
        if not chosen:
            raise InputError("--devices all: no NVIDIA GPU can be used here.", "Give --devices cpu.")
    elif args.devices:
        check_gpus(chosen)
    count = args.workers or len(chosen)
    if count < len(chosen):
        raise InputError(f"{count} worker(s) cannot keep {len(chosen)} devices.", "Give as many workers or more.")
    return [chosen[n % len(chosen)] for n in range(count)]


def uses_pool(args: argparse.Namespace) -> bool:
    """Whether a command that can do without was asked for workers or a cluster: any option of :func:`add_pool_options` says so."""
    return any(getattr(args, name) is not None for name in _POOL_OPTIONS)


def pool_of(args: argparse.Namespace, devices: list[str] | None = None) -> CasePool:
    """The workers that the options of :func:`add_pool_options` ask for.

    Args:
        devices: of each worker, where they are known.

    Raises:
        InputError: options that do not go together.
        DependencyError: a cluster without Ray.
    """
    from ..cohort.pool import RETRIES, TIME_LIMIT
    from ..errors import InputError

    if args.cluster is None:
        return _local_pool(args, worker_devices(args) if devices is None else devices)
    time_limit = TIME_LIMIT if args.time_limit is None else args.time_limit
    retries = RETRIES if args.retries is None else args.retries
    from ..cohort.ray_cluster import ClusterOptions, check_address
    from ..cohort.ray_pool import RayPool

    if args.devices or args.device not in ("auto", "cpu", "gpu"):
        raise InputError(
            "On a cluster every GPU is used, or every processor.", "Give --device gpu, --device cpu or none of both."
        )
    options = ClusterOptions(check_address(args.cluster), args.workers or 0, retries, time_limit)
    return RayPool(options, args.device)


def _local_pool(args: argparse.Namespace, devices: list[str]) -> CasePool:
    from ..cohort.local_pool import LocalPool
    from ..cohort.pool import RETRIES, TIME_LIMIT

    time_limit = TIME_LIMIT if args.time_limit is None else args.time_limit
    return LocalPool(devices, time_limit, retries=RETRIES if args.retries is None else args.retries)


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
    pool.begin("segment")
    try:
        result = _segmented(args, folder, pool, task)
    finally:
        pool.close()
    say_result(args, folder, result)


@contextmanager
def begun_workers(args: argparse.Namespace) -> Iterator[CasePool | None]:
    """Yield workers that were begun at once where their devices are named, before anything else is looked at; else None."""
    named = args.devices or ()
    if (
        not named
        or "all" in named
        or args.device != "auto"
        or args.cluster is not None
        or (args.workers or 256) < len(named)
    ):
        yield None
        return
    pool = _local_pool(args, [named[n % len(named)] for n in range(args.workers or len(named))])
    pool.begin("segment")
    try:
        yield pool
    finally:
        pool.close()


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
