"""The catalog of public models (``Resources/Models.json``), and how one of them is installed.

An entry says where weights and their license are; nothing of a model is part of this project. What is installed is listed by
:mod:`..models.installed`.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..errors import InputError, PackageError
from ..files import storage_errors
from ..models.installed import DEMO, installed_models, models_root
from ..models.package import ModelPackage
from ..models.spec import ModelSpec
from ..models.spec_parser import parse_spec
from ..outputs import check_output_package
from ..progress import Task
from ..resources import resource
from .archives import as_folder
from .base import ImportedModel, write_all
from .catalogue_entry import CatalogueEntry
from .catalogue_tasks import install_task
from .download import Checksum, download

__all__ = ["CatalogueEntry", "can_download", "download_package", "entries", "entry", "install", "install_package"]


def entries() -> dict[str, CatalogueEntry]:
    """Return all entries of the catalog by name."""
    value = json.loads(resource("Models.json").read_text(encoding="utf-8"))
    entries_by_name = {}
    for row in value["models"]:
        fields = dict(row)
        digest = next(((a, fields.pop(a)) for a in ("sha256", "sha1") if fields.get(a)), None)
        fields.pop("sha256", None), fields.pop("sha1", None)
        entries_by_name[row["name"]] = CatalogueEntry(
            **{**fields, "labels": tuple(row["labels"]), "checksum": Checksum(*digest) if digest else None}
        )
    return entries_by_name


def entry(name: str) -> CatalogueEntry:
    """Return the entry of that name; raises :class:`InputError` for a name that the catalog does not hold, and says which are similar."""
    import difflib

    catalog = entries()
    if name not in catalog:
        suggestions = difflib.get_close_matches(name, catalog, 3, 0.4)
        hint = f"Did you mean {', '.join(suggestions)}?" if suggestions else "See: medquant models"
        raise InputError(f"The catalog has no model {name!r}.", hint)
    return catalog[name]


def can_download(item: CatalogueEntry, known: dict[str, CatalogueEntry]) -> bool:
    """Return whether a model, or everything that a task runs, has a public address."""
    if item.form == "task":
        return all(known[name].url is not None for name in item.needed)
    return item.url is not None


def install(item: CatalogueEntry, source: Path | None, task: Task, *, trust_code: bool = False) -> list[ModelPackage]:
    """Download (or take from ``source``), import and keep a model.

    Args:
        source: a file or folder that the user downloaded by hand, for machines without a network; for a task, the folder with the files
            of the models that it runs.

    Returns:
        The model's packages, one a fold; of a task, those of all the models that it runs.

    Raises:
        DownloadError, InputError, PackageError, StorageError: no half-written model is kept, but a download can go on.
    """
    if item.form == "task":
        with install_task(item, source, task, entries(), install):
            present = installed_models()
            return [ModelPackage.load(path) for name in item.needed for path in present[name]]
    path = _download_source(item, task) if source is None else _check_source(item, source)
    if item.form == "package":
        packages = [install_package(path, item.name)]
        if source is None:
            path.unlink()
        return packages
    with _open_source(item, path) as place:
        imported = _understand(item, place, trust_code)
        packages = write_all(imported, models_root() / item.name, task)
    if source is None:
        path.unlink()
    return packages


def install_package(source: Path, name: str | None = None) -> ModelPackage:
    """Install a package that somebody published, a folder or a zip, as the model ``name``: by default the name that it states.

    Raises:
        PackageError: a damaged package, or one that would take the name of the demo model.
        StorageError: the models' folder cannot be written.
    """
    with ModelPackage.load(source) as package:
        name = name or package.spec.name
        if name == DEMO:
            raise PackageError(
                f"{source} calls itself {DEMO}, as the model does that comes with the program.",
                "Ask whoever published it for another name.",
            )
        target = models_root() / name / "package"
        check_output_package(target, [source])
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        package.save(target)
    return ModelPackage.load(target)


def download_package(url: str, task: Task, checksum: Checksum | None = None) -> Path:
    """Download a package from a web address; returns the file, which whoever installs it removes.

    Raises:
        DownloadError: as :func:`download`.
    """
    # Of two addresses with the same last part neither may go on where the other was interrupted.
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.zip"
    path = models_root() / ".downloads" / name
    download(url, path, task, checksum)
    return path


def _download_source(item: CatalogueEntry, task: Task) -> Path:
    if item.url is None:
        raise InputError(
            f"{item.name} cannot be downloaded by this program. {item.by_hand}", "Then give it with --from."
        )
    path = models_root() / ".downloads" / item.url.rsplit("/", 1)[-1]
    if not path.exists():
        download(item.url, path, task, item.checksum)
    return path


def _check_source(item: CatalogueEntry, source: Path) -> Path:
    if not source.exists():
        raise InputError(f"There is nothing at {source}.", "Check --from.")
    if source.is_file() and item.checksum is not None:
        item.checksum.check(source, source.name)
    return source


def _open_source(item: CatalogueEntry, path: Path) -> AbstractContextManager[Path]:
    single = item.form == "onnx" or path.suffix in (".pt", ".pth")
    return nullcontext(path) if single else as_folder(path, "model")


def _understand(item: CatalogueEntry, place: Path, trust_code: bool) -> list[ImportedModel]:
    from . import auto3dseg, monai_bundle, nnunet

    if item.form == "bundle":
        return [monai_bundle.understand(place, trust_code=trust_code)]
    if item.form == "nnunet":
        return nnunet.understand(place, resampling=item.resampling)
    return (
        [auto3dseg.understand(place)]
        if item.form == "auto3dseg"
        else [ImportedModel(_parse_entry_spec(item), place, by_hand=True)]
    )


def _parse_entry_spec(item: CatalogueEntry) -> ModelSpec:
    return parse_spec(item.spec, f"Models.json: {item.name}")
