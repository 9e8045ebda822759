"""The models that are installed on this machine.

An installed model is a package (or a package for each fold) in a folder of its own under :func:`models_root`; commands take the
folder's name in place of a path.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from ..errors import InputError
from ..files import split_paths, storage_errors
from ..resources import resource
from ..system import user_folder
from .package import MODEL_JSON


def models_root() -> Path:
    """Return where models are installed: ``$MEDQUANT_MODELS``, or the user's data folder of the operating system."""
    if folder := os.environ.get("MEDQUANT_MODELS"):
        return Path(folder)
    return user_folder("data") / "models"


#: The model that comes with the program, so that everything can be tried before anything is downloaded.
DEMO = "demo"


def installed_models() -> dict[str, list[Path]]:
    """Return installed models: their packages (one a fold) by the model's name; the demo model is always there."""
    root = models_root()
    models = {DEMO: [resource("demo.zip")]} if resource("demo.zip").exists() else {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        packages = sorted(p for p in folder.iterdir() if (p / "model.json").is_file()) if folder.is_dir() else []
        if packages:
            models[folder.name] = packages
    return models


def resolve_one(model: str) -> str:
    """Resolve a model's name, as :func:`resolve` does, for what works on a single package.

    Raises:
        InputError: the model is several packages.
    """
    paths = resolve(model)
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


def _is_package(path: str) -> bool:
    try:
        return (Path(path) / MODEL_JSON).is_file() or zipfile.is_zipfile(path)
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
