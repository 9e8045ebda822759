"""Files that come with the library: schemas and the demo network."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Return the path of a file in Resources/: beside the library in a Slicer module, inside it in a wheel."""
    beside = _HERE.parent / "Resources" / name
    return beside if beside.exists() else _HERE / "_resources" / name
