"""``medquant models``: the catalogue; get, show and remove models."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Add, add_command, add_force, complete_public
from .model_lines import networks_of, own_row, package_lines, run_lines, run_of
from .terminal import ask, print_result, say

if TYPE_CHECKING:
    from ..importers.catalogue import CatalogueEntry
    from ..progress import Task

_WIDTH, _NAME = 80, 32


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    command = add_command(
        add,
        "models",
        run,
        "public models: list, show, get, remove",
        "models list spleen",
        "models show vista3d",
        "models show demo --classes",
        "models get liver.zip",
    )
    command.add_argument("action", nargs="?", choices=["list", "show", "get", "remove"], default="list")
    name = command.add_argument(
        "name",
        nargs="?",
        help="of the model; for list, words to look for; for get also a package: .zip, folder or web address",
    )
    name.completer = complete_public  # type: ignore[attr-defined]
    command.add_argument("--from", dest="source", metavar="PATH", help="get: a file or folder that was got by hand")
    command.add_argument("--sha256", metavar="HEX", help="get: what the digest of a package from the web has to be")
    command.add_argument("--classes", action="store_true", help="show: value, name and coded term of every structure")
    command.add_argument("--accept-license", action="store_true", help="get: the license was read and is accepted")
    command.add_argument("--trust-code", action="store_true", help="get: run Python code that comes with the model")
    add_force(command)


def run(args: argparse.Namespace, task: Task) -> None:
    """List, show, get or remove models."""
    from ..errors import InputError

    actions = {
        "list": lambda: _list(args),
        "show": lambda: _show(args),
        "get": lambda: _get(args, task),
        "remove": lambda: _remove(args),
    }
    for option, action in (("source", "get"), ("sha256", "get"), ("classes", "show")):
        if getattr(args, option) and args.action != action:
            name = "from" if option == "source" else option
            raise InputError(f"--{name} is for: medquant models {action}.", f"Leave it out with {args.action}.")
    if args.action != "list" and not args.name:
        raise InputError(
            f"Which model is meant by {args.action}?", f"Give its name: medquant models {args.action} NAME"
        )
    actions[args.action]()


def _remove(args: argparse.Namespace) -> None:
    from ..models.installed import remove

    freed = remove(args.name)
    print_result(
        args, {"removed": args.name, "bytes": freed}, f"removed {args.name}: {freed / 1e6:.1f} MB are free again"
    )


def _show(args: argparse.Namespace) -> None:
    from ..importers.catalogue import entries, entry
    from ..importers.catalogue_tasks import task_of
    from ..models.installed import installed_models

    known, present = entries(), installed_models()
    if args.classes:
        _show_classes(args, present)
    elif args.name in known:
        item = entry(args.name)
        run = run_of(present[args.name][0]) if args.name in present else {}
        if item.form == "task":
            run["networks"] = networks_of(task_of(item), present)
        value = {**_json(item), "installed": args.name in present, **run}
        print_result(args, value, *_lines(item), *run_lines(run))
    elif args.name in present or _is_package(args.name):
        row = own_row(args.name, present.get(args.name, [Path(args.name)])[0])
        print_result(args, {**row, "installed": args.name in present}, *package_lines(row), *run_lines(row))
    else:
        entry(args.name)  # which says what names are similar


def _show_classes(args: argparse.Namespace, present: dict[str, list[Path]]) -> None:
    """Every structure of a model that is installed, or of a package: the label map's value, the name, and the coded term."""
    from ..errors import InputError
    from ..importers.catalogue import entries
    from ..importers.catalogue_tasks import task_of
    from ..models.task_package import describe

    item = entries().get(args.name)
    if args.name in present:
        spec = describe(present[args.name][0])
    elif item is not None and item.form == "task":
        spec = task_of(item)
    elif item is not None:
        raise InputError(
            f"{args.name} is not installed, and the catalog holds no whole list of its structures.",
            f"Install it first: medquant models get {args.name}",
        )
    else:
        spec = describe(args.name)
    rows = []
    for label in spec.labels:
        term = label.terminology.type if label.terminology else None
        rows.append(
            {
                "value": label.value,
                "name": label.name,
                "color": list(label.color),
                "code": f"{term.scheme} {term.value}" if term else None,
                "meaning": term.meaning if term else None,
            }
        )
    width = max(len(label.name) for label in spec.labels)
    lines = [
        f"{row['value']:5}  {row['name']:{width}}" + (f"  {row['code']} ({row['meaning']})" if row["code"] else "")
        for row in rows
    ]
    print_result(args, {"name": args.name, "classes": rows}, *(line.rstrip() for line in lines))


