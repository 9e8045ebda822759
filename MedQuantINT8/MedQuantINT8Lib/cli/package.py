"""``medquant package``: write a model's package for others, with a model card and its license."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .common import Add, add_command, add_force, add_model, packages_of
from .terminal import print_result

if TYPE_CHECKING:
    from ..models.card import EngineProof
    from ..models.package import ModelPackage
    from ..progress import Task


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    command = add_command(
        add,
        "package",
        run,
        "write a model's package to give to others, with a model card",
        'package spleen -o spleen.zip --card --training-data "41 CT scans"',
        more="Who gets the file installs it by: medquant models get FILE,\nand needs no torch to segment with it.\n\n",
    )
    add_model(command)
    command.add_argument("--output", "-o", required=True, metavar="FILE.zip", help="the package that is written")
    command.add_argument("--card", action="store_true", help="write a model card into it, as its README.md")
    command.add_argument("--training-data", default="", metavar="TEXT", help="card: what the network was trained on")
    command.add_argument("--license-file", metavar="FILE", help="the text of the model's license, for the package")
    add_force(command)


def run(args: argparse.Namespace, task: Task) -> None:
    """Write the package, and say what it holds."""
    from ..errors import InputError
    from ..models.card import model_card
    from ..models.package import INT8, ModelPackage
    from ..outputs import check_output_package
    from .overwriting import overwriting

    target = Path(args.output)
    if target.suffix != ".zip":
        raise InputError(f"--output {target} is no .zip file.", "Give a name that ends in .zip.")
    if args.training_data and not args.card:
        raise InputError("--training-data is written into the model card only.", "Give --card as well.")
    license_file = Path(args.license_file) if args.license_file else None
    if license_file and not license_file.is_file():
        raise InputError(f"There is no file {license_file}.", "Check --license-file.")
    path = packages_of(args, one=True)
    check_output_package(target, [path, license_file])
    with (
        ModelPackage.load(path) as package,
        overwriting(args, [target]),
        TemporaryDirectory(prefix="medquant-card-") as scratch,
    ):
        card = model_card(package, args.training_data, engine_proofs(package)) if args.card else ""
        files = {"LICENSE": license_file} if license_file else {}
        if card:
            files["README.md"] = Path(scratch) / "README.md"
            files["README.md"].write_text(card, encoding="utf-8")
        result = package.with_files(target, files)
        hashes, size, int8 = sorted(result.hashes), target.stat().st_size, package.has(INT8)
        result.close()
    value = {"name": package.spec.name, "file": str(target), "bytes": size, "files": hashes, "int8": int8}
    lines = [f"wrote {target}: {size / 1e6:.1f} MB with {', '.join(hashes)}"]
    if not int8:
        lines.append("note: it holds no INT8 network yet; medquant quantize makes one")
    lines.append(f"others install it by: medquant models get {target.name}")
    print_result(args, value, *lines)


def engine_proofs(package: ModelPackage) -> list[EngineProof]:
    """The INT8 engines on this machine that were built of this package's network and compared with its simulation."""
    from ..engines import cache, registry
    from ..files import sha256_file
    from ..models.card import EngineProof
    from ..models.package import INT8

    if not package.has(INT8):
        return []
    digest, proofs = sha256_file(package.onnx_path("int8")), dict[tuple[str, str], EngineProof]()
    for entry in cache.entries():
        key, fidelity = entry.record["key"], entry.record.get("fidelity")
        if key.get("model") != digest or not fidelity or not fidelity.get("trusted"):
            continue
        known = key["engine"] in registry.backend_names()
        title = registry.backend(key["engine"]).title if known else str(key["engine"])
        # Of several engines (other windows, other options) on one device the newest stands for all.
        proofs[key["engine"], key["device"]] = EngineProof(
            title,
            str(key["engine_version"]),
            str(key["device"]),
            entry.record.get("int8_mac_share"),
            fidelity["relative_error"],
            fidelity["label_disagreement"],
        )
    return list(proofs.values())
