"""DICOM trees: one case for each series, by its SeriesInstanceUID, wherever its files lie; what is no scan is left out with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..imaging.dicom_file import DamagedDicom, DicomFile, read_dicom
from ..imaging.dicom_image import MODALITY, SERIES
from .cases import ScanCase, Skipped, safe_id

_IMAGE_TYPE, _DESCRIPTION = 0x00080008, 0x0008103E
_POSITION, _ORIENTATION = 0x00200032, 0x00200037
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_SUFFIXES = (".dcm", ".ima", ".dicom")
#: Modalities with pixels that are no scans.
_NO_SCANS = {
    "SEG": "a segmentation",
    "RTDOSE": "a dose distribution",
    "PR": "a presentation state",
    "DOC": "a document",
}


@dataclass
class _Series:
    """What the headers of a series say, gathered file by file."""

    folders: list[Path] = field(default_factory=list)
    modality: str = ""
    description: str = ""
    files: int = 0
    pixels: int = 0
    localizers: int = 0
    placed: int = 0

    def add(self, file: DicomFile) -> None:
        folder = file.path.parent
        if folder not in self.folders:
            self.folders.append(folder)
        data = file.data
        self.modality = self.modality or data.text(MODALITY)
        self.description = self.description or data.text(_DESCRIPTION)
        self.files += 1
        self.pixels += file.pixels is not None
        self.localizers += "LOCALIZER" in data.text(_IMAGE_TYPE).upper().split("\\")
        # Multi-frame objects say where each frame lies in sequences.
        framed = bool(data.sequences.get(_SHARED) or data.sequences.get(_PER_FRAME))
        self.placed += framed or bool(data.text(_POSITION) and data.text(_ORIENTATION))

    @property
    def reason_against(self) -> str:
        """Why the series is no scan; empty where it is one."""
        if self.modality in _NO_SCANS:
            return f"it is {_NO_SCANS[self.modality]} ({self.modality})"
        if not self.pixels:
            return f"it holds no images ({self.modality or 'no modality'})"
        if self.localizers == self.files:
            return "it is a localizer"
        if not self.placed:
            return "its images do not say where they lie in the patient (no geometry)"
        return ""


class DicomSearch:
    """Looks at files and gathers the series that they belong to.

    Args:
        root: the folder from which on cases are named.
        series: the one series to take, or empty for all.
    """

    def __init__(self, root: Path, series: str = "") -> None:
        self._root, self._only = root, series
        self._series: dict[str, _Series] = {}
        self._damaged: list[Skipped] = []

    @property
    def count(self) -> int:
        """How many series with pixels were seen."""
        return sum(series.pixels > 0 for series in self._series.values())

    def look(self, files: Sequence[Path], check: Callable[[], None]) -> None:
        """Look at the files of one folder; those that are no DICOM files do not matter."""
        for number, path in enumerate(files):
            if number % 100 == 0:
                check()
            if not path.is_file() or path.name.lower() == "dicomdir" or not _may_be_dicom(path):
                continue
            try:
                file = read_dicom(path)
            except (DamagedDicom, OSError) as error:
                self._damaged.append(Skipped(str(path), f"damaged: {error}"))
                continue
            if file is not None:
                self._series.setdefault(file.data.text(SERIES), _Series()).add(file)
            elif path.suffix.lower() in _SUFFIXES:
                self._damaged.append(Skipped(str(path), "damaged: it is no DICOM file in spite of its name"))

    def result(self) -> tuple[list[ScanCase], list[Skipped]]:
        """Return the series that are scans as cases, and the others."""
        cases: list[ScanCase] = []
        skipped = list(self._damaged)
        wanted, _, stack = self._only.partition(":")
        scans: dict[str, _Series] = {}
        for uid, series in self._series.items():
            place = f"{series.folders[0]}: series {uid or 'without a UID'}"
            if series.description:
                place += f" ({series.description})"
            if wanted and uid != wanted:
                skipped.append(Skipped(place, f"it is not the series {wanted}"))
            elif reason := series.reason_against:
                skipped.append(Skipped(place, reason))
            elif not uid:
                skipped.append(Skipped(place, "it has no SeriesInstanceUID"))
            else:
                scans[uid] = series
        in_folder: dict[Path, int] = {}
        for series in self._series.values():
            for folder in series.folders:
                in_folder[folder] = in_folder.get(folder, 0) + 1
        for uid, series in scans.items():
            folders = tuple(sorted(map(str, series.folders)))
            common = Path(os.path.commonpath(folders))
            parts = list(common.relative_to(self._root).parts)
            alone = len(folders) == 1 and in_folder[series.folders[0]] == 1
            if not alone or not parts:
                parts.append(uid if not alone else common.absolute().name or uid)
            series_name = f"{uid}:{stack}" if stack else uid
            cases.append(ScanCase(safe_id(*parts), folders[:1], series_name, more_folders=folders[1:]))
        return cases, skipped


def _may_be_dicom(path: Path) -> bool:
    """Return whether a file is worth its header being read: by its name, or by its first bytes."""
    if path.suffix.lower() in _SUFFIXES or not path.suffix or path.suffix[1:].isdigit():
        return True
    try:
        with open(path, "rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError:
        return False
