"""What a value on the command line may be: numbers with their ranges and devices, refused in one line before any work starts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: a whole number from ``low`` to ``high``, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{_shown(text)} is not possible: give a whole number from {low} to {high}"
            )
        return value

    return parse


def fold(text: str) -> int | str:
    """A type for argparse: a fold of nnU-Net, by its number, or "all" for the training on every case."""
    if text == "all":
        return text
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no fold: give a number, or all")
    return int(text)


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Callable[[str], float]:
    """A type for argparse: a number from ``low`` to ``high``.

    Args:
        above: ``low`` itself is refused.
        below: ``high`` itself is refused.
    """
    from_low = f"above {low:g}" if above else f"from {low:g}"
    to_high = f"below {high:g}" if below else f"to {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        # NaN fits no comparison.
        inside = (low < value if above else low <= value) and (value < high if below else value <= high)
        if not inside:
            raise argparse.ArgumentTypeError(f"{_shown(text)} is not possible: give a number {from_low} {to_high}")
        return value

    return parse


def axes(text: str) -> tuple[int, ...]:
    """A type for argparse: axes of the network's input, 0 to 2, joined by commas."""
    names = [name.strip() for name in text.split(",")]
    if not all(name in ("0", "1", "2") for name in names) or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is not possible: give axes from 0 to 2, such as 0,2")
    return tuple(sorted(map(int, names)))


def device(text: str) -> str:
    """A type for argparse: where an engine runs (:mod:`..devices`)."""
    from ..devices import check_device
    from ..errors import InputError

    try:
        return check_device(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
