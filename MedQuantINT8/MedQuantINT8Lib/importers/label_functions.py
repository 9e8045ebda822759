"""Functions that a bundle's ``Lambdad`` applies to its labels, understood from their text or from their values.

A function that looks at each voxel by itself is known by its values on all combinations of regions, or on all labels. Its text
is parsed, never run; only where the user trusts the bundle's code is the function itself run, on those combinations.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .expression_evaluator import dotted_name
from .lambdas import only_argument, parsed_function

#: More regions have too many combinations to be tried.
MOST_REGIONS = 12
_LONGEST = 2000
_MOST_NODES = 400
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Gt: np.greater, ast.GtE: np.greater_equal, ast.Lt: np.less, ast.LtE: np.less_equal, ast.Eq: np.equal, ast.NotEq: np.not_equal,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply,
    ast.BitAnd: lambda a, b: np.logical_and(_flags(a), _flags(b)), ast.BitOr: lambda a, b: np.logical_or(_flags(a), _flags(b)),
}  # fmt: skip
_CONVERSIONS = {
    "float", "int", "long", "short", "half", "double", "byte", "bool", "to", "type", "astype", "cpu", "cuda", "contiguous", "clone",
    "detach", "as_tensor",
}  # fmt: skip


class NotUnderstood(Exception):
    """A function of which the text says nothing that is known here."""


@dataclass(frozen=True)
class Activation:
    """A function that is an activation: "softmax" or "sigmoid"."""

    name: str


@dataclass(frozen=True)
class Argmax:
    """A function that is the argmax over the channels."""


class LabelFunction:
    """A function such as ``$lambda x: ...`` or ``$torch.sigmoid``, by its text (without the $).

    Raises:
        NotUnderstood: The text is no lambda of one argument, and none of torch's activations.
    """

    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise NotUnderstood(text[:60])
        tree = parsed_function(text.strip())
        if tree is None or sum(1 for _ in ast.walk(tree)) > _MOST_NODES:
            raise NotUnderstood(text)
        self.text = text
        if isinstance(tree, ast.Lambda):
            if (argument := only_argument(tree)) is None:
                raise NotUnderstood(text)
            self._name, self._body = argument, tree.body
        elif dotted_name(tree) in ("torch.sigmoid", "torch.nn.functional.sigmoid", "torch.special.expit"):
            self._name, self._body = "x", ast.parse("torch.sigmoid(x)", mode="eval").body
        else:
            raise NotUnderstood(text)

    def whole(self) -> Activation | Argmax | None:
        """Return the function, if all of it is an activation or an argmax."""
        body = self._body
        while (inner := _strip_conversion(body)) is not None:
            body = inner
        call = _split_call(body)
        if call is None or not isinstance(call[1], ast.Name) or call[1].id != self._name:
            return None
        name, _, rest, keywords = call
        axis = keywords.get("dim", keywords.get("axis", rest[0] if rest else None))
        keepdim = keywords.get("keepdim", rest[1] if len(rest) > 1 else False)
        if name == "sigmoid" and not rest and not keywords:
            return Activation("sigmoid")
        if name == "softmax" and axis == 0 and set(keywords) <= {"dim", "axis"} and len(rest) <= 1:
            return Activation("softmax")
        if (
            name == "argmax"
            and axis == 0
            and keepdim is True
            and set(keywords) <= {"dim", "axis", "keepdim"}
            and len(rest) <= 2
        ):
            return Argmax()
        return None

    def cuts(self, channels: int) -> dict[int, tuple[float, bool]]:
        """Return the threshold of each channel that the function compares, and whether the threshold itself counts as inside.

        Raises:
            NotUnderstood: it uses a channel otherwise than by comparing it with one number.
        """
        cuts_by_channel: dict[int, set[tuple[float, bool]]] = {}
        for node in ast.walk(self._body):
            if isinstance(node, ast.Compare) and len(node.ops) == 1:
                number = _number(node.comparators[0])
                if number is not None and isinstance(node.ops[0], ast.Gt | ast.GtE):
                    for channel in self._channels(node.left, channels):
                        cuts_by_channel.setdefault(channel, set()).add((number, isinstance(node.ops[0], ast.GtE)))
        if not cuts_by_channel or any(len(cuts) != 1 for cuts in cuts_by_channel.values()):
            raise NotUnderstood(self.text)
        return {channel: next(iter(cuts)) for channel, cuts in cuts_by_channel.items()}

    def _channels(self, node: ast.expr, channels: int) -> list[int]:
        if isinstance(node, ast.Name) and node.id == self._name:
            return list(range(channels))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == self._name:
            indices = np.arange(channels)[_index(node.slice)]
            return [int(channel) for channel in np.atleast_1d(indices)]
        return []

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the function of an array (channels, voxels).

        Raises:
            NotUnderstood: something in its text is not known here; nothing of it is run.
        """
        try:
            return np.asarray(self._value(self._body, values))
        except (TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
            raise NotUnderstood(self.text) from error

    def _value(self, node: ast.expr, x: NDArray[Any]) -> Any:
        if isinstance(node, ast.Name) and node.id == self._name:
            return x
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | bool):
            return node.value
        if isinstance(node, ast.UnaryOp):
            inner = self._value(node.operand, x)
            if isinstance(node.op, ast.Invert):
                return np.logical_not(_flags(inner))
            if isinstance(node.op, ast.USub):
                return np.negative(inner)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](self._value(node.left, x), self._value(node.right, x))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            return _COMPARISONS[type(node.ops[0])](self._value(node.left, x), self._value(node.comparators[0], x))
        if isinstance(node, ast.Subscript):
            return np.asarray(self._value(node.value, x))[_index(node.slice)]
        if (inner_node := _strip_conversion(node)) is not None:
            return self._value(inner_node, x)
        call = _split_call(node)
        if call is not None:
            return self._function(call, x)
        raise NotUnderstood(self.text)

    def _function(self, call: tuple[str, ast.expr, list[Any], dict[str, Any]], x: NDArray[Any]) -> Any:
        name, first, rest, keywords = call
        if name == "where" and len(rest) == 2 and not keywords:
            condition, a, b = self._value(first, x), self._value(_node(rest[0]), x), self._value(_node(rest[1]), x)
            return np.where(_flags(condition), a, b)
        if name in ("zeros_like", "ones_like") and not rest:
            return np.full(np.shape(self._value(first, x)), 1.0 if name == "ones_like" else 0.0)
        if name == "nan_to_num" and set(keywords) <= {"nan", "posinf", "neginf"}:
            # What networks give here has no NaN: their scores are looked at when they are compared.
            return self._value(first, x)
        if name in ("unsqueeze", "squeeze") and len(rest) == 1 and not keywords and rest[0] == 0:
            value = np.asarray(self._value(first, x))
            return value[None] if name == "unsqueeze" else value[0] if value.shape[0] == 1 and value.ndim > 1 else value
        if name in ("logical_and", "logical_or") and len(rest) == 1 and not keywords:
            return getattr(np, name)(_flags(self._value(first, x)), _flags(self._value(_node(rest[0]), x)))
        if name == "logical_not" and not rest and not keywords:
            return np.logical_not(_flags(self._value(first, x)))
        raise NotUnderstood(self.text)


