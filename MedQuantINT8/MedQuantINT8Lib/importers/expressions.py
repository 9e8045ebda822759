"""A MONAI configuration without running its code: references, macros, and the harmless part of its expressions.

MONAI evaluates every text that begins with ``$`` as Python. Here such a text is parsed, and only what cannot do harm is
computed: constants, arithmetic, comparisons, containers, indexing, comprehensions and a few functions on them.
Everything else raises :class:`NotAConstant`, which names the expression.

A file may be written to be endless or huge (references that double, macros that include themselves, nested ranges). All
work on one configuration is therefore paid from one :class:`Budget`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..files import parse_json
from .expression_evaluator import FUNCTIONS, Budget, Evaluator, NotAConstant, Unresolved, is_plain

_REFERENCE = re.compile(r"@([A-Za-z_][\w]*(?:(?:::|#)\w+)*)")
_LARGEST_FILES = {".json": 1 << 20, ".yaml": 256 << 10, ".yml": 256 << 10}
_LONGEST_EXPRESSION = 20_000


class Config:
    """A configuration (JSON or YAML) whose values are resolved on demand.

    Args:
        value: the parsed file.
        folder: where files are that macros (``%other.json::key``) name.
        budget: what may be spent on it.
        functions: functions by dotted name (``torch.device``) that expressions may call besides the harmless ones.

    Attributes:
        trusted: runs an expression (without its $) as code, where the user trusts the bundle; its value is used if it is plain.
    """

    def __init__(
        self,
        value: Mapping[str, Any],
        folder: Path,
        budget: Budget | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.trusted: Callable[[str], Any] | None = None
        self._value, self._folder = value, folder
        self.budget = budget or Budget("The configuration")
        self._functions = {**FUNCTIONS, **(functions or {})}
        self._included_files: dict[Path, Mapping[str, Any]] = {}
        self._open_references: list[str] = []

    @staticmethod
    def read(path: Path) -> Config:
        """Read a file; raises :class:`PackageError` for one that is missing or damaged."""
        budget = Budget(path.name)
        return Config(_parse_file(path, budget), path.parent, budget)

    def has(self, name: str) -> bool:
        return name in self._value

    def raw(self, name: str) -> Any:
        return self._value.get(name)

    @property
    def values(self) -> Mapping[str, Any]:
        """The top-level entries of the file, before anything is resolved."""
        return self._value

    def get(self, name: str, default: Any = None) -> Any:
        """Return the resolved value of a top-level entry.

        Raises:
            NotAConstant: it needs code to be run.
        """
        return self.resolve(self._value[name]) if name in self._value else default

    def resolve(self, value: Any) -> Any:
        """References, macros and harmless expressions in ``value``, however deep, as what they stand for.

        Raises:
            NotAConstant: it needs code. Arguments of a description (``_target_``) that do are :class:`Unresolved`.
            PackageError: it takes more than the budget.
        """
        self.budget.step()
        self.budget.enter()
        try:
            if isinstance(value, dict):
                self.budget.make(len(value))
                return {
                    key: self._argument(item) if "_target_" in value else self.resolve(item)
                    for key, item in value.items()
                }
            if isinstance(value, list):
                self.budget.make(len(value))
                return [self.resolve(item) for item in value]
            return self._text(value) if isinstance(value, str) else value
        finally:
            self.budget.leave()

    def _text(self, value: str) -> Any:
        if value.startswith("%"):
            return self.resolve(self.macro(value[1:]))
        if value.startswith("@"):
            if _REFERENCE.fullmatch(value):
                return self._lookup(value[1:])
            if value.startswith(("@#", "@:")):
                raise NotAConstant(f"{value} is a relative reference")
        if value.startswith("$"):
            return self.evaluate(value[1:].strip())
        return value

    def _argument(self, value: Any) -> Any:
        try:
            return self.resolve(value)
        except NotAConstant as error:
            return Unresolved(str(error), value)

    def _lookup(self, reference: str) -> Any:
        if reference in self._open_references:
            raise NotAConstant(f"@{reference} refers to itself")
        self._open_references.append(reference)
        try:
            return self.resolve(self.raw_at(reference))
        finally:
            self._open_references.pop()

    def raw_at(self, reference: str) -> Any:
        """Return the entry that a reference (without its @) names, as the file has it.

        Raises:
            NotAConstant: There is no such entry.
        """
        value: Any = self._value
        for key in re.split(r"::|#", reference):
            if isinstance(value, str) and value[:1] in ("@", "$", "%"):
                value = self.resolve(value)
            if isinstance(value, list) and key.isdigit() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                raise NotAConstant(f"@{reference} does not exist")
        return value

    def macro(self, text: str) -> Any:
        """Return what a macro (without its %) is replaced by: the text of another entry, or of another file of the bundle."""
        self.budget.step()
        name, separator, key = text.partition("::")
        if not name.endswith((".json", ".yaml", ".yml")):
            return self.raw_at(text.lstrip("#:"))
        path = (self._folder / name).resolve()
        if self._folder.resolve() not in path.parents:
            raise NotAConstant(f"%{text} leaves the bundle")
        if path not in self._included_files:
            self._included_files[path] = _parse_file(path, self.budget)
        return (
            Config(self._included_files[path], self._folder, self.budget).raw_at(key)
            if separator
            else dict(self._included_files[path])
        )

    def tree_of(self, text: str) -> tuple[ast.expr, dict[str, str]]:
        """Return an expression (without its $) as a syntax tree, and which of its names stand for which references.

        Raises:
            NotAConstant: it is no expression.
        """
        names: dict[str, str] = {}

        def substitute(match: re.Match[str]) -> str:
            name = f"reference_{len(names)}"
            names[name] = match.group(1)
            return name

        self.budget.make(len(text))
        if len(text) > _LONGEST_EXPRESSION:
            raise NotAConstant(f"${text[:60]}... is too long")
        try:
            return ast.parse(_REFERENCE.sub(substitute, text), mode="eval").body, names
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise NotAConstant(f"${text}") from error

    def evaluate(self, text: str) -> Any:
        """Return the value of an expression (without its $).

        Raises:
            NotAConstant: it needs code.
        """
        try:
            tree, names = self.tree_of(text)
            return self.value_of(tree, names, text)
        except NotAConstant as error:
            if self.trusted is None:
                raise
            try:
                value = self.trusted(text)
            except PackageError:
                # Much of a configuration is for other machines, and is never asked for.
                raise error from None
            if not is_plain(value):
                raise
            self.budget.weigh(value)
            return value

    def value_of(self, tree: ast.expr, names: Mapping[str, str], text: str) -> Any:
        """Return the value of a part of an expression, as :meth:`tree_of` gives it."""
        try:
            return Evaluator(
                text, lambda name: self._lookup(names[name]), set(names), self._functions, self.budget
            ).value(tree)
        except (
            TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, OverflowError, MemoryError, AttributeError, RuntimeError,
        ) as error:  # fmt: skip
            raise NotAConstant(f"${text}: {error}") from error


def _parse_file(path: Path, budget: Budget) -> dict[str, Any]:
    """Return what a configuration file holds; raises :class:`PackageError`."""
    try:
        if path.stat().st_size > (largest := _LARGEST_FILES.get(path.suffix, 0)):
            raise PackageError(
                f"{path.name} is larger than {largest >> 10} KB, which no configuration is.", "Get the bundle again."
            )
        text = path.read_text(encoding="utf-8")
        value = parse_json(text) if path.suffix == ".json" else _yaml(text, path.name, budget)
    except RecursionError as error:
        raise PackageError(f"{path.name} is nested too deep.", "Do not use this file.") from error
    except (OSError, ValueError) as error:
        raise PackageError(
            f"{path.name} cannot be read: {str(error).splitlines()[0]}.", "Get the bundle again."
        ) from error
    if not isinstance(value, dict):
        raise PackageError(f"{path.name} holds no configuration.", "Get the bundle again.")
    budget.weigh(value)
    return value


def _yaml(text: str, name: str, budget: Budget) -> Any:
    import yaml

    fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(fast):  # type: ignore[misc]
        """Without merge keys, which copy what they merge: a few lines of them fill the memory."""

        def flatten_mapping(self, node: Any) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise PackageError(
                    f"{name} uses YAML's merge keys (<<), which are not understood.", "Write the merged entries out."
                )

    try:
        depth = 0
        # The loader calls itself for what lies deeper; how deep that is, is seen before in the stream of events.
        for event in yaml.parse(text, Loader=fast):
            budget.make(1)
            depth += isinstance(event, yaml.events.CollectionStartEvent) - isinstance(
                event, yaml.events.CollectionEndEvent
            )
            if depth > budget.depth:
                raise PackageError(f"{name} is nested too deep.", "Do not use this file.")
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise PackageError(
            f"{name} is no valid YAML: {str(error).splitlines()[0]}.", "Get the bundle again."
        ) from error
    except (TypeError, AttributeError) as error:
        # Keys that cannot be keys, such as lists.
        raise PackageError(f"{name} is no valid YAML: {error}.", "Get the bundle again.") from error
