"""A resident process that keeps engines loaded: ``python -m MedQuantINT8Lib.worker.process``.

Messages are JSON, one a line: requests on standard input, events on standard output; arrays lie in an :class:`.shared_memory.SharedBlock`
that the caller owns. The worker ends with its caller: when its input closes, whatever it does, it cancels and leaves.

Requests: ``{"id", "do": "hello"|"cancel"|"ping"|"quit"|a task of :mod:`.tasks`, ...}``; events: ``{"id", "event":
"hello"|"progress"|"result"|"error"|"pong", ...}``. The caller's side is :mod:`.client`.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
from typing import Any

import numpy as np

from .. import __version__
from ..errors import MedQuantError
from ..imaging.volume import Volume
from ..inference.engine_pool import KeepingPool
from ..inference.task_model import LoadedModel, load_model, stamps
from ..progress import ProgressEvent, Task
from .imports import check_imports
from .shared_memory import SharedBlock, aligned
from .tasks import TASKS, TaskContext

PROTOCOL = 2
IDLE_SECONDS = 600.0
#: How long a cancelled run may take to clean up once the caller is gone.
_GRACE_SECONDS = 5.0
_PROGRESS_SECONDS = 0.05
_NICENESS = 5


class Worker:
    """Runs one request after the other; a second thread listens meanwhile.

    Args:
        scratch: the folder of what is temporary, which goes with the worker.
    """

    def __init__(self, block: SharedBlock, idle_seconds: float = IDLE_SECONDS, scratch: str | None = None) -> None:
        self._block, self._idle_seconds, self._scratch = block, idle_seconds, scratch
        self._requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._pool = KeepingPool()
        self._packages: dict[str, tuple[tuple[float, ...], LoadedModel]] = {}
        self._tasks: dict[Any, Task] = {}
        self._cancelled: set[Any] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            self._pool.free_after(self._idle_seconds)
            try:
                request = self._requests.get(timeout=min(self._idle_seconds, 1.0))
            except queue.Empty:
                continue
            if request is None:
                break
            self._handle(request)
        self._pool.clear()
        for _, model in self._packages.values():
            model.__exit__(None, None, None)
        self._clear_up()

    def _clear_up(self) -> None:
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _leave(self) -> None:
        """End at once: nobody is there to be answered."""
        self._clear_up()
        os._exit(1)

    def _listen(self) -> None:
        for line in sys.stdin:
            try:
                request = json.loads(line)
            except ValueError:
                continue
            if request.get("do") == "cancel":
                self._cancel(request.get("target"))
            else:
                self._requests.put(request)
                if request.get("do") == "quit":
                    return
        # The caller is gone. What runs is cancelled, so that it cleans up; if it cannot, the process ends all the same.
        with self._lock:
            tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        self._requests.put(None)
        time.sleep(_GRACE_SECONDS)
        self._leave()

    def _cancel(self, target: Any) -> None:
        with self._lock:
            self._cancelled.add(target)
            if target in self._tasks:
                self._tasks[target].cancel()

    def _handle(self, request: dict[str, Any]) -> None:
        number, do = request.get("id"), request.get("do")
        if do == "quit":
            self._requests.put(None)
        elif do == "hello":
            self._send(
                number, "hello", protocol=PROTOCOL, version=__version__, python=sys.version.split()[0], pid=os.getpid()
            )
        elif do == "ping":
            self._send(number, "pong", engines=len(self._pool))
        elif do in TASKS:
            self._run_task(number, request)
        else:
            self._send(
                number, "error", kind="MedQuantError", message=f"The worker does not know {do!r}.", hint="", exit_code=1
            )

    def _run_task(self, number: Any, request: dict[str, Any]) -> None:
        task = Task(_Throttled(lambda event: self._report_progress(number, event)))
        with self._lock:
            self._tasks[number] = task
            if number in self._cancelled:
                task.cancel()
        try:
            self._send(number, "result", **self._execute(request, task))
        except MedQuantError as error:
            kind = type(error).__name__
            text = str(error.args[0]) if error.args else str(error)
            self._send(number, "error", kind=kind, message=text, hint=error.hint, exit_code=error.exit_code)
        except MemoryError:
            self._send(
                number,
                "error",
                kind="MedQuantError",
                message="There is not enough memory.",
                hint="Close other programs.",
                exit_code=1,
            )
        except Exception as error:
            # A library's own exception must reach the user in words, and must not end the process.
            import traceback

            traceback.print_exc()
            self._send(
                number, "error", kind="EngineError", message=f"{type(error).__name__}: {error}", hint="", exit_code=4
            )
        finally:
            with self._lock:
                self._tasks.pop(number, None)
                self._cancelled.discard(number)

    def _execute(self, request: dict[str, Any], task: Task) -> dict[str, Any]:
        """Run the task; its arrays go into the block behind the volumes, its report into the message."""
        task.check()
        if modules := request.get("imports"):
            with task.stage("loading the packages"):
                check_imports(modules, task.check)
        volumes = [
            Volume(
                self._block.array(v["offset"], tuple(v["shape"]), v["dtype"]),
                np.array(v["ijk_to_ras"]),
                v["name"],
                dicom_files=tuple(v["dicom_files"]),
            )
            for v in request["volumes"]
        ]
        result = TASKS[request["do"]](request, volumes, TaskContext(self._model, self._pool, task))
        offset, arrays = request["answer_offset"], []
        for array in result.arrays:
            self._block.array(offset, array.shape, array.dtype)[...] = array
            arrays.append({"offset": offset, "shape": list(array.shape), "dtype": array.dtype.str})
            offset += aligned(array.nbytes)
        return {"arrays": arrays, "report": result.report}

    def _model(self, paths: str) -> LoadedModel:
        """Return the packages or the task, loaded and checked once, and again when their files change."""
        now = stamps(paths)
        known = self._packages.get(paths)
        if known and known[0] == now:
            return known[1]
        model = load_model(paths)
        self._packages[paths] = (now, model)
        return model

    def _report_progress(self, number: Any, event: ProgressEvent) -> None:
        self._send(
            number, "progress", stage=event.stage, done=event.done, total=event.total, seconds_left=event.seconds_left
        )

    def _send(self, number: Any, event: str, **values: Any) -> None:
        text = json.dumps({"id": number, "event": event, **values})
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except (BrokenPipeError, ValueError):
            self._leave()


class _Throttled:
    """Lets a progress event through when the stage changes or some time has passed."""

    def __init__(self, listener: Any) -> None:
        self._listener, self._stage, self._last = listener, "", 0.0

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        if event.stage != self._stage or now - self._last >= _PROGRESS_SECONDS:
            self._stage, self._last = event.stage, now
            self._listener(event)


def main(arguments: list[str] | None = None) -> int:
    address, *rest = sys.argv[1:] if arguments is None else arguments
    if hasattr(os, "nice"):
        # On a machine with few cores the window that waits for the result keeps its turn.
        os.nice(_NICENESS)
    # Libraries that print must not mix with the messages.
    sys.stdout, own = os.fdopen(os.dup(1), "w", encoding="utf-8"), sys.stderr
    os.dup2(own.fileno(), 1)
    Worker(SharedBlock(address), float(rest[0]) if rest else IDLE_SECONDS, rest[1] if len(rest) > 1 else None).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
