"""Workers on the nodes of a Ray cluster: an actor for each device keeps its engine, and cases are calls of it.

Ray moves work between machines and says who is gone; everything else is this project's: the driver hands out cases, writes the journal,
runs again what a lost node had, and gives new nodes work.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__, errors
from ..errors import EngineError, MedQuantError
from ..files import split_paths, storage_errors
from .journal import Record
from .packages import packed
from .pool import Order, can_take, failed
from .ray_cluster import Cluster, ClusterOptions
from .ray_worker import CaseActor, NodeOrder
from .work import IN_FLIGHT

#: Seconds between looks at the nodes of the cluster, and at cases without progress.
_NODES_SECONDS, _STALLED_SECONDS = 1.0, 10.0
_WAIT_SECONDS = 0.1
#: How many actors of a node that lives may be lost, for each that it can keep, without a case done in between.
_MOST_LOSSES = 3
#: How long an actor may take to open before others may be started in its place: its node may be at somebody else's work.
_OPENING_SECONDS = 60.0
#: How long a cluster may be without any node that takes part.
_PATIENCE_SECONDS = 120.0
_SEEN_PATHS = 3
#: Ray counts a GPU in so many parts.
_RAY_UNITS = 10_000


class RayPool:
    """A pool of actors on a Ray cluster.

    Args:
        device: "cpu" for processors alone; else GPUs are used where the cluster has them.

    Raises:
        DependencyError: Ray is not installed.
    """

    def __init__(self, options: ClusterOptions, device: str = "auto") -> None:
        self._options, self._cluster = options, Cluster(options, device)
        self.notes: list[str] = []

    def begin(self, kind: str, most: int) -> None:
        """Nothing is begun: a cluster is joined when its cases are known."""

    def close(self) -> None:
        """Nothing was begun."""

    def describe(self, cases: int) -> dict[str, Any]:
        """See :class:`.pool.CasePool`."""
        return {"cluster": self._options.address, "ray": self._cluster.ray.__version__}

    def run(self, order: Order, cases: Sequence[dict[str, Any]], check: Callable[[], None]) -> Iterator[Record]:
        """See :class:`.pool.CasePool`."""
        with self._cluster.joined(), _marker(Path(order.settings["output"])) as marker:
            run = _Run(self._cluster, self._options, order, [_absolute(case) for case in cases], marker)
            try:
                yield from run.records(check)
            finally:
                self.notes += run.notes


@contextmanager
def _marker(folder: Path) -> Iterator[Path]:
    """Yield a file in the output folder, which only nodes see that mount it."""
    path = folder / f".cohort-{uuid.uuid4().hex[:12]}"
    with storage_errors(path):
        path.write_bytes(b"")
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


@dataclass
class _Actor:
    """An actor, the node that it is on, and the cases on their way there."""

    handle: Any
    node: str
    device: str
    opening: Any
    ready: bool = False
    blamed: dict[str, str] = field(default_factory=dict)
    flights: dict[Any, dict[str, Any]] = field(default_factory=dict)
    look: Any = None
    looked: float = field(default_factory=time.monotonic)
    gone: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def counts(self) -> bool:
        """Whether cases can be expected to be run here: it has opened, or may yet."""
        return self.ready or time.monotonic() - self.started < _OPENING_SECONDS


@dataclass
class _Node:
    """A node of the cluster: how many actors were lost there since a case was done, and why it is not used."""

    losses: int = 0
    unfit: MedQuantError | None = None


class _Run:
    """The cases of one run on the cluster."""

    def __init__(
        self, cluster: Cluster, options: ClusterOptions, order: Order, cases: Sequence[dict[str, Any]], marker: Path
    ) -> None:
        self._cluster, self._ray, self._options = cluster, cluster.ray, options
        #: Which nodes took no part, and why.
        self.notes: list[str] = []
        self._waiting = deque(cases)
        self._suspects: deque[dict[str, Any]] = deque()
        self._attempts: dict[str, int] = {}
        self._alone: set[str] = set()
        self._open = self._cases = len(cases)
        self._actors: list[_Actor] = []
        self._nodes: dict[str, _Node] = {}
        self._looked = 0.0
        self._since_ready = time.monotonic()
        step = max(1, len(cases) // _SEEN_PATHS)
        inputs = [case["channels"][0] for case in cases[::step] if Path(case["channels"][0]).exists()]
        model = [str(Path(path).absolute()) for path in split_paths(order.settings["model"])]
        files = packed(order.settings["model"])
        self._carried = files is not None
        self._packages = self._ray.put(files)
        # A task names its models by their paths.
        self._must_see = (str(marker), *(() if self._carried else model), *inputs[:_SEEN_PATHS])
        self._order = Order(order.kind, {**order.settings, "model": ",".join(model)})

    def records(self, check: Callable[[], None]) -> Iterator[Record]:
        """Yield the record of each case as it ends, and end the actors; see :meth:`.pool.CasePool.run`."""
        try:
            while self._open:
                check()
                self._look_at_nodes()
                for actor in self._actors:
                    self._feed(actor)
                yield from self._wait()
                self._actors = [actor for actor in self._actors if not actor.gone]
        finally:
            for actor in self._actors:
                with suppress(Exception):
                    self._ray.kill(actor.handle)

    # ---- nodes

    def _look_at_nodes(self) -> None:
        """Start actors on nodes that have none, such as those that joined."""
        if time.monotonic() - self._looked < _NODES_SECONDS:
            return
        self._looked = time.monotonic()
        alive = self._cluster.living_nodes()
        for description in alive:
            node = self._nodes.setdefault(description["NodeID"], _Node())
            if node.unfit is not None or not (self._waiting or self._suspects):
                continue
            devices = self._cluster.devices_of(description)[: self._cases]
            running = [actor for actor in self._actors if actor.node == description["NodeID"]]
            if devices and node.losses >= _MOST_LOSSES * len(devices):
                node.unfit = EngineError(f"Workers on {description['NodeManagerHostname']} end at once.")
                continue
            for device in devices[len(running) :]:
                if sum(actor.counts for actor in self._actors) >= self._open:
                    # Not more actors than cases.
                    break
                self._actors.append(self._start(description, device, len(devices)))
        if any(actor.ready for actor in self._actors):
            self._since_ready = time.monotonic()
        elif not self._actors:
            unfit = [node.unfit for node in self._nodes.values() if node.unfit is not None]
            ids = {description["NodeID"] for description in alive}
            if unfit and all(self._nodes[name].unfit is not None for name in ids):
                raise unfit[0]
            if time.monotonic() - self._since_ready > _PATIENCE_SECONDS:
                raise EngineError(
                    "No node of the cluster can take part: there is none, or none with the device that was asked for.",
                    "See ray status, and docs/clusters.md.",
                )

    def _start(self, node: dict[str, Any], device: str, count: int) -> _Actor:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        settings, resources = self._order.settings, node["Resources"]
        choice = dict(settings["choice"], device=device)
        cpus = max(1, int(resources.get("CPU", 1)) // count)
        if device == "cpu" and not choice.get("threads"):
            choice["threads"] = cpus
        how: dict[str, Any] = {
            "num_cpus": cpus if device == "cpu" else min(1, resources.get("CPU", 0)),
            "max_concurrency": IN_FLIGHT + 1,
            "max_restarts": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        }
        beside = 1
        if device != "cpu":
            beside = actors_of_a_gpu(int(resources["GPU"]), count)
            how["num_gpus"] = math.floor(_RAY_UNITS / beside) / _RAY_UNITS
        settings = {**settings, "choice": choice}
        order = NodeOrder(self._order.kind, settings, __version__, self._must_see, self._carried, beside)
        handle = self._ray.remote(CaseActor).options(**how).remote(order, _Fetch([self._packages]))
        return _Actor(handle, node["NodeID"], device, handle.open.remote())

    # ---- cases

    def _feed(self, actor: _Actor) -> None:
        """Give an actor what it can take: cases up to its bound, or one suspect and nothing beside it."""
        if not actor.ready or actor.gone or actor.blamed:
            return
        if any(case["id"] in self._alone for case in actor.flights.values()):
            return
        if self._suspects:
            if not actor.flights:
                case = self._suspects.popleft()
                self._alone.add(case["id"])
                actor.flights[actor.handle.run.remote(case)] = case
            return
        idle = sum(not (other is actor or other.gone or other.flights) for other in self._actors)
        while can_take(len(self._waiting), len(actor.flights), idle):
            case = self._waiting.popleft()
            actor.flights[actor.handle.run.remote(case)] = case

    def _wait(self) -> Iterator[Record]:
        """Handle what has ended: an actor that opened, a case, a look for stalled cases."""
        owners: dict[Any, _Actor] = {}
        for actor in self._actors:
            if not actor.ready:
                owners[actor.opening] = actor
            owners.update(dict.fromkeys(actor.flights, actor))
            if actor.ready and actor.look is None and time.monotonic() - actor.looked > _look_seconds(self._options):
                actor.look = actor.handle.stalled.remote(self._options.time_limit)
            if actor.look is not None:
                owners[actor.look] = actor
        if not owners:
            time.sleep(_WAIT_SECONDS)
            return
        ended, _ = self._ray.wait(list(owners), num_returns=1, timeout=_WAIT_SECONDS)
        more, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0)
        for reference in dict.fromkeys([*ended, *more]):
            actor = owners[reference]
            if actor.gone:
                continue
            try:
                value = self._ray.get(reference)
            except self._ray.exceptions.RayActorError as error:
                yield from self._lost(actor, error)
                continue
            except self._ray.exceptions.RayError as error:
                value = self._unexpected(actor, reference, error)
            yield from self._handle(actor, reference, value)

    def _handle(self, actor: _Actor, reference: Any, value: Any) -> Iterator[Record]:
        if reference == actor.opening and not actor.ready:
            self._opened(actor, value)
        elif reference == actor.look:
            actor.look, actor.looked = None, time.monotonic()
            if value:
                actor.blamed = dict(value)
                self._ray.kill(actor.handle)
        else:
            case = actor.flights.pop(reference)
            self._nodes[actor.node].losses = 0
            self._alone.discard(case["id"])
            self._open -= 1
            yield {**value, "attempts": self._attempts.pop(case["id"], 0) + 1, "device": actor.device}

    def _opened(self, actor: _Actor, answer: dict[str, Any]) -> None:
        if (error := answer.get("error")) is None:
            actor.ready = True
            return
        kind = getattr(errors, error["kind"], MedQuantError)
        actor.gone = True
        self._nodes[actor.node].unfit = kind(error["message"], error["hint"])
        self.notes.append(f"{answer['host']} took no part: {error['message']}")
        with suppress(Exception):
            self._ray.kill(actor.handle)

    def _unexpected(self, actor: _Actor, reference: Any, error: Exception) -> Any:
        """Return what stands for the answer of a call that Ray could not make: a record of the case's failure, or the node's error."""
        words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if reference == actor.opening:
            return {"host": actor.node[:8], "error": {"kind": "EngineError", "message": words, "hint": ""}}
        if reference == actor.look:
            return []
        return failed(actor.flights[reference], "", words, 1)

    def _lost(self, actor: _Actor, error: Exception) -> Iterator[Record]:
        """Run the cases of a lost actor again, at most so many times; yield those that were tried often enough."""
        actor.gone = True
        self._nodes[actor.node].losses += 1
        flights = list(actor.flights.values())
        actor.flights = {}
        lives = any(node["NodeID"] == actor.node for node in self._cluster.living_nodes())
        for case in flights:
            name = case["id"]
            attempts = self._attempts.get(name, 0) + 1
            was_alone = name in self._alone
            self._alone.discard(name)
            if name in actor.blamed:
                reason = f"There was no progress in {actor.blamed[name]} for {self._options.time_limit:g} s, so it was given up. Look at the disk, or give a longer --time-limit."
            elif actor.blamed:
                self._waiting.appendleft(case)
                continue
            elif attempts > self._options.retries and (was_alone or not lives):
                reason = f"Its worker was lost {attempts} times. The last time: {_short(error)}"
            else:
                self._attempts[name] = attempts
                # With its node gone a case is no more to blame than others were.
                (self._suspects if lives else self._waiting).append(case)
                continue
            self._open -= 1
            self._attempts.pop(name, None)
            yield {**failed(case, actor.blamed.get(name, "network"), reason, attempts), "device": actor.device}


def actors_of_a_gpu(gpus: int, actors: int) -> int:
    """Return how many of a node's actors share each of its GPUs; none has several, as an engine runs on one."""
    return max(1, -(-actors // gpus))


class _Fetch:
    """Brings the packages out of Ray's store, which keeps them once a node; the reference lies in a list, so that Ray leaves it one."""

    def __init__(self, reference: list[Any]) -> None:
        self._reference = reference

    def __call__(self) -> Any:
        import ray

        return ray.get(self._reference[0])


def _look_seconds(options: ClusterOptions) -> float:
    return min(_STALLED_SECONDS, options.time_limit / 2)


def _absolute(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case with paths that mean the same on every node."""
    return {
        **case,
        "channels": [str(Path(path).absolute()) for path in case["channels"]],
        "more_folders": [str(Path(path).absolute()) for path in case.get("more_folders", ())],
        "labels": str(Path(case["labels"]).absolute()) if case.get("labels") else "",
        "masks": [(name, str(Path(path).absolute())) for name, path in case.get("masks", ())],
    }


def _short(error: Exception) -> str:
    """Return the first sentence of Ray's words, which take a page."""
    words = " ".join(str(error).split())
    return words[:200]
