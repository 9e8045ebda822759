"""Lazy classes of a module, which are defined at the first access to one of them, because their base classes are torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any


def make_lazy_getattr(module: str, make: Callable[[], Sequence[type]]) -> Callable[[str], Any]:
    """Make a module's ``__getattr__``, which gives the classes that ``make`` returns, by their names. Importing the module loads no torch.

    Args:
        module: the module's ``__name__``.
    """

    @cache
    def classes() -> dict[str, type]:
        return {cls.__name__: cls for cls in make()}

    def find(name: str) -> Any:
        # Python itself asks every module for names such as __path__.
        if name.startswith("_") or name not in classes():
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return classes()[name]

    return find
