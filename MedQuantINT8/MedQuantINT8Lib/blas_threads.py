"""How many threads a matrix product of NumPy may use, set while threads of this program share out the work themselves.

NumPy's wheels bring OpenBLAS, which shares out a larger product among threads of its own. They wait for the next one by spinning, and
take turns with one another: beside threads of this program that is several times the processor time, and no gain.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path

_lock = threading.Lock()
#: How many ask for single-threaded products at the moment, and the number of threads before the first did.
_single, _before = 0, 0


def begin_single() -> None:
    """Let matrix products use the caller's thread alone, until :func:`end_single` was called as often as this."""
    global _single, _before
    functions = _openblas()
    if functions is None:
        return
    get_threads, set_threads = functions
    with _lock:
        if _single == 0:
            _before = get_threads()
            set_threads(1)
        _single += 1


def end_single() -> None:
    """Undo one call of :func:`begin_single`."""
    global _single
    functions = _openblas()
    if functions is None:
        return
    with _lock:
        _single -= 1
        if _single == 0:
            functions[1](_before)


@functools.cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Functions that return and set OpenBLAS's number of threads; None where NumPy computes by another library."""
    import numpy

    package = Path(numpy.__file__).parent
    # Beside the package on Linux and Windows, inside of it on macOS.
    for folder in (package.with_name("numpy.libs"), package / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                continue
            for prefix in ("scipy_", ""):
                for suffix in ("64_", "_64", ""):
                    names = [f"{prefix}openblas_{what}_num_threads{suffix}" for what in ("get", "set")]
                    if all(hasattr(library, name) for name in names):
                        get_threads, set_threads = (getattr(library, name) for name in names)
                        get_threads.restype, set_threads.restype, set_threads.argtypes = (
                            ctypes.c_int,
                            None,
                            [ctypes.c_int],
                        )
                        return get_threads, set_threads
    return None
