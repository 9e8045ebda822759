"""What makes INT8 networks, for Slicer's console and window: models are brought in, and calibrated on volume nodes.

A part of :class:`.logic.MedQuantINT8Logic`. All of it runs in a process of its own, which may use another Python than Slicer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..engines import cache
from ..errors import InputError, MedQuantError
from ..imaging.volume_files import ReadOptions
from ..models.installed import DEMO, installed_models, models_root, remove, resolve_one, size_of
from ..models.package import peek
from ..progress import ProgressEvent, Task
from ..worker.client import WorkerClient
from ..worker.jobs import BackgroundJob, wait_for
from . import scene
from .dependencies import GROUPS

if TYPE_CHECKING:
    from ..importers.catalogue import CatalogueEntry

Progress = Callable[[ProgressEvent], None]


class BuildLogic:
    """Brings models in, calibrates them, and tells what they take on the disk.

    Args:
        python, buildPython: the Python that segments, and the one that makes networks; None for the caller's own.
    """

    def __init__(self, python: str | None, buildPython: str | None) -> None:
        self._python, self._buildPython = python, buildPython or python
        self._builder: WorkerClient | None = None

    def pythonOf(self, group: str) -> str | None:
        """The Python that runs what a group of packages is for (a name of :data:`.dependencies.GROUPS`); None for the caller's own."""
        return self._buildPython if group in ("build", "import") else self._python

    def publicModels(self) -> list[CatalogueEntry]:
        """Models of the catalogue that are not installed and can be downloaded."""
        from ..importers.catalogue import entries

        present = installed_models()
        return [item for name, item in entries().items() if name not in present and item.url]

    @staticmethod
    def needsImport(source: str) -> bool:
        """Whether bringing in a file or folder takes torch and MONAI: all but packages of our own and ONNX files."""
        try:
            peek(source)
        except MedQuantError:
            return not source.lower().endswith(".onnx")
        return False

    def installModel(
        self,
        name: str = "",
        source: str = "",
        trustCode: bool = False,
        waitForCompletion: bool = True,
        progress: Progress | None = None,
    ) -> Any:
        """Download a model of the catalogue by ``name``, or bring in one's own from a file or folder; its name.

        Args:
            trustCode: whether Python code that lies in a bundle may run.
        """
        # What turns PyTorch networks into ONNX needs torch, as quantizing does.
        job = self._newBuilder().begin(
            "install_model", [], name=name, source=source, trust_code=trustCode, imports=self._importsFor(name, source)
        )
        return self._result(BackgroundJob(job, lambda result: result.report["name"]), waitForCompletion, progress)

    def _importsFor(self, name: str, source: str) -> dict[str, str]:
        """Modules that bringing in a model takes, beside those of segmenting."""
        from ..importers.catalogue import entries

        entry = entries().get(name)
        torch = self.needsImport(source) if not name else entry is not None and entry.form != "onnx"
        return GROUPS["import"].modules() if torch else {}

    @staticmethod
    def ownCopyName(model: str) -> str:
        """The name under which the INT8 form of an installed model is kept: its own, but the demo model is not changed."""
        return "my-demo" if model == DEMO else model

    def ownCopyPath(self, model: str) -> str | None:
        """Where the INT8 form of an installed model is written; None for the model itself."""
        name = self.ownCopyName(model)
        return None if name == model else str(models_root() / name / "package")

    def calibrate(
        self,
        volumeNodes: Sequence[Any],
        model: str,
        output: str | None = None,
        method: str = "max",
        patches: int = 20,
        agreement: float = 0.99,
        *,
        scans: Sequence[str] = (),
        fallback: bool = True,
        reading: ReadOptions = ReadOptions(),
        waitForCompletion: bool = True,
        progress: Progress | None = None,
    ) -> Any:
        """Quantize a model on volume nodes and scan files, and write it with its INT8 network.

        Args:
            output: package to write; by default the model itself gets its INT8 network.
            scans: files that are not loaded.
            reading: how these files are read, where they leave a choice.
            fallback: whether layers that INT8 cannot afford may go back to floating point.

        Returns:
            What the quantization report says.
        """
        path = resolve_one(self._modelPath(model))
        self.checkScans(volumeNodes, scans)
        volumes = [scene.volume_from_node(node) for node in volumeNodes]
        request = {
            "method": method,
            "patches": patches,
            "agreement": agreement,
            "fallback": fallback,
            "reading": asdict(reading),
        }
        job = self._newBuilder().begin(
            "quantize",
            volumes,
            model=path,
            output=str(output or path),
            scans=[str(scan) for scan in scans],
            imports=GROUPS["build"].modules(),
            **request,
        )
        return self._result(BackgroundJob(job, lambda result: result.report), waitForCompletion, progress)

    @staticmethod
    def checkScans(volumeNodes: Sequence[Any], scans: Sequence[str]) -> None:
        """Whether there is anything to calibrate on.

        Raises:
            InputError: there is neither a volume nor a scan file.
        """
        if not volumeNodes and not scans:
            raise InputError(
                "There is no volume to calibrate on.", "Choose at least one scan like those you will segment."
            )

    # ---- what lies on the disk

    @staticmethod
    def modelSizes() -> dict[str, int]:
        """Bytes that each installed model takes, by its name; the demo model is part of the program and not among them."""
        return {name: size_of(name) for name in installed_models() if name != DEMO}

    @staticmethod
    def removeModel(name: str) -> int:
        """Remove an installed model; the bytes that became free.

        Raises:
            InputError: it is not installed, or is part of the program.
        """
        return remove(name)

    @staticmethod
    def engineBytes() -> int:
        """Bytes of all engines that were built on this computer."""
        return sum(entry.bytes for entry in cache.entries())

    @staticmethod
    def removeEngines(model: str | None = None) -> int:
        """Remove the engines that were built on this computer, or those of one model; how many. They are built again when needed."""
        return cache.clear(model)

    def _result(self, job: Any, wait: bool, progress: Progress | None) -> Any:
        return wait_for(job, Task(progress)) if wait else job

    def _modelPath(self, model: str | None) -> str:
        raise NotImplementedError

    def _newBuilder(self) -> WorkerClient:
        """A process of its own: what making networks loads would else stay in memory beside the engines."""
        self._endBuilder()
        self._builder = WorkerClient(self._buildPython)
        return self._builder

    def _endBuilder(self) -> None:
        if self._builder is not None:
            self._builder.close()
            self._builder = None
