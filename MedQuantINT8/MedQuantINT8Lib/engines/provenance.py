"""The note beside an engine file: what it was made by and for, and its hash.

Engine files of TensorRT are programs. One that has no note of ours, or a note of another machine, is never given to a runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..files import read_json, sha256_file, write_json

_NOTE = "plan.json"
_AGAIN = "It is built anew after: medquant cache clear"


def write_note(plan: Path, note: dict[str, Any]) -> None:
    """Write the note of an engine. It is to be called last: without its note an engine file does not count."""
    write_json(plan.parent / _NOTE, {**note, "sha256": sha256_file(plan), "bytes": plan.stat().st_size})


def check_note(plan: Path, expected: dict[str, Any], title: str = "TensorRT plan") -> dict[str, Any]:
    """The note, if this program wrote the engine file for this machine; a newer driver is no reason to refuse it.

    Raises:
        EngineError: says what differs.
    """
    try:
        note: dict[str, Any] = read_json(plan.parent / _NOTE)
    except (OSError, ValueError) as error:
        raise EngineError(f"The {title} has no note of how it was made, and is not loaded.", _AGAIN) from error
    for key, value in expected.items():
        if key != "driver" and note.get(key) != value:
            raise EngineError(
                f"The {title} was made for another {key.replace('_', ' ')} ({note.get(key)}, here {value}).", _AGAIN
            )
    if not plan.is_file() or sha256_file(plan) != note.get("sha256"):
        raise EngineError(f"The {title} is damaged: it is not the file that was written.", _AGAIN)
    return note
