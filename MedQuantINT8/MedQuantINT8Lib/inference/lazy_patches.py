"""Patches of a volume that nobody may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class LazyPatches(Sequence[Any]):
    """Patches that are drawn when they are first looked at; always counts as given."""

    def __init__(self, draw: Callable[[], list[Any]]) -> None:
        self._draw = draw
        self._patches: list[Any] | None = None

    def _all(self) -> list[Any]:
        if self._patches is None:
            self._patches = self._draw()
        return self._patches

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]
