"""Where many cases run: the options of every command that takes many, and the workers that they ask for."""

from __future__ import annotations

import argparse
import itertools
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..devices import single_devices
from .arguments import device, number, whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..cohort.pool import CasePool

#: Commas between devices, not between the numbers of one.
_EACH_DEVICE = re.compile(r",(?![0-9])")
#: Workers that ``--workers`` may ask for.
MOST_WORKERS = 256
#: The names of the options that :func:`add_pool_options` adds.
POOL_OPTIONS = ("devices", "workers", "time_limit", "cluster", "retries")


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
        type=whole(1, MOST_WORKERS),
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
    return any(getattr(args, name) is not None for name in POOL_OPTIONS)


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


def most_cases(args: argparse.Namespace) -> int:
    """Return the number of cases that there can be, as far as names tell it: a case for each file; no more than there can be workers."""
    count = 0
    for source in args.scans or ():
        files = (name for _, _, names in os.walk(source) for name in names) if Path(source).is_dir() else (source,)
        count += sum(1 for _ in itertools.islice(files, MOST_WORKERS - count))
        # The files that match a pattern are not counted.
        if count >= MOST_WORKERS or any(letter in source for letter in "*?["):
            return MOST_WORKERS
    return MOST_WORKERS if args.list is not None else count


@contextmanager
def begun_workers(args: argparse.Namespace) -> Iterator[CasePool | None]:
    """Yield workers that were begun at once where their devices are named, before anything else is looked at; else None."""
    named = args.devices or ()
    if (
        not named
        or "all" in named
        or args.device != "auto"
        or args.cluster is not None
        or (args.workers or MOST_WORKERS) < len(named)
    ):
        yield None
        return
    pool = _local_pool(args, [named[n % len(named)] for n in range(args.workers or len(named))])
    pool.begin("segment", most_cases(args))
    try:
        yield pool
    finally:
        pool.close()
