"""What the viewer of a page shows of cases that workers ran: a file a case in a folder beside the journal, of which the worst stay.

Volumes are too large for the journal. A worker writes the cases that are among the worst of its own; the driver keeps the worst of all
and removes the others as cases end, so that a run of thousands leaves three files, also for the run that goes on after it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from ..errors import StorageError
from ..evaluation.reports.viewer import MOST_BYTES, Place, ViewerScan, viewer_module
from ..evaluation.viewing import MOST_CASES
from ..files import finish_interrupted, write_text
from .journal import Record

FOLDER = "viewer"
_NAME = re.compile(r"[0-9a-f]{24}\.json")
#: What a case may take in the page.
CASE_BYTES = MOST_BYTES // MOST_CASES


class ViewedWriter:
    """Writes what the viewer shows of a worker's worst cases.

    Args:
        output: the folder of the journal.
    """

    def __init__(self, output: str) -> None:
        self._folder = Path(output) / FOLDER
        self._lost: list[float] = []

    def offer(self, case_id: str, lost: float, make: Callable[[], ViewerScan]) -> Record:
        """Write a case if it is one of the worst so far, and a viewer is installed.

        Args:
            lost: by how much INT8 is worse than FP32.
            make: returns what the viewer shows, within :data:`CASE_BYTES`.

        Returns:
            What the journal says of it: ``lost``, the file's name, and a warning where it could not be written.
        """
        record: Record = {"lost": lost}
        if not viewer_module() or (len(self._lost) == MOST_CASES and lost <= self._lost[-1]):
            return record
        name = f"{hashlib.sha256(case_id.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.json"
        try:
            write_text(self._folder / name, json.dumps(asdict(make())))
        except StorageError as error:
            return {**record, "viewer_warning": f"the page's viewer does not show {case_id}: {error}"}
        self._lost = sorted([*self._lost, lost], reverse=True)[:MOST_CASES]
        return {**record, "viewed": name}


class ViewedCases:
    """The worst of all cases of a run, and of those before that it goes on from."""

    def __init__(self, output: str) -> None:
        self._folder = Path(output) / FOLDER
        self._kept: list[tuple[float, str, str]] = []

    def take(self, record: Record, already: bool = False) -> None:
        """Note a case that ended; files of cases that are not among the worst any more are removed."""
        name = record.get("viewed")
        if name is None or not (self._folder / name).is_file():
            return
        kept = sorted([*self._kept, (record["lost"], record["id"], name)], key=lambda item: -item[0])
        self._kept, others = kept[:MOST_CASES], kept[MOST_CASES:]
        for _, _, other in others:
            self._remove(self._folder / other)

    def scans(self, names: Mapping[str, str]) -> list[ViewerScan]:
        """Return what the page's viewer shows, the worst case first; removes the files of cases that have no line in the journal.

        Args:
            names: what the page calls a case, by its id.
        """
        own = {name for _, _, name in self._kept}
        with suppress(OSError):
            finish_interrupted(self._folder)
            for path in self._folder.iterdir():
                if path.name not in own and _NAME.fullmatch(path.name):
                    self._remove(path)
        scans = []
        for _, case_id, name in self._kept:
            # A file that somebody took away meanwhile is a case that is not shown.
            with suppress(OSError, ValueError, KeyError, TypeError):
                scans.append(
                    replace(_from_json((self._folder / name).read_text(encoding="utf-8")), name=names[case_id])
                )
        return scans

    @staticmethod
    def _remove(path: Path) -> None:
        with suppress(OSError):
            path.unlink()


def _from_json(text: str) -> ViewerScan:
    value = json.loads(text)
    return ViewerScan(
        value["name"],
        value["layers"],
        [(int(number), name, (color[0], color[1], color[2])) for number, name, color in value["colors"]],
        [Place(place["name"], tuple(place["ras"])) for place in value["places"]],
        value["note"],
    )
