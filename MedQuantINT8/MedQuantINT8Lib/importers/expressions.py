"""A MONAI configuration without running its code: references, macros, and the harmless part of its expressions.

MONAI evaluates every text that begins with ``$`` as Python. Here such a text is parsed, and only what cannot do harm is
computed: constants, arithmetic, comparisons, containers, indexing, comprehensions and a few functions on them.
Everything else raises :class:`NotAConstant`, which names the expression.

A file may be written to be endless or huge (references that double, macros that include themselves, nested ranges). All
work on one configuration is therefore paid from one :class:`Budget`.
"""

from __future__ import annotations

import ast
import operator
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..files import parse_json

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "list": list, "tuple": tuple, "set": set, "dict": dict, "sorted": sorted, "len": len, "int": int, "float": float,
    "str": str, "bool": bool, "min": min, "max": max, "sum": lambda numbers: sum(map(_number, numbers)), "abs": abs, "round": round, "any": any, "all": all,
    "zip": lambda *items: list(zip(*items, strict=False)), "enumerate": lambda items: list(enumerate(items)),
    "os.path.join": posixpath.join, "os.path.basename": posixpath.basename, "os.path.dirname": posixpath.dirname,
}  # fmt: skip
#: Methods of plain values that give no more than they were given.
_METHODS: dict[str, tuple[type, ...]] = {
    "lower": (str,), "upper": (str,), "strip": (str,), "split": (str,), "startswith": (str,), "endswith": (str,),
    "keys": (dict,), "values": (dict,), "items": (dict,), "get": (dict,), "index": (list, tuple), "count": (list, tuple),
}  # fmt: skip
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.Not: operator.not_, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.BitOr: operator.or_, ast.BitAnd: operator.and_, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
_DTYPES = {
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool",
    "half", "float", "double", "short", "int", "long", "single", "bool_",
}  # fmt: skip
_REFERENCE = re.compile(r"@([A-Za-z_][\w]*(?:(?:::|#)\w+)*)")
_PLAIN = (bool, int, float, str, bytes, list, tuple, set, dict, type(None))
_LARGEST_FILES = {".json": 1 << 20, ".yaml": 256 << 10, ".yml": 256 << 10}
_LONGEST_EXPRESSION = 20_000
_LARGEST_BITS = 4096


def _number(value: Any) -> Any:
    """A number; sums of lists grow with the square of their length."""
    if not isinstance(value, int | float):
        raise TypeError(f"{type(value).__name__} in a sum")
    return value


class NotAConstant(Exception):
    """An expression that would have to be run as code."""

    def __init__(self, text: str) -> None:
        super().__init__(text if len(text) <= 200 else f"{text[:200]}...")


@dataclass
class Budget:
    """What may be spent on one configuration with all files that it includes.

    Attributes:
        steps: values and parts of expressions that may still be looked at.
        items: list items, dictionary entries and characters that may still be made.
        depth: how deep values may lie in each other.
    """

    name: str
    steps: int = 50_000
    items: int = 300_000
    depth: int = 100
    _at: int = field(default=0, repr=False)

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise self._spent("takes too many steps to work out")

    def make(self, count: int) -> None:
        self.items -= count
        if self.items < 0:
            raise self._spent("makes values that are too large")

    def weigh(self, value: Any) -> None:
        """Pay for a value with all that lies in it; what it holds twice (by YAML's aliases, say) counts twice."""
        waiting = [(value, 1)]
        while waiting:
            item, depth = waiting.pop()
            if isinstance(item, str | bytes):
                self.make(len(item))
            elif isinstance(item, dict | list | tuple | set):
                self.make(1 + len(item))
                if depth > self.depth:
                    raise self._spent("is nested too deep, or refers to itself")
                inside = item.values() if isinstance(item, dict) else item
                waiting += [
                    (inner, depth + 1) for inner in inside if isinstance(inner, str | bytes | dict | list | tuple | set)
                ]

    def enter(self) -> None:
        self._at += 1
        if self._at > self.depth:
            raise self._spent("is nested too deep, or refers to itself")

    def leave(self) -> None:
        self._at -= 1

    def _spent(self, what: str) -> PackageError:
        return PackageError(f"{self.name} {what}.", "Do not use this file, or describe the network with --spec.")


class Unresolved:
    """Stands for a value that would need code; whoever uses it raises :class:`NotAConstant`. Devices and the like are not used.

    Attributes:
        text: the value as the file has it, for those who read functions by their text.
    """

    def __init__(self, reason: str, text: Any = None) -> None:
        self._reason, self.text = reason, text

    def _refuse(self, *_: Any) -> Any:
        raise NotAConstant(self._reason)

    __bool__ = __int__ = __float__ = __iter__ = __getitem__ = __str__ = __repr__ = __len__ = __eq__ = __call__ = _refuse
    __hash__ = None  # type: ignore[assignment]


