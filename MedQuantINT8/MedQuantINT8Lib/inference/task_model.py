"""A loaded model of whatever kind was named: one package, several that are averaged, or a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from ..errors import InputError
from ..files import split_paths
from ..models.installed import source_paths
from ..models.package import MODEL_JSON, ModelPackage, peek
from ..models.spec import Label, ModelSpec
from ..models.task import TASK_JSON, Find, NamedValue, Part, TaskSpec, check_source
from ..models.task_package import TaskPackage, is_task
from .ensemble import Ensemble, load_ensemble


class TaskModel:
    """A task whose packages are loaded when they are first needed, so that a run of some structures reads no others."""

    def __init__(self, package: TaskPackage) -> None:
        self.package = package
        self._ensembles: dict[str, Ensemble] = {}

    def __enter__(self) -> TaskModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for ensemble in self._ensembles.values():
            ensemble.__exit__(kind, error, trace)
        self.package.close()

    @property
    def spec(self) -> TaskSpec:
        """What task.json says."""
        return self.package.spec

    def paths(self, source: Find | Part) -> list[Path]:
        """Return the packages that a part or a step of find runs; errors as :func:`..models.installed.source_paths`."""
        return source_paths(self.spec, source, self.package.folder)

    def named_values(self, source: Find | Part) -> tuple[NamedValue, ...]:
        """Return the names of the values of a part's label map, without loading its packages.

        Raises:
            InputError, PackageError: a package that is missing, or that is not as the task says.
        """
        return check_source(self.spec, source, [peek(path)[0] for path in self.paths(source)])

    def ensemble(self, source: Find | Part) -> Ensemble:
        """Return the loaded packages of a part or of a step of find.

        Raises:
            InputError, PackageError: a package that is missing or damaged, or that is not as the task says.
        """
        if source.name not in self._ensembles:
            paths = self.paths(source)
            check_source(self.spec, source, [peek(path)[0] for path in paths])
            self._ensembles[source.name] = load_ensemble(",".join(map(str, paths)))
        return self._ensembles[source.name]


#: Whatever a scan can be segmented with.
LoadedModel = Ensemble | TaskModel


def load_model(paths: str) -> LoadedModel:
    """Load one package, several joined by commas whose class scores are averaged, or a task.

    Raises:
        PackageError: a package or task that cannot be loaded.
        InputError: a task among several packages.
    """
    parts = split_paths(paths)
    if not any(is_task(path) for path in parts):
        return load_ensemble(paths)
    if len(parts) > 1:
        raise InputError("A task cannot be averaged with other models.", "Give it alone, or packages of one training.")
    return TaskModel(TaskPackage.load(paths))


def description_of(model: LoadedModel) -> ModelSpec | TaskSpec:
    """Return what a model says of itself: name, title, modality, channels, labels, license."""
    return model.spec if isinstance(model, TaskModel) else model.first.spec


def labels_of(model: LoadedModel) -> tuple[Label, ...]:
    """Return the structures of a model's label map."""
    return description_of(model).labels


def all_ensembles(model: LoadedModel) -> list[Ensemble]:
    """Return everything that a model runs: itself, or the parts and steps of a task, which are loaded."""
    if isinstance(model, Ensemble):
        return [model]
    return [model.ensemble(source) for source in model.spec.sources]


def named_packages(model: LoadedModel) -> list[tuple[str, ModelPackage]]:
    """Return every package of a model with a name for it: that of the task's part or step, or the package's own."""
    if isinstance(model, Ensemble):
        return [(package.spec.name, package) for package in model.packages]
    named = list[tuple[str, ModelPackage]]()
    for source in model.spec.sources:
        packages = model.ensemble(source).packages
        named += [
            (source.name + (f" ({number} of {len(packages)})" if len(packages) > 1 else ""), package)
            for number, package in enumerate(packages, 1)
        ]
    return named


def require_int8(model: LoadedModel) -> None:
    """Complain where a package of the model has no INT8 network.

    Raises:
        PackageError: names the package.
    """
    for ensemble in all_ensembles(model):
        for package in ensemble.packages:
            package.onnx_path("int8")


def file_bytes(model: LoadedModel, precision: str) -> int:
    """Return the bytes of a model's networks; of an ensemble, of its first."""
    return sum(ensemble.first.onnx_path(precision).stat().st_size for ensemble in all_ensembles(model))


def stamps(paths: str) -> tuple[float, ...]:
    """Return the times of the last change of all that describes a model: another tuple says that it has to be loaded anew."""
    found: list[float] = []
    for path in map(Path, split_paths(paths)):
        if path.is_dir() and is_task(path):
            found.append((path / TASK_JSON).stat().st_mtime)
            found += [_stamp(part) for part in _task_paths(path)]
        else:
            found.append(_stamp(path))
    return tuple(found)


def _task_paths(folder: Path) -> Sequence[Path]:
    with TaskPackage.load(folder) as package:
        return [path for source in package.spec.sources for path in source_paths(package.spec, source, folder)]


def _stamp(path: Path) -> float:
    described = path / MODEL_JSON if path.is_dir() else path
    return described.stat().st_mtime if described.exists() else 0.0
