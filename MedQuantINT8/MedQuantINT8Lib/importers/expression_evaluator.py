"""The harmless part of Python's expressions, computed without running code, and what may be spent on it.

What cannot be computed so raises :class:`NotAConstant`, which names the expression, or is :class:`Unresolved` until it is used.
"""

from __future__ import annotations

import ast
import operator
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import PackageError

#: Functions that give no more than they were given, by the names that expressions call them.
FUNCTIONS: dict[str, Callable[..., Any]] = {
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
_PLAIN = (bool, int, float, str, bytes, list, tuple, set, dict, type(None))
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
        items: list items, dictionary entries and characters that may still be created.
        depth: how deep values may lie in each other.
    """

    name: str
    steps: int = 50_000
    items: int = 300_000
    depth: int = 100
    _level: int = field(default=0, repr=False)

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise self._refusal("takes too many steps to work out")

    def make(self, count: int) -> None:
        self.items -= count
        if self.items < 0:
            raise self._refusal("makes values that are too large")

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
                    raise self._refusal("is nested too deep, or refers to itself")
                inside = item.values() if isinstance(item, dict) else item
                waiting += [
                    (inner, depth + 1) for inner in inside if isinstance(inner, str | bytes | dict | list | tuple | set)
                ]

    def enter(self) -> None:
        self._level += 1
        if self._level > self.depth:
            raise self._refusal("is nested too deep, or refers to itself")

    def leave(self) -> None:
        self._level -= 1

    def _refusal(self, what: str) -> PackageError:
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


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, a text, a flag, nothing, or a container of these."""
    if isinstance(value, list | tuple | set):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def dotted_name(node: ast.AST) -> str | None:
    """``a.b.c`` of a syntax tree as text; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted_name(node.value)) is not None:
        return f"{inner}.{node.attr}"
    return None


class Evaluator:
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
            raise self._refusal()
        self._budget.step()
        self._budget.enter()
        try:
            return self._check_size(handler(node))
        finally:
            self._budget.leave()

    def _refusal(self) -> NotAConstant:
        return NotAConstant(f"${self._text}")

    def _check_size(self, result: Any) -> Any:
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
        raise self._refusal()

    def _attribute(self, node: ast.Attribute) -> Any:
        """Return the names of number types, as text: ``torch.float32``, ``np.uint8``."""
        module, _, name = (dotted_name(node) or "").rpartition(".")
        if module in ("torch", "np", "numpy") and name in _DTYPES:
            return name
        raise self._refusal()

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
        entries: dict[Any, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            if key is None:
                entries.update(self.value(item))
            else:
                entries[self.value(key)] = self.value(item)
        return entries

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        return "".join(str(self.value(part)) for part in node.values)

    def _formattedvalue(self, node: ast.FormattedValue) -> str:
        # A width could ask for any number of characters.
        if node.format_spec is not None or node.conversion != -1:
            raise self._refusal()
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
            raise self._refusal()
        return self._apply(node.op, left, right)

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return self._apply(node.op, self.value(node.operand))

    def _apply(self, op: ast.AST, *values: Any) -> Any:
        # Tensors of a checkpoint may be picked and handed on; what grows from them is not counted here.
        if type(op) not in _OPERATORS or not all(isinstance(v, _PLAIN) for v in values):
            raise self._refusal()
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
            raise self._refusal()
        before = dict(self._local)
        for item in self.value(first.iter):
            values = [item] if not isinstance(first.target, ast.Tuple) else list(item)
            self._local.update(zip(names, values, strict=True))
            if all(self.value(test) for test in first.ifs):
                yield from self._each(rest)
        self._local = before

    def _call(self, node: ast.Call) -> Any:
        name = dotted_name(node.func)
        if name == "range" and not node.keywords:
            numbers = range(*[self.value(argument) for argument in node.args])
            self._budget.make(len(numbers))
            return list(numbers)
        if name is not None and name in self._functions:
            keywords = {k.arg: self.value(k.value) for k in node.keywords if k.arg}
            if len(keywords) != len(node.keywords):
                raise self._refusal()
            return self._functions[name](*self._items(node.args), **keywords)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS and not node.keywords:
            owner = self.value(node.func.value)
            if type(owner) in _METHODS[node.func.attr]:
                result = getattr(owner, node.func.attr)(*self._items(node.args))
                return list(result) if node.func.attr in ("keys", "values", "items") else result
        raise self._refusal()
