"""A worker's process: ``python -m MedQuantINT8Lib.cohort.process [KIND DEVICE]``, which name the libraries to load at once. JSON lines: cases on standard input, events on standard output.

The first line says what is done with cases, and where what is temporary lies. The process ends with its caller: when its input closes,
it leaves at once, whatever it does; files are put in place whole or not at all. The caller's side is :mod:`.local_pool`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from ..engines.cuda.block_cache import share_with
from ..errors import MedQuantError
from ..imaging.reading_process import keep_reader_ahead
from .work import IN_FLIGHT, StagedWorker, in_words
from .works import load_libraries, open_work

_PROGRESS_SECONDS = 0.5


class _Events:
    """Writes events, a line each, from any thread."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._last: dict[str, tuple[str, float]] = {}

    def send(self, event: str, **values: Any) -> None:
        with self._lock:
            try:
                self._stream.write(json.dumps({"event": event, **values}) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                os._exit(1)

    def stage(self, name: str, stage: str, done: int, total: int) -> None:
        """Tell of a stage, and of its progress now and then."""
        moment = time.monotonic()
        before, when = self._last.get(name, ("", 0.0))
        if stage != before or moment - when > _PROGRESS_SECONDS:
            self._last[name] = (stage, moment)
            self.send("stage", id=name, stage=stage, done=done, total=total)


def main() -> int:
    # Ctrl-C reaches every process of a terminal; the caller decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout, own = os.fdopen(os.dup(1), "w", encoding="utf-8"), sys.stderr
    # Libraries that print must not mix with the events.
    os.dup2(own.fileno(), 1)
    events = _Events(sys.stdout)
    # The caller may still be looking for its cases.
    keep_reader_ahead()
    if len(sys.argv) > 2:
        load_libraries(*sys.argv[1:3])
    line = sys.stdin.readline()
    if not line:
        return 0
    first = json.loads(line)
    share_with(first.get("beside", 1))
    try:
        worker = StagedWorker(lambda: open_work(first["kind"], first["settings"]), events.stage)
    except MedQuantError as error:
        text = str(error.args[0]) if error.args else str(error)
        events.send("unusable", kind=type(error).__name__, message=text, hint=error.hint)
        return error.exit_code
    except Exception as error:
        events.send("unusable", kind="MedQuantError", message=in_words(error), hint="")
        return 1
    events.send("ready", pid=os.getpid())
    executor = ThreadPoolExecutor(IN_FLIGHT)

    def run(case: dict[str, Any]) -> None:
        events.send("end", record=worker.run(case))

    for line in sys.stdin:
        request = json.loads(line)
        if request.get("quit"):
            executor.shutdown()
            worker.close()
            return 0
        executor.submit(run, request)
    # The caller is gone.
    if scratch := first.get("scratch"):
        shutil.rmtree(scratch, ignore_errors=True)
    if os.name == "posix" and os.getpgrp() == os.getpid():
        # With the processes that read files for this one.
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
