"""Fields of a file that another program wrote, read one by one: a wrong type is named, and so is a field that nobody knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import PackageError
from ..files import read_json

_T = TypeVar("_T")
#: Reads a value, or raises :class:`PackageError` that begins with the place given.
Parse = Callable[[Any, str], _T]
_MISSING: Any = object()


class Fields:
    """An object of a foreign file, whose every field has to be read or known to be harmless.

    Args:
        value: what stands in the file.
        where: what messages call it, such as "plans.json".
        advice: what messages tell the user to do.

    Raises:
        PackageError: it is no object.
    """

    def __init__(self, value: Any, where: str, advice: str = "Get the file again, or correct it.") -> None:
        self.where, self.advice = where, advice
        self._value: Mapping[str, Any] = mapping(value, where)
        self._names_read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Return whether the field is given and is not null."""
        return self._value.get(name) is not None

    def holds(self, name: str) -> bool:
        """Return whether the field stands there, null or not."""
        return name in self._value

    def get(self, name: str, parse: Parse[_T], default: Any = _MISSING) -> _T:
        """Return the value of a field; ``default`` where it is missing or null.

        Raises:
            PackageError: it is missing and has no default, or is of the wrong type.
        """
        self._names_read.add(name)
        if self._value.get(name) is None:
            if default is _MISSING:
                raise PackageError(f"{self.where}: {name!r} is missing.", self.advice)
            fallback: _T = default
            return fallback
        return parse(self._value[name], f"{self.where}: {name!r}")

    def ignore(self, *names: str) -> None:
        """Mark fields that change neither the network's input nor its labels."""
        self._names_read.update(names)

    def unread(self) -> dict[str, Any]:
        """Return the fields that nobody has read, nulls aside."""
        return {
            name: value for name, value in self._value.items() if name not in self._names_read and value is not None
        }

    def finish(self) -> None:
        """Refuse fields that nobody has read.

        Raises:
            PackageError: names the first of them with its value.
        """
        for name, value in self.unread().items():
            raise PackageError(f"{self.where}: {name!r} is {shown(value)}, which is not understood.", self.advice)


def read_described(path: Path, what: str) -> Any:
    """Return the value that a JSON file holds.

    Raises:
        PackageError: no such file, or no JSON; ``what`` says what the folder should have been.
    """
    try:
        return read_json(path)
    except FileNotFoundError as error:
        raise PackageError(f"{path.parent.name} is no {what}: {path.name} is missing.", "Check the path.") from error
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} is not valid JSON: {error}.", "Get it again.") from error


def shown(value: Any) -> str:
    """Return the text of a value for a message, cut short."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def wrong(where: str, value: Any, expected: str) -> PackageError:
    """Return the error for a value of the wrong type."""
    return PackageError(f"{where} is {shown(value)}, but must be {expected}.", "Get the file again, or correct it.")


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return the value as a dictionary; it must be an object with names as keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise wrong(where, value, "an object")
    return dict(value)


def text(value: Any, where: str) -> str:
    """Return the value, which must be text."""
    if not isinstance(value, str):
        raise wrong(where, value, "text")
    return value


def flag(value: Any, where: str) -> bool:
    """Return the value, which must be true or false."""
    if not isinstance(value, bool):
        raise wrong(where, value, "true or false")
    return value


def number(value: Any, where: str) -> float:
    """Return the value as a finite number; NumPy's are numbers too."""
    if isinstance(value, bool) or not (
        isinstance(value, int | float) or (hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0)
    ):
        raise wrong(where, value, "a number")
    try:
        result = float(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise wrong(where, value, "a number") from error
    if not math.isfinite(result):
        raise wrong(where, value, "a finite number")
    return result


def positive(value: Any, where: str) -> float:
    """Return the value as a finite number above 0."""
    if (result := number(value, where)) <= 0:
        raise wrong(where, value, "above 0")
    return result


def whole(value: Any, where: str) -> int:
    """Return the value as a whole number of at least 0."""
    if (result := number(value, where)) != int(result) or result < 0:
        raise wrong(where, value, "a whole number of at least 0")
    return int(result)


def count(value: Any, where: str) -> int:
    """Return the value as a whole number of at least 1."""
    if (result := whole(value, where)) < 1:
        raise wrong(where, value, "a whole number of at least 1")
    return result


def each(parse: Parse[_T], length: int | None = None) -> Parse[list[_T]]:
    """Return a reader of lists whose items ``parse`` reads, of ``length`` items if that is given."""

    def read(value: Any, where: str) -> list[_T]:
        if not isinstance(value, list | tuple):
            raise wrong(where, value, "a list")
        if length is not None and len(value) != length:
            raise wrong(where, value, f"a list of {length}")
        return [parse(item, f"{where}[{index}]") for index, item in enumerate(value)]

    return read


def choice(*allowed: Any) -> Parse[Any]:
    """Return a reader of one of a few values, which differ by type as well: 1 is not true."""

    def read(value: Any, where: str) -> Any:
        for item in allowed:
            if type(item) is type(value) and item == value:
                return item
        raise wrong(where, value, "one of " + ", ".join(shown(item) for item in allowed))

    return read


def optional(parse: Parse[_T]) -> Parse[_T | None]:
    """Return a reader of what ``parse`` reads, or null."""
    return lambda value, where: None if value is None else parse(value, where)


def known(names: Iterable[str]) -> str:
    """Return the list of names for a message."""
    return ", ".join(names) or "none"
