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


def region(text: str) -> tuple[float, float, float, float, float, float]:
    """A type for argparse: a box in the patient, whose coordinates are said to be LPS or RAS; returned in RAS.

    It is given as ``RAS:x0,x1,y0,y1,z0,z1`` or ``RAS:center=x,y,z,size=a,b,c``, in millimeters.
    """
    from ..errors import InputError
    from ..imaging.region_of_interest import region_ras

    system, _, limits = text.partition(":")
    system = system.strip().upper()
    try:
        if system not in ("LPS", "RAS"):
            raise ValueError("say whether it is in LPS or RAS, as in RAS:x0,x1,y0,y1,z0,z1")
        return region_ras(_limits(limits), "LPS" if system == "LPS" else "RAS")
    except (InputError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no box: {error}") from error


def _limits(text: str) -> list[float]:
    """Return (least, largest) along x, y and z from the six numbers of a box, or from its center and size."""
    words = [word.strip() for word in text.split(",")]
    names = [word.partition("=")[0].strip().lower() if "=" in word else "" for word in words]
    by_center = len(words) == 6 and names[0] == "center" and names[3] == "size"
    numbers = []
    for position, word in enumerate(words):
        if names[position] and not (by_center and position in (0, 3)):
            raise ValueError("give x0,x1,y0,y1,z0,z1 or center=x,y,z,size=a,b,c")
        try:
            numbers.append(float(word.rpartition("=")[2]))
        except ValueError:
            raise ValueError(f"{word!r} is no number") from None
    if len(numbers) != 6:
        raise ValueError("it needs six numbers in millimeters")
    if not by_center:
        return numbers
    center, size = numbers[:3], numbers[3:]
    return [center[axis] + sign * size[axis] / 2 for axis in range(3) for sign in (-1, 1)]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