class Config:
    """A configuration (JSON or YAML) whose values are resolved on demand.

    Args:
        value: the parsed file.
        folder: where files are that macros (``%other.json::key``) name.
        budget: what may be spent on it.
        functions: functions by dotted name (``torch.device``) that expressions may call besides the harmless ones.
        trusted: runs an expression (without its $) as code, where the user trusts the bundle; its value is taken if it is plain.
    """

    def __init__(
        self,
        value: Mapping[str, Any],
        folder: Path,
        budget: Budget | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        trusted: Callable[[str], Any] | None = None,
    ) -> None:
        self.trusted = trusted
        self._value, self._folder = value, folder
        self.budget = budget or Budget("The configuration")
        self._functions = {**_FUNCTIONS, **(functions or {})}
        self._included: dict[Path, Mapping[str, Any]] = {}
        self._resolving: list[str] = []

    @staticmethod
    def read(path: Path) -> Config:
        """Raises :class:`PackageError` for a file that is missing or damaged."""
        budget = Budget(path.name)
        return Config(_parsed(path, budget), path.parent, budget)

    def has(self, name: str) -> bool:
        return name in self._value

    def raw(self, name: str) -> Any:
        return self._value.get(name)

    @property
    def values(self) -> Mapping[str, Any]:
        """The file as it is."""
        return self._value

    def get(self, name: str, default: Any = None) -> Any:
        """The resolved value of a top-level entry.

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
        if reference in self._resolving:
            raise NotAConstant(f"@{reference} refers to itself")
        self._resolving.append(reference)
        try:
            return self.resolve(self.raw_at(reference))
        finally:
            self._resolving.pop()

    def raw_at(self, reference: str) -> Any:
        """What stands at a reference (without its @), as the file has it.

        Raises:
            NotAConstant: nothing does.
        """
        found: Any = self._value
        for key in re.split(r"::|#", reference):
            if isinstance(found, str) and found[:1] in ("@", "$", "%"):
                found = self.resolve(found)
            if isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise NotAConstant(f"@{reference} does not exist")
        return found

    def macro(self, text: str) -> Any:
        """What a macro (without its %) is replaced by: the text of another entry, or of another file of the bundle."""
        self.budget.step()
        name, separator, key = text.partition("::")
        if not name.endswith((".json", ".yaml", ".yml")):
            return self.raw_at(text.lstrip("#:"))
        path = (self._folder / name).resolve()
        if self._folder.resolve() not in path.parents:
            raise NotAConstant(f"%{text} leaves the bundle")
        if path not in self._included:
            self._included[path] = _parsed(path, self.budget)
        return (
            Config(self._included[path], self._folder, self.budget).raw_at(key)
            if separator
            else dict(self._included[path])
        )

    def tree_of(self, text: str) -> tuple[ast.expr, dict[str, str]]:
        """An expression (without its $) as a syntax tree, and which of its names stand for which references.

        Raises:
            NotAConstant: it is no expression.
        """
        names: dict[str, str] = {}

        def named(match: re.Match[str]) -> str:
            name = f"reference_{len(names)}"
            names[name] = match.group(1)
            return name

        self.budget.make(len(text))
        if len(text) > _LONGEST_EXPRESSION:
            raise NotAConstant(f"${text[:60]}... is too long")
        try:
            return ast.parse(_REFERENCE.sub(named, text), mode="eval").body, names
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise NotAConstant(f"${text}") from error

    def evaluate(self, text: str) -> Any:
        """The value of an expression (without its $).

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
        """The value of a part of an expression, as :meth:`tree_of` gives it."""
        try:
            return _Evaluator(
                text, lambda name: self._lookup(names[name]), set(names), self._functions, self.budget
            ).value(tree)
        except (
            TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, OverflowError, MemoryError, AttributeError, RuntimeError,
        ) as error:  # fmt: skip
            raise NotAConstant(f"${text}: {error}") from error


def _parsed(path: Path, budget: Budget) -> dict[str, Any]:
    """What a configuration file holds; raises :class:`PackageError`."""
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


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, a flag, nothing, or a container of these."""
    if isinstance(value, list | tuple | set):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def dotted(node: ast.AST) -> str | None:
    """``a.b.c`` of a syntax tree as text; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)) is not None:
        return f"{inner}.{node.attr}"
    return None


