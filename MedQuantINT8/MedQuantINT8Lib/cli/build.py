"""``medquant build``: build the engine of a model for this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .common import (
    Add,
    add_command,
    add_model,
    add_reading_options,
    add_running_options,
    choice_lines,
    choice_of,
    options_of,
    packages_of,
    reader_of,
)
from .terminal import print_result

if TYPE_CHECKING:
    from ..imaging.volume import Volume
    from ..models.package import ModelPackage
    from ..progress import Task


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    command = add_command(
        add,
        "build",
        run,
        "build the engine for this machine",
        "build spleen --scan scan1.nii.gz --precision int8",
    )
    add_model(command)
    command.add_argument("--scan", help="a scan to compare the engine with the simulation on")
    add_running_options(command)
    add_reading_options(command)


def run(args: argparse.Namespace, task: Task) -> None:
    """Build the engine, or find it in the cache, and describe it; of a task that of each network."""
    from ..imaging.volume_files import scan_paths
    from ..inference.task_model import load_model, named_packages
    from ..models.task_package import is_task

    model = packages_of(args)
    several = is_task(model)
    with load_model(model if several else packages_of(args, one=True)) as loaded:
        packages = named_packages(loaded)
        reader = reader_of(args, task)
        scan = reader(scan_paths(args.scan)) if args.scan else None
        values, lines = list[dict[str, Any]](), list[str]()
        for name, package in packages:
            task.part = f"{name}: " if several else ""
            value, text = _build(args, package, scan, task)
            values.append({"network": name, **value} if several else value)
            lines += [f"{name}: {line}" for line in text] if several else text
        task.part = ""
    print_result(args, {"networks": values} if several else values[0], *lines)


def _build(
    args: argparse.Namespace, package: ModelPackage, scan: Volume | None, task: Task
) -> tuple[dict[str, Any], list[str]]:
    """Build the engine of one package; what there is to say of it as JSON, and as lines for people."""
    from ..inference.pipeline import build

    engine = build(package, choice_of(args), options_of(args), scan, task)
    description = engine.describe()
    value: dict[str, Any] = {
        "folder": str(engine.entry.folder),
        "cached": engine.cached,
        "note": engine.note,
        "choice": engine.choice.to_json() if engine.choice else None,
        "fidelity": engine.fidelity.to_json() if engine.fidelity else None,
        "description": description.to_json(),
    }
    lines = [
        f"{'found' if engine.cached else 'built'} {engine.backend.title}, {engine.options.precision}: {description.verdict}, "
        f"{100 * description.int8_mac_share:.1f} % of multiply-accumulates in INT8"
    ]
    if engine.fidelity:
        lines.append(
            f"real against simulated INT8: relative error {engine.fidelity.relative_error:.4f}, {100 * engine.fidelity.label_disagreement:.3f} % other labels"
        )
    lines += choice_lines(value["choice"])
    if engine.note and engine.note != (value["choice"] or {}).get("reason"):
        lines.append(f"note: {engine.note}")
    engine.close()
    return value, lines
