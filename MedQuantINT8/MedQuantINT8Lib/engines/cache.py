"""Engine files on disk: made once for a network, an engine, a machine and its options, and found again.

Each entry is a folder named by its key, with ``engine.json`` beside the engine's own files. It is written under a
temporary name and renamed, so an entry is whole or absent, also after an interrupt. Two processes that build the same
engine at once both build; the first to finish wins and the other throws its copy away: no lock can be left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json, sha256_file, storage_errors, write_json
from ..scratch import leftovers, new_folder, remove_folder
from ..system import cache_folder

#: Raised where engines that were built before have to be built, timed and chosen anew: since 5 dilated INT8 convolutions read inputs with their padding
#: in place, since 6 a wide last layer is apart from the network (:mod:`..models.pointwise_head`).
FORMAT = 6
_RECORD = "engine.json"
_BUILDING = ".building"
_STALE_SECONDS = 24 * 3600
#: A record names an engine's layers and files; one larger than this is none.
_MOST_RECORD_BYTES = 64 << 20


def cache_root() -> Path:
    """Where engines lie: ``$MEDQUANT_CACHE``, or the user's cache folder of the operating system."""
    if folder := os.environ.get("MEDQUANT_CACHE"):
        return Path(folder)
    return cache_folder() / "engines"


@dataclass(frozen=True)
class CacheEntry:
    folder: Path
    record: dict[str, Any]

    @property
    def bytes(self) -> int:
        """The bytes of the engine's files, as they were built: an engine that is loaded outlives a cache that was cleared."""
        if "bytes" in self.record:
            return int(self.record["bytes"])
        with contextlib.suppress(OSError):
            return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file() and path.name != _RECORD)
        return 0

    def update(self, **values: Any) -> CacheEntry:
        """The same entry with more in its record, written whole; only in memory where the entry was removed meanwhile."""
        record = {**self.record, **values}
        # A record without its engine's files would stand in the way of the next build.
        if (self.folder / _RECORD).is_file():
            write_json(self.folder / _RECORD, record)
        return CacheEntry(self.folder, record)


def key_of(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def find(parts: dict[str, Any]) -> CacheEntry | None:
    """The whole and undamaged entry for ``parts``, or None. A damaged one is removed."""
    return _read(cache_root() / key_of(parts), parts)


def _record_of(folder: Path) -> Any:
    path = folder / _RECORD
    if not path.is_file() or path.stat().st_size > _MOST_RECORD_BYTES:
        # A pipe or a device in its place would be read for ever.
        raise ValueError(f"{path} is no record of an engine")
    return read_json(path)


def _is_own(folder: Path, name: str) -> bool:
    """Whether a file that a record names is a file of that entry."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts and (folder / name).is_file()


def _read(folder: Path, parts: dict[str, Any] | None) -> CacheEntry | None:
    if not folder.is_dir() or (parts is None and not (folder / _RECORD).exists()):
        # Beside the entries lie folders of other things, such as TensorRT's times of kernels.
        return None
    try:
        record = _record_of(folder)
        intact = all(
            _is_own(folder, name) and sha256_file(folder / name) == value for name, value in record["files"].items()
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        intact, record = False, {}
    if not intact or (parts is not None and record.get("key") != parts):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return CacheEntry(folder, record)


def make(parts: dict[str, Any], build: Callable[[Path], dict[str, Any] | None]) -> CacheEntry:
    """Build an entry: ``build`` writes the engine's files into a folder and returns what to record beside them.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    root = cache_root()
    target = root / key_of(parts)
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        for path in leftovers(root, _BUILDING):
            shutil.rmtree(path, ignore_errors=True)
        scratch = new_folder(_BUILDING, root)
    try:
        began = time.perf_counter()
        with storage_errors(root):
            extra = build(scratch) or {}
            files = {path.name: sha256_file(path) for path in sorted(scratch.iterdir())}
            record = {
                "key": parts,
                "files": files,
                "bytes": sum((scratch / name).stat().st_size for name in files),
                "built": time.strftime("%Y-%m-%dT%H:%M:%S"),
                "built_ns": time.time_ns(),
                "build_seconds": round(time.perf_counter() - began, 2),
                **extra,
            }
            write_json(scratch / _RECORD, record)
            try:
                scratch.rename(target)
            except OSError:
                # Another process was first: its entry is as good as ours, unless it is damaged.
                if entry := _read(target, parts):
                    return entry
                scratch.rename(target)
        return CacheEntry(target, record)
    finally:
        remove_folder(scratch)


def read_notes(name: str) -> dict[str, Any]:
    """What is kept beside the engines in a JSON file of that name, by key; empty where there is none, or it is damaged."""
    try:
        path = cache_root() / name
        record = read_json(path) if path.is_file() and path.stat().st_size <= _MOST_RECORD_BYTES else None
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_notes(name: str, notes: dict[str, Any]) -> None:
    """Write what :func:`read_notes` reads, whole or not at all.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    write_json(cache_root() / name, notes)


def entries() -> list[CacheEntry]:
    """All whole entries, newest last; leftovers of killed builds are swept away after a day."""
    root = cache_root()
    whole = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.name.startswith("."):
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir() and (entry := _read(folder, None)):
            whole.append(entry)
    return sorted(whole, key=lambda entry: entry.record.get("built_ns", 0))


def clear(model_name: str | None = None) -> int:
    """Remove all engines, or those of one model; returns how many."""
    matching = [e for e in entries() if model_name is None or e.record["key"].get("model_name") == model_name]
    for entry in matching:
        shutil.rmtree(entry.folder, ignore_errors=True)
    return len(matching)
