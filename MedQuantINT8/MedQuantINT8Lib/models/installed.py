"""The models that are installed on this machine.

An installed model is a package (or a package for each fold) or a task in a folder of its own under :func:`models_root`; commands take
the folder's name in place of a path.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, PackageError
from ..files import split_paths, storage_errors
from ..resources import resource
from ..system import user_folder
from .package import INT8, MODEL_JSON, peek
from .task import TASK_JSON, Find, Part, TaskSpec
from .task_package import is_task, peek_task


def models_root() -> Path:
    """Return where models are installed: ``$MEDQUANT_MODELS``, or the user's data folder of the operating system."""
    if folder := os.environ.get("MEDQUANT_MODELS"):
        return Path(folder)
    return user_folder("data") / "models"


#: The model that comes with the program, so that everything can be tried before anything is downloaded.
DEMO = "demo"


def installed_models() -> dict[str, list[Path]]:
    """Return installed models: their packages (one a fold), or the folder of a task, by the model's name; the demo model is always there."""
    root = models_root()
    models = {DEMO: [resource("demo.zip")]} if resource("demo.zip").exists() else {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if (folder / TASK_JSON).is_file():
            models[folder.name] = [folder]
            continue
        packages = sorted(p for p in folder.iterdir() if (p / MODEL_JSON).is_file()) if folder.is_dir() else []
        if packages:
            models[folder.name] = packages
    return models


def resolve_one(model: str) -> str:
    """Resolve a model's name, as :func:`resolve` does, for what works on a single package.

    Raises:
        InputError: the model is several packages, or a task.
    """
    paths = resolve(model)
    if is_task(paths):
        raise InputError(
            f"{model} is a task of several networks, and this works on one network.",
            "Give one of its packages or models; medquant models show NAME lists them.",
        )
    if len(split_paths(paths)) > 1:
        raise InputError(f"{model} is several packages, one a fold.", f"Give one of {paths.replace(',', ', ')}.")
    return paths


def resolve(model: str) -> str:
    """Return the paths of a model's packages, joined by commas: of an installed model by its name, else what was given.

    Several may be joined by commas. A file or folder that happens to be called like an installed model is taken only if it is
    a package; :func:`both_meant` then says so.
    """
    models = installed_models()
    return ",".join(
        ",".join(map(str, models[part])) if part in models and not _is_package(part) else part
        for part in split_paths(model)
    )


def source_paths(spec: TaskSpec, source: Find | Part, folder: Path) -> list[Path]:
    """Return the packages that a part, or a step of find, of the task in ``folder`` runs.

    Raises:
        InputError: an installed model that is not there.
        PackageError: an installed model that is a task itself.
    """
    if source.installed is None:
        return [folder / path for path in source.packages]
    paths = installed_models().get(source.installed)
    if paths is None:
        raise InputError(
            f"{source.name} of the task {spec.name} runs the model {source.installed}, which is not installed.",
            f"Get it with: medquant models get {source.installed}",
        )
    if is_task(paths[0]):
        raise PackageError(
            f"{source.name} of the task {spec.name} runs {source.installed}, which is a task itself.",
            "A task runs model packages only.",
        )
    return paths


def holds_int8(paths: Sequence[Path]) -> bool:
    """Return whether everything that an installed model runs holds an INT8 network; a task whose models are not all installed does not."""
    if not is_task(paths[0]):
        return INT8 in peek(paths[0])[1]
    spec = peek_task(paths[0])
    try:
        sources = [path for source in spec.sources for path in source_paths(spec, source, paths[0])]
    except (InputError, PackageError):
        return False
    return all(INT8 in peek(path)[1] for path in sources)


def both_meant(model: str) -> str:
    """Return a note where a name stands for an installed model and for a package in the current folder; else an empty string."""
    models = installed_models()
    for part in split_paths(model):
        if part in models and _is_package(part):
            return (
                f"{part!r} is the package {Path(part).absolute()}, and the installed model {', '.join(map(str, models[part]))} as well: "
                "the former is taken. Give the path of the one that is meant."
            )
    return ""


def names_model(text: str) -> bool:
    """Return whether a text names an installed model, or a package or task on the disk."""
    return text in installed_models() or _is_package(text)


def _is_package(path: str) -> bool:
    try:
        return (Path(path) / MODEL_JSON).is_file() or is_task(path) or zipfile.is_zipfile(path)
    except (OSError, ValueError):
        return False


def remove(name: str) -> int:
    """Remove an installed model; returns the bytes that became free.

    Raises:
        InputError: it is not installed.
    """
    folder = models_root() / name
    if name == DEMO:
        raise InputError("The demo model is part of the program.", "It takes three megabytes.")
    if Path(name).name != name or name not in installed_models():
        raise InputError(
            f"No model {name!r} is installed.", f"Installed are: {', '.join(installed_models()) or 'none'}."
        )
    size = size_of(name)
    with storage_errors(folder):
        shutil.rmtree(folder)
    return size


def size_of(name: str) -> int:
    """Return the bytes that an installed model takes on the disk."""
    return sum(path.stat().st_size for path in (models_root() / name).rglob("*") if path.is_file())
