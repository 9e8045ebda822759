"""What every part of the logic stands on: models, engines and devices by name, the worker, and how a job ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..devices import check_device
from ..engines import backend, backend_names
from ..engines.availability import examine_engines
from ..engines.cuda.setup_hints import gpu_names
from ..errors import InputError
from ..files import split_paths, there
from ..inference.engine_choice import EngineChoice
from ..models.installed import installed_models, resolve
from ..models.spec import ModelSpec
from ..models.task import TaskSpec
from ..models.task_package import describe
from ..progress import ProgressEvent, Task
from ..system import cpu_name
from ..worker.client import WorkerClient
from ..worker.jobs import wait_for
from . import modality_check, scene
from .load_gauge import Load, LoadGauge
from .settings import Folders, Settings

Progress = Callable[[ProgressEvent], None]
PRECISIONS = ("auto", "int8", "fp16", "fp32")


def engine_choice(engine: str, precision: str, device: str) -> EngineChoice:
    """Return the choice of engine that the caller made, checked.

    Raises:
        InputError: an engine, a precision or a device that does not exist.
    """
    if engine not in ("auto", *backend_names()):
        raise InputError(
            f"There is no engine called {engine!r}.", f"Choose auto or one of {', '.join(backend_names())}."
        )
    if precision not in PRECISIONS:
        raise InputError(f"There is no precision {precision!r}.", f"Choose one of {', '.join(PRECISIONS)}.")
    return EngineChoice(engine, precision, device=check_device(device))  # type: ignore[arg-type]


class LogicBase:
    """Names of models, engines and devices, and the resident worker that every part of the logic shares.

    Args:
        python: the Python that segments; None for the caller's own.
    """

    def __init__(self, python: str | None) -> None:
        self._python = python
        self._client = WorkerClient(python)
        #: What the worker reported of the last run.
        self.report: dict[str, Any] = {}
        self._gauge: LoadGauge | None = None
        self.settings = Settings()
        self._folders = Folders()

    def engines(self) -> dict[str, Any]:
        """Engines by name: whether each can run here, and why not."""
        return examine_engines()

    def advise(self, volumeNode: Any, model: str) -> str:
        """A warning if the scan seems to be of another modality than the model was made for; else an empty string."""
        volume = scene.volume_from_node(volumeNode)
        return modality_check.modality_warning(volumeNode, volume, self._spec(self._modelPath(model)))

    def devices(self) -> list[tuple[str, str]]:
        """Where engines can run: name for ``device=``, and what it is."""
        gpus = gpu_names()
        together = [("gpu:all", f"all {len(gpus)} GPUs together")] if len(gpus) > 1 else []
        return [("auto", "whatever is fastest"), ("cpu", cpu_name()), *gpus, *together]

    def engineTitles(self) -> list[tuple[str, str]]:
        """All engines this version knows, with titles; whether they can run is only found out when one is used."""
        return [(name, backend(name).title) for name in backend_names()]

    def applySettings(self, settings: Settings) -> None:
        """Use the settings from now on. Call it while nothing runs: where folders changed, the worker ends."""
        self.settings = settings
        if self._folders.apply(settings):
            # It is started again, with the new folders, when it is needed.
            self._client.close()
            self._client = WorkerClient(self._python)

    def _choice(self, engine: str, precision: str, device: str) -> EngineChoice:
        return self.settings.choice(engine_choice(engine, precision, device))

    def load(self) -> Load | None:
        """What the worker takes now of memory, processor and graphics card; None while there is no worker."""
        pid = self._client.description.get("pid") if self._client.alive else None
        if not isinstance(pid, int):
            self._gauge = None
            return None
        if self._gauge is None or self._gauge.pid != pid:
            self._gauge = LoadGauge(pid)
        return self._gauge.read()

    # ---- within

    def _result(self, job: Any, wait: bool, progress: Progress | None) -> Any:
        return wait_for(job, Task(progress)) if wait else job

    def _modelPath(self, model: str | None) -> str:
        if not model:
            raise InputError(
                "No model was chosen.",
                f"Installed are: {', '.join(installed_models()) or 'none (see medquant models)'}.",
            )
        path = resolve(str(model))
        if not there(split_paths(path)[0]):
            raise InputError(
                f"There is no model {model!r}.", "Give the name of an installed model, or the path of a package."
            )
        return path

    def _spec(self, path: str) -> ModelSpec | TaskSpec:
        return describe(split_paths(path)[0])

    @staticmethod
    def _stillThere(node: Any, what: str) -> None:
        if node.GetScene() is None:
            raise InputError(
                f"{what} was deleted, or its scene was closed, while the work went on.", "Load it and start again."
            )
