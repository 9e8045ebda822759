"""Where the scans of a cohort come from: files, folders that are searched, DICOM trees, nnU-Net and BIDS folders, patterns and lists.

Whatever is found and not taken is told, with the reason: nothing is left out in silence.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import there
from ..imaging.volume_files import EXTENSIONS, scan_name, scan_paths
from .bids import bids_cases, is_bids
from .cases import ScanCase, Skipped, safe_id, with_unique_ids
from .dicom_sources import DicomSearch
from .journal import outputs_told_of

#: Folders that hold label maps beside scans, by the public data sets: nnU-Net and the Decathlon, TotalSegmentator, BTCV.
_LABEL_FOLDERS = re.compile(r"(labels?(tr|ts|val)?|segmentations?)", re.IGNORECASE)
_CHANNEL = re.compile(r"(.+)_(\d{4})")
_LIST_WORDS = ("id", "labels", "series")


@dataclass(frozen=True)
class SourceOptions:
    """How scans are searched for.

    Attributes:
        channels: how many the model takes.
        suffixes: of a BIDS folder, the suffix of each channel, such as ("T1w", "FLAIR"); empty to find it out.
        series: the series to take of a DICOM folder, as ``--series``; empty for all.
        leave_out: folders that are not searched, as the output.
        check: called now and then; what it raises ends the search.
    """

    channels: int = 1
    suffixes: tuple[str, ...] = ()
    series: str = ""
    leave_out: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Sources:
    """The cases that were found, in order, and what was found and left out."""

    cases: tuple[ScanCase, ...]
    skipped: tuple[Skipped, ...]


def find_cases(sources: Sequence[str], list_file: str | None, options: SourceOptions) -> Sources:
    """Find the cases of a cohort.

    Args:
        sources: as a command takes them: a scan (its channels joined by commas), a folder, or a pattern with ``*``.
        list_file: a CSV file (:func:`read_list`), or None.

    Raises:
        InputError: a source that is not there, a list that is not understood, or no case at all.
    """
    cases: list[ScanCase] = []
    skipped: list[Skipped] = []
    for source in sources:
        new, left = _from_source(source, options)
        if not new and not left:
            raise InputError(f"There is no scan in {source}.", f"Give DICOM folders, or {', '.join(EXTENSIONS)}.")
        cases += new
        skipped += left
    if list_file is not None:
        cases += read_list(list_file, options.channels)
    if options.suffixes and not any(is_bids(Path(source)) for source in sources if Path(source).is_dir()):
        raise InputError(
            f"Suffixes ({', '.join(options.suffixes)}) are for BIDS folders, and no source is one.", "Leave --bids out."
        )
    if options.series and not any(case.series for case in cases):
        raise InputError(f"There is no DICOM series {options.series}.", "Check the UID, or leave --series out for all.")
    distinct: dict[object, ScanCase] = {}
    for case in cases:
        if distinct.setdefault(case.key, case) is not case:
            skipped.append(Skipped(" + ".join(case.channels), "it was given twice"))
    if not distinct:
        first = f": {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise InputError(f"There is no scan to segment{first}.", "Check the folders, or give the scans one by one.")
    return Sources(tuple(with_unique_ids(list(distinct.values()))), tuple(skipped))


def _from_source(source: str, options: SourceOptions) -> tuple[list[ScanCase], list[Skipped]]:
    if glob.has_magic(source) and not there(source):
        return _from_pattern(source, options)
    paths = scan_paths(source)
    if len(paths) > 1 or not Path(paths[0]).is_dir():
        for path in paths:
            if not there(path):
                raise InputError(f"There is no scan at {path}.", "Check the path.")
        dicom = options.series if all(Path(path).is_dir() for path in paths) else ""
        return [ScanCase(safe_id(scan_name(paths[0])), tuple(paths), dicom)], []
    folder = Path(paths[0])
    if is_bids(folder):
        return bids_cases(folder, options.channels, options.suffixes)
    return _Search(folder, options).run()


def _from_pattern(pattern: str, options: SourceOptions) -> tuple[list[ScanCase], list[Skipped]]:
    """Return the cases of a pattern, named by their paths below the last folder that holds no ``*``."""
    paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    if not paths:
        raise InputError(f"Nothing matches {pattern}.", "Check the pattern; quote it, so that the shell leaves it.")
    parts = Path(pattern).parts
    root = Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])
    cases: list[ScanCase] = []
    skipped: list[Skipped] = []
    for path in map(Path, paths):
        if path.is_dir():
            new, left = _Search(path, options, root).run()
            cases += new
            skipped += left
        elif path.name.lower().endswith(".seg.nrrd"):
            skipped.append(Skipped(str(path), "it is a segmentation"))
        elif path.name.lower().endswith(EXTENSIONS):
            cases.append(ScanCase(safe_id(*path.relative_to(root).parts[:-1], scan_name(path)), (str(path),)))
        else:
            skipped.append(Skipped(str(path), "it is no scan file"))
    return cases, skipped


class _Search:
    """Searches a folder and those below it. Cases are named by their paths from ``root`` on."""

    def __init__(self, folder: Path, options: SourceOptions, root: Path | None = None) -> None:
        self._folder, self._options, self._root = folder, options, root or folder
        self._leave_out = {os.path.realpath(path) for path in options.leave_out}
        #: Label maps that earlier runs wrote here, by the journals that lie among the scans.
        self._outputs: set[str] = set()
        self._cases: list[ScanCase] = []
        self._skipped: list[Skipped] = []

    def run(self) -> tuple[list[ScanCase], list[Skipped]]:
        dicom = DicomSearch(self._root, self._options.series)
        for place, folders, files in os.walk(self._folder, onerror=self._unreadable, followlinks=False):
            self._options.check()
            folders[:] = sorted(name for name in folders if self._enters(Path(place), name))
            self._outputs |= outputs_told_of(Path(place), files)
            scans, others = [], []
            for name in sorted(files):
                if name.startswith("."):
                    continue
                if name.lower().endswith(".seg.nrrd"):
                    self._skipped.append(Skipped(os.path.join(place, name), "it is a segmentation"))  # noqa: PTH118
                elif self._outputs and os.path.realpath(Path(place, name)) in self._outputs:
                    self._skipped.append(Skipped(str(Path(place, name)), "it is the output of an earlier run"))
                elif name.lower().endswith(EXTENSIONS):
                    scans.append(Path(place, name))
                else:
                    others.append(Path(place, name))
            self._take(scans)
            dicom.look(others, self._options.check)
        cases, skipped = dicom.result()
        return [*self._cases, *cases], [*self._skipped, *skipped]

    def _unreadable(self, error: OSError) -> None:
        self._skipped.append(Skipped(str(error.filename), f"the folder cannot be read: {error.strerror}"))

    def _enters(self, place: Path, name: str) -> bool:
        path = place / name
        if name.startswith(".") or os.path.realpath(path) in self._leave_out:
            return False
        if _LABEL_FOLDERS.fullmatch(name) and path != self._folder:
            self._skipped.append(Skipped(str(path), "a folder of that name holds label maps"))
            return False
        if path.is_symlink() and path.is_dir():
            self._skipped.append(Skipped(str(path), "it is a link to a folder; give that folder itself"))
            return False
        return True

    def _take(self, scans: Sequence[Path]) -> None:
        """Take the scan files of one folder; those of nnU-Net's form are the channels of one scan."""
        groups, alone = channel_groups(scans, self._options.channels)
        for stem, paths in groups.items():
            numbers = [int(_CHANNEL.fullmatch(scan_name(path))[2]) for path in paths]  # type: ignore[index]
            if numbers != list(range(self._options.channels)):
                missing = sorted(set(range(self._options.channels)) - set(numbers))
                reason = (
                    f"channel {missing[0]:04d} of {stem} is missing"
                    if missing
                    else f"it has {len(paths)} channels; the model takes {self._options.channels}"
                )
                self._skipped.append(Skipped(str(paths[0]), reason))
                continue
            self._add(paths, stem)
        for path in alone:
            self._add([path], scan_name(path))

    def _add(self, paths: Sequence[Path], name: str) -> None:
        folders = paths[0].parent.relative_to(self._root).parts
        self._cases.append(ScanCase(safe_id(*folders, name), tuple(map(str, paths))))


