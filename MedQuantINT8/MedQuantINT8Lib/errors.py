"""Errors that a user can act on.

Every error that reaches a user carries one sentence that names the thing that is wrong and one that says what to do
next. The command line prints them on one line and ends with ``exit_code``.
"""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Return an error in one line: its own words, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class MedQuantError(Exception):
    """Base of all errors of this project.

    Attributes:
        hint: what the user can do next; may be empty.
        exit_code: what the command line returns to the shell.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.hint}".strip()


class InputError(MedQuantError):
    """A scan, a label map or an argument that cannot be used."""

    exit_code = 2


class PackageError(MedQuantError):
    """A model package or a network file that is broken, unsafe or not understood."""

    exit_code = 3


class EngineError(MedQuantError):
    """An engine that is missing here, cannot be built, or gives wrong answers."""

    exit_code = 4


class StorageError(MedQuantError):
    """A file or folder that cannot be written."""

    exit_code = 5


class DependencyError(MedQuantError):
    """A Python package that a road needs and that is not installed."""

    exit_code = 6


class CasesFailed(MedQuantError):
    """Some cases of many failed; the others are done."""

    exit_code = 8


class Cancelled(MedQuantError):
    """The user stopped the work; nothing half-made is left behind."""

    exit_code = 130

    def __init__(self, message: str = "Canceled.", hint: str = "") -> None:
        super().__init__(message, hint)
