"""JSON objects as frozen dataclasses: the parser and the JSON Schema of a dataclass, both derived from its annotations.

A field's annotation says what it may hold: ``str``, ``bool``, ``int`` (at least 0), ``float`` (finite), a ``Literal``, another dataclass,
a tuple of three or of any number, or one of these or None. ``Annotated`` adds a :class:`Rule`. What concerns several fields a dataclass
says in ``NEEDED_BY_KIND``, the fields that may not be None by its field ``kind``, and in a method ``problem``, in words that follow the
record's name. A class method ``left_out`` gives defaults that depend on the fields that were given.
"""

from __future__ import annotations

import functools
import inspect
import types
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ..errors import PackageError

#: Numbers and whole numbers beyond these describe no network.
_MOST, _MOST_WHOLE = 1e30, 1 << 20

T = TypeVar("T")


# Compared by identity: annotations are put into sets.
@dataclass(frozen=True, eq=False)
class Rule:
    """What a value has to keep beside its type.

    Attributes:
        schema: the keywords that say it in a JSON Schema; "enum" stands for all that the type says.
        problem: what is wrong with a value of the right type, in words that follow the field's name; None if nothing is.
        items: how many items a list has to have at least.
    """

    schema: Mapping[str, Any]
    problem: Callable[[Any], str | None] = lambda value: None
    items: int = 0


