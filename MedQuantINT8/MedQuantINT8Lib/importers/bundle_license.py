"""The license of a MONAI bundle's weights, which is not always that of its code."""

from __future__ import annotations

import re
from pathlib import Path

_LONGEST = 200_000
_WEIGHTS = re.compile(r"^\W*(?:model\s+)?weights?\s+licen[cs]e\b", re.IGNORECASE)
_CODE = re.compile(r"^\W*(?:source\s+)?code\s+licen[cs]e\b", re.IGNORECASE)
_SCOPE = re.compile(r"^this licen[cs]e applies to", re.IGNORECASE)
_NOT_COMMERCIAL = re.compile(r"non-?\s?commercial", re.IGNORECASE)


def license_of(folder: Path, default: str) -> str:
    """Return the licenses that a bundle's files name, weights first: those of LICENSE (its part for weights, where it has one), further
    license files, docs/README.md where it speaks of the weights, and docs/data_license.txt.

    Args:
        default: the text where there are none.
    """
    parts = []
    text = _read_text(folder / "LICENSE")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    weights = next((n for n, line in enumerate(lines) if _WEIGHTS.match(line)), None)
    if weights is not None:
        parts.append(
            f"weights: {_title(lines[weights:])}{_commercial_note(' '.join(lines[weights:]))} (the bundle's LICENSE)"
        )
        parts.append(f"code: {_title(lines[:weights])}")
    elif lines:
        parts.append(f"{_title(lines)}{_commercial_note(text)} (the bundle's LICENSE)")
    for path in _list_further_files(folder):
        other = _read_text(path)
        first = next((line.strip() for line in other.splitlines() if line.strip()), path.name)
        words = f"{first[:120]}{_commercial_note(other)} ({path.relative_to(folder).as_posix()})"
        if "weight" in path.name.lower():
            weights, parts = 0, [f"weights: {words}", *parts]
        else:
            parts.append(words)
    if weights is None and (sentence := _sentence_of_readme(_read_text(folder / "docs" / "README.md"))):
        parts.insert(0, f"weights: {sentence}")
    data = _read_text(folder / "docs" / "data_license.txt")
    if line := next((line.strip() for line in data.splitlines() if line.strip()), ""):
        parts.append(f"data: {line[:120]}{_commercial_note(data)} (the bundle's docs/data_license.txt)")
    return "; ".join(parts) or default


def _title(lines: list[str]) -> str:
    """Return the first line that names a license, without headings that only say what it is for."""
    titles = (
        line
        for line in lines
        if not (_WEIGHTS.match(line) or _CODE.match(line) or _SCOPE.match(line)) and re.search(r"\w", line)
    )
    return next(titles, lines[0] if lines else "unknown")[:120]


def _commercial_note(text: str) -> str:
    return ", non-commercial" if _NOT_COMMERCIAL.search(text) else ""


def _list_further_files(folder: Path) -> list[Path]:
    paths = []
    for place in (folder, folder / "docs", folder / "models"):
        if place.is_dir():
            paths += [
                p for p in sorted(place.iterdir()) if re.search(r"licen[cs]e", p.name, re.IGNORECASE) and p.is_file()
            ]
    standard_files = {folder / "LICENSE", folder / "docs" / "data_license.txt"}
    return [
        path for path in paths if path not in standard_files and path.suffix.lower() in ("", ".txt", ".md", ".weights")
    ]


def _sentence_of_readme(text: str) -> str:
    """Return the sentence of a README that says under which license the weights are."""
    for line in text.splitlines():
        for sentence in re.split(r"(?<=[.!])\s", line.strip(" #*->")):
            if re.search(r"weights?\b", sentence, re.IGNORECASE) and re.search(
                r"licen[cs]ed?\b", sentence, re.IGNORECASE
            ):
                return sentence.strip()[:200]
    return ""


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:_LONGEST] if path.is_file() else ""
        return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    except OSError:
        return ""
