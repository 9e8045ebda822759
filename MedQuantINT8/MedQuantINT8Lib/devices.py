"""Where engines run, as a user names it.

"auto" leaves it to the program, "cpu" is the processor, "gpu" the NVIDIA GPU with most free memory, "gpu:1" the second, "gpu:0,1" the first and
the second together, "gpu:all" all of them together.
"""

from __future__ import annotations

import re

from .errors import InputError

#: The names of devices, for a help text or a message.
DEVICES = "auto, cpu, gpu or gpu:N (N counts from 0); gpu:0,1 or gpu:all for several GPUs together"


def check_device(name: str) -> str:
    """Return ``name`` if it names a device.

    Raises:
        InputError: it names none, or a GPU twice.
    """
    shown = name if len(name) <= 40 else name[:40] + "..."
    if not re.fullmatch(r"auto|cpu|gpu(:all|:[0-9]{1,3}(,[0-9]{1,3})*)?", name):
        raise InputError(f"There is no device {shown!r}.", f"Give {DEVICES}.")
    numbers = [int(number) for number in _numbers(name)]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"The device {shown!r} names a GPU twice.", "Name each GPU once.")
    return name


def names_several(name: str) -> bool:
    """Whether a device is several GPUs together."""
    return name == "gpu:all" or "," in name


def single_devices(name: str) -> list[str]:
    """Return the devices that a name stands for, one by one; "gpu:all" stays, since how many there are is not known here."""
    return [f"gpu:{int(number)}" for number in _numbers(name)] if "," in name else [name]


def _numbers(name: str) -> list[str]:
    kind, _, numbers = name.partition(":")
    return numbers.split(",") if kind == "gpu" and numbers not in ("", "all") else []
