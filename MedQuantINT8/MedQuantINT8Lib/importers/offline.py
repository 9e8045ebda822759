"""A guard for work that must not reach another machine: while foreign networks are built and their checkpoints read, sockets stay closed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import PackageError

_sockets = threading.local()


@contextmanager
def closed_sockets() -> Iterator[None]:
    """Keep code of this thread from connecting, sending or looking up a name.

    Raises:
        PackageError: the code tried to.
    """
    _install()
    previous, _sockets.closed = getattr(_sockets, "closed", False), True
    try:
        yield
    finally:
        _sockets.closed = previous


def _install() -> None:
    """Guard the functions of :mod:`socket` that reach other machines; once a process."""
    if getattr(socket.getaddrinfo, "of_medquant", False):
        return
    socket.getaddrinfo = _guard(socket.getaddrinfo)
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _guard(getattr(socket.socket, name)))


def _guard(original: Callable[..., Any]) -> Any:
    def call(*args: Any, **keywords: Any) -> Any:
        if getattr(_sockets, "closed", False):
            raise PackageError("The network reaches for another machine while it is made.", "Do not use this file.")
        return original(*args, **keywords)

    call.of_medquant = True  # type: ignore[attr-defined]
    return call