class _Evaluator:
    """Computes the harmless part of Python's expressions."""

    def __init__(
        self,
        text: str,
        lookup: Callable[[str], Any],
        references: set[str],
        functions: Mapping[str, Callable[..., Any]],
        budget: Budget,
    ) -> None:
        self._text, self._lookup, self._references = text, lookup, references
        self._functions, self._budget = functions, budget
        self._local: dict[str, Any] = {}

    def value(self, node: ast.AST) -> Any:
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is None:
            raise self._refused()
        self._budget.step()
        self._budget.enter()
        try:
            return self._bounded(handler(node))
        finally:
            self._budget.leave()

    def _refused(self) -> NotAConstant:
        return NotAConstant(f"${self._text}")

    def _bounded(self, result: Any) -> Any:
        if isinstance(result, str | bytes | list | tuple | set | dict):
            self._budget.weigh(result)
        elif isinstance(result, int) and result.bit_length() > _LARGEST_BITS:
            raise NotAConstant(f"${self._text} is too large")
        return result

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id in self._local:
            return self._local[node.id]
        if node.id in self._references:
            return self._lookup(node.id)
        raise self._refused()

    def _attribute(self, node: ast.Attribute) -> Any:
        """The names of number types, as text: ``torch.float32``, ``np.uint8``."""
        module, _, name = (dotted(node) or "").rpartition(".")
        if module in ("torch", "np", "numpy") and name in _DTYPES:
            return name
        raise self._refused()

    def _list(self, node: ast.List) -> list[Any]:
        return list(self._items(node.elts))

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._items(node.elts))

    def _set(self, node: ast.Set) -> set[Any]:
        return set(self._items(node.elts))

    def _items(self, nodes: Iterable[ast.expr]) -> Iterator[Any]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from self.value(node.value)
            else:
                yield self.value(node)

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            if key is None:
                made.update(self.value(item))
            else:
                made[self.value(key)] = self.value(item)
        return made

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        return "".join(str(self.value(part)) for part in node.values)

    def _formattedvalue(self, node: ast.FormattedValue) -> str:
        # A width could ask for any number of characters.
        if node.format_spec is not None or node.conversion != -1:
            raise self._refused()
        return str(self.value(node.value))

    def _binop(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Mult):
            for a, b in ((left, right), (right, left)):
                if isinstance(a, str | bytes | list | tuple) and isinstance(b, int):
                    before = self._budget.items
                    self._budget.weigh(a)
                    self._budget.make((before - self._budget.items) * max(0, b))
        if isinstance(node.op, ast.Mod) and not isinstance(left, int | float):
            raise self._refused()
        return self._apply(node.op, left, right)

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return self._apply(node.op, self.value(node.operand))

    def _apply(self, op: ast.AST, *values: Any) -> Any:
        # Tensors of a checkpoint may be picked and handed on; what grows from them is not counted here.
        if type(op) not in _OPERATORS or not all(isinstance(v, _PLAIN) for v in values):
            raise self._refused()
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
        return [self.value(node.elt) for _ in self._each(node.generators)]

    _generatorexp = _listcomp

    def _setcomp(self, node: ast.SetComp) -> set[Any]:
        return {self.value(node.elt) for _ in self._each(node.generators)}

    def _dictcomp(self, node: ast.DictComp) -> dict[Any, Any]:
        return {self.value(node.key): self.value(node.value) for _ in self._each(node.generators)}

    def _each(self, generators: list[ast.comprehension]) -> Iterator[None]:
        """Run through the items of nested loops, with their names set."""
        if not generators:
            yield
            return
        first, *rest = generators
        targets = first.target.elts if isinstance(first.target, ast.Tuple) else [first.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if len(names) != len(targets):
            raise self._refused()
        before = dict(self._local)
        for item in self.value(first.iter):
            values = [item] if not isinstance(first.target, ast.Tuple) else list(item)
            self._local.update(zip(names, values, strict=True))
            if all(self.value(test) for test in first.ifs):
                yield from self._each(rest)
        self._local = before

    def _call(self, node: ast.Call) -> Any:
        name = dotted(node.func)
        if name == "range" and not node.keywords:
            made = range(*[self.value(argument) for argument in node.args])
            self._budget.make(len(made))
            return list(made)
        if name is not None and name in self._functions:
            keywords = {k.arg: self.value(k.value) for k in node.keywords if k.arg}
            if len(keywords) != len(node.keywords):
                raise self._refused()
            return self._functions[name](*self._items(node.args), **keywords)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS and not node.keywords:
            owner = self.value(node.func.value)
            if type(owner) in _METHODS[node.func.attr]:
                made = getattr(owner, node.func.attr)(*self._items(node.args))
                return list(made) if node.func.attr in ("keys", "values", "items") else made
        raise self._refused()
