"""Models, for Slicer's console and window: which there are, how one is brought in or removed, and what they take on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..engines import cache
from ..errors import MedQuantError, PackageError
from ..models.installed import DEMO, holds_int8, installed_models, remove, size_of
from ..models.task_package import describe, is_task
from ..worker.client import WorkerClient
from ..worker.jobs import BackgroundJob
from .dependencies import GROUPS
from .logic_base import LogicBase, Progress
from .model_entries import ModelEntry, model_entries

if TYPE_CHECKING:
    from ..importers.catalogue import CatalogueEntry


class ModelLogic(LogicBase):
    """Lists models, brings them in and removes them.

    Bringing a model in takes a process of its own, which may use another Python than the one that segments.
    """

    #: The Python that makes networks, and its process while it works.
    _buildPython: str | None = None
    _builder: WorkerClient | None = None

    def _setBuildPython(self, python: str | None) -> None:
        """Let that Python make networks; None for the one that segments."""
        self._buildPython = python

    @staticmethod
    def models() -> list[dict[str, Any]]:
        """Installed models: name, title, modality, structures, channels, whether they hold an INT8 network, and whether they are a task."""
        descriptions = []
        for name, paths in installed_models().items():
            try:
                spec = describe(paths[0])
            except PackageError:
                # The list of all models says what is wrong with it.
                continue
            descriptions.append(
                {
                    "name": name,
                    "title": spec.title or spec.name,
                    "modality": spec.modality,
                    "channels": [channel.name for channel in spec.channels],
                    "labels": [label.name for label in spec.labels],
                    "license": spec.license,
                    "int8": holds_int8(paths),
                    "task": is_task(paths[0]),
                    "paths": [str(path) for path in paths],
                }
            )
        return descriptions

    @staticmethod
    def modelEntries() -> list[ModelEntry]:
        """Installed models, and those of the catalog that can be downloaded, as the window lists them."""
        return model_entries()

    def pythonOf(self, group: str) -> str | None:
        """The Python that runs what a group of packages is for (a name of :data:`.dependencies.GROUPS`); None for the caller's own."""
        return self._pythonOfBuilder if group in ("build", "import") else self._python

    @property
    def _pythonOfBuilder(self) -> str | None:
        """That of the constructor, or of the settings, or the one that segments."""
        return self._buildPython or self.settings.buildPython or self._python

    def publicModels(self) -> list[CatalogueEntry]:
        """Models of the catalogue that are not installed and can be downloaded."""
        from ..importers.catalogue import can_download, entries

        present, known = installed_models(), entries()
        return [item for name, item in known.items() if name not in present and can_download(item, known)]

    @staticmethod
    def needsImport(source: str) -> bool:
        """Whether bringing in a file or folder takes torch and MONAI: all but packages of our own and ONNX files."""
        try:
            describe(source)
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
            "install_model", [], name=name, source=source, trust_code=trustCode, imports=self.importsFor(name, source)
        )
        return self._result(BackgroundJob(job, lambda result: result.report["name"]), waitForCompletion, progress)

    def importsFor(self, name: str, source: str = "") -> dict[str, str]:
        """Modules that bringing in a model takes, beside those of segmenting, each with the requirement that brings it."""
        from ..importers.catalogue import entries

        entry = entries().get(name)
        torch = self.needsImport(source) if not name else entry is not None and entry.form not in ("onnx", "package")
        return GROUPS["import"].modules() if torch else {}

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

    # ---- within

    def _newBuilder(self) -> WorkerClient:
        """A process of its own: what making networks loads would else stay in memory beside the engines."""
        self._endBuilder()
        self._builder = WorkerClient(self._pythonOfBuilder)
        return self._builder

    def _endBuilder(self) -> None:
        if self._builder is not None:
            self._builder.close()
            self._builder = None
