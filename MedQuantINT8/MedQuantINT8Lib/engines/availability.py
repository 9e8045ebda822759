"""Which engines can run on this machine, and why the others cannot."""

from __future__ import annotations

from typing import Any

from ..errors import one_line
from ..system import installed_version
from .base import distribution_of
from .registry import backend, backend_names


def examine_engines() -> dict[str, Any]:
    """Every engine by its name: ``title``, ``available``, ``reason`` (why it cannot run here), ``real_int8`` and ``version``.

    No engine is loaded for it, and nothing that makes networks.
    """
    return {name: _examine(name) for name in backend_names()}


def _examine(name: str) -> dict[str, Any]:
    title, real_int8, version, reason = name, False, "", ""
    try:
        engine = backend(name)
        title, real_int8 = engine.title, engine.real_int8
        reason = engine.unavailable()
        # By the package's metadata where the engine names it: to ask the engine itself loads it, which takes seconds.
        package = distribution_of(engine)
        version = "" if reason else (package and installed_version(package)) or engine.version()
    except Exception as error:
        # Libraries fail in ways of their own; whatever keeps an engine from running is the answer.
        reason = one_line(error)
    return {"title": title, "available": not reason, "reason": reason, "real_int8": real_int8, "version": version}
