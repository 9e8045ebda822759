"""Models of several networks on the build road: which they are, what each is calibrated on, and how all get their INT8 network together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import split_paths
from ..imaging.volume import Volume
from ..inference.engine_choice import EngineChoice
from ..inference.pipeline import segment
from ..inference.segmenter import SegmentationOptions
from ..inference.task_model import TaskModel
from ..models.installed import source_paths
from ..models.package import ModelPackage
from ..models.task import TASK_JSON, Find, TaskSpec
from ..models.task_package import TaskPackage, is_task, peek_task
from ..models.task_writing import note_package, with_packages
from ..outputs import check_output_package
from ..progress import Task

#: Gives a calibration scan when it is needed; one is in memory at a time.
ScanSource = Callable[[], Volume]
#: Quantizes the package at the first path into the second, on these scans; returns what there is to report of it.
QuantizeOne = Callable[[str, str, Sequence[ScanSource]], dict[str, Any]]


@dataclass(frozen=True)
class Network:
    """A network of a model of several.

    Attributes:
        name: for people: that of the task's part or step, of the installed model, or of the package.
        path: of its package.
        inner: the package's path inside the task; None where it lies elsewhere, as an installed model's or a fold's.
        previous: the step of a task whose label map is its last channel, as of a cascade's second stage; or None.
    """

    name: str
    path: Path
    inner: str | None = None
    previous: Find | None = None


def has_several(model: str) -> bool:
    """Return whether a model (paths joined by commas) is a task, or several packages."""
    return len(split_paths(model)) > 1 or is_task(model)


def networks_of(model: str) -> list[Network]:
    """Return the networks of a model, each once: one package, several joined by commas, or those that a task runs.

    Raises:
        InputError: the task runs a model that is not installed.
        PackageError: the task cannot be read.
    """
    if not is_task(model):
        return [_package_of(Path(path)) for path in split_paths(model)]
    folder = Path(model).parent if Path(model).name == TASK_JSON else Path(model)
    return _networks_of_task(peek_task(model), folder)


def quantize_networks(
    model: str, target: str, scans: Sequence[ScanSource], quantize_one: QuantizeOne, task: Task
) -> list[dict[str, Any]]:
    """Quantize every network of a model, one after the other, and put all in place when the last one is done.

    Until then nothing of the model has changed: a run that fails or is canceled leaves it as it was.

    Args:
        model: a task, or several packages joined by commas.
        target: where the task is written; the model itself for installed models and packages, which get their INT8 network in place.
        scans: to calibrate on; a cascade's second stage gets them with the label map of the first as their last channel.

    Returns:
        A report for each network, with its name as "network".

    Raises:
        InputError: another target than the model, where it runs packages that lie elsewhere.
        MedQuantError: as ``quantize_one``.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="medquant-quantized-")))
        package = stack.enter_context(TaskPackage.load(model)) if is_task(model) else None
        networks = networks_of(model) if package is None else _networks_of_task(package.spec, package.folder)
        _check_target(model, target, networks)
        staged = _StagedScans(package, scans, scratch, task, stack)
        reports, before = [], task.part
        try:
            for number, network in enumerate(networks, 1):
                task.part = f"{before}{network.name} ({number} of {len(networks)}): "
                report = quantize_one(str(network.path), str(scratch / f"{number}"), staged.of(network))
                reports.append({"network": network.name, **report})
        finally:
            task.part = before
        made = {network: scratch / f"{number}" for number, network in enumerate(networks, 1)}
        task.check()
        for network, folder in made.items():
            if network.inner is None:
                with ModelPackage.load(folder) as quantized:
                    quantized.save(network.path)
                note_package(network.path)
        inner = {network.inner: folder for network, folder in made.items() if network.inner is not None}
        if package is not None and inner:
            with_packages(package, Path(target).parent if Path(target).name == TASK_JSON else target, inner)
    return reports


def _package_of(path: Path) -> Network:
    return Network(path.name if path.name != "package" else path.parent.name, path)


def _networks_of_task(spec: TaskSpec, folder: Path) -> list[Network]:
    networks: dict[Path, Network] = {}
    for source in spec.sources:
        paths = source_paths(spec, source, folder)
        step = getattr(source, "previous", None)
        previous = next((item for item in spec.find if item.name == step), None) if step is not None else None
        for number, path in enumerate(paths, 1):
            name = source.installed or source.name
            name += f", {number} of {len(paths)}" if len(paths) > 1 else ""
            inner = source.packages[number - 1] if source.installed is None else None
            networks.setdefault(path, Network(name, path, inner, previous))
    return list(networks.values())


def _check_target(model: str, target: str, networks: Sequence[Network]) -> None:
    elsewhere = next((network for network in networks if network.inner is None), None)
    if elsewhere is not None and target != model:
        raise InputError(
            f"{elsewhere.name} lies outside of the model's own folder, and gets its INT8 network in place.",
            "Leave the output out.",
        )
    if is_task(model):
        check_output_package(
            Path(target).parent if Path(target).name == TASK_JSON else target, (), itself=model, description=TASK_JSON
        )


class _StagedScans:
    """The scans that each network of a task is calibrated on.

    Args:
        scratch: where the label maps of first stages are kept meanwhile.
        stack: closes the networks of first stages.
    """

    def __init__(
        self, package: TaskPackage | None, scans: Sequence[ScanSource], scratch: Path, task: Task, stack: ExitStack
    ) -> None:
        self._scans, self._scratch, self._task = list(scans), scratch, task
        # The task is closed by whoever opened it.
        self._model = stack.enter_context(TaskModel(replace(package, temporary=False))) if package is not None else None
        self._known: dict[str, list[ScanSource]] = {}

    def of(self, network: Network) -> list[ScanSource]:
        """Return the scans of a network."""
        step = network.previous
        if step is None or self._model is None:
            return self._scans
        if step.name not in self._known:
            ensemble = self._model.ensemble(step)
            files = [self._scratch / f"labels {step.name} {number}.npy" for number in range(len(self._scans))]
            for scan, file in zip(self._scans, files, strict=True):
                run = segment(ensemble, scan(), EngineChoice(precision="fp32"), SegmentationOptions(), self._task)
                np.save(file, run.result.labels)
            self._known[step.name] = [
                lambda scan=scan, file=file: _with_labels(scan(), file)  # type: ignore[misc]
                for scan, file in zip(self._scans, files, strict=True)
            ]
        return self._known[step.name]


def _with_labels(volume: Volume, file: Path) -> Volume:
    """Return a scan with a label map (K, J, I) from a file as its last channel."""
    labels = np.load(file)[np.newaxis].astype(volume.data.dtype)
    return replace(volume, data=np.concatenate([volume.data, labels]))
