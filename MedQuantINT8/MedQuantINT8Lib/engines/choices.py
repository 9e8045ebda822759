"""Which precision ``auto`` took, and why: decided once for a network, an engine and a machine, and kept beside the engines.

Labels of INT8 and FP32 differ a little. A choice that is made anew with every build, by times that differ from run to run, would
change a scan's labels for no reason that a user could see.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from .. import __version__
from ..models.package import FP32, INT8, ModelPackage
from .base import EngineBackend, Precision
from .cache import FORMAT, key_of, read_notes, write_notes

_FILE = "choices.json"


@dataclass(frozen=True)
class Choice:
    """What ``auto`` takes.

    Attributes:
        reason: in words, for the report.
        failed: INT8 cannot be used: it failed its comparison, or cannot be built. Forgotten by ``medquant cache clear``.
        times: milliseconds a patch by precision ("int8_ms" and "fp32_ms"), where both were timed.
        decided: when (ISO 8601, local time).
    """

    precision: Precision
    reason: str
    failed: bool = False
    times: dict[str, float] | None = None
    decided: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _key(package: ModelPackage, backend: EngineBackend, device: str) -> str:
    """Not by patch, batch or threads: a choice that follows them would change labels with them."""
    networks = {name: package.hashes.get(name) for name in (FP32, INT8)}
    engine = [backend.name, backend.version(), backend.device_name(device)]
    program = {"medquant": __version__, "format": FORMAT}
    return key_of({"model_name": package.spec.name, "networks": networks, "engine": engine, **program})


def find(package: ModelPackage, backend: EngineBackend, device: str) -> Choice | None:
    """The choice that was made, or None."""
    try:
        choice = Choice(**read_notes(_FILE)[_key(package, backend, device)])
    except (KeyError, TypeError):
        return None
    return choice if choice.precision in ("int8", "fp16", "fp32") else None


def keep(package: ModelPackage, backend: EngineBackend, device: str, choice: Choice) -> Choice:
    """Remember a choice; as it is kept.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    dated = Choice(choice.precision, choice.reason, choice.failed, choice.times, time.strftime("%Y-%m-%dT%H:%M:%S"))
    write_notes(_FILE, {**read_notes(_FILE), _key(package, backend, device): dated.to_json()})
    return dated


def forget_failures() -> None:
    """Let ``auto`` try INT8 again where it could not be used; choices by speed stay."""
    choices = read_notes(_FILE)
    left = {key: value for key, value in choices.items() if not (isinstance(value, dict) and value.get("failed"))}
    if left != choices:
        write_notes(_FILE, left)
