"""A MONAI configuration without running its code: references, macros, and the harmless part of its expressions.

MONAI evaluates every text that begins with ``$`` as Python. Here such a text is parsed, and only what cannot do harm is
computed: constants, arithmetic, comparisons, containers, indexing, comprehensions and a few functions on them.
Everything else raises :class:`NotPlain`, which names the expression.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import PackageError

_MAXIMUM_ITEMS = 100_000
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "list": list, "tuple": tuple, "set": set, "dict": dict, "sorted": sorted, "len": len, "int": int, "float": float,
    "str": str, "bool": bool, "min": min, "max": max, "sum": sum, "abs": abs, "round": round,
}  # fmt: skip
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.Not: operator.not_, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.BitOr: operator.or_, ast.BitAnd: operator.and_,
}  # fmt: skip
_REFERENCE = re.compile(r"@([A-Za-z_][\w]*(?:(?:::|#)\w+)*)")


class NotPlain(Exception):
    """An expression that would have to be run as code."""


class Unresolved:
    """Stands for a value that would need code; whoever uses it raises :class:`NotPlain`. Devices and the like are not used."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def _refuse(self, *_: Any) -> Any:
        raise NotPlain(self._reason)

    __bool__ = __int__ = __float__ = __iter__ = __getitem__ = __str__ = __len__ = __eq__ = _refuse
    __hash__ = None  # type: ignore[assignment]


