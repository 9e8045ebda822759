"""Two folders exchange their names in one step, where the system can.

Linux has ``renameat2`` with ``RENAME_EXCHANGE``, macOS ``renamex_np`` with ``RENAME_SWAP``; not every file system knows them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2


def exchange(first: Path, second: Path) -> bool:
    """Let two paths of one file system exchange what they name, in one step; False where that cannot be done."""
    if sys.platform == "win32":
        return False
    try:
        library = ctypes.CDLL(None, use_errno=True)
        a, b = os.fsencode(first), os.fsencode(second)
        if sys.platform == "darwin":
            return library.renamex_np(a, b, _RENAME_SWAP) == 0
        return library.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE) == 0
    except (OSError, AttributeError):
        return False
