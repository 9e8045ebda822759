"""Work that must not reach another machine: while foreign networks are made and their checkpoints read, sockets stay closed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import PackageError

_closed = threading.local()


@contextmanager
def closed_sockets() -> Iterator[None]:
    """Let no code of this thread connect, send or look up a name.

    Raises:
        PackageError: something in it tried to.
    """
    _install()
    before, _closed.now = getattr(_closed, "now", False), True
    try:
        yield
    finally:
        _closed.now = before


def _install() -> None:
    """Put a look at the thread before what reaches out; once a process."""
    if getattr(socket.getaddrinfo, "of_medquant", False):
        return
    socket.getaddrinfo = _guarded(socket.getaddrinfo)
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(original: Callable[..., Any]) -> Any:
    def call(*args: Any, **keywords: Any) -> Any:
        if getattr(_closed, "now", False):
            raise PackageError("The network reaches for another machine while it is made.", "Do not use this file.")
        return original(*args, **keywords)

    call.of_medquant = True  # type: ignore[attr-defined]
    return call