class Config:
    """A configuration (JSON or YAML) whose values are resolved on demand.

    Args:
        value: the parsed file.
        folder: where files are that macros (``%other.json::key``) name.
    """

    def __init__(self, value: Mapping[str, Any], folder: Path) -> None:
        self._value, self._folder = value, folder
        self._resolving: list[str] = []

    @staticmethod
    def read(path: Path) -> Config:
        """Raises :class:`PackageError` for a file that is missing or damaged."""
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".json":
                value = json.loads(text)
            else:
                import yaml

                value = yaml.safe_load(text)
        except (OSError, ValueError) as error:
            raise PackageError(f"{path.name} cannot be read: {str(error).splitlines()[0]}.", "Get the bundle again.") from error
        except Exception as error:
            # yaml's errors share a base class that is only there once yaml is.
            raise PackageError(f"{path.name} is no valid YAML: {str(error).splitlines()[0]}.", "Get the bundle again.") from error
        if not isinstance(value, dict):
            raise PackageError(f"{path.name} holds no configuration.", "Get the bundle again.")
        return Config(value, path.parent)

    def has(self, name: str) -> bool:
        return name in self._value

    def raw(self, name: str) -> Any:
        return self._value.get(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The resolved value of a top-level entry.

        Raises:
            NotPlain: it needs code to be run.
        """
        return self.resolve(self._value[name]) if name in self._value else default

    def resolve(self, value: Any) -> Any:
        """References, macros and harmless expressions in ``value``, however deep, as what they stand for.

        Raises:
            NotPlain: it needs code. Arguments of a description (``_target_``) that do are :class:`Unresolved`.
        """
        if isinstance(value, dict):
            return {key: self._argument(item) if "_target_" in value else self.resolve(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if not isinstance(value, str):
            return value
        if value.startswith("%"):
            return self._macro(value[1:])
        if value.startswith("@") and _REFERENCE.fullmatch(value):
            return self._lookup(value[1:])
        if value.startswith("$"):
            return self._expression(value[1:].strip())
        return value

    def _argument(self, value: Any) -> Any:
        try:
            return self.resolve(value)
        except NotPlain as error:
            return Unresolved(str(error))

    def _lookup(self, reference: str) -> Any:
        if reference in self._resolving or len(self._resolving) > 50:
            raise NotPlain(f"@{reference} refers to itself")
        found: Any = self._value
        self._resolving.append(reference)
        try:
            for key in re.split(r"::|#", reference):
                if isinstance(found, str) and found[:1] in "@$%":
                    found = self.resolve(found)
                if isinstance(found, list) and key.isdigit() and int(key) < len(found):
                    found = found[int(key)]
                elif isinstance(found, dict) and key in found:
                    found = found[key]
                else:
                    raise NotPlain(f"@{reference} does not exist")
            return self.resolve(found)
        finally:
            self._resolving.pop()

    def _macro(self, text: str) -> Any:
        name, _, key = text.partition("::")
        if name.endswith((".json", ".yaml", ".yml")):
            path = (self._folder / name).resolve()
            if self._folder.resolve() not in path.parents:
                raise NotPlain(f"%{text} leaves the bundle")
            other = Config.read(path)
            return other._lookup(key) if key else other.resolve(dict(other._value))
        return self._lookup(text)

    def _expression(self, text: str) -> Any:
        names: dict[str, str] = {}

        def named(match: re.Match[str]) -> str:
            name = f"reference_{len(names)}"
            names[name] = match.group(1)
            return name

        try:
            tree = ast.parse(_REFERENCE.sub(named, text), mode="eval")
        except (SyntaxError, ValueError, RecursionError) as error:
            raise NotPlain(f"${text}") from error
        try:
            return _Evaluator(text, lambda name: self._lookup(names[name]) if name in names else None, set(names)).value(tree.body)
        except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, OverflowError, MemoryError) as error:
            raise NotPlain(f"${text}: {error}") from error


class _Evaluator:
    """Computes the harmless part of Python's expressions."""

    def __init__(self, text: str, lookup: Callable[[str], Any], references: set[str]) -> None:
        self._text, self._lookup, self._references = text, lookup, references
        self._local: dict[str, Any] = {}

    def value(self, node: ast.AST) -> Any:
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is None:
            raise NotPlain(f"${self._text}")
        return self._bounded(handler(node))

    def _bounded(self, result: Any) -> Any:
        if hasattr(result, "__len__") and len(result) > _MAXIMUM_ITEMS:
            raise NotPlain(f"${self._text} is too large")
        return result

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id in self._local:
            return self._local[node.id]
        if node.id in self._references:
            return self._lookup(node.id)
        raise NotPlain(f"${self._text}")

    def _list(self, node: ast.List) -> list[Any]:
        return [self.value(item) for item in node.elts]

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.value(item) for item in node.elts)

    def _set(self, node: ast.Set) -> set[Any]:
        return {self.value(item) for item in node.elts}

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        return {self.value(k): self.value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}

    def _binop(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Mult):
            for a, b in ((left, right), (right, left)):
                if hasattr(a, "__len__") and isinstance(b, int) and len(a) * b > _MAXIMUM_ITEMS:
                    raise NotPlain(f"${self._text} is too large")
        return self._apply(node.op, left, right)

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return self._apply(node.op, self.value(node.operand))

    def _apply(self, op: ast.AST, *values: Any) -> Any:
        if type(op) not in _OPERATORS:
            raise NotPlain(f"${self._text}")
        return _OPERATORS[type(op)](*values)

    def _compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator)
            if not self._apply(op, left, right):
                return False
            left = right
        return True

    def _boolop(self, node: ast.BoolOp) -> Any:
        result = None
        for item in node.values:
            result = self.value(item)
            if bool(result) != isinstance(node.op, ast.And):
                break
        return result

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def _subscript(self, node: ast.Subscript) -> Any:
        return self.value(node.value)[self.value(node.slice)]

    def _slice(self, node: ast.Slice) -> slice:
        return slice(*(None if part is None else self.value(part) for part in (node.lower, node.upper, node.step)))

    def _listcomp(self, node: ast.ListComp) -> list[Any]:
        if len(node.generators) != 1 or not isinstance(node.generators[0].target, ast.Name):
            raise NotPlain(f"${self._text}")
        generator, made = node.generators[0], []
        name = generator.target.id  # type: ignore[attr-defined]
        for item in self.value(generator.iter):
            self._local[name] = item
            if all(self.value(test) for test in generator.ifs):
                made.append(self.value(node.elt))
        self._local.pop(name, None)
        return made

    def _call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.keywords:
            raise NotPlain(f"${self._text}")
        arguments = [self.value(argument) for argument in node.args]
        if node.func.id == "range":
            made = range(*arguments)
            return self._bounded(made) and list(made)
        if node.func.id not in _FUNCTIONS:
            raise NotPlain(f"${self._text}")
        return _FUNCTIONS[node.func.id](*arguments)