def channel_groups(scans: Sequence[Path], channels: int) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files of nnU-Net's form ``case_0000.nii.gz``, grouped by case with their channels in order, and the files of no such form.

    With a model of one channel, ``case_0000``, ``case_0001``, ... are scans that somebody numbered; ``case_0000`` alone is nnU-Net's.
    """
    matches = {path: match for path in scans if (match := _CHANNEL.fullmatch(scan_name(path)))}
    groups: dict[str, list[Path]] = {}
    for path, match in matches.items():
        groups.setdefault(match[1], []).append(path)
    for stem, paths in list(groups.items()):
        paths.sort(key=lambda path: int(matches[path][2]))
        numbers = [int(matches[path][2]) for path in paths]
        if numbers[0] != 0 or len(set(numbers)) < len(numbers) or (channels == 1 and len(paths) > 1):
            del groups[stem]
    grouped = {path for paths in groups.values() for path in paths}
    return groups, [path for path in scans if path not in grouped]


def read_list(path: str | os.PathLike[str], channels: int) -> list[ScanCase]:
    """Read a list of cases: a CSV file with a heading. ``id`` names a case, ``labels`` its reference label map and ``series`` the series
    of a DICOM folder; every other column is the path of a channel, in order. Paths begin at the list's folder.

    Raises:
        InputError: it cannot be read, has other channels than the model, a case without a path, or an id twice.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"There is no list at {file}.", "Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not in UTF-8"
        raise InputError(f"The list {file} cannot be read: {reason}.", "Give a CSV file in UTF-8.") from error
    lines = text.splitlines()
    delimiter = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    rows = [row for row in rows if any(row)]
    if len(rows) < 2:
        raise InputError(f"The list {file} holds no case.", "Give a heading such as id,image and a line for each case.")
    head = [cell.lower() for cell in rows[0]]
    images = [n for n, word in enumerate(head) if word not in _LIST_WORDS]
    if "id" not in head or not images:
        raise InputError(
            f"The heading of {file} is {','.join(rows[0])}: it names no id or no channel.",
            "Begin with a line such as id,image or id,t1,flair,labels.",
        )
    if len(images) != channels:
        raise InputError(
            f"{file} has {len(images)} channel column(s) ({', '.join(rows[0][n] for n in images)}); the model takes {channels}.",
            "Give a column for each channel of the model, in its order.",
        )
    cases, ids = [], set()
    for number, row in enumerate(rows[1:], 2):
        cells = dict(zip(head, row, strict=False))
        paths = [row[n] if n < len(row) else "" for n in images]
        name = safe_id(*cells.get("id", "").replace("\\", "/").split("/"))
        if not name or not all(paths) or len(row) > len(head):
            raise InputError(
                f"Line {number} of {file} is not a case: {','.join(row)}.", "Give an id and every channel."
            )
        if name.casefold() in ids:
            raise InputError(f"{file} holds several cases called {name}.", "Give each case an id of its own.")
        ids.add(name.casefold())
        labels = cells.get("labels", "")
        base = file.absolute().parent
        cases.append(
            ScanCase(
                name,
                tuple(str(base / each) for each in paths),
                cells.get("series", ""),
                str(base / labels) if labels else "",
            )
        )
    return cases
