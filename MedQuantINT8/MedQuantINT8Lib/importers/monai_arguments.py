"""The name and the arguments of one transform of a MONAI configuration; each argument has to be read or known to be harmless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import PackageError
from .expression_evaluator import Unresolved

#: Arguments of dictionary transforms that change neither voxels nor labels.
_HARMLESS = {"_target_", "_disabled_", "_desc_", "_requires_", "_mode_", "keys", "allow_missing_keys"}
ADVICE = "Describe the network by hand: medquant import onnx, or give --spec."
TRUST = "If you trust where it comes from, give --trust-code; else describe the network by hand: medquant import onnx, or give --spec."


def transform_name(transform: Any) -> str:
    """Return the name of a described transform in one form: Spacingd for Spacingd, SpacingD and SpacingDict.

    Raises:
        PackageError: it is no description, but code.
    """
    if not isinstance(transform, dict) or not isinstance(transform.get("_target_"), str):
        raise PackageError(
            f"A transform of the bundle is {str(transform)[:80]!r}, not a description.", "It needs --trust-code."
        )
    name = str(transform["_target_"]).rsplit(".", 1)[-1]
    return name[:-4] + "d" if name.endswith("Dict") else name[:-1] + "d" if name.endswith("D") else name


def enabled(transforms: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the transforms without those that ``_disabled_`` turns off."""
    return [t for t in transforms if not (isinstance(t, dict) and true(t.get("_disabled_")))]


def true(value: Any) -> bool:
    """Return whether a flag is on, which bundles write as true and as "True"."""
    return value.strip().lower() == "true" if isinstance(value, str) else bool(value)


def first(value: Any) -> Any:
    """Return the first item of a list, or the value itself."""
    return value[0] if isinstance(value, list | tuple) else value


class Arguments:
    """The arguments of one transform for one key of its dictionary.

    Every argument that is read is marked; :meth:`finish` refuses those that nobody read. So a transform is understood only
    if all of it is.

    Args:
        transform: the description (``_target_`` and arguments).
        key: the entry of the dictionary that is meant; where an argument is a list with an item for each key, its item counts.
    """

    def __init__(self, transform: dict[str, Any], key: str | None = None) -> None:
        self.name = transform_name(transform)
        self._arguments, self._known_names = transform, set(_HARMLESS)
        keys = transform.get("keys")
        self.keys: list[str] = (
            [str(k) for k in keys] if isinstance(keys, list | tuple) else [] if keys is None else [str(keys)]
        )
        self._index = self.keys.index(key) if key in self.keys else 0

    def __contains__(self, name: str) -> bool:
        """Return whether an argument is given and is not null."""
        self._known_names.add(name)
        return self._arguments.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """Return the argument as it stands, or ``default`` where it is not given."""
        self._known_names.add(name)
        return self._arguments.get(name, default)

    def of_key(self, name: str, default: Any = None) -> Any:
        """Return the argument of this key: its item where there is one for each key, else the value itself."""
        value = self.get(name, default)
        if isinstance(value, list | tuple) and len(value) > 0:
            if len(value) not in (1, len(self.keys)):
                raise self.refusal(name, value)
            return value[self._index] if len(value) > 1 else value[0]
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return the argument of this key as true or false."""
        return true(self.of_key(name, default))

    def number(self, name: str, default: float | None = None) -> float:
        """Return the argument as a number; :class:`PackageError` where it is none."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(name, value)
        return float(value)

    def only(self, name: str, *harmless: Any) -> None:
        """Refuse the argument unless it is left out or has one of the ``harmless`` values."""
        value = self.of_key(name, harmless[0] if harmless else None)
        if name not in self._arguments or value is None:
            return
        if isinstance(value, Unresolved) or (value not in harmless and str(value) not in [str(h) for h in harmless]):
            raise self.refusal(name, value)

    def dtype(self, name: str) -> str:
        """Return a type of numbers by its name, such as float32 (the type where the argument is left out or null)."""
        value = self.of_key(name)
        value = value.text if isinstance(value, Unresolved) else value
        if value is None:
            return "float32"
        if not isinstance(value, str):
            raise self.refusal(name, value)
        return value.strip("$ ").rsplit(".", 1)[-1]

    def ignore(self, *names: str) -> None:
        """Mark arguments that change neither voxels nor labels."""
        self._known_names.update(names)

    def refusal(self, name: str, value: Any) -> PackageError:
        """Return the error that names the transform, the argument and its value."""
        advice = TRUST if isinstance(value, Unresolved) else ADVICE
        return PackageError(f"The bundle's {self.name} has {name} = {_show(value)}, which is not understood.", advice)

    def finish(self) -> None:
        """Refuse arguments that nobody has read.

        Raises:
            PackageError: names the first of them.
        """
        for name, value in self._arguments.items():
            if name not in self._known_names and value is not None and not (name == "lazy" and not true(value)):
                raise self.refusal(name, value)


def _show(value: Any) -> str:
    """Return a value for a message; one that only code could give by its text."""
    text = getattr(value, "text", None) if isinstance(value, Unresolved) else repr(value)
    return "an expression that is code" if text is None else str(text)[:80]
