"""JSON files that hold one record: their header, parser and JSON Schema, and the way back to JSON.

Such a file is an object of the record's fields; beside them stand ``schema`` and ``schema_version``, which say what it is, and ``files``,
the SHA-256 of other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ..errors import PackageError
from .records import described_schema, parse_record, shown

_BESIDE = ("schema", "schema_version", "files")

T = TypeVar("T")


@dataclass(frozen=True)
class FileForm:
    """Which kind of file it is, and what is said where one is wrong.

    Attributes:
        schema: the kind's name, which the file gives.
        versions: those that can be read; files are written in the last one.
        hint: what to do where a field is wrong.
        update_hint: what to do where the file is of another version.
    """

    schema: str
    versions: tuple[str, ...]
    hint: str
    update_hint: str


@dataclass(frozen=True)
class _Header:
    """The fields that say which kind of file it is, in which version."""

    schema_version: str
    schema: str


def parse_file(kind: type[T], form: FileForm, value: Any, where: str) -> T:
    """Read the dataclass ``kind`` from what a file of this form holds.

    Args:
        where: the name of the file, for messages.

    Raises:
        PackageError: another kind of file or version; or names the field, what is wrong with it and what it may be.
    """
    is_object = isinstance(value, Mapping)
    header = {key: value[key] for key in ("schema_version", "schema") if key in value} if is_object else value
    parsed_header = parse_record(_Header, header, where, form.hint)
    if parsed_header.schema != form.schema or parsed_header.schema_version not in form.versions:
        raise PackageError(
            f"{where}: schema version {shown(parsed_header.schema_version)} is not understood by this MedQuantINT8 "
            f"(it knows {', '.join(form.versions)}).",
            form.update_hint,
        )
    return parse_record(kind, {key: item for key, item in value.items() if key not in _BESIDE}, where, form.hint)


def file_schema(kind: type, form: FileForm, files: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a file that holds the dataclass ``kind``.

    Args:
        files: what else holds of the list of hashes, such as names that are required.
    """
    described = described_schema(kind)
    digests = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    return {
        **described,
        "required": ["schema", "schema_version", *described["required"]],
        "properties": {
            "schema": {"const": form.schema},
            "schema_version": {"enum": list(form.versions)},
            **described["properties"],
            "files": {"type": "object", **files, "additionalProperties": digests},
        },
    }


def record_json(record: Any, form: FileForm) -> dict[str, Any]:
    """Return what a file of this form holds for a record (a dataclass), without ``files``."""
    return _as_lists({"schema": form.schema, "schema_version": form.versions[-1], **asdict(record)})


def _as_lists(value: Any) -> Any:
    """Return nested dictionaries and tuples with lists in place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
