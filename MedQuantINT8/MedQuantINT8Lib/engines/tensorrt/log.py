"""TensorRT's messages: one logger a process, whose lines go to whoever is building or loading.

TensorRT keeps the first logger of a process for as long as anything that was made with it lives, and ignores every other. In a process
that keeps an engine loaded, the messages of the next build would go to the first engine's logger.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..error_causes import last_and_first

#: TensorRT's severities: 0 internal error, 1 error, 2 warning.
_ERROR, _WARNING = 1, 2
_MOST = 1000


class BuildLog:
    """What TensorRT said during one build or load: warnings and errors."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.messages: list[tuple[int, str]] = []

    def add(self, severity: int, message: str) -> None:
        if severity <= _WARNING and len(self.messages) < _MOST:
            self.messages.append((severity, message))

    @property
    def errors(self) -> list[str]:
        return [text for severity, text in self.messages if severity <= _ERROR]

    def last_words(self) -> str:
        """For a message: the last error, and the first where they are many; the last warning, called so, where there is no error."""
        if self.errors:
            return last_and_first(self.errors)
        warnings = [text for _, text in self.messages]
        return (
            f"no reason was given; its last warning was: {last_and_first(warnings[-1:])}"
            if warnings
            else last_and_first([])
        )


class _Listeners:
    """Gives a message to the logs of the thread that it comes from; one from TensorRT's own threads to all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logs: list[tuple[int, BuildLog]] = []

    def take(self, severity: int, message: str) -> None:
        here = threading.get_ident()
        with self._lock:
            own = [log for thread, log in self._logs if thread == here]
            for log in own[-1:] or [log for _, log in self._logs]:
                log.add(severity, message)

    def begin(self, log: BuildLog) -> None:
        with self._lock:
            self._logs.append((threading.get_ident(), log))

    def end(self, log: BuildLog) -> None:
        with self._lock:
            self._logs = [item for item in self._logs if item[1] is not log]


_LISTENERS = _Listeners()
#: The logger of each TensorRT module (a process has one); never let go of, as TensorRT may hold it to the end.
_LOGGERS: list[tuple[Any, Any]] = []
_LOGGER_LOCK = threading.Lock()


def process_logger(trt: Any) -> Any:
    """The one logger of this process."""
    with _LOGGER_LOCK:
        for known, logger in _LOGGERS:
            if known is trt:
                return logger

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                _LISTENERS.take(int(severity), message)

        logger = Logger()
        _LOGGERS.append((trt, logger))
        return logger


@contextmanager
def listening(trt: Any) -> Iterator[BuildLog]:
    """A log of what TensorRT says to this thread meanwhile."""
    log = BuildLog(process_logger(trt))
    _LISTENERS.begin(log)
    try:
        yield log
    finally:
        _LISTENERS.end(log)
