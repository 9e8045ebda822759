"""What every importer gives: a description, a network, and what the user should know; and how they become a package."""

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
        spec: to be saved, edited and given back.
        network: makes the torch module (N, C, *patch) to (N, classes, *patch), or is the path of an ONNX file.
        notes: what is not the same as in the original software, in words.
        original: makes the original software's own pipeline with this network, which the import is compared with before it is
            accepted; raises :class:`DependencyError` where that software is not installed. None: there is none.
        not_compared: why there is none, in words that go on after "not compared: ".
        by_hand: the description is the user's own: where it differs from the original, that is told, not refused.
        check: what the comparison found; set by :func:`write`.
        compared: what the network itself was compared with, and how well it agreed, in words; set by :func:`write`.
    """

    spec: ModelSpec
    network: Callable[[], Any] | Path
    notes: list[str] = field(default_factory=list)
    original: Callable[[], OriginalPipeline] | None = None
    not_compared: str = "this form of a network comes without software that prepares scans for it"
    by_hand: bool = False
    check: ImportCheck | None = None
    compared: list[str] = field(default_factory=list)


def write(
    imported: ImportedModel, target: str | os.PathLike[str], task: Task, *, dynamic: bool = False, force: bool = False
) -> ModelPackage:
    """Export (and prove) the network, compare it with the original software, and write the package with what was found.

    Args:
        dynamic: leave spatial sizes open, for networks whose graph allows it.
        force: the package at ``target`` may lose its INT8 network, where that was made of another network or description.

    Raises:
        InputError: it would lose it, and ``force`` is not set.
        PackageError: the network cannot be exported, does not fit its description, or does not segment made scans as the
            original does.
    """
    with TemporaryDirectory(prefix="medquant-checked-") as scratch:
        package = _write_unchecked(imported, Path(scratch) / "package", task, dynamic=dynamic)
        imported.check = _checked(imported, package, task)
        record = Path(scratch) / IMPORT
        write_json(record, {**imported.check.to_json(), "network": imported.compared})
        kept = _quantized_before(package, Path(target), Path(scratch) / "before", force=force)
        if kept:
            imported.notes.append(
                "the INT8 network that was there is kept: it was made of the same network and description"
            )
        return package.with_files(target, {IMPORT: record, **kept})


#: What a description may say otherwise without making a calibration untrue.
_IN_WORDS = (
    "name",
    "version",
    "title",
    "description",
    "license",
    "citation",
    "source_url",
    "modality",
    "cleaning",
    "labels",
)


def _quantized_before(made: ModelPackage, target: Path, scratch: Path, *, force: bool) -> dict[str, Path]:
    """The INT8 network and calibration of the package that is to be replaced, if they are of the network that was made now.

    Raises:
        InputError: they are of another one, and would be lost.
    """
    if not target.exists():
        return {}
    try:
        before = ModelPackage.load(target)
    except PackageError:
        return {}  # no package, or a damaged one: what may become of it is for whoever writes to say
    with before:
        if not before.has(INT8):
            return {}
        same = before.hashes[FP32] == made.hashes[FP32] and _computing(before.spec) == _computing(made.spec)
        if same:
            scratch.mkdir()
            return {
                name: Path(shutil.copyfile(before.folder / name, scratch / name))
                for name in (INT8, CALIBRATION)
                if before.has(name)
            }
    if not force:
        differs = "network" if before.hashes[FP32] != made.hashes[FP32] else "description"
        raise InputError(
            f"{target} holds an INT8 network that was calibrated for another {differs}; importing would remove it.",
            "Choose another --output, or give --force and quantize again.",
        )
    return {}


def _computing(spec: ModelSpec) -> dict[str, Any]:
    """The part of a description that a calibration depends on."""
    value = {key: part for key, part in spec.to_json().items() if key not in (*_IN_WORDS, "schema_version")}
    return {**value, "labels": [(label.value, label.channel) for label in spec.labels]}


def _write_unchecked(imported: ImportedModel, target: Path, task: Task, *, dynamic: bool) -> ModelPackage:
    spec = imported.spec
    patch, name = spec.window.patch_size, f"{spec.name}.onnx"
    if dynamic and 1 in patch and not isinstance(imported.network, Path):
        raise PackageError(
            f"{spec.name} works slice by slice: its window is one voxel long across the slices.",
            "Import it without --dynamic.",
        )
    with TemporaryDirectory(prefix="medquant-export-") as scratch:
        path = Path(scratch) / FP32
        if isinstance(imported.network, Path):
            name = imported.network.name
            made = run_in_child(partial(_tried, imported.network, path, patch), task, f"The trial of {name}")
        else:
            export = partial(
                _exported,
                imported.network,
                path,
                name,
                patch,
                len(spec.channels),
                dynamic or spec.window.whole_volume,
            )
            # A recipe that was made inside a function (a lambda) cannot be sent: it is made here, and cannot be interrupted.
            apart = can_cross(imported.network)
            made = run_in_child(export, task, f"The export of {spec.name}") if apart else export(task=task)
        facts, told, compared = made
        check_fits(facts, spec, name, by_hand=imported.by_hand)
        imported.notes.extend([*told, *facts.notes])
        imported.compared.extend([*compared, *facts.compared])
        write_package(target, spec, {FP32: path})
    return ModelPackage.load(target)


_Made = tuple[Facts, list[str], list[str]]


def _tried(source: Path, target: Path, patch: Size, *, task: Task) -> _Made:
    """In the child: an ONNX file in the form that engines take."""
    with task.stage("trying the network"):
        return prepare_network(source, target, patch), [], []


def _exported(
    recipe: Callable[[], Any], target: Path, name: str, patch: Size, channels: int, dynamic: bool, *, task: Task
) -> _Made:
    """In the child: a torch module exported, proved, and in the form that engines take; with the exporter's words."""
    from .export import export_network

    raw = target.with_name("exported.onnx")
    with task.stage("making the network"):
        module = recipe()
    with task.stage("exporting"):
        report = export_network(module, raw, patch, channels, dynamic_spatial=dynamic, task=task)
    with task.stage("trying the network"):
        facts = prepare_network(raw, target, patch, proved=True, name=name)
    raw.unlink()
    told = [f"torch's exporter warned: {text}" for text in report.unexplained]
    return (
        facts,
        [*report.notes, *told],
        [f"scores equal to PyTorch's up to {report.parity:.1g} (relative, made patches, ONNX Runtime)"],
    )


