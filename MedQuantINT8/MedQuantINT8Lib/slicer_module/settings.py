"""What the user set once for all scans: folders, threads, memory. Kept by the application; no Qt in here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..inference.engine_choice import EngineChoice
from ..inference.segmenter import SegmentationOptions

#: Under which names the application keeps the settings, by the attributes of :class:`Settings`.
KEYS = {
    "modelsFolder": "MedQuantINT8/ModelsFolder",
    "enginesFolder": "MedQuantINT8/EnginesFolder",
    "wheelsFolder": "MedQuantINT8/WheelsFolder",
    "buildPython": "MedQuantINT8/BuildPython",
    "threads": "MedQuantINT8/Threads",
    "memoryGB": "MedQuantINT8/MemoryGB",
}
_VARIABLES = {"modelsFolder": "MEDQUANT_MODELS", "enginesFolder": "MEDQUANT_CACHE"}
_GB = 1 << 30


@dataclass(frozen=True)
class Settings:
    """The settings; what is empty or 0 leaves the choice to the program.

    Attributes:
        modelsFolder, enginesFolder: where models and built engines lie.
        wheelsFolder: Python packages (wheels) to install from, in place of the network.
        buildPython: the Python that makes INT8 networks.
        threads: of the processor.
        memoryGB: for class scores that are blended.
    """

    modelsFolder: str = ""
    enginesFolder: str = ""
    wheelsFolder: str = ""
    buildPython: str = ""
    threads: int = 0
    memoryGB: float = 0.0

    @staticmethod
    def read(value: Callable[[str], Any]) -> Settings:
        """The settings as the application keeps them, which may be as texts; what does not fit is left to the program.

        Args:
            value: gives what is kept under a name, or None.
        """
        fields: dict[str, Any] = {}
        for field, key in KEYS.items():
            kept = value(key)
            kind = type(getattr(Settings(), field))
            try:
                fields[field] = kind(kept) if kept is not None else kind()
            except (TypeError, ValueError):
                fields[field] = kind()
        settings = Settings(**fields)
        return replace(settings, threads=max(0, settings.threads), memoryGB=max(0.0, settings.memoryGB))

    def choice(self, choice: EngineChoice) -> EngineChoice:
        """An engine's choice on the threads that were set, where the caller did not say how many."""
        return choice if choice.threads or not self.threads else replace(choice, threads=self.threads)

    def options(self, options: SegmentationOptions) -> SegmentationOptions:
        """Options within the memory that was set, where the caller did not say how much."""
        if options.memory_bytes is not None or not self.memoryGB:
            return options
        return replace(options, memory_bytes=int(self.memoryGB * _GB))


class Folders:
    """Puts the folders of the settings where the library and the worker look for them: into the environment.

    What the environment said before holds again when a setting is emptied; what nobody set here is left alone.
    """

    def __init__(self) -> None:
        #: What was set here and what stood there before, by variable.
        self._own: dict[str, tuple[str, str | None]] = {}

    def apply(self, settings: Settings) -> bool:
        """Use the settings' folders; whether anything changed, so that a worker has to be started anew."""
        changes = [self._set(variable, getattr(settings, field)) for field, variable in _VARIABLES.items()]
        return any(changes)

    def _set(self, variable: str, folder: str) -> bool:
        now = os.environ.get(variable)
        own, before = self._own.get(variable, (None, now))
        if folder:
            self._own[variable] = (folder, before if now == own else now)
            os.environ[variable] = folder
        elif self._own.pop(variable, None) is not None and now == own:
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before
        return os.environ.get(variable) != now
