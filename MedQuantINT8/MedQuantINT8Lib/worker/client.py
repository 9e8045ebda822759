"""The caller's side of :mod:`.process`: starts it, hands it volumes, restarts it after a crash. What it does is a :class:`.submitted_job.Job`."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .. import __version__
from ..errors import Cancelled, MedQuantError
from ..imaging.volume import Volume
from ..inference.engine_choice import EngineChoice
from ..inference.result_files import OutputOptions
from ..inference.segmenter import SegmentationOptions
from ..progress import Task
from ..scratch import owned_prefix
from ..system import default_python, library_environment, module_arguments
from .messages import code_in_words, to_json
from .shared_memory import SharedBlock, aligned
from .submitted_job import POLL_SECONDS, Job, WorkerError, WorkerResult

_START_SECONDS = 60.0
_END_SECONDS = 7.0
_LAST_WORDS_SECONDS = 2.0


class _Connection:
    """What one worker process says: answers to questions, and its last lines beside the messages."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.errors: collections.deque[str] = collections.deque(maxlen=20)


class WorkerClient:
    """One resident worker. Starts it on first use; :meth:`close` ends it.

    Args:
        python: the Python to run, by default :func:`default_python`; it may belong to another environment; it must hold this package's dependencies.
        idle_seconds: after which the worker frees its engines.
    """

    def __init__(self, python: str | None = None, idle_seconds: float = 600.0) -> None:
        self._python, self._idle_seconds = python or default_python(), idle_seconds
        self._process: subprocess.Popen[str] | None = None
        self._scratch = ""
        self._block = SharedBlock()
        self._jobs: dict[int, Job] = {}
        self._number = 0
        self._lock = threading.Lock()
        self._connection = _Connection()
        self.description: dict[str, Any] = {}

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.alive else None

    def start(self) -> None:
        """Start the worker if it does not run.

        Raises:
            WorkerError: it cannot be started, or is of another version.
        """
        if self.alive:
            return
        # Of its own: the threads that listen to a worker that died a moment ago still have to tell its end.
        connection = self._connection = _Connection()
        # A folder of its own for what is temporary: a worker that is killed cannot clear up after itself.
        self._scratch = tempfile.mkdtemp(prefix=owned_prefix("medquant-worker"))
        try:
            process = subprocess.Popen(
                [
                    self._python,
                    *module_arguments("MedQuantINT8Lib.worker.process"),
                    self._block.address,
                    str(self._idle_seconds),
                    self._scratch,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**library_environment(), **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._scratch)},
                pass_fds=self._block.descriptors,
                # On Windows a console would open beside the application.
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise WorkerError(
                f"The worker cannot be started with {self._python}: {error.strerror}.", "Choose another Python."
            ) from error
        self._process = process
        errors = threading.Thread(target=self._collect_errors, args=(process, connection), daemon=True)
        errors.start()
        threading.Thread(target=self._listen, args=(process, errors, self._scratch, connection), daemon=True).start()
        try:
            hello = self._ask("hello", _START_SECONDS)
        except WorkerError:
            self._end()
            raise
        if hello["event"] == "ended":
            raise WorkerError(
                hello["message"], f"Check that {self._python} holds this extension's packages (medquant doctor)."
            )
        if hello["version"] != __version__:
            self._end()
            raise WorkerError(
                f"The worker is of version {hello['version']}, but {__version__} is needed.", "Update its environment."
            )
        self.description = hello

    def segment(
        self, model: str, volume: Volume, choice: EngineChoice, options: SegmentationOptions, task: Task
    ) -> WorkerResult:
        """Segment and wait; see :meth:`submit`."""
        return self.submit(model, volume, choice, options).wait(task)

    def submit(
        self,
        model: str,
        volume: Volume,
        choice: EngineChoice,
        options: SegmentationOptions,
        outputs: OutputOptions = OutputOptions(),
    ) -> Job:
        """Have a volume segmented by the model (the path of a package, or several joined by commas); see :meth:`begin`.

        Args:
            outputs: the files that the worker writes as well; the report names them.
        """
        values = {"outputs": outputs.to_json()} if outputs != OutputOptions() else {}
        return self.begin("segment", [volume], model=model, choice=asdict(choice), options=asdict(options), **values)

    def begin(self, do: str, volumes: Sequence[Volume], **request: Any) -> Job:
        """Have one of :mod:`.tasks` done, and come back at once.

        The worker is started if it does not run, and the voxels are handed over, by a thread: neither may hold up a window.
        The volumes must not be changed until the job is done.

        Raises:
            WorkerError: the worker is still at work.
        """
        before = [job for job in self._jobs.values() if not job.done]
        if any(not job.cancelled for job in before):
            raise WorkerError("The worker is still at work.", "Wait for it, or cancel it.")
        with self._lock:
            self._number += 1
            job = Job(self._number, functools.partial(self._send, quiet=True))
            self._jobs = {**{other.number: other for other in before}, job.number: job}
        threading.Thread(target=self._hand_over, args=(job, before, do, list(volumes), request), daemon=True).start()
        return job

    def _hand_over(self, job: Job, before: list[Job], do: str, volumes: list[Volume], request: dict[str, Any]) -> None:
        try:
            for other in before:
                # Cancelled, and left by its caller; the memory is its own until it has stopped.
                while not other.poll(POLL_SECONDS):
                    pass
            self.start()
            job.process = self._process
            described, offset = [], 0
            for volume in volumes:
                self._block.array(offset, volume.data.shape, volume.data.dtype)[...] = volume.data
                described.append(
                    {
                        "offset": offset,
                        "shape": list(volume.data.shape),
                        "dtype": volume.data.dtype.str,
                        "ijk_to_ras": volume.ijk_to_ras.tolist(),
                        "name": volume.name,
                        "dicom_files": list(volume.dicom_files),
                    }
                )
                offset += aligned(volume.data.nbytes)
            if job.cancelled:
                raise Cancelled()
            self._send({"id": job.number, "do": do, "volumes": described, "answer_offset": offset, **request})
            if job.cancelled:
                job.cancel()
        except MedQuantError as error:
            job.receive({"event": "failed", "error": error})
        except (MemoryError, OSError) as error:
            text = "There is not enough memory to hand the volume over."
            job.receive({"event": "failed", "error": WorkerError(f"{text} ({error})", "Close other programs.")})
        except BaseException as error:
            # Whatever it is, whoever waits for the job must be told.
            job.receive(
                {
                    "event": "failed",
                    "error": WorkerError(
                        f"The work could not be handed over: {type(error).__name__}: {error}.", "Please report this."
                    ),
                }
            )

    @property
    def log(self) -> list[str]:
        """The last lines that the worker wrote beside its messages."""
        return list(self._connection.errors)

    def ping(self, seconds: float = 5.0) -> dict[str, Any]:
        """Return what the worker says of itself.

        Raises:
            WorkerError: it does not run or does not answer.
        """
        answer = self._ask("ping", seconds)
        if answer["event"] == "ended":
            raise WorkerError(answer["message"], "It is started again with the next segmentation.")
        return answer

    def _ask(self, what: str, seconds: float) -> dict[str, Any]:
        """Send a request that is answered at once, and wait for its own answer (or for the worker's end)."""
        with self._lock:
            self._number += 1
            number = self._number
        self._send({"id": number, "do": what}, quiet=True)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                answer = self._connection.answers.get(timeout=left)
                if answer.get("id") == number or answer["event"] == "ended":
                    return answer
        raise WorkerError("The worker does not answer.", "It may be at work; if not, restart the program.")

    def close(self) -> None:
        """End the worker and free the shared memory."""
        self._end()
        self._block.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError, ValueError):
                assert process.stdin is not None
                process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _send(self, request: dict[str, Any], *, quiet: bool = False) -> None:
        process = self._process
        text = to_json(request)
        try:
            if process is None or process.stdin is None:
                raise BrokenPipeError
            process.stdin.write(text + "\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError, OSError) as error:
            if not quiet:
                raise WorkerError("The worker does not run.", "It is started with the next segmentation.") from error

    def _listen(
        self, process: subprocess.Popen[str], errors: threading.Thread, scratch: str, connection: _Connection
    ) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = json.loads(line)
                job = self._jobs.get(event.get("id"))
                receive = job.receive if job else connection.answers.put
            except (ValueError, AttributeError):
                continue
            try:
                if event["event"] == "result":
                    # Copied here, by this thread: the window waits for none of it.
                    event["arrays"] = tuple(
                        self._block.array(a["offset"], tuple(a["shape"]), a["dtype"]).copy() for a in event["arrays"]
                    )
            except BaseException as error:
                reason = (
                    "There is not enough memory for the result"
                    if isinstance(error, MemoryError)
                    else "The worker's result could not be read"
                )
                event = {
                    "event": "failed",
                    "error": WorkerError(
                        f"{reason} ({type(error).__name__}: {error}).", "Close other programs, and try again."
                    ),
                }
            receive(event)
        code = process.wait()
        shutil.rmtree(scratch, ignore_errors=True)
        # Its last words may still be on their way.
        errors.join(_LAST_WORDS_SECONDS)
        message = f"The worker ended ({code_in_words(code)})"
        last = next((line for line in reversed(connection.errors) if line.strip()), "")
        event = {"event": "ended", "message": f"{message}: {last.strip()}." if last and code > 0 else f"{message}."}
        for job in list(self._jobs.values()):
            if job.process is process:
                job.receive(event)
        connection.answers.put(event)

    @staticmethod
    def _collect_errors(process: subprocess.Popen[str], connection: _Connection) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            connection.errors.append(line.rstrip())