def _list(args: argparse.Namespace) -> None:
    import json

    from ..importers.catalogue import entries
    from ..models.installed import installed_models

    known, present = entries(), installed_models()
    rows = [{**_json(item), "installed": name in present} for name, item in known.items()]
    rows = [own_row(name, paths[0]) for name, paths in present.items() if name not in known] + rows
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


def _is_package(name: str) -> bool:
    from ..models.package import MODEL_JSON
    from ..models.task_package import is_task

    return (Path(name) / MODEL_JSON).is_file() or (name.endswith(".zip") and Path(name).is_file()) or is_task(name)


def _json(item: CatalogueEntry) -> dict[str, Any]:
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


def _lines(item: CatalogueEntry) -> list[str]:
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
    from ..errors import InputError
    from ..importers.catalogue import entries, entry, install
    from ..models.installed import installed_models, models_root
    from ..outputs import check_output_package
    from .overwriting import overwriting

    if args.name not in entries() and (_is_address(args.name) or Path(args.name).exists()):
        _get_package(args, task)
        return
    if args.name not in entries() and args.name in installed_models():
        raise InputError(f"{args.name} is installed already.", f"See: medquant models show {args.name}")
    item = entry(args.name)
    if args.sha256:
        raise InputError("--sha256 is for a package from the web.", "The catalog holds the digests of its models.")
    if not args.json:
        say(*_lines(item))
    if not args.accept_license and not _agreed(args):
        raise InputError(f"The license of {item.name} was not accepted.", "Read it, and give --accept-license.")
    if args.source:
        check_output_package(models_root() / item.name / "package", [args.source])
    with overwriting(args, [models_root() / item.name]):
        packages = install(item, Path(args.source) if args.source else None, task, trust_code=args.trust_code)
    folders = [str(package.folder) for package in packages]
    print_result(
        args,
        {"name": item.name, "packages": folders},
        f"installed {item.name} in {models_root() / item.name}",
        *(
            f"next: medquant quantize {name} --calibrate SCANS"
            for name in item.needed or [args.name if len(folders) == 1 else folders[0]]
        ),
    )


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _get_package(args: argparse.Namespace, task: Task) -> None:
    """Install a package that somebody published: a file, a folder, or one at a web address."""
    from ..errors import InputError
    from ..importers.catalogue import download_package, install_package
    from ..importers.download import Checksum
    from ..models.installed import models_root
    from ..models.package import INT8, peek
    from ..models.task_package import is_task
    from .overwriting import overwriting

    if args.source or args.trust_code:
        option = "--from" if args.source else "--trust-code"
        raise InputError(f"{option} is for models of the catalog, and {args.name} is a package.", "Leave it out.")
    address = _is_address(args.name)
    if args.sha256 and not address:
        raise InputError("--sha256 is for a package from the web.", "Leave it out.")
    path = (
        download_package(args.name, task, Checksum("sha256", args.sha256.lower()) if args.sha256 else None)
        if address
        else Path(args.name)
    )
    try:
        if is_task(path):
            _get_task(args, path)
            return
        spec, files = peek(path)
        row = {**own_row(spec.name, path), "int8": INT8 in files}
        if not args.json:
            say(*package_lines(row))
        if not args.accept_license and not _agreed(args):
            raise InputError(f"The license of {spec.name} was not accepted.", "Read it, and give --accept-license.")
        with overwriting(args, [models_root() / spec.name]):
            package = install_package(path)
    finally:
        if address:
            path.unlink(missing_ok=True)
    print_result(
        args,
        {"name": spec.name, "packages": [str(package.folder)], "int8": row["int8"]},
        f"installed {spec.name} in {package.folder.parent}",
        f"next: medquant segment {spec.name} SCAN"
        if row["int8"]
        else f"next: medquant quantize {spec.name} --calibrate SCANS",
    )


def _get_task(args: argparse.Namespace, path: Path) -> None:
    """Install a task that somebody published."""
    from ..errors import InputError
    from ..importers.catalogue_tasks import install_own_task
    from ..models.installed import models_root
    from ..models.task_package import peek_task
    from .overwriting import overwriting

    name = peek_task(path).name
    row = own_row(name, path)
    if not args.json:
        say(*package_lines(row), *run_lines(row))
    if not args.accept_license and not _agreed(args):
        raise InputError(f"The license of {name} was not accepted.", "Read it, and give --accept-license.")
    with overwriting(args, [models_root() / name]):
        install_own_task(path)
    missing = [network["model"] for network in row["networks"] if not network["there"]]
    print_result(
        args,
        {"name": name, "packages": [str(models_root() / name)], "missing": missing},
        f"installed {name} in {models_root() / name}",
        *(f"next: medquant models get {needed}" for needed in dict.fromkeys(missing)),
        *([] if missing else [f"next: medquant segment {name} SCAN"]),
    )


def _agreed(args: argparse.Namespace) -> bool:
    return not args.json and ask("Do you accept this license?")
