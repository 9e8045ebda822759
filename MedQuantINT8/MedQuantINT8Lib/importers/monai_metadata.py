"""Functions that read a bundle's metadata.json, which strangers write: what is no object, number or name is refused or left out."""

from __future__ import annotations

from typing import Any

from ..errors import PackageError
from .monai_networks import MOST_CHANNELS


def part(value: Any, name: str) -> dict[str, Any]:
    """Return an object of the metadata; an empty one where there is none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PackageError(
            f"metadata.json has a {name} that is no object.", "Get the bundle again, or give a description with --spec."
        )
    return value


def first_part(parts: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the part of that name, or the first one."""
    return part(parts.get(name) or next(iter(parts.values()), None), name)


def numbered_names(pred: dict[str, Any]) -> dict[int, str]:
    """Return names by number, from ``channel_def`` or ``label_def``, which say either a name for each number or a number for each name."""
    for key in ("channel_def", "label_def"):
        definition = pred.get(key)
        if isinstance(definition, list):
            definition = dict(enumerate(definition))
        if isinstance(definition, dict) and definition:
            if all(isinstance(v, int) and not isinstance(v, bool) for v in definition.values()) and not any(
                _is_number(k) for k in definition
            ):
                definition = {number: name for name, number in definition.items()}
            names = {int(k): word_of(v) for k, v in definition.items() if _is_number(k) and word_of(v)}
            if names:
                return names
    return {}


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.isdecimal() and len(value) < 8
    )


def channel_count(value: Any, what: str) -> int:
    """Return a number of channels; raises :class:`PackageError`, which says ``what`` it is of, for anything else."""
    if not _is_number(value) or not 0 < int(value) <= MOST_CHANNELS:
        raise PackageError(
            f"metadata.json has {str(value)[:40]!r} as {what}.",
            "Get the bundle again, or give a description with --spec.",
        )
    return int(value)


def word_of(value: Any) -> str:
    """Text or a number as text without line ends; empty for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def cite(references: Any) -> str:
    """Return the references as one line of text."""
    items = references if isinstance(references, list) else [references]
    return "; ".join(word for reference in items if (word := word_of(reference)))
