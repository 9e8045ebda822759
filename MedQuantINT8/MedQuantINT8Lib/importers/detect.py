"""Import of a model whose form (package, bundle, nnU-Net, ...) is detected: for a window, where nobody types a form's name."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..files import read_json, storage_errors
from ..models.installed import installed_models
from ..models.package import MODEL_JSON, ModelPackage
from ..models.spec_parser import parse_spec
from ..models.task_package import TaskPackage, is_task
from ..progress import Task
from .archives import as_folder
from .base import ImportedModel, write_all
from .nnunet_task import ImportedTask, find_task, understand_task, write_imported_task


def install_own(source: Path, root: Path, task: Task, *, trust_code: bool = False) -> tuple[str, list[str]]:
    """Import a model of the user's own and add it to the installed ones.

    Args:
        source: a package or a task, a MONAI bundle, a result folder of nnU-Net or an Auto3DSeg model, as folder or zip; or an ONNX file
            beside which a description (``NAME.draft.json`` or ``NAME.json``) lies.
        root: where installed models are kept.

    Returns:
        Its name among the installed models, and notes on what is not as in the original software.

    Raises:
        InputError: it has no form that is known here, or a model of that name is installed.
        PackageError: it has one, but is damaged or holds what is not understood.
    """
    if not source.exists():
        raise InputError(f"There is nothing at {source}.", "Choose a file or folder.")
    if source.suffix.lower() == ".onnx":
        return _keep([_understand_onnx(source)], root, task)
    if source.suffix.lower() in (".pt", ".pth"):
        from . import auto3dseg

        return _keep([auto3dseg.understand(source)], root, task)
    if is_task(source):
        return _keep_task(source, root)
    if _is_package(source):
        return _keep_package(source, root)
    with as_folder(source, "model") as folder:
        if imported := find_task(folder) if next(folder.glob("**/plans.json"), None) else None:
            return _keep_imported_task(understand_task(imported), root, task)
        return _keep(_understand(folder, trust_code), root, task)


def _is_package(source: Path) -> bool:
    from ..errors import PackageError
    from ..models.package import peek

    try:
        peek(source)
    except PackageError:
        return (source / MODEL_JSON).is_file()
    return True


def _keep_package(source: Path, root: Path) -> tuple[str, list[str]]:
    with ModelPackage.load(source) as package:
        target = _reserve_folder(root, package.spec.name)
        package.save(target / "package")
        return target.name, []


def _keep_task(source: Path, root: Path) -> tuple[str, list[str]]:
    with TaskPackage.load(source) as package:
        target = _reserve_folder(root, package.spec.name)
        package.save(target)
        missing = [name for name in package.spec.installed_names if name not in installed_models()]
    notes = [f"it runs {', '.join(missing)}, which has yet to be installed"] if missing else []
    return target.name, notes


def _understand(folder: Path, trust_code: bool) -> list[ImportedModel]:
    if metadata := next(folder.glob("**/configs/metadata.json"), None):
        from . import monai_bundle

        return [monai_bundle.understand(metadata.parent.parent, trust_code=trust_code)]
    if next(folder.glob("**/plans.json"), None):
        from . import nnunet

        return nnunet.understand(folder)
    if next(folder.glob("**/model.pt"), None):
        from . import auto3dseg

        return [auto3dseg.understand(folder)]
    raise InputError(
        f"{folder.name} is no model that is known here.",
        "Choose a model package, a task, a MONAI bundle, a result folder of nnU-Net v2, an Auto3DSeg model or an ONNX file.",
    )


def _understand_onnx(source: Path) -> ImportedModel:
    for description in (source.with_suffix(".json"), source.with_name(source.stem + ".draft.json")):
        if description.is_file():
            try:
                value = read_json(description)
            except ValueError as error:
                raise InputError(f"{description} is not valid JSON: {error}.", "Correct it.") from error
            return ImportedModel(parse_spec(value, description.name), source, by_hand=True)
    raise InputError(
        f"{source.name} does not say how scans have to be prepared for it.",
        f"Write a description with: medquant import onnx {source.name} --output NAME, correct it, and save it beside the network as {source.stem}.json.",
    )


def _keep(models: list[ImportedModel], root: Path, task: Task) -> tuple[str, list[str]]:
    name = models[0].spec.name.rsplit("-", 1)[0] if len(models) > 1 else models[0].spec.name
    target = _reserve_folder(root, name)
    write_all(models, target, task)
    return target.name, [note for model in models for note in model.notes]


def _keep_imported_task(imported: ImportedTask, root: Path, task: Task) -> tuple[str, list[str]]:
    target = _reserve_folder(root, imported.name)
    write_imported_task(imported, target, task).close()
    return target.name, [note for model in imported.models for note in model.notes]


def _reserve_folder(root: Path, name: str) -> Path:
    target = root / name
    if target.exists():
        raise InputError(
            f"A model called {name} is installed already.", f"Remove it first: medquant models remove {name}"
        )
    with storage_errors(target):
        root.mkdir(parents=True, exist_ok=True)
    return target
