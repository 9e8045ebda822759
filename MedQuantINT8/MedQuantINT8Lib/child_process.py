"""This module runs a function in a process of its own, which can be ended at once, reports its progress, and has a limit of memory.

What cannot be interrupted (torch's exporter, ONNX Runtime) or belongs to a stranger (a network's own code) runs here. The
process is a fresh interpreter, not a fork: threads of torch, OpenMP and ONNX Runtime do not survive a fork, and a fresh one
is the same on every system. What is to be run crosses as a pickle of this program's own making: a ``functools.partial`` of
functions that can be imported, with paths, numbers and weights as arguments.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from . import errors
from .errors import Cancelled, MedQuantError, PackageError
from .progress import ProgressEvent, Task
from .system import available_memory, default_python, library_environment, module_arguments

_CALL, _RESULT, _STDERR = "call.pickle", "result.pickle", "stderr.txt"
_POLL_SECONDS, _LOOK_SECONDS, _REPORT_SECONDS = 0.05, 0.25, 1.0
#: Share of the free memory that a child may take.
_MEMORY_SHARE = 0.9
_PR_SET_PDEATHSIG = 1


def can_cross(function: Callable[..., Any]) -> bool:
    """Return whether a function can be sent to another process: not a lambda, not one that was made inside another."""
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def run_in_child(function: Callable[..., Any], task: Task, name: str, *, memory_bytes: int | None = None) -> Any:
    """Call ``function(task=...)`` in a process of its own, and return what it returns.

    Args:
        function: importable, with arguments that can be pickled; see :func:`can_cross`. What its task reports is passed on.
        name: what is being done, for messages, such as "The export of spleen".
        memory_bytes: most resident memory; by default nine tenths of what is free.

    Raises:
        Cancelled: within a tenth of a second after ``task.cancel()``; the process is gone then.
        MedQuantError: it took more memory than allowed, or what the function raised.
        PackageError: the function failed in any other way, or its process ended by itself.
    """
    task.check()
    limit = int(available_memory() * _MEMORY_SHARE) if memory_bytes is None else memory_bytes
    with TemporaryDirectory(prefix="medquant-child-") as scratch:
        folder = Path(scratch)
        (folder / _CALL).write_bytes(pickle.dumps(sys.path) + pickle.dumps(function))
        with open(folder / _STDERR, "wb") as stderr_file:
            process = subprocess.Popen(
                [default_python(), *module_arguments(f"{__package__}.child_process"), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr_file,
                env=library_environment(),
                # Ctrl-C in a terminal goes to all of a group: whoever asked ends the child, and says so once.
                start_new_session=True,
            )
            try:
                failure = _watch(process, task, name, limit)
            finally:
                _end(process)
        if failure is not None:
            raise failure
        if process.returncode != 0 or not (folder / _RESULT).exists():
            raise _end_error(process.returncode, folder / _STDERR, name)
        return pickle.loads((folder / _RESULT).read_bytes())


def _watch(process: subprocess.Popen[bytes], task: Task, name: str, limit: int) -> MedQuantError | None:
    """Pass progress on until the child says no more; return what went wrong in it, as an error of this program, or None."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    assert process.stdout is not None
    threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
    failure: MedQuantError | None = None
    event, since, last_look, last_report = (
        ProgressEvent("starting", 0, 0, None),
        time.monotonic(),
        0.0,
        time.monotonic(),
    )
    while True:
        if task.cancelled:
            raise Cancelled(f"Canceled during '{event.stage}'.")
        now = time.monotonic()
        if now - last_look > _LOOK_SECONDS:
            last_look = now
            if (resident := resident_bytes(process.pid)) > limit:
                raise MedQuantError(
                    f"{name} took {resident / 1e9:.1f} GB of memory, and {limit / 1e9:.1f} GB are allowed.",
                    "Close other programs, take a smaller --patch, or do it on a machine with more memory.",
                )
        if now - last_report > _REPORT_SECONDS and not event.total:
            last_report = now
            task.report(ProgressEvent(f"{event.stage}, {now - since:.0f} s", 0, 0, None))
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            process.wait()
            return failure
        message = json.loads(line)
        if "stage" in message:
            if message["stage"] != event.stage:
                since = time.monotonic()
            event = ProgressEvent(message["stage"], message["done"], message["total"], message["seconds_left"])
            task.report(event)
        else:
            failure = _error_from(message)


def _listen(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            lines.put(line)
    lines.put(None)


def _error_from(message: dict[str, str]) -> MedQuantError:
    cls = getattr(errors, message["kind"], None)
    known = isinstance(cls, type) and issubclass(cls, MedQuantError)
    return (cls if known else PackageError)(message["message"], message["hint"])  # type: ignore[misc, no-any-return]


def _end_error(code: int | None, stderr_file: Path, name: str) -> PackageError:
    """Return the error for a process that ended without a word: a crash, or the system's own bound on memory."""
    text = stderr_file.read_bytes().decode("utf-8", "replace").strip()
    last = "".join(c for c in text.splitlines()[-1][:200] if c.isprintable()) if text else ""
    how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
    return PackageError(
        f"{name} ended by itself, {how}{': ' + last if last else ''}.",
        "The network crashes the software that reads it, or memory ran out: export it again, or take a smaller --patch.",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of another process, in bytes; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


# In the child


def _main(folder: Path) -> int:
    _end_with_parent()
    # What strangers' code prints may not be taken for this program's own words.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        with open(folder / _CALL, "rb") as stream:
            sys.path += [path for path in pickle.load(stream) if path not in sys.path]
            function = pickle.load(stream)
        result = function(task=Task(lambda event: _send(events, vars(event))))
        (folder / _RESULT).write_bytes(pickle.dumps(result))
    except MedQuantError as error:
        _send(events, {"kind": type(error).__name__, "message": str(error.args[0]), "hint": error.hint})
        return 0
    except MemoryError:
        _send(
            events,
            {"kind": "MedQuantError", "message": "There is not enough memory.", "hint": "Take a smaller --patch."},
        )
        return 0
    except Exception as error:
        # A stranger's network raises what it likes.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = "".join(c for c in (lines[0] if lines else "no reason given")[:200] if c.isprintable()).rstrip(".")
        _send(
            events,
            {
                "kind": "PackageError",
                "message": f"The network failed: {type(error).__name__}: {text}.",
                "hint": "Check it.",
            },
        )
        return 0
    return 0


def _send(events: IO[str], value: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        events.write(json.dumps(value) + "\n")
        events.flush()


def _end_with_parent() -> None:
    """End when the process that asked is gone: nobody would take the result."""

    def watch() -> None:
        # Not through sys.stdin: its lock would be held when the interpreter ends.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    code = _main(Path(sys.argv[1]))
    sys.stderr.flush()
    # Everything is written: what strangers' code left running is not waited for.
    os._exit(code)
