"""Model packages for machines that do not have them: as bytes in the driver, as a folder on each node, the same by their hash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import MedQuantError, PackageError
from ..files import replacing_folder, split_paths
from ..inference.ensemble import load_ensemble
from ..models.package import MODEL_JSON
from ..models.task_package import is_task
from ..system import user_folder
from .case_settings import model_hash

#: The files of each package of a model, by name.
Packed = list[dict[str, bytes]]


def packed(model: str) -> Packed | None:
    """Read the packages of a model (paths joined by commas), with all of their files.

    Returns:
        None for a task, which names models by their paths: those have to be where every node sees them.

    Raises:
        PackageError: a package that cannot be loaded.
    """
    if any(is_task(path) for path in split_paths(model)):
        return None
    with load_ensemble(model) as ensemble:
        return [
            {name: (member.folder / name).read_bytes() for name in (MODEL_JSON, *sorted(member.hashes))}
            for member in ensemble.packages
        ]


def installed_on_node(digest: str, fetch: Callable[[], Packed | None]) -> str:
    """Return the paths (joined by commas) of the packages of this hash on this machine; they are fetched if they are not there yet.

    Args:
        digest: :func:`.case_settings.model_hash` of the packages.
        fetch: brings their files.

    Raises:
        PackageError: what was fetched has another hash.
        StorageError: they cannot be written here.
    """
    root = user_folder("data") / "cluster" / digest[:32]
    if (paths := _whole(root, digest)) is not None:
        return paths
    with replacing_folder(root) as folder:
        for number, files in enumerate(fetch() or []):
            package = folder / str(number)
            package.mkdir()
            for name, content in files.items():
                if Path(name).name != name:
                    raise PackageError(f"A package holds a file called {name}.", "Ask whoever made the package.")
                (package / name).write_bytes(content)
    if (paths := _whole(root, digest)) is None:
        raise PackageError("The model's packages arrived damaged.", "Run the command again.")
    return paths


def _whole(root: Path, digest: str) -> str | None:
    """Return the paths of the packages in a folder, if they are there and have this hash."""
    if not root.is_dir():
        return None
    paths = ",".join(str(path) for path in sorted(root.iterdir(), key=lambda path: path.name))
    try:
        if not paths or split_paths(paths) != paths.split(","):
            return None
        with load_ensemble(paths) as ensemble:
            return paths if model_hash(ensemble) == digest else None
    except (MedQuantError, OSError):
        return None