def within(
    *, least: float | None = None, most: float | None = None, above: float | None = None, below: float | None = None
) -> Rule:
    """Return the rule for a number that lies between limits, of which ``above`` and ``below`` are not reached."""
    limits = {"minimum": least, "maximum": most, "exclusiveMinimum": above, "exclusiveMaximum": below}
    if least is not None and most is not None:
        words = f"must be {least} to {most}"
    else:
        parts = {"at least": least, "at most": most, "above": above, "below": below}
        words = "must be " + " and ".join(f"{word} {limit}" for word, limit in parts.items() if limit is not None)

    def problem(value: float) -> str | None:
        inside = (
            (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        return None if inside else words

    return Rule({keyword: limit for keyword, limit in limits.items() if limit is not None}, problem)


#: The rule for text that holds more than blanks.
NOT_EMPTY = Rule({"pattern": "\\S"}, lambda text: None if text.strip() else "must not be empty")
#: The rule for a list that has an item.
AT_LEAST_ONE = Rule({"minItems": 1}, items=1)


class _Refused(Exception):
    """A value that its annotation does not allow; the message names the field by its full path."""


def parse_record(cls: type[T], value: Any, where: str, hint: str) -> T:
    """Read the dataclass ``cls`` from what a JSON file holds; fields that have a default may be left out.

    Args:
        where: the name of the file, for messages.
        hint: what to do where something is wrong.

    Raises:
        PackageError: names the field by its full path, what is wrong with it and what it may be.
    """
    try:
        return cast(T, _record(cls, value, where))
    except _Refused as error:
        raise PackageError(f"{error}.", hint) from None


def shown(value: Any) -> str:
    """Return a value in a message: of a stranger's file, so neither long nor with characters that a terminal obeys."""
    return ascii(value)[:60] if isinstance(value, (str, int, float, bool)) or value is None else _kind(value)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


@functools.cache
def _annotations(cls: type) -> dict[str, tuple[Any, bool]]:
    """Return each field's annotation, and whether the field has to be given."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        item.name: (hints[item.name], item.default is MISSING and item.default_factory is MISSING)
        for item in fields(cls)
    }


def _record(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _Refused(f"{where} must be an object, not {_kind(value)}")
    arguments = {}
    for name, (annotation, required) in _annotations(cls).items():
        if required and name not in value:
            raise _Refused(f"{where}: '{name}' is missing")
        if required or value.get(name) is not None:
            arguments[name] = _value(annotation, value[name], f"{where}: '{name}'")
    if extra := sorted(set(value) - set(_annotations(cls))):
        raise _Refused(f"{where}: {shown(extra[0])} is not a known field")
    record = cls(**{**(cls.left_out(arguments) if hasattr(cls, "left_out") else {}), **arguments})
    for name in getattr(cls, "NEEDED_BY_KIND", {}).get(getattr(record, "kind", None), ()):
        if getattr(record, name) is None:
            raise _Refused(f"{where} of kind {record.kind} needs '{name}'")
    if problem := record.problem() if hasattr(record, "problem") else None:
        raise _Refused(f"{where} {problem}")
    return record


def _parts(annotation: Any) -> tuple[Any, list[Rule]]:
    """Return an annotation without its rules, and these."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    base, *rules = get_args(annotation)
    return base, [rule for rule in rules if isinstance(rule, Rule)]


def _without_none(annotation: Any) -> Any:
    """Return the X of an annotation "X or None"; None for every other annotation."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    (kind,) = (option for option in get_args(annotation) if option is not type(None))
    return kind


def _value(annotation: Any, value: Any, where: str) -> Any:
    kind, rules = _parts(annotation)
    if (inner := _without_none(kind)) is not None:
        return None if value is None else _value(inner, value, where)
    parsed = _plain(kind, rules, value, where)
    for rule in rules:
        if problem := rule.problem(parsed):
            raise _Refused(f"{where} {problem}")
    return parsed


def _plain(kind: Any, rules: list[Rule], value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _record(cast(type, kind), value, where)
    if get_origin(kind) is Literal:
        return _choice(get_args(kind), value, where)
    if get_origin(kind) is tuple:
        return _items(get_args(kind), max([0, *(rule.items for rule in rules)]), value, where)
    if kind is int:
        return _whole(max([0, *(rule.schema.get("minimum", 0) for rule in rules)]), value, where)
    return {str: _text, bool: _flag, float: _number}[kind](value, where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _Refused(f"{where} must be text, not {_kind(value)}")
    if any(c not in "\n\r\t" and (unicodedata.category(c) in ("Cc", "Cs")) for c in value):
        raise _Refused(f"{where} has control characters, or half of a character")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _Refused(f"{where} must be true or false, not {_kind(value)}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_MOST <= value <= _MOST:
        raise _Refused(f"{where} must be a finite number")
    return float(value)


def _whole(least: int, value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _Refused(f"{where} must be a whole number of at least {least}")
    if value > _MOST_WHOLE:
        raise _Refused(f"{where} must be at most {_MOST_WHOLE}")
    return value


def _choice(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, bool) or value not in allowed:
        raise _Refused(f"{where} is {shown(value)} but must be one of {', '.join(map(str, allowed))}")
    # 3.0 is 3.
    return allowed[allowed.index(value)]


def _items(kinds: tuple[Any, ...], least: int, value: Any, where: str) -> tuple[Any, ...]:
    if kinds[-1] is not Ellipsis:
        if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
            raise _Refused(f"{where} must be a list of three numbers")
        return tuple(_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if not isinstance(value, (list, tuple)) or len(value) < least:
        raise _Refused(f"{where} must be a list with at least {least} item(s)")
    return tuple(_value(kinds[0], item, f"{where}[{index}]") for index, item in enumerate(value))


def record_schema(cls: type) -> dict[str, Any]:
    """Return the JSON Schema of a dataclass."""
    annotations = _annotations(cls)
    schema: dict[str, Any] = {
        "type": "object",
        "required": [name for name, (_, required) in annotations.items() if required],
        "additionalProperties": False,
        "properties": {name: _schema(annotation) for name, (annotation, _) in annotations.items()},
    }
    if fields_by_kind := getattr(cls, "NEEDED_BY_KIND", {}):
        schema["allOf"] = [
            {
                "if": {"properties": {"kind": {"const": kind}}},
                "then": {
                    "required": list(names),
                    "properties": {name: _schema(_without_none(annotations[name][0])) for name in names},
                },
            }
            for kind, names in fields_by_kind.items()
        ]
    return schema


def described_schema(cls: type) -> dict[str, Any]:
    """Return :func:`record_schema`'s schema in which fields that hold other dataclasses are described by their docstrings."""
    schema = record_schema(cls)
    for name, (annotation, _) in _annotations(cls).items():
        kind = _parts(annotation)[0]
        inner = get_args(kind)[0] if get_origin(kind) is tuple else kind
        if is_dataclass(inner):
            schema["properties"][name]["description"] = inspect.cleandoc(inner.__doc__ or "").replace("``", "'")
    return schema


def _schema(annotation: Any) -> dict[str, Any]:
    kind, rules = _parts(annotation)
    if (inner := _without_none(kind)) is not None:
        return {"anyOf": [_schema(inner), {"type": "null"}]}
    keywords = {keyword: limit for rule in rules for keyword, limit in rule.schema.items()}
    return {"enum": keywords["enum"]} if "enum" in keywords else {**_plain_schema(kind), **keywords}


def _plain_schema(kind: Any) -> dict[str, Any]:
    if is_dataclass(kind):
        return record_schema(cast(type, kind))
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        first, last = get_args(kind)[0], get_args(kind)[-1]
        size = {} if last is Ellipsis else {"minItems": len(get_args(kind)), "maxItems": len(get_args(kind))}
        return {"type": "array", "items": _schema(first), **size}
    if kind is int:
        return {"type": "integer", "minimum": 0}
    return {"type": {str: "string", bool: "boolean", float: "number"}[kind]}
