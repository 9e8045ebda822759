"""``medquant networks``, ``reproduce`` and ``selftest``: the study's networks and tables, and what an engine proves."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import Add, add_command, add_force
from .terminal import print_result

if TYPE_CHECKING:
    from ..progress import Task


def add_parsers(add: Add) -> None:
    """State the three commands and their arguments."""
    add_command(add, "networks", networks, "the study's seven networks, as they can be made here", "networks")

    command = add_command(
        add,
        "reproduce",
        reproduce,
        "make a table of the study anew, on this machine",
        "reproduce --table networks --output tables",
    )
    command.add_argument("--table", choices=["networks", "sizes"], required=True, help="which")
    command.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="only these (default: all seven)")
    command.add_argument("--engine", default="auto", help="openvino, onnxruntime or auto (default: %(default)s)")
    command.add_argument("--output", help="folder for TABLE.json and TABLE.md; rows that are there are kept")
    add_force(command)

    command = add_command(
        add,
        "selftest",
        selftest,
        "prove an engine on this machine: INT8, FP16 and FP32 of known networks",
        "selftest --engine openvino",
    )
    command.add_argument(
        "--engine", default="auto", help="tensorrt, cuda_int8, tensorrt_rtx, openvino or auto (default: %(default)s)"
    )
    command.add_argument(
        "--networks",
        nargs="+",
        default=["demo"],
        metavar="NAME",
        help="demo, all, or names of medquant networks (default: demo)",
    )
    command.add_argument(
        "--output", default="selftest", help="folder for selftest.html and selftest.json (default: %(default)s)"
    )
    add_force(command)


def networks(args: argparse.Namespace, task: Task) -> None:
    """List the study's networks."""
    from ..importers.networks import STUDY

    rows = [
        {
            "name": n.name,
            "title": n.title,
            "data": n.data,
            "classes": n.classes,
            "study_mb": n.engine_mb,
            "free_size": n.free_size,
            "note": n.note,
        }
        for n in STUDY.values()
    ]
    lines = [f"{'name':12}{'network':12}{'data of the study':22}{'classes':>8}{'FP32 MB':>9}  patch"]
    for n in STUDY.values():
        sizes = f"multiples of {n.multiples[0]}" if n.free_size else "96 x 96 x 96 only"
        lines.append(f"{n.name:12}{n.title:12}{n.data:22}{n.classes:8}{n.engine_mb:9.1f}  {sizes}")
        lines += [f"{'':12}{n.note}"] if n.note else []
    print_result(args, {"networks": rows}, *lines)


def reproduce(args: argparse.Namespace, task: Task) -> None:
    """Make a table of the study anew."""
    from ..evaluation.study_tables import page
    from ..evaluation.study_tables import reproduce as run
    from ..outputs import check_output_folder
    from .overwriting import overwriting

    folder = Path(args.output) if args.output else None
    files = [f"{args.table}.json", f"{args.table}.md"]
    if folder:
        check_output_folder(folder, files)
    with overwriting(args, [folder / name for name in files] if folder else []):
        value = run(args.table, args.networks, args.engine, folder, task)
    print_result(args, value, *page(value))


def selftest(args: argparse.Namespace, task: Task) -> None:
    """Prove an engine on known networks.

    Raises:
        EngineError: a check failed.
    """
    from ..errors import EngineError
    from ..evaluation.selftest import FILES, lines_of, run_selftest
    from ..outputs import check_output_folder
    from .overwriting import overwriting

    check_output_folder(args.output, FILES)
    with overwriting(args, [Path(args.output) / name for name in FILES]):
        value = run_selftest(args.engine, args.networks, Path(args.output), task)
    print_result(args, value, *lines_of(value))
    if not value["passed"]:
        raise EngineError(
            "The self-test failed.", f"Look at {args.output}/selftest.html, and send it to the developers."
        )
