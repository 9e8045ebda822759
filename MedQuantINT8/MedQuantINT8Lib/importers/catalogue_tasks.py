"""Tasks of the catalog: the models that they run are installed as models of their own, and task.json names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from ..models.installed import DEMO, installed_models, models_root
from ..models.package import ModelPackage
from ..models.task import TaskSpec, parse_task
from ..models.task_package import TaskPackage
from ..models.task_writing import write_task
from ..progress import Task
from .catalogue_entry import CatalogueEntry

#: Installs one model of the catalog, from a file or by download.
Install = Callable[[CatalogueEntry, "Path | None", Task], list[ModelPackage]]


def task_of(item: CatalogueEntry) -> TaskSpec:
    """Return what an entry's task.json will say."""
    return parse_task(item.spec, f"Models.json: {item.name}")


def install_task(
    item: CatalogueEntry, source: Path | None, task: Task, known: dict[str, CatalogueEntry], install: Install
) -> TaskPackage:
    """Install the models that a task runs, as far as they are missing, and then the task.

    Args:
        source: a folder with the files of these models, named as where they are downloaded from, packed or unpacked.
        known: the entries of the catalog.

    Raises:
        DownloadError, InputError, PackageError, StorageError: models that are installed by then stay, so that the next call goes on.
    """
    spec = task_of(item)
    missing = [known[name] for name in spec.installed_names if name not in installed_models()]
    files = {entry.name: _file_of(entry, source) for entry in missing} if source is not None else {}
    before = task.part
    try:
        for number, entry in enumerate(missing, 1):
            task.part = f"{before}{entry.name} ({number} of {len(missing)}): "
            install(entry, files.get(entry.name), task)
    finally:
        task.part = before
    return write_task(models_root() / item.name, spec, {})


def _file_of(entry: CatalogueEntry, folder: Path) -> Path:
    """Return the file or folder of a model, under the name that it is downloaded by.

    Raises:
        InputError: the folder holds none.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder, and a task needs several models.", "Give the folder that holds all their files."
        )
    name = (entry.url or entry.name).rsplit("/", 1)[-1]
    for candidate in (folder / name, folder / name.removesuffix(".zip"), folder / entry.name):
        if candidate.exists():
            return candidate
    raise InputError(f"{folder} holds no {name}, which is the model {entry.name}.", f"Get it from {entry.homepage}.")


def install_own_task(source: Path, name: str | None = None) -> TaskPackage:
    """Install a task that somebody published, a folder or a zip, as the model ``name``: by default the name that it states.

    Raises:
        PackageError: a damaged task, one with a damaged package, or one that would take the name of the demo model.
        InputError: a model that is no task is installed under that name.
        StorageError: the models' folder cannot be written.
    """
    with TaskPackage.load(source) as package:
        name = name or package.spec.name
        present = installed_models().get(name)
        if name == DEMO or (present and present != [models_root() / name]):
            raise InputError(
                f"A model called {name} is installed already.",
                f"Remove it first: medquant models remove {name}" if name != DEMO else "Give the task another name.",
            )
        places = {path: package.folder / path for path in package.spec.package_paths}
        return write_task(models_root() / name, package.spec, places)
