"""What every importer gives: a description, a network, and what the user should know; and how they become a package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import DependencyError, PackageError
from ..files import replacing_folder, write_json
from ..model import FP32, IMPORT, ModelPackage
from ..model_spec import ModelSpec
from ..progress import Task
from .import_check import ImportCheck
from .onnx import write_network
from .onnx_trial import Facts

if TYPE_CHECKING:
    from .import_check import OriginalPipeline


@dataclass
class Understood:
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


def write(understood: Understood, target: str | os.PathLike[str], task: Task, *, dynamic: bool = False) -> ModelPackage:
    """Export (and prove) the network, compare it with the original software, and write the package with what was found.

    Args:
        dynamic: leave spatial sizes open, for networks whose graph allows it.

    Raises:
        PackageError: the network cannot be exported, does not fit its description, or does not segment made scans as the
            original does.
    """
    with TemporaryDirectory(prefix="medquant-checked-") as scratch:
        package = _write_unchecked(understood, Path(scratch) / "package", task, dynamic=dynamic)
        understood.check = _checked(understood, package, task)
        record = Path(scratch) / IMPORT
        write_json(record, {**understood.check.to_json(), "network": understood.compared})
        return package.with_files(target, {IMPORT: record})


def _write_unchecked(understood: Understood, target: Path, task: Task, *, dynamic: bool) -> ModelPackage:
    spec, by_hand = understood.spec, understood.by_hand
    if isinstance(understood.network, Path):
        with task.stage("trying the network"):
            package, facts = write_network(understood.network, spec, target, by_hand=by_hand)
        return _told(understood, package, facts)
    from ..export import export_network

    with TemporaryDirectory(prefix="medquant-export-") as scratch:
        path = Path(scratch) / f"{spec.name}.onnx"
        with task.stage("making the network"):
            module = understood.network()
        with task.stage("exporting"):
            report = export_network(module, path, spec.window.patch_size, len(spec.channels), dynamic_spatial=dynamic or spec.window.whole_volume)
        understood.notes.extend(f"torch's exporter warned: {text}" for text in report.unexplained)
        understood.compared.append(f"scores equal to PyTorch's up to {report.parity:.1g} (relative, made patches, ONNX Runtime)")
        with task.stage("trying the network"):
            package, facts = write_network(path, spec, target, proved=True, by_hand=by_hand)
    return _told(understood, package, facts)


def _told(understood: Understood, package: ModelPackage, facts: Facts) -> ModelPackage:
    understood.notes.extend(facts.notes)
    understood.compared.extend(facts.compared)
    return package


def _checked(understood: Understood, package: ModelPackage, task: Task) -> ImportCheck:
    """The comparison with the original; raises :class:`PackageError` where it disagrees."""
    if understood.original is None:
        return ImportCheck.not_compared(understood.not_compared)
    from .import_comparison import accept, compare_import

    try:
        original = understood.original()
    except DependencyError as error:
        return ImportCheck.not_compared(error.args[0].rstrip("."))
    check = compare_import(package.spec, package.folder / FP32, original, task)
    understood.notes.extend(accept(check, by_hand=understood.by_hand))
    return check


def write_all(understood: Sequence[Understood], folder: Path, task: Task) -> list[ModelPackage]:
    """Write the packages of one model (the folds of a training) into its folder: all of them, or none.

    A run averages whatever packages it finds there, so some of them alone would be another model. What else lies in the
    folder is kept.

    Raises:
        PackageError, StorageError, Cancelled: the folder is what it was before.
    """
    names = [item.spec.name.rsplit("-", 1)[-1] if len(understood) > 1 else "package" for item in understood]
    with replacing_folder(folder) as made:
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name not in names and path.is_dir():
                    shutil.copytree(path, made / path.name, symlinks=True)
        written = []
        for item, name in zip(understood, names, strict=True):
            written.append(write(item, made / name, task))
            task.check()
    return [replace(package, folder=folder / name) for package, name in zip(written, names, strict=True)]


def single_output(module: Any, name: str) -> Any:
    """The module with only its first, full-size output (deep supervision gives several).

    Raises:
        PackageError: its output is no tensor.
    """
    from torch import Tensor, nn

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, x: Tensor) -> Tensor:
            y = self.network(x)
            while isinstance(y, list | tuple):
                y = y[0]
            if not isinstance(y, Tensor):
                raise PackageError(f"{name} gives {type(y).__name__}, not a tensor of class scores.", "Wrap it in a module that does.")
            return y

    return First()
