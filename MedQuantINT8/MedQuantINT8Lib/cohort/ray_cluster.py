"""The Ray cluster that cases run on: which one, how it is reached, and what its nodes can keep.

Nothing is reported to Ray's makers, and no dashboard is started.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DependencyError, EngineError, InputError
from ..scratch import owned_prefix, owner_is_dead
from .pool import RETRIES, TIME_LIMIT

_OWNER = "owner"
#: How long a cluster's head may take to answer; Ray itself asks for minutes where nobody does.
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster, and how it is used.

    Attributes:
        address: "local" for one on this machine, which ends with the run; "auto" for the one that this machine belongs to; else
            the address of its head, such as "10.0.0.1:6379".
        workers: on each node; 0 for one a GPU, or one a node without.
        retries: how often a case is run again whose worker or node was lost.
        time_limit: seconds without progress after which a case is given up.
    """

    address: str
    workers: int = 0
    retries: int = RETRIES
    time_limit: float = TIME_LIMIT


def check_address(address: str) -> str:
    """Return the address of a cluster if it can be one, and something answers there.

    Raises:
        InputError: it cannot, or nothing does.
    """
    if not re.fullmatch(r"local|auto|[\w.\-\[\]:]+:\d+", address):
        raise InputError(f"{address!r} is no cluster.", "Give local, auto or HOST:PORT.")
    if ":" in address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"Nothing answers at {address}: {reason}.",
                "Start the cluster (docs/clusters.md), correct the address, or give --cluster local.",
            ) from error
    return address


def require_ray() -> Any:
    """Return Ray, silenced.

    Raises:
        DependencyError: it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise DependencyError(
            "The Python package 'ray', which runs cases on a cluster, is not installed.", "pip install ray"
        ) from error
    return ray


class Cluster:
    """A Ray cluster that is joined for as long as it is used.

    Args:
        device: "cpu" for processors alone; else GPUs are used where the cluster has them.

    Raises:
        DependencyError: Ray is not installed.
    """

    def __init__(self, options: ClusterOptions, device: str) -> None:
        self._options, self._device = options, device
        self._scratch: Path | None = None
        self.ray = require_ray()

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be connected to the cluster, which is left at the end; a connection that the process has already is used, and stays.

        Raises:
            EngineError: there is no such cluster.
        """
        own = not self.ray.is_initialized()
        if own:
            self._connect()
        try:
            yield
        finally:
            if own:
                self.ray.shutdown()
                if self._scratch is not None:
                    shutil.rmtree(self._scratch, ignore_errors=True)

    def _connect(self) -> None:
        address = self._options.address
        arguments: dict[str, Any] = {
            "logging_level": "ERROR",
            "log_to_driver": False,
            "namespace": f"medquant-{uuid.uuid4()}",
        }
        if address == "local":
            # Reachable from this machine alone.
            self._scratch = _short_folder()
            arguments |= {
                "address": "local",
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": str(self._scratch),
            }
        else:
            arguments["address"] = address
        try:
            self.ray.init(**arguments)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = (str(error).strip().splitlines() or ["no answer"])[0]
            raise EngineError(
                f"There is no Ray cluster at {address}: {first}",
                "Start one (docs/clusters.md), or give --cluster local.",
            ) from error

    def living_nodes(self) -> list[dict[str, Any]]:
        """Return Ray's description of each node that lives."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def devices_of(self, node: dict[str, Any]) -> list[str]:
        """Return the device of each actor that a node can keep, by Ray's description of the node."""
        gpus = int(node["Resources"].get("GPU", 0))
        if gpus and self._device != "cpu":
            return ["gpu:0"] * (self._options.workers or gpus)
        if self._device.startswith("gpu") or not node["Resources"].get("CPU"):
            return []
        return ["cpu"] * (self._options.workers or 1)


def _short_folder() -> Path:
    """Return a new temporary folder with a short path, as names of sockets lie in it; what a killed run left is removed first."""
    place = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    for path in place.glob("mq-*"):
        with suppress(OSError, UnicodeDecodeError):
            if owner_is_dead((path / _OWNER).read_text(encoding="utf-8")):
                shutil.rmtree(path, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="mq-", dir=place))
    (folder / _OWNER).write_text(owned_prefix("ray"), encoding="utf-8")
    return folder
