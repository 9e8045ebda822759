"""Where engines run, as a user names it: "auto" leaves it to the program, "cpu" is the processor, "gpu" the NVIDIA GPU with most free memory, "gpu:1" the second."""

from __future__ import annotations

import re

from .errors import InputError

#: The names of devices, for a help text or a message.
DEVICES = "auto, cpu, gpu or gpu:N (N counts from 0)"


def check_device(name: str) -> str:
    """Return ``name`` if it names a device.

    Raises:
        InputError: it names none.
    """
    if not re.fullmatch(r"auto|cpu|gpu(:[0-9]{1,3})?", name):
        shown = name if len(name) <= 40 else name[:40] + "..."
        raise InputError(f"There is no device {shown!r}.", f"Give {DEVICES}.")
    return name
