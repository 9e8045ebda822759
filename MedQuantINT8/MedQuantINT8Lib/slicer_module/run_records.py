"""How long runs took on this computer, kept beside the engines, so that the next run's time can be told before it starts."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..engines.cache import cache_root
from ..errors import StorageError
from ..files import read_json, split_paths, write_json
from ..inference.engine_choice import EngineChoice
from ..inference.segmenter import SegmentationOptions
from ..models.package import MODEL_JSON
from ..models.task import TASK_JSON
from ..system import cpu_count, cpu_name

_FILE = "runs.json"
#: Records that are kept; the oldest go first.
_MOST = 500
#: Options that make no kind of their own: the number of windows tells the overlap, and structures are chosen after the network.
_NO_KIND = ("overlap", "memory_bytes", "structures", "roi")
#: Stages of a run that only a first run has: an engine is built, chosen or compared.
_ONCE = (
    "preparing the engine",
    "comparing with the simulation",
    "rebuilding the engine",
    "timing INT8 against FP32",
    "building the engine",
    "looking for the layers at fault",
    "compiling kernels",
    "choosing tiles",
    "timing kernels",
    "planning",
)


@dataclass(frozen=True)
class RunRecord:
    """What a run took.

    Attributes:
        engine, precision: what ran, as the engine's title and "int8", "fp16" or "fp32".
        windows: how many windows were computed.
        network_seconds: in the network, for all of them.
        other_seconds: everything else that a run does each time.
        voxels: of the scan, or of the part of it that was segmented.
    """

    engine: str
    precision: str
    windows: int
    network_seconds: float
    other_seconds: float
    voxels: int

    def seconds(self, windows: int, voxels: int) -> float:
        """The time of a run over so many windows and voxels."""
        return self.network_seconds * windows / max(1, self.windows) + self.other_seconds * voxels / max(1, self.voxels)


def model_stamp(paths: str) -> str:
    """Which packages, or which task, these are (paths joined by commas), and in which state: it changes when one is written anew."""
    stamps = []
    for path in split_paths(paths):
        source = Path(path)
        file = source
        if source.is_dir():
            file = source / (TASK_JSON if (source / TASK_JSON).is_file() else MODEL_JSON)
        try:
            state = file.stat()
        except OSError:
            stamps.append(path)
            continue
        stamps.append(f"{source.resolve()} {state.st_size} {state.st_mtime_ns}")
    return " ".join(stamps)


def _key(paths: str, choice: EngineChoice, options: SegmentationOptions) -> str:
    wanted = f"{choice.name} {choice.precision} {choice.device} {choice.threads}"
    return f"{model_stamp(paths)} | {wanted}{_kind(options)} | {cpu_name()} {cpu_count()}"


def _kind(options: SegmentationOptions) -> str:
    """The kind of run, as a part of a record's name: runs of another kind take another time for each window or voxel.

    What a run in a region takes beside the network hardly shrinks with the region, so it tells nothing of whole scans.
    """
    usual = SegmentationOptions()
    others = [
        f"{item.name}={getattr(options, item.name)}"
        for item in fields(options)
        if item.name not in _NO_KIND and getattr(options, item.name) != getattr(usual, item.name)
    ]
    return "".join(f" {text}" for text in [*others, *(["region"] if options.roi is not None else [])])


def _read() -> dict[str, Any]:
    try:
        content = read_json(cache_root() / _FILE)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(content: dict[str, Any]) -> None:
    """A record that cannot be kept must not keep the user from a result."""
    with contextlib.suppress(StorageError, OSError):
        write_json(cache_root() / _FILE, dict(list(content.items())[-_MOST:]))


def find_run(
    paths: str, choice: EngineChoice, options: SegmentationOptions = SegmentationOptions()
) -> RunRecord | None:
    """The last run of this kind of these packages with this choice on this computer, or None."""
    try:
        return RunRecord(**_read()[_key(paths, choice, options)])
    except (KeyError, TypeError):
        return None


def keep_run(
    paths: str,
    choice: EngineChoice,
    report: dict[str, Any],
    voxels: int,
    options: SegmentationOptions = SegmentationOptions(),
) -> RunRecord | None:
    """Keep what a run took, as the worker reported it; None where the report does not tell.

    Args:
        voxels: of the scan, or of the part of it that was segmented.
    """
    try:
        engine, seconds = report["engine"], report["seconds"]
        network = float(seconds.get("network", 0.0))
        once = sum(float(seconds.get(stage, 0.0)) for stage in _ONCE)
        other = max(0.0, float(seconds["total"]) - network - once)
        record = RunRecord(
            str(engine["title"]), str(engine["precision"]), int(report["windows"]), network, other, voxels
        )
    except (KeyError, TypeError, ValueError):
        return None
    content = _read()
    key = _key(paths, choice, options)
    content.pop(key, None)
    _write({**content, key: asdict(record)})
    return record


def kept_number(name: str) -> int | None:
    """A whole number that was kept under a name of its own, or None."""
    value = _read().get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def keep_number(name: str, value: int) -> None:
    """Keep a whole number that takes long to compute."""
    _write({**_read(), name: value})
