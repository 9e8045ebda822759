"""The result of every importer (a description, a network, and notes for the user), and how it becomes a package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..child_process import can_cross, run_in_child
from ..errors import DependencyError, InputError, PackageError
from ..files import replacing_folder, write_json
from ..models.package import CALIBRATION, FP32, IMPORT, INT8, ModelPackage, write_package
from ..models.spec import ModelSpec
from ..progress import Task
from .import_check import ImportCheck
from .onnx import check_fits, prepare_network
from .onnx_trial import Facts, Size
from .original_software import OriginalFailed

if TYPE_CHECKING:
    from .import_check import OriginalPipeline


@dataclass
class ImportedModel:
    """A network with its preprocessing, as an importer understood it.

    Attributes:
        spec: the description, which can be saved, edited and read again.
        network: a function that builds the torch module from (N, C, *patch) to (N, classes, *patch), or the path of an ONNX file.
        notes: what is not the same as in the original software, in words.
        original: a function that builds the original software's own pipeline with this network, which the import is compared
            with before it is accepted; it raises :class:`DependencyError` where that software is not installed. None: there is no such software.
        not_compared: why there is none, in words that go on after "not compared: ".
        by_hand: the description is the user's own: where it differs from the original, that is reported, not refused.
        check: what the comparison found; set by :func:`write`.
        comparisons: what the network itself was compared with, and how well it agreed, in words; set by :func:`write`.
    """

    spec: ModelSpec
    network: Callable[[], Any] | Path
    notes: list[str] = field(default_factory=list)
    original: Callable[[], OriginalPipeline] | None = None
    not_compared: str = "this form of a network comes without software that prepares scans for it"
    by_hand: bool = False
    check: ImportCheck | None = None
    comparisons: list[str] = field(default_factory=list)


def write(
    model: ImportedModel, target: str | os.PathLike[str], task: Task, *, dynamic: bool = False, force: bool = False
) -> ModelPackage:
    """Export (and prove) the network, compare it with the original software, and write the package with the results.

    Args:
        dynamic: leave spatial sizes open, for networks whose graph allows it.
        force: the package at ``target`` may lose its INT8 network, where that belongs to another network or description.

    Raises:
        InputError: it would lose it, and ``force`` is not set.
        PackageError: the network cannot be exported, does not fit its description, or does not segment synthetic scans as the
            original does.
    """
    with TemporaryDirectory(prefix="medquant-checked-") as scratch:
        package = _write_unchecked(model, Path(scratch) / "package", task, dynamic=dynamic)
        model.check = _compare_with_original(model, package, task)
        record = Path(scratch) / IMPORT
        write_json(record, {**model.check.to_json(), "network": model.comparisons})
        int8_files = _copy_int8_files(package, Path(target), Path(scratch) / "before", force=force)
        if int8_files:
            model.notes.append(
                "the INT8 network that was there is kept: it was made of the same network and description"
            )
        return package.with_files(target, {IMPORT: record, **int8_files})


#: Fields of a description that may differ without making a calibration untrue.
_WORDING_FIELDS = (
    "name",
    "version",
    "title",
    "description",
    "license",
    "citation",
    "source_url",
    "modality",
    "cleaning",
    "mirroring",
    "labels",
)


def _copy_int8_files(package: ModelPackage, target: Path, scratch: Path, *, force: bool) -> dict[str, Path]:
    """Copy the INT8 network and calibration of the package that is to be replaced, if they belong to the network of ``package``.

    Raises:
        InputError: they belong to another one, and would be lost.
    """
    if not target.exists():
        return {}
    try:
        previous = ModelPackage.load(target)
    except PackageError:
        return {}  # no package, or a damaged one: what may become of it is for whoever writes to say
    with previous:
        if not previous.has(INT8):
            return {}
        same = previous.hashes[FP32] == package.hashes[FP32] and _strip_wording(previous.spec) == _strip_wording(
            package.spec
        )
        if same:
            scratch.mkdir()
            return {
                name: Path(shutil.copyfile(previous.folder / name, scratch / name))
                for name in (INT8, CALIBRATION)
                if previous.has(name)
            }
    if not force:
        differs = "network" if previous.hashes[FP32] != package.hashes[FP32] else "description"
        raise InputError(
            f"{target} holds an INT8 network that was calibrated for another {differs}; importing would remove it.",
            "Choose another --output, or give --force and quantize again.",
        )
    return {}


def _strip_wording(spec: ModelSpec) -> dict[str, Any]:
    """Return the part of a description that a calibration depends on."""
    value = {key: part for key, part in spec.to_json().items() if key not in (*_WORDING_FIELDS, "schema_version")}
    return {**value, "labels": [(label.value, label.channel) for label in spec.labels]}


def _write_unchecked(model: ImportedModel, target: Path, task: Task, *, dynamic: bool) -> ModelPackage:
    spec = model.spec
    patch, name = spec.window.patch_size, f"{spec.name}.onnx"
    if dynamic and 1 in patch and not isinstance(model.network, Path):
        raise PackageError(
            f"{spec.name} works slice by slice: its window is one voxel long across the slices.",
            "Import it without --dynamic.",
        )
    with TemporaryDirectory(prefix="medquant-export-") as scratch:
        path = Path(scratch) / FP32
        if isinstance(model.network, Path):
            name = model.network.name
            result = run_in_child(partial(_try_file, model.network, path, patch), task, f"The trial of {name}")
        else:
            export = partial(
                _export_module,
                model.network,
                path,
                name,
                patch,
                spec.input_channels,
                dynamic or spec.window.whole_volume,
            )
            # A recipe that was defined inside a function (a lambda) cannot be sent: it runs here, and cannot be interrupted.
            in_child = can_cross(model.network)
            result = run_in_child(export, task, f"The export of {spec.name}") if in_child else export(task=task)
        facts, notes, comparisons = result
        check_fits(facts, spec, name, by_hand=model.by_hand)
        model.notes.extend([*notes, *facts.notes])
        model.comparisons.extend([*comparisons, *facts.comparisons])
        write_package(target, spec, {FP32: path})
    return ModelPackage.load(target)


_TrialResult = tuple[Facts, list[str], list[str]]


def _try_file(source: Path, target: Path, patch: Size, *, task: Task) -> _TrialResult:
    """Bring an ONNX file into the form that engines take; runs in the child process."""
    with task.stage("trying the network"):
        return prepare_network(source, target, patch), [], []


def _export_module(
    recipe: Callable[[], Any], target: Path, name: str, patch: Size, channels: int, dynamic: bool, *, task: Task
) -> _TrialResult:
    """Export a torch module, prove it and bring it into the form that engines take; runs in the child process."""
    from .export import export_network

    raw = target.with_name("exported.onnx")
    with task.stage("making the network"):
        module = recipe()
    with task.stage("exporting"):
        report = export_network(module, raw, patch, channels, dynamic_spatial=dynamic, task=task)
    with task.stage("trying the network"):
        facts = prepare_network(raw, target, patch, proved=True, name=name)
    raw.unlink()
    warnings = [f"torch's exporter warned: {text}" for text in report.unexplained]
    return (
        facts,
        [*report.notes, *warnings],
        [f"scores equal to PyTorch's up to {report.parity:.1g} (relative, made patches, ONNX Runtime)"],
    )


def _compare_with_original(model: ImportedModel, package: ModelPackage, task: Task) -> ImportCheck:
    """Compare the package with the original software; raises :class:`PackageError` where they disagree."""
    if model.original is None:
        return ImportCheck.not_compared(model.not_compared)
    from .import_comparison import accept, compare_import

    try:
        original = model.original()
    except DependencyError as error:
        return ImportCheck.not_compared(error.args[0].rstrip("."))
    except PackageError as error:
        if not model.by_hand:
            raise
        return ImportCheck.not_compared(error.args[0].rstrip("."))
    try:
        check = compare_import(package.spec, package.folder / FP32, original, task)
    except OriginalFailed as error:
        if not model.by_hand:
            raise
        return ImportCheck.not_compared(error.args[0].rstrip("."), original.title)
    model.notes.extend(accept(check, by_hand=model.by_hand))
    return check


def write_all(models: Sequence[ImportedModel], folder: Path, task: Task) -> list[ModelPackage]:
    """Write the packages of one model (the folds of a training) into its folder: all of them, or none.

    A run averages whatever packages it finds there, so some of them alone would be another model. What else lies in the
    folder is kept.

    Raises:
        PackageError, StorageError, Cancelled: the folder is what it was before.
    """
    names = [model.spec.name.rsplit("-", 1)[-1] if len(models) > 1 else "package" for model in models]
    with replacing_folder(folder) as new_folder:
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name not in names and path.is_dir():
                    shutil.copytree(path, new_folder / path.name, symlinks=True)
        packages = []
        for model, name in zip(models, names, strict=True):
            packages.append(write(model, new_folder / name, task))
            task.check()
    return [replace(package, folder=folder / name) for package, name in zip(packages, names, strict=True)]
