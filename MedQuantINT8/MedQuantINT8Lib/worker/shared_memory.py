"""Memory that two processes share and that cannot outlive them.

On POSIX it is a file that never had a name (or has none any more), inherited by descriptor; on Windows a named mapping,
which the system frees with its last handle. Whatever is killed, and when, nothing is left behind.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_ALIGN = 64


class SharedBlock:
    """A block of memory that grows as arrays are put into it. One process creates it; the other opens it by its :attr:`address`."""

    def __init__(self, address: str | None = None) -> None:
        self._map: mmap.mmap | None = None
        self._size = 0
        if sys.platform == "win32":
            self.address = address or f"MedQuantINT8-{os.getpid()}-{os.urandom(8).hex()}"
        elif address is None:
            self._descriptor = os.memfd_create("medquant") if hasattr(os, "memfd_create") else _nameless_file()
            self.address = str(self._descriptor)
        else:
            self._descriptor, self.address = int(address), address

    @property
    def descriptors(self) -> tuple[int, ...]:
        """File descriptors that the other process has to inherit (``pass_fds``)."""
        return () if sys.platform == "win32" else (self._descriptor,)

    def array(self, offset: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a view of the block; the block grows to hold it. Views made before a growth stay valid."""
        kind = np.dtype(dtype)
        end = offset + int(np.prod(shape)) * kind.itemsize
        if end > self._size:
            self._grow(end)
        assert self._map is not None
        return np.frombuffer(self._map, kind, int(np.prod(shape)), offset).reshape(shape)

    def _grow(self, size: int) -> None:
        size = -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        if sys.platform == "win32":
            # A Windows mapping has one size; the next one has another name that both sides derive.
            self._map = mmap.mmap(-1, size, tagname=f"{self.address}-{size}")
        else:
            if os.fstat(self._descriptor).st_size < size:
                os.ftruncate(self._descriptor, size)
            # The old mapping is dropped with its last view.
            self._map = mmap.mmap(self._descriptor, size)
        self._size = size

    def close(self) -> None:
        self._map = None
        if sys.platform != "win32" and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _nameless_file() -> int:
    with tempfile.TemporaryFile(prefix="medquant-") as stream:
        return os.dup(stream.fileno())


def aligned(size: int) -> int:
    """``size`` rounded up, so that what follows it in the block is aligned."""
    return -(-size // _ALIGN) * _ALIGN
