"""ModelPackage: a folder or ``.zip`` with model.json, model.onnx, model.int8.onnx and calibration.json.

Packages are data. Loading one reads JSON and ONNX, checks every hash and refuses everything else: no pickle, no code,
no path that leaves the package.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import PackageError
from ..files import finish_interrupted, replacing_folder, sha256_file, there, write_json
from ..outputs import check_output_package
from ..zip_files import ZipLimits, checked_members, opened_zip, read_member, unpack_members
from .package_files import (
    MAX_JSON_BYTES,
    UnpackedFiles,
    check_hashes,
    copy_files,
    load_unpacked,
    parsed_json,
    read_description,
)
from .spec import ModelSpec
from .spec_parser import parse_spec

MODEL_JSON = "model.json"
FP32 = "model.onnx"
INT8 = "model.int8.onnx"
CALIBRATION = "calibration.json"
#: What the import was compared with, and how well it agreed.
IMPORT = "import.json"
#: What a package may hold beside model.json; anything else in it is refused.
KNOWN_FILES = (FP32, INT8, CALIBRATION, IMPORT, "LICENSE", "README.md")
MAX_UNPACKED_BYTES = 8 << 30
_LIMITS = ZipLimits(64, MAX_UNPACKED_BYTES)
_HINT = "Get the package again."


@dataclass(frozen=True)
class ModelPackage(UnpackedFiles[ModelSpec]):
    """A validated package: what model.json says, and SHA-256 of every file that it lists."""

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ModelPackage:
        """Load and validate a package.

        Args:
            path: the folder, the ``.zip`` or the ``model.json`` inside a folder.

        Raises:
            PackageError: missing or damaged files, a wrong hash, an unknown schema version, a field that does not
                fit, or a zip entry that climbs out of the package.
        """
        source = Path(path)
        if not there(source):
            finish_interrupted(source.parent)
        if not there(source):
            raise PackageError(
                f"There is no model package at {source}.",
                "Give a package folder, a .zip, or the name of an installed model.",
            )
        if source.name == MODEL_JSON:
            source = source.parent
        return load_unpacked(source, "medquant-package-", _load_folder, _unpack)

    def has(self, name: str) -> bool:
        """Return whether the package lists a file of that name."""
        return name in self.hashes

    def onnx_path(self, precision: str) -> Path:
        """Return the network's file for "fp32" or "int8".

        Raises:
            PackageError: the package has no INT8 network yet.
        """
        name = INT8 if precision == "int8" else FP32
        if not self.has(name):
            raise PackageError(
                f"The package {self.spec.name} holds no {name}.",
                "Make it with: medquant quantize MODEL --calibrate SCANS",
            )
        return self.folder / name

    def calibration(self) -> dict[str, Any] | None:
        """Return what calibration.json says, or None for a package that was not quantized."""
        return read_description(self.folder / CALIBRATION) if self.has(CALIBRATION) else None

    def import_check(self) -> dict[str, Any] | None:
        """Return what import.json says of the import (:class:`..importers.import_check.ImportCheck`), or None where there is none."""
        return read_description(self.folder / IMPORT) if self.has(IMPORT) else None

    def save(self, target: str | os.PathLike[str]) -> None:
        """Write the package, whole or not at all, as a ``.zip`` or a folder."""
        copy_files(self.folder, (MODEL_JSON, *sorted(self.hashes)), Path(target))

    def with_files(self, target: str | os.PathLike[str], files: dict[str, Path]) -> ModelPackage:
        """Return a copy of this package at ``target`` (a folder or zip; may be its own) with ``files`` added or replaced."""
        sources = {name: self.folder / name for name in self.hashes} | files
        write_package(target, self.spec, sources)
        return ModelPackage.load(target)


def peek(path: str | os.PathLike[str]) -> tuple[ModelSpec, tuple[str, ...]]:
    """Return what a package says of itself, and which files it lists, without reading its networks: for lists and choices.

    Whoever runs a network calls :meth:`ModelPackage.load`, which checks every file.

    Raises:
        PackageError: no package, or a description that does not fit.
    """
    source = Path(path)
    name = f"{source}: {MODEL_JSON}"
    if source.is_dir() and (source / MODEL_JSON).is_file():
        value = read_description(source / MODEL_JSON, name)
    elif source.is_file():
        with opened_zip(source, _HINT) as archive:
            entries = [e for e, path in checked_members(archive, source, _LIMITS) if path.name == MODEL_JSON]
            if not entries:
                raise PackageError(f"{source} is no model package.", "Give a package folder or .zip.")
            value = parsed_json(read_member(archive, entries[0], MAX_JSON_BYTES), name)
    else:
        raise PackageError(f"There is no model package at {source}.", "Give a package folder or .zip.")
    spec = parse_spec(value, name)
    files = value.get("files")
    return spec, tuple(files) if isinstance(files, dict) else ()


def write_package(target: str | os.PathLike[str], spec: ModelSpec, files: dict[str, Path]) -> None:
    """Write a package from a description and files by their names in it.

    Raises:
        PackageError: a file name that a package may not hold, or a description that does not fit.
        StorageError: the target cannot be written.
    """
    unknown = sorted(set(files) - set(KNOWN_FILES))
    if unknown:
        raise PackageError(f"A package may not hold {unknown[0]}.", f"It may hold {', '.join(KNOWN_FILES)}.")
    target = Path(target)
    if target.suffix == ".zip":
        with tempfile.TemporaryDirectory(prefix="medquant-package-") as scratch:
            folder = Path(scratch) / "package"
            write_package(folder, spec, files)
            ModelPackage.load(folder).save(target)
        return
    check_output_package(target)
    with replacing_folder(target) as folder:
        for name, source in files.items():
            shutil.copyfile(source, folder / name)
        value = spec.to_json()
        value["files"] = {name: sha256_file(folder / name) for name in sorted(files)}
        write_json(folder / MODEL_JSON, value)
        _load_folder(folder, str(target))


def _load_folder(folder: Path, name: str, temporary: bool = False) -> ModelPackage:
    if not (folder / MODEL_JSON).is_file():
        raise PackageError(
            f"{name} is no model package: it has no {MODEL_JSON}.", "Make one with: medquant import onnx"
        )
    value = read_description(folder / MODEL_JSON, f"{name}: {MODEL_JSON}")
    spec = parse_spec(value, f"{name}: {MODEL_JSON}")
    files = value.get("files")
    if (
        not isinstance(files, dict)
        or FP32 not in files
        or not all(isinstance(digest, str) for digest in files.values())
    ):
        raise PackageError(
            f"{name}: {MODEL_JSON}: 'files' must list the SHA-256 of {FP32}.", "Ask whoever made the package."
        )
    if foreign := sorted(set(files) - set(KNOWN_FILES)):
        raise PackageError(
            f"{name}: 'files' names {foreign[0]!r}, which a package may not hold.",
            f"It may hold {', '.join(KNOWN_FILES)}.",
        )
    check_hashes(folder, files, name, MODEL_JSON, _HINT)
    return ModelPackage(folder, spec, dict(files), temporary)


def _unpack(source: Path, folder: Path) -> None:
    """Unpack a zip flat: only known names, no links, no nested or climbing paths, bounded size."""
    with opened_zip(source, _HINT) as archive:
        members = checked_members(archive, source, _LIMITS)
        # A zip of a folder has one common first part; it is taken off.
        roots = {path.parts[0] for _, path in members if len(path.parts) > 1}
        depth = 1 if len(roots) == 1 and all(len(path.parts) == 2 for _, path in members) else 0
        flat = [(entry, PurePosixPath(*path.parts[depth:])) for entry, path in members]
        for entry, path in flat:
            if str(path) not in (MODEL_JSON, *KNOWN_FILES):
                raise PackageError(
                    f"{source} holds {entry.filename!r}, which a package may not hold.",
                    f"It may hold {', '.join((MODEL_JSON, *KNOWN_FILES))}.",
                )
        unpack_members(archive, flat, folder)
