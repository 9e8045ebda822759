"""What runs on a node of a cluster: an actor that keeps a worker with its engine. Ray makes the actor; nothing here imports it."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..engines.cuda.block_cache import share_with
from ..errors import InputError, MedQuantError
from ..imaging.reading_process import keep_reader_ahead
from ..scratch import own_temporary_folder
from .packages import Packed, installed_on_node
from .work import StagedWorker
from .works import open_work


@dataclass(frozen=True)
class NodeOrder:
    """What an actor is made with.

    Attributes:
        kind, settings: of the work (:class:`.pool.Order`).
        version: of this library in the driver.
        must_see: paths that every node has to have, by the shared file system; the marker is one of them.
        carried: whether the model's packages travel to the node; else it has them at the same path.
        beside: how many actors use the actor's GPU, itself included.
    """

    kind: str
    settings: dict[str, Any]
    version: str
    must_see: tuple[str, ...]
    carried: bool = True
    beside: int = 1


class CaseActor:
    """Keeps one worker. Methods are called from several threads (Ray's max_concurrency).

    Args:
        fetch: brings the model's packages, where this machine does not have them.
    """

    def __init__(self, order: NodeOrder, fetch: Callable[[], Packed | None]) -> None:
        self._order, self._fetch = order, fetch
        self._worker: StagedWorker | None = None
        self._temporary = contextlib.ExitStack()
        self._stages: dict[str, tuple[str, tuple[int, int], float]] = {}
        self._lock = threading.Lock()

    def open(self) -> dict[str, Any]:
        """Look whether this node can take part, and load the engine's packages.

        Returns:
            ``host``, ``pid``; and ``error`` with the reason (``kind``, ``message``, ``hint``) where it cannot.
        """
        answer: dict[str, Any] = {"host": platform.node(), "pid": os.getpid()}
        try:
            self._check()
            share_with(self._order.beside)
            self._temporary.enter_context(own_temporary_folder())
            keep_reader_ahead()
            settings = self._order.settings
            if self._order.carried:
                settings = {**settings, "model": installed_on_node(settings["model_hash"], self._fetch)}
            self._worker = StagedWorker(lambda: open_work(self._order.kind, settings), self._listen)
        except MedQuantError as error:
            text = str(error.args[0]) if error.args else str(error)
            answer["error"] = {"kind": type(error).__name__, "message": text, "hint": error.hint}
        return answer

    def _check(self) -> None:
        if self._order.version != __version__:
            raise MedQuantError(
                f"{platform.node()} has version {__version__} of MedQuantINT8; the run is of {self._order.version}.",
                "Install the same version on every node.",
            )
        if missing := [path for path in self._order.must_see if not Path(path).exists()]:
            raise InputError(
                f"{platform.node()} does not see {missing[0]}.",
                "Scans and outputs lie on a file system that every node mounts at the same place.",
            )

    def _listen(self, name: str, stage: str, done: int, total: int) -> None:
        with self._lock:
            before = self._stages.get(name)
            if before is None or before[:2] != (stage, (done, total)):
                self._stages[name] = (stage, (done, total), time.monotonic())

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """Run one case; its record, with the node that it ran on."""
        assert self._worker is not None
        try:
            return {**self._worker.run(case), "node": platform.node()}
        finally:
            with self._lock:
                self._stages.pop(case["id"], None)

    def stalled(self, seconds: float) -> list[tuple[str, str]]:
        """Id and stage of the cases without progress for so long; those that wait for another case are none of them."""
        moment = time.monotonic()
        with self._lock:
            return [
                (name, stage)
                for name, (stage, _, since) in self._stages.items()
                if stage != "waiting" and moment - since > seconds
            ]
