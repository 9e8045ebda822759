"""``medquant demo``: the whole road on a synthetic abdomen or a user's scan; what it does is in :mod:`.demo_run`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import Add, add_command, add_force
from .terminal import print_result

if TYPE_CHECKING:
    from ..progress import Task


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    command = add_command(
        add,
        "demo",
        run,
        "calibrate, quantize, segment and report, on a synthetic abdomen or your own scan: needs no download",
        "demo --output demo-output",
    )
    command.add_argument(
        "--output", default="demo-output", help="folder for segmentation, picture and report (default: %(default)s)"
    )
    add_force(command)
    command.add_argument(
        "--scan",
        metavar="FILE",
        help="a scan of your own instead of the synthetic abdomen: NIfTI, NRRD, MetaImage or a DICOM folder",
    )


def run(args: argparse.Namespace, task: Task) -> None:
    """Run the demo into its folder."""
    from ..outputs import check_output_folder
    from .demo_run import FILES, run_demo
    from .overwriting import overwriting

    check_output_folder(args.output, FILES)
    with overwriting(args, [Path(args.output) / name for name in FILES]):
        value = run_demo(Path(args.output), task, args.scan)
    print_result(args, value, *value["lines"])
