"""What two processes tell each other in a line of JSON, and how the end of one is told to a user."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import numpy as np

from ..errors import InputError


def to_json(request: dict[str, Any]) -> str:
    """Return a message of one line. NumPy's numbers, which options may hold, are numbers.

    Raises:
        InputError: a value that cannot be told to another process; names it.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"{value!r} ({type(value).__name__})"[:200])

    try:
        return json.dumps(request, default=plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"A value cannot be handed over: {error}.", "Give numbers, texts and lists of them."
        ) from error


def code_in_words(code: int) -> str:
    """Return the exit code of a process in words; a negative one is the signal that ended it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return "killed, perhaps for want of memory" if name == "SIGKILL" else f"signal {name}"
