"""Files that go through ITK's readers are read in a process of their own, with limits on memory and time.

At some damaged headers ITK's libraries end the process, or take gigabytes. Here that ends a reader: the caller gets one line
that names the file. The voxels come back in memory that both share (on Linux; else in a temporary file).
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Cancelled, InputError, StorageError
from ..files import storage_errors
from ..system import available_memory, default_python, library_environment, module_arguments

#: What a reader takes with its libraries, before any voxel.
_LIBRARIES = 1 << 30
#: Copies of the voxels that a reader may hold, and the most that compression gains.
_COPIES = 4
_SECONDS, _BYTES_A_SECOND = 15, 4 << 20
_POLL_SECONDS = 0.01
_READER = tuple(module_arguments("MedQuantINT8Lib.imaging.itk_reader"))


@dataclass(frozen=True)
class ReadApart:
    """What a reader found: an array for each file, what ITK says of each, and its warnings."""

    arrays: list[NDArray[Any]]
    images: list[dict[str, Any]]
    warnings: list[str]


def read_apart(
    kind: str,
    paths: Sequence[Path],
    names: Sequence[str],
    expected: int,
    name: str,
    check: Callable[[], None] | None = None,
) -> ReadApart:
    """Read files with ITK in a process of their own.

    Args:
        kind: "scan" or "frames".
        names: what messages call each of the files.
        expected: bytes that the voxels take, as the headers say.
        name: what messages call all of them, where the process ends without a word.
        check: called while waiting; what it raises ends the reader.

    Raises:
        InputError: a file that cannot be read, takes too much memory or time, or makes the reader end.
        StorageError: there is no room for the voxels.
    """
    memory = _LIBRARIES + _COPIES * expected + (256 << 20)
    if expected > available_memory():
        raise InputError(
            f"{name} needs {expected / 1e9:.1f} GB of memory; there are {available_memory() / 1e9:.1f} GB.",
            "Close other programs, or crop the scan.",
        )
    size = expected + sum(path.stat().st_size for path in paths)
    request = {
        "kind": kind,
        "paths": [os.fspath(path.absolute()) for path in paths],
        "memory": memory,
        "seconds": _SECONDS + size // _BYTES_A_SECOND,
    }
    with _reader() as (process, target, number):
        answer = _ask(process, {**request, "target": target}, name, check)
        if "error" in answer:
            raise InputError(
                f"{names[answer['number']]} cannot be read: {answer['error']}.",
                "The file may be cut off or of another type; copy it again.",
            )
        return ReadApart(_arrays(number, answer["arrays"]), answer["arrays"], answer["warnings"])


class _ReaderAhead:
    """A reader that was started before there is anything to read, with the memory that it puts voxels into."""

    def __init__(self) -> None:
        self.number = os.memfd_create("medquant-voxels")
        try:
            self.process = _started((self.number,), "ahead")
        except BaseException:
            os.close(self.number)
            raise


_ahead: list[_ReaderAhead] = []
_keeps_ahead = False
_lock = threading.Lock()


def keep_reader_ahead() -> None:
    """Have a reader wait for the next file from now on: it takes longer to load its libraries than to read a scan. For processes that read many."""
    global _keeps_ahead
    if hasattr(os, "memfd_create"):
        _keeps_ahead = True
        _start_ahead()


def _start_ahead() -> None:
    # One that cannot be started is started when it is needed, and fails then.
    with suppress(OSError):
        reader = _ReaderAhead()
        with _lock:
            _ahead.append(reader)


def _taken_ahead() -> _ReaderAhead | None:
    """Return the reader that waits, if it lives."""
    with _lock:
        reader = _ahead.pop() if _ahead else None
    if reader is not None and reader.process.poll() is not None:
        os.close(reader.number)
        return None
    return reader


@contextmanager
def _reader() -> Iterator[tuple[subprocess.Popen[bytes], str, int]]:
    """Yield a reader that waits for its request, and a file for the voxels: the name that the reader opens, and its number here."""
    reader = _taken_ahead()
    if _keeps_ahead:
        _start_ahead()
    if reader is not None:
        try:
            yield reader.process, f"/proc/self/fd/{reader.number}", reader.number
        finally:
            os.close(reader.number)
        return
    with _target() as (target, number, inherited):
        yield _started(inherited), target, number


@contextmanager
def _target() -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Yield a file for the voxels: the name that the reader opens, its number here, and what the reader inherits."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("medquant-voxels")
        try:
            yield f"/proc/self/fd/{number}", number, (number,)
        finally:
            os.close(number)
        return
    with storage_errors(tempfile.gettempdir()):
        file = tempfile.NamedTemporaryFile(prefix="medquant-voxels-", delete=False)  # noqa: SIM115
    with file:
        try:
            yield file.name, file.fileno(), ()
        finally:
            with suppress(OSError):
                Path(file.name).unlink()


def _executable() -> str:
    return sys.executable if "python" in Path(sys.executable or "").name.lower() else default_python()


def _started(inherited: tuple[int, ...], *arguments: str) -> subprocess.Popen[bytes]:
    """Start a reader, which waits for its request."""
    return subprocess.Popen(
        [_executable(), *_READER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Threads of a linear algebra library reserve address space, which is limited.
        env={**library_environment(), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        pass_fds=inherited,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _ask(
    process: subprocess.Popen[bytes], request: dict[str, Any], name: str, check: Callable[[], None] | None
) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    try:
        with process.stdout, suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
            if check is not None:
                while process.poll() is None and not _readable(process.stdout.fileno()):
                    check()
            output = process.stdout.read()
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode == 0 and output.strip():
        answer: dict[str, Any] = json.loads(output)
        return answer
    if process.returncode in (-signal.SIGINT, 128 + signal.SIGINT, -signal.SIGTERM):
        raise Cancelled()
    if process.returncode == 1:
        raise StorageError(
            f"{name} could not be read in a process of its own with {_executable()}.",
            "SimpleITK is missing there, or there is not enough memory.",
        )
    reasons = {
        -getattr(signal, "SIGXCPU", 24): "it takes too long",
        -getattr(signal, "SIGKILL", 9): "the system ended its reader, which may be for lack of memory",
    }
    reason = reasons.get(process.returncode, f"it makes ITK's reader end (signal {-process.returncode})")
    raise InputError(f"{name} cannot be read: {reason}.", "The file may be damaged; copy it again.")


def _readable(number: int) -> bool:
    import select

    if sys.platform == "win32":
        import time

        time.sleep(_POLL_SECONDS)
        return False
    return bool(select.select([number], [], [], _POLL_SECONDS)[0])


def _arrays(number: int, images: Sequence[dict[str, Any]]) -> list[NDArray[Any]]:
    size = os.fstat(number).st_size
    if not size:
        return []
    # A private view: whoever changes the voxels changes pages of its own.
    memory = mmap.mmap(number, size, access=mmap.ACCESS_COPY)
    arrays, offset = [], 0
    for image in images:
        dtype, shape = np.dtype(image["dtype"]), tuple(image["shape"])
        count = int(np.prod(shape))
        arrays.append(np.frombuffer(memory, dtype, count, offset).reshape(shape))
        offset += count * dtype.itemsize
    return arrays
