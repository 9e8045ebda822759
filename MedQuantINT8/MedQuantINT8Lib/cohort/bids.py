"""BIDS folders: ``sub-*/[ses-*/]anat/sub-*_SUFFIX.nii.gz``, one case for each subject, session and run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..imaging.volume_files import EXTENSIONS, scan_name
from .cases import ScanCase, Skipped, safe_id

#: Kinds of BIDS data that hold frames in time or directions: none of them is one volume.
_SERIES_FOLDERS = ("func", "dwi", "perf", "eeg", "meg", "ieeg", "beh", "fmap")
_NAME = re.compile(r"(sub-[^_]+(?:_[^_]+-[^_]+)*)_([A-Za-z0-9]+)")


def is_bids(folder: Path) -> bool:
    """Return whether a folder is laid out as BIDS: it holds folders ``sub-*`` with scans whose names begin with theirs."""
    return any(
        path.name.lower().endswith(EXTENSIONS)
        for subject in sorted(folder.glob("sub-*"))
        if subject.is_dir()
        for path in subject.glob("**/sub-*_*")
    )


def bids_cases(folder: Path, channels: int, suffixes: Sequence[str]) -> tuple[list[ScanCase], list[Skipped]]:
    """Return the cases of a BIDS folder.

    Args:
        channels: how many the model takes.
        suffixes: of each channel; empty where the folder has one anatomical suffix, or T1w, which then is taken.

    Raises:
        InputError: it cannot be told which scans are meant.
    """
    skipped: list[Skipped] = []
    by_subject: dict[tuple[Path, str], dict[str, Path]] = {}
    kinds: set[str] = set()
    for path in sorted(folder.glob("sub-*/**/*")):
        name = path.name.lower()
        if not path.is_file() or not name.endswith(EXTENSIONS) or name.startswith("."):
            continue
        match = _NAME.fullmatch(scan_name(path))
        if name.endswith(".seg.nrrd"):
            skipped.append(Skipped(str(path), "it is a segmentation"))
        elif path.parent.name in _SERIES_FOLDERS:
            skipped.append(Skipped(str(path), f"{path.parent.name} is no anatomical scan"))
        elif match is None:
            skipped.append(Skipped(str(path), "its name is none of BIDS"))
        elif match[2] in ("mask", "dseg", "probseg", "defacemask"):
            skipped.append(Skipped(str(path), "it is a mask or a label map"))
        else:
            by_subject.setdefault((path.parent, match[1]), {})[match[2]] = path
            kinds.add(match[2])
    wanted = tuple(suffixes) or _suffixes(folder, sorted(kinds), channels)
    if len(wanted) != channels:
        raise InputError(
            f"{len(wanted)} suffix(es) were given; the model takes {channels} channel(s).", "Give one each."
        )
    if suffixes and not set(wanted) <= kinds:
        raise InputError(
            f"{folder} has no scans of the suffix {sorted(set(wanted) - kinds)[0]}.",
            f"It has {', '.join(sorted(kinds))}.",
        )
    cases: list[ScanCase] = []
    for (place, stem), files in by_subject.items():
        present = [suffix for suffix in wanted if suffix in files]
        if len(present) == len(wanted):
            name = f"{stem}_{wanted[0]}" if len(wanted) == 1 else stem
            paths = tuple(str(files[suffix]) for suffix in wanted)
            cases.append(ScanCase(safe_id(*place.relative_to(folder).parts, name), paths))
        elif present:
            missing = next(suffix for suffix in wanted if suffix not in files)
            skipped.append(Skipped(str(files[present[0]]), f"there is no {missing} beside it"))
        for suffix, path in files.items():
            if suffix not in wanted:
                skipped.append(Skipped(str(path), f"it is {suffix}; {', '.join(wanted)} is segmented"))
    return cases, skipped


def _suffixes(folder: Path, kinds: Sequence[str], channels: int) -> tuple[str, ...]:
    if channels == 1 and len(kinds) == 1:
        return (kinds[0],)
    if channels == 1 and "T1w" in kinds:
        return ("T1w",)
    raise InputError(
        f"{folder} is a BIDS folder with {', '.join(kinds) or 'no scans'}; the model takes {channels} channel(s).",
        "Name the suffix of each, in order: --bids T1w,FLAIR.",
    )