def _checked(imported: ImportedModel, package: ModelPackage, task: Task) -> ImportCheck:
    """The comparison with the original; raises :class:`PackageError` where it disagrees."""
    if imported.original is None:
        return ImportCheck.not_compared(imported.not_compared)
    from .import_comparison import accept, compare_import

    try:
        original = imported.original()
    except DependencyError as error:
        return ImportCheck.not_compared(error.args[0].rstrip("."))
    except PackageError as error:
        if not imported.by_hand:
            raise
        return ImportCheck.not_compared(error.args[0].rstrip("."))
    try:
        check = compare_import(package.spec, package.folder / FP32, original, task)
    except OriginalFailed as error:
        if not imported.by_hand:
            raise
        return ImportCheck.not_compared(error.args[0].rstrip("."), original.title)
    imported.notes.extend(accept(check, by_hand=imported.by_hand))
    return check


def write_all(imported: Sequence[ImportedModel], folder: Path, task: Task) -> list[ModelPackage]:
    """Write the packages of one model (the folds of a training) into its folder: all of them, or none.

    A run averages whatever packages it finds there, so some of them alone would be another model. What else lies in the
    folder is kept.

    Raises:
        PackageError, StorageError, Cancelled: the folder is what it was before.
    """
    names = [item.spec.name.rsplit("-", 1)[-1] if len(imported) > 1 else "package" for item in imported]
    with replacing_folder(folder) as made:
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name not in names and path.is_dir():
                    shutil.copytree(path, made / path.name, symlinks=True)
        written = []
        for item, name in zip(imported, names, strict=True):
            written.append(write(item, made / name, task))
            task.check()
    return [replace(package, folder=folder / name) for package, name in zip(written, names, strict=True)]


def single_output(module: Any, name: str) -> Any:
    """The module with only its class scores: the first of a list or tuple (deep supervision gives several), the one of a dictionary.

    Raises:
        PackageError: when it runs: its output holds no tensor, or a dictionary several.
    """
    from torch import Tensor, nn

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, x: Tensor) -> Tensor:
            return chosen_output(self.network(x), name)

    return First()


#: What dictionaries call class scores, most telling name first.
_SCORES = ("logits", "out", "output", "pred", "seg", "segmentation")


def chosen_output(y: Any, name: str) -> Any:
    """The tensor of class scores in what a torch module gives; see :func:`single_output`."""
    from torch import Tensor

    while isinstance(y, list | tuple | dict):
        if not y:
            raise PackageError(f"{name} gives nothing.", "Wrap it in a module that gives its class scores.")
        if not isinstance(y, dict):
            y = y[0]
            continue
        key = next(iter(y)) if len(y) == 1 else next((k for k in _SCORES if k in y), None)
        if key is None:
            raise PackageError(
                f"{name} gives {len(y)} results ({', '.join(map(str, y))}).",
                "Wrap it in a module that gives its class scores.",
            )
        y = y[key]
    if not isinstance(y, Tensor):
        raise PackageError(
            f"{name} gives {type(y).__name__}, not a tensor of class scores.", "Wrap it in a module that does."
        )
    return y