def paint_order(table: Sequence[int], channels: int) -> list[tuple[int, int]]:
    """Channels with their values, in the order in which painting them gives a table: the value of each combination of regions.

    Args:
        table: the value of each combination ``n``, in which region ``c`` is there if bit ``c`` of ``n`` is set; 0 for no label.

    Raises:
        NotUnderstood: No order of painting gives the table.
    """
    if len(table) != 1 << channels or table[0] != 0:
        raise NotUnderstood("regions that are none have a value")
    alone = [table[1 << channel] for channel in range(channels)]
    nonzero = [channel for channel in range(channels) if alone[channel]]
    after = {c: [d for d in nonzero if d != c and table[1 << c | 1 << d] == alone[c] != alone[d]] for c in nonzero}
    order = sorted(nonzero, key=lambda channel: (len(after[channel]), channel))
    for number in range(1 << channels):
        value = next((alone[channel] for channel in reversed(order) if number >> channel & 1), 0)
        if value != table[number]:
            raise NotUnderstood("no order of painting gives its values")
    return [(channel, alone[channel]) for channel in order]


def combinations(channels: int) -> NDArray[np.float32]:
    """Return all combinations of regions, float32 (channels, 2 ** channels): bit ``c`` of a column's number is row ``c``."""
    if channels > MOST_REGIONS:
        raise NotUnderstood(f"{channels} regions have too many combinations")
    return np.array([bits[::-1] for bits in itertools.product((0.0, 1.0), repeat=channels)], np.float32).T


def _flags(value: Any) -> NDArray[np.bool_]:
    return np.asarray(value).astype(bool)


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    return None


def _index(node: ast.expr) -> Any:
    """Return a channel, a list of channels or a slice of them; anything else raises :class:`NotUnderstood`."""
    try:
        value = None if isinstance(node, ast.Slice) else ast.literal_eval(node)
        if isinstance(node, ast.Slice):
            value = slice(
                *(None if part is None else ast.literal_eval(part) for part in (node.lower, node.upper, node.step))
            )
    except (ValueError, TypeError) as error:
        raise NotUnderstood("an index that is no number") from error
    if isinstance(value, slice | int) or (isinstance(value, list) and all(isinstance(v, int) for v in value)):
        return value
    raise NotUnderstood("an index that is no number")


def _strip_conversion(node: ast.expr) -> ast.expr | None:
    """Return the expression to which a change of type or device is applied; None if ``node`` is no such change."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CONVERSIONS:
        if dotted_name(node.func.value) == "torch":
            return node.args[0] if node.args else None
        return node.func.value
    return None


def _split_call(node: ast.expr) -> tuple[str, ast.expr, list[Any], dict[str, Any]] | None:
    """Split the call of a torch function or tensor method into its name, its tensor, and its other arguments, as constants or nodes."""
    if (
        not isinstance(node, ast.Call)
        or not isinstance(node.func, ast.Attribute)
        or any(k.arg is None for k in node.keywords)
    ):
        return None
    owner = dotted_name(node.func.value)
    of_module = owner in ("torch", "np", "numpy", "torch.nn.functional", "F")
    arguments = list(node.args) if of_module else [node.func.value, *node.args]
    if not arguments:
        return None
    keywords = {str(keyword.arg): _constant(keyword.value) for keyword in node.keywords}
    return node.func.attr, arguments[0], [_constant(argument) for argument in arguments[1:]], keywords


def _constant(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else node


def _node(value: Any) -> ast.expr:
    return value if isinstance(value, ast.expr) else ast.Constant(value)
