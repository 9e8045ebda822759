"""The journal of a cohort: JSON lines beside the outputs, the only state there is. A line begins a run, and each case has a line when it ends.

A run that is killed loses the line that it was writing at most: a line that is cut off is not read, and the next one begins on a line of
its own. Of several lines for one case the last one counts.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError, StorageError
from ..files import storage_errors

JOURNAL, LOCK = "cohort.jsonl", ".cohort.lock"
#: The journal, and those that were set aside when a run began anew.
_JOURNALS = re.compile(r"cohort(-\d+)?\.jsonl")
#: The form of the lines; another one is refused.
FORMAT = 1
#: What a case ends as. A failed case is repeated by the next run.
DONE, FAILED = "done", "failed"

Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What decides how the outputs of a cohort look. A journal fits a run if their plans are equal.

    Attributes:
        kind: what is done with each case, such as "segment".
        values: JSON values by the words that a user knows them by: model, engine, precision, options.
    """

    kind: str
    values: Mapping[str, Any]

    def differences(self, other: Plan) -> list[str]:
        """Return what differs, in words: of this plan "then", of the other "now"."""
        if self.kind != other.kind:
            return [f"it holds cases of medquant {self.kind}"]
        keys = sorted({*self.values, *other.values})
        return [
            f"{key} {_shown(self.values.get(key))} then, {_shown(other.values.get(key))} now"
            for key in keys
            if self.values.get(key) != other.values.get(key)
        ]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if re.fullmatch(r"[0-9a-f]{64}", text):
        # A hash says that something is another one, and no more.
        return f"{text[:8]}..."
    return text if len(text) <= 60 else text[:57] + "..."


class Journal:
    """The journal in an output folder.

    Attributes:
        plan: of the run that began it; None for a new one.
        records: the last line of each case, by its id.
        claimed: ids whose outputs belong to the journal, whether or not they are done.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / JOURNAL
        self.plan: Plan | None = None
        self.records: dict[str, Record] = {}
        self.claimed: set[str] = set()
        self._lines: list[str] = []
        self._waiting: list[str] = []
        self._read()

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                f"The journal {self.path} cannot be read: {error.strerror}.", "Choose another output."
            ) from error
        for line in content.decode("utf-8", "replace").splitlines():
            try:
                value = json.loads(line)
                event = value["event"]
            except (ValueError, KeyError, TypeError):
                # Cut off when a run was killed or a disk was full: that case has no line, and is repeated.
                continue
            self._lines.append(line)
            if event == "run":
                if value.get("format") != FORMAT:
                    raise InputError(
                        f"The journal {self.path} was written by another version of this program.",
                        "Choose another output, or give --force to begin anew.",
                    )
                self.plan = self.plan or Plan(value["kind"], value["plan"])
                self.claimed.update(value["cases"])
            elif event == "case":
                self.records[value["id"]] = value
        if content.strip() and self.plan is None:
            raise InputError(
                f"{self.path} is no journal of a cohort.", "Choose another output, or give --force to begin anew."
            )

    def begin(self, plan: Plan, ids: Sequence[str], description: Mapping[str, Any]) -> None:
        """Write the line that begins a run.

        Raises:
            StorageError: it cannot be written.
        """
        self.plan = self.plan or plan
        self.claimed.update(ids)
        line = {
            "event": "run",
            "format": FORMAT,
            "kind": plan.kind,
            "program": __version__,
            "began": now(),
            "plan": dict(plan.values),
            **description,
            "cases": list(ids),
        }
        self._waiting.append(json.dumps(line))
        with storage_errors(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._flush()

    def forget(self) -> None:
        """Let the next run begin the journal anew; outputs that were claimed stay the journal's.

        Raises:
            StorageError: the file cannot be removed.
        """
        with storage_errors(self.path):
            self.path.unlink(missing_ok=True)
        self.plan, self.records, self._lines = None, {}, []

    def add(self, record: Record) -> None:
        """Write a case's line. What cannot be written now, as on a full disk, is written with the next line or by :meth:`close`."""
        line = {"event": "case", **record}
        self.records[record["id"]] = line
        self._waiting.append(json.dumps(line))
        with suppress(StorageError):
            self._flush()

    def close(self) -> None:
        """Write what is still to be written.

        Raises:
            StorageError: it cannot be.
        """
        self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        with storage_errors(self.path):
            # Opened anew each time: the folder may have gone meanwhile, and come back empty. It is not made again: whoever
            # took it away finds out, and nothing is written beside a disk that is not mounted any more.
            fresh = not self.path.exists()
            with open(self.path, "ab+") as stream:
                stream.seek(0, os.SEEK_END)
                size = stream.tell()
                text = "\n".join([*(self._lines if fresh else []), *self._waiting]) + "\n"
                if size:
                    stream.seek(size - 1)
                    if stream.read(1) != b"\n":
                        text = "\n" + text
                try:
                    stream.write(text.encode("utf-8"))
                    stream.flush()
                    os.fsync(stream.fileno())
                except OSError:
                    # No half line may stay in front of the next one.
                    with suppress(OSError):
                        os.ftruncate(stream.fileno(), size)
                    raise
        self._lines += self._waiting
        self._waiting = []


def outputs_told_of(folder: Path, names: Sequence[str]) -> set[str]:
    """Return the real paths of the outputs that the journals in a folder tell of, those that were set aside among them.

    Args:
        names: of the files in the folder.
    """
    paths = set()
    for name in names:
        if not _JOURNALS.fullmatch(name):
            continue
        with suppress(OSError):
            for line in (folder / name).read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    paths.add(os.path.realpath(folder / json.loads(line)["output"]))
    return paths


def start_over(folder: str | os.PathLike[str]) -> None:
    """Set the journal of earlier runs aside: it is kept under another name.

    Raises:
        StorageError: it cannot be renamed.
    """
    path = Path(folder) / JOURNAL
    number = 1
    while path.exists():
        aside = path.with_name(f"cohort-{number}.jsonl")
        if not aside.exists():
            with storage_errors(path):
                path.rename(aside)
            return
        number += 1


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of an output folder, as far as its disk can. A process that is killed leaves no lock.

    Raises:
        InputError: another run is writing there.
        StorageError: the folder cannot be made.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(folder / LOCK, "ab")  # noqa: SIM115
    with stream:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another run is writing to {folder} at this moment.", "Wait for it, or choose another output."
            ) from error
        except OSError:
            # A disk that knows no locks.
            pass
        yield


def now() -> str:
    """Return the time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
