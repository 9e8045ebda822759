"""``medquant models``: the catalogue; get, show and remove models."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..importers import catalogue
from ..models.installed import installed_models, models_root, remove
from ..models.package import peek
from ..outputs import check_output_package
from ..progress import Task
from .overwriting import overwriting
from .terminal import ask, print_result, say

_WIDTH, _NAME = 80, 32


def run(args: argparse.Namespace, task: Task) -> None:
    if args.action == "list":
        _list(args)
    elif not args.name:
        raise InputError(f"Which model shall be {args.action}?", f"Give its name: medquant models {args.action} NAME")
    elif args.action == "remove":
        freed = remove(args.name)
        print_result(
            args, {"removed": args.name, "bytes": freed}, f"removed {args.name}: {freed / 1e6:.1f} MB are free again"
        )
    elif args.action == "show":
        item = catalogue.entry(args.name)
        print_result(args, _json(item), *_lines(item))
    else:
        _get(args, task)


def _list(args: argparse.Namespace) -> None:
    known, present = catalogue.entries(), installed_models()
    rows = [{**_json(item), "installed": name in present} for name, item in known.items()]
    rows = [_own(name, paths[0]) for name, paths in present.items() if name not in known] + rows
    words = (args.name or "").lower()
    rows = [row for row in rows if words in json.dumps(row).lower()]
    print_result(
        args,
        {"models": rows},
        *(_table(rows) or ["no model fits"]),
        "* installed;  medquant models show NAME, medquant models get NAME",
    )


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Name, modality, number of structures and title in columns of 80 together; what is longer goes on in the next line, nothing is cut."""
    room = min(_NAME, max([len(row["name"]) for row in rows], default=0))
    lines = []
    for row in rows:
        name = f"{'*' if row['installed'] else ' '} {row['name']}"
        if len(row["name"]) > room:
            lines.append(name)
            name = ""
        # The number of structures has a column of its own.
        title = row["title"].removeprefix(f"{row['structures']} ")
        head = f"{name:{room + 2}} {row['modality']:>3} {row['structures']:>4}  "
        parts = textwrap.wrap(title, _WIDTH - len(head)) or [""]
        lines += [(" " * len(head) if number else head) + part for number, part in enumerate(parts)]
    return lines


def _own(name: str, path: Path) -> dict[str, Any]:
    """A row for an installed model that is not of the catalogue: the demo, and the user's own."""
    spec, _files = peek(path)
    return {
        "name": name,
        "title": spec.title or spec.name,
        "modality": spec.modality,
        "network": "-",
        "structures": len(spec.labels),
        "labels": [label.name for label in spec.labels],
        "license": spec.license,
        "installed": True,
    }


def _json(item: catalogue.CatalogueEntry) -> dict[str, Any]:
    return {
        "name": item.name,
        "title": item.title,
        "task": item.task,
        "modality": item.modality,
        "network": item.network,
        "structures": item.structures,
        "labels": list(item.labels),
        "license": item.license,
        "homepage": item.homepage,
        "url": item.url,
        "size_bytes": item.size_bytes,
        "citation": item.citation,
    }


def _lines(item: catalogue.CatalogueEntry) -> list[str]:
    more = f" and {item.structures - len(item.labels)} more" if item.structures > len(item.labels) else ""
    size = f", {item.size_bytes / 1e6:.0f} MB" if item.size_bytes else ""
    return [
        f"{item.name}: {item.title}",
        f"  {item.task}; {item.modality}; {item.network}",
        f"  finds     {', '.join(item.labels)}{more}",
        f"  license   {item.license} ({item.license_url})",
        f"  cite      {item.citation}",
        f"  from      {(item.url or item.homepage) + size}",
        *([f"  by hand   {item.by_hand}"] if item.by_hand else []),
        *(["  holds Python code that has to be run: --trust-code"] if item.needs_trust else []),
    ]


def _get(args: argparse.Namespace, task: Task) -> None:
    item = catalogue.entry(args.name)
    if not args.json:
        say(*_lines(item))
    if not args.accept_license and not _agreed(args):
        raise InputError(f"The license of {item.name} was not accepted.", "Read it, and give --accept-license.")
    if args.source:
        check_output_package(models_root() / item.name / "package", [args.source])
    with overwriting(args, [models_root() / item.name]):
        packages = catalogue.install(item, Path(args.source) if args.source else None, task, trust_code=args.trust_code)
    folders = [str(package.folder) for package in packages]
    print_result(
        args,
        {"name": item.name, "packages": folders},
        f"installed {item.name} in {models_root_of(folders)}",
        f"next: medquant quantize {args.name if len(folders) == 1 else folders[0]} --calibrate SCANS",
    )


def models_root_of(folders: list[str]) -> str:
    return str(Path(folders[0]).parent)


def _agreed(args: argparse.Namespace) -> bool:
    return not args.json and ask("Do you accept this license?")
