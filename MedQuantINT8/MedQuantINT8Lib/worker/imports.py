"""Whether the packages that a task needs can be imported, asked in the process that needs them.

A package may be installed and yet be of no use: another that it imports is missing, or of a wrong version, or its library does not load.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping

from ..errors import DependencyError, one_line


def check_imports(modules: Mapping[str, str], check: Callable[[], None] = lambda: None) -> None:
    """Import modules, one after the other.

    Args:
        modules: a module's name, and the requirement that brings it ("onnxscript>=0.3").
        check: called before each; raises where the work was canceled.

    Raises:
        DependencyError: one cannot be imported; says by which Python, why, and how to install what it lacks.
    """
    for module, requirement in modules.items():
        check()
        try:
            importlib.import_module(module)
        except Exception as error:
            # A package that is broken raises whatever it likes.
            name = requirement.split(">")[0]
            raise DependencyError(
                f"{name} is installed, but {sys.executable} cannot import it: {one_line(error)}.",
                _advice(_lacking(error, module) or requirement),
            ) from error


def _lacking(error: Exception, module: str) -> str:
    """Return the package that another one imports and that is not there; empty where that was not the reason."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    top = name.split(".")[0]
    return "" if top == module.split(".")[0] else top


def _advice(package: str) -> str:
    if "SLICER_HOME" in os.environ:
        return f'In Slicer\'s Python console: slicer.util.pip_install("{package}"). Then press the button again.'
    return f"Install what it lacks: {sys.executable} -m pip install '{package}'."
