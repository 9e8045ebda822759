"""Numbers, text and containers out of a pickle, whose opcodes are interpreted here: nothing is imported, and no object is built or called.

Python's own unpickler runs whatever a file names. Here a name stands for itself (:class:`PickledName`), and the only things that a
file can ask to be made are NumPy's integers, whose bytes are read. Any other opcode is refused by its name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import PackageError

#: A file of more bytes is no list of settings.
_MOST_BYTES = 1 << 20
#: Opcodes that push the value that they carry.
_PLAIN = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
#: Opcodes that say how the file is laid out.
_LAYOUT = {"PROTO", "FRAME"}
_DTYPE = "numpy.dtype"
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
#: What old protocols write for bytes.
_ENCODE = "_codecs.encode"
_MARK: Any = object()


@dataclass(frozen=True)
class PickledName:
    """A class or function that a pickle names, by its full name; it is not looked up."""

    name: str


@dataclass
class _IntegerType:
    """NumPy's integer type as a pickle describes it: "i8" or "u1", say, and its order of bytes."""

    code: str
    order: str = "<"


class _NotUnderstood(Exception):
    """An opcode, or what it is used on, that is not understood; the message says which."""


def read_pickled(content: bytes, name: str) -> Any:
    """Return what a pickle holds: None, numbers, text, bytes, lists, tuples, dictionaries and names.

    Raises:
        PackageError: it holds anything else, or is damaged; ``name`` is what messages call it.
    """
    if len(content) > _MOST_BYTES:
        raise PackageError(f"{name} is too large to be a list of settings.", "Get it again.")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except _NotUnderstood as error:
        raise PackageError(
            f"{name} holds more than numbers, text and lists, and reading it would run its code: {error}.",
            "Give the .json beside it, or take the file away and clean the labels yourself.",
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, UnicodeError, OverflowError) as error:
        raise PackageError(f"{name} is no pickle, or it is damaged.", "Get it again.") from error
    raise PackageError(f"{name} is no pickle, or it is damaged.", "Get it again.")


@dataclass
class _Machine:
    """The stack and the memory of a pickle that is read."""

    stack: list[Any] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def _since_mark(self) -> list[Any]:
        place = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def run(self, opcode: str, argument: Any) -> None:
        if opcode in _PLAIN:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _TUPLES:
            values = tuple(self.pop() for _ in range(_TUPLES[opcode]))
            self.stack.append(values[::-1])
        elif opcode not in _LAYOUT:
            handler = getattr(self, f"_{opcode.lower()}", None)
            if handler is None:
                raise _NotUnderstood(opcode)
            handler(argument)

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _dict(self, _: Any) -> None:
        values = self._since_mark()
        self.stack.append(dict(zip(values[::2], values[1::2], strict=True)))

    def _append(self, _: Any) -> None:
        value = self.pop()
        self._top(list).append(value)

    def _appends(self, _: Any) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._top(dict)[key] = value

    def _setitems(self, _: Any) -> None:
        values = self._since_mark()
        self._top(dict).update(zip(values[::2], values[1::2], strict=True))

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError("an item of what is no container")
        return self.stack[-1]

    def _memoize(self, _: Any) -> None:
        self.memory[len(self.memory)] = self.stack[-1]

    def _put(self, place: int) -> None:
        self.memory[place] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, place: int) -> None:
        self.stack.append(self.memory[place])

    _binget = _long_binget = _get

    def _global(self, names: str) -> None:
        self.stack.append(PickledName(".".join(names.split(" "))))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("a name that is no text")
        self.stack.append(PickledName(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        """What would be a call: of NumPy's numbers the type and the value are read, nothing else."""
        arguments, function = self.pop(), self.pop()
        name = function.name if isinstance(function, PickledName) else "an object"
        if name == _DTYPE and len(arguments) == 3 and arguments[0] in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            self.stack.append(_IntegerType(arguments[0]))
        elif name in _SCALARS and len(arguments) == 2 and isinstance(arguments[0], _IntegerType):
            self.stack.append(_integer(arguments[0], arguments[1]))
        elif name == _ENCODE and len(arguments) == 2 and arguments[1] == "latin1" and isinstance(arguments[0], str):
            self.stack.append(arguments[0].encode("latin1"))
        else:
            raise _NotUnderstood(f"it calls {name}")

    def _build(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, _IntegerType):
            raise _NotUnderstood("it sets up an object")
        target.order = state[1]


def _integer(kind: _IntegerType, content: Any) -> int:
    # Old protocols keep bytes as text.
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(content, bytes) or len(content) != int(kind.code[1]) or kind.order not in ("<", ">", "|", "="):
        raise ValueError("a number of another size than its type's")
    return int.from_bytes(content, "big" if kind.order == ">" else "little", signed=kind.code[0] == "i")
