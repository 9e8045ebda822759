"""``medquant cache``: the engines that were built on this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import Add, add_command
from .terminal import print_result

if TYPE_CHECKING:
    from ..progress import Task


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    command = add_command(add, "cache", run, "engines that were built on this machine", "cache list")
    command.add_argument("action", choices=["list", "clear"])
    command.add_argument("--model", help="only engines of this model")


def run(args: argparse.Namespace, task: Task) -> None:
    """List the engines, or remove them."""
    from ..engines import cache as engines
    from ..engines import choices

    if args.action == "clear":
        count = engines.clear(args.model)
        choices.forget_failures()
        print_result(args, {"removed": count}, f"removed {count} engine(s)")
        return
    entries = [e for e in engines.entries() if args.model in (None, e.record["key"].get("model_name"))]
    rows = [
        {"folder": str(e.folder), "bytes": e.bytes, "built": e.record.get("built"), **e.record["key"]} for e in entries
    ]
    print_result(
        args,
        {"engines": rows},
        *(
            f"{row['model_name']:28}{row['engine']:13}{row['options']['precision']:6}{'x'.join(map(str, row['options']['patch'])):14}{row['bytes'] / 1e6:8.1f} MB  {row['built']}"
            for row in rows
        )
        if rows
        else ("no engines",),
    )
