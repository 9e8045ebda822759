"""What a case is: one scan with all its channels, and a name that no other case of the cohort has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..imaging.volume_files import scan_name

#: What no disk, or not every disk, takes in a name.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
#: Names that Windows keeps for devices.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MOST_BYTES = 120


@dataclass(frozen=True)
class ScanCase:
    """One scan of a cohort.

    Attributes:
        id: the case's name, unique in its cohort: a relative path with "/" whose last part is the name of the result without its type.
        channels: the path of each channel, a file or a DICOM folder.
        series: the series instance UID to read from the DICOM folders; ``UID:N`` for the N-th stack of it. Empty for files.
        labels: a reference label map, or empty.
        more_folders: further folders in which the files of the DICOM series lie.
        masks: a mask file for each structure, in place of a label map: (name, path).
    """

    id: str
    channels: tuple[str, ...]
    series: str = ""
    labels: str = ""
    more_folders: tuple[str, ...] = ()
    masks: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> tuple[tuple[str, ...], str]:
        """What makes two cases the same scan."""
        return tuple(str(Path(path).absolute()) for path in self.channels), self.series

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file and folder that the case is read from."""
        return (*self.channels, *self.more_folders, *filter(None, [self.labels]), *(path for _, path in self.masks))


@dataclass(frozen=True)
class Skipped:
    """Something that was found and is no case, with the reason in words."""

    path: str
    reason: str


def safe_part(text: str) -> str:
    """Return a text as one part of a path that every disk takes: no separators, no control characters, not too long."""
    clean = _FORBIDDEN.sub("_", text.encode("utf-8", "replace").decode("utf-8"))
    clean = clean.encode("utf-8")[:_MOST_BYTES].decode("utf-8", "ignore").rstrip(". ").lstrip(" ")
    if clean.strip(".") == "" or _DEVICES.fullmatch(clean):
        return f"_{clean.strip('.')}"
    return clean


def safe_id(*parts: str) -> str:
    """Return a case's name from the parts of a path."""
    return "/".join(safe_part(part) for part in parts if part not in ("", "."))


def with_unique_ids(cases: Sequence[ScanCase]) -> list[ScanCase]:
    """Return the cases with names that differ: those that are called the same get their type, then their folders, then a number.

    Names that differ by upper and lower case alone count as one: not every disk tells them apart.
    """
    choices = [_choices(case) for case in cases]
    level = [0] * len(cases)
    while True:
        names = [choices[n][level[n]] for n in range(len(cases))]
        count = Counter(name.casefold() for name in names)
        rising = [n for n in range(len(cases)) if count[names[n].casefold()] > 1 and level[n] + 1 < len(choices[n])]
        if not rising:
            break
        for n in rising:
            level[n] += 1
    used = {name for name, number in count.items() if number == 1}
    result = []
    for case, name in zip(cases, names, strict=True):
        free, number = name, 2
        if count[name.casefold()] > 1:
            while free.casefold() in used:
                free, number = f"{name}-{number}", number + 1
            used.add(free.casefold())
        result.append(replace(case, id=free))
    return result


def _choices(case: ScanCase) -> list[str]:
    """Return names for a case, from the shortest on: its own, with the folders above, and each of them with the file's type."""
    first = Path(case.channels[0]).absolute()
    tail = case.id.rpartition("/")[2]
    typed = first.name if tail == safe_part(scan_name(first)) and not first.is_dir() else ""
    above = [part for part in first.parts[1:-1] if part]
    depth = case.id.count("/")
    folders = above[: len(above) - depth] if depth else above
    names = [case.id]
    for count in range(1, len(folders) + 1):
        names.append(safe_id(*folders[-count:], *case.id.split("/")))
    if typed:
        # Two scans of one folder differ by their type alone: more folders do not tell them apart.
        names = [name for pair in ((n, _with_tail(n, typed)) for n in names) for name in pair]
    return names


def _with_tail(name: str, tail: str) -> str:
    head = name.rpartition("/")[0]
    return safe_id(*head.split("/"), tail)
