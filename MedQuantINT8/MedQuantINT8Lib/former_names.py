"""Modules that scripts for version 0.1 named are found where they are now, with a warning, until version 0.3."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.rpartition(".")[0]
#: What the first manual named, and what its examples led to: the former name, and the present one.
_PRESENT_NAMES = {
    "calibration": "quantization.calibration",
    "logic": "slicer_module.logic",
    "model": "models.package",
    "model_spec": "models.spec",
    "mrml": "slicer_module.scene",
    "phantom": "imaging.phantom",
    "preprocessing": "imaging.preprocessing",
    "segmenter": "inference.segmenter",
    "spec_parser": "models.spec_parser",
    "volume": "imaging.volume",
    "volume_io": "imaging.volume_files",
}


class _FormerNames:
    """Loads a module under its present name, and lets the former name mean the same module.

    A finder and loader without the classes of importlib.abc, which take longer to import than all else that ``medquant --help`` needs.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        known = package == _PACKAGE and name in _PRESENT_NAMES
        return ModuleSpec(fullname, self) if known else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        present = f"{_PACKAGE}.{_PRESENT_NAMES[spec.name.rpartition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {present}.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(present)
        # The import system writes the former name into the module that it is given; it gets a stand-in.
        return ModuleType(spec.name, f"Stands for {module.__name__}.")

    def exec_module(self, module: ModuleType) -> None:
        present = f"{_PACKAGE}.{_PRESENT_NAMES[module.__name__.rpartition('.')[2]]}"
        sys.modules[module.__name__] = sys.modules[present]


def install() -> None:
    """Let former names be imported. Calling it again, as after a reload, changes nothing."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != _FormerNames.__name__]
    sys.meta_path.append(_FormerNames())
