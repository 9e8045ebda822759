"""Under which licence a MONAI bundle's weights stand, which is not always that of its code."""

from __future__ import annotations

import re
from pathlib import Path

_LONGEST = 200_000
_WEIGHTS = re.compile(r"^\W*(?:model\s+)?weights?\s+licen[cs]e\b", re.IGNORECASE)
_CODE = re.compile(r"^\W*(?:source\s+)?code\s+licen[cs]e\b", re.IGNORECASE)
_SCOPE = re.compile(r"^this licen[cs]e applies to", re.IGNORECASE)
_NOT_COMMERCIAL = re.compile(r"non-?\s?commercial", re.IGNORECASE)


def license_of(folder: Path, otherwise: str) -> str:
    """What a bundle's files say, weights first: LICENSE (its part for weights, where it has one), further licence files, what
    docs/README.md says of the weights, and docs/data_license.txt.

    Args:
        otherwise: what to say where there are none.
    """
    said = []
    text = _read(folder / "LICENSE")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    weights = next((n for n, line in enumerate(lines) if _WEIGHTS.match(line)), None)
    if weights is not None:
        said.append(
            f"weights: {_title(lines[weights:])}{_commercial(' '.join(lines[weights:]))} (the bundle's LICENSE)"
        )
        said.append(f"code: {_title(lines[:weights])}")
    elif lines:
        said.append(f"{_title(lines)}{_commercial(text)} (the bundle's LICENSE)")
    for path in _others(folder):
        other = _read(path)
        first = next((line.strip() for line in other.splitlines() if line.strip()), path.name)
        words = f"{first[:120]}{_commercial(other)} ({path.relative_to(folder).as_posix()})"
        if "weight" in path.name.lower():
            weights, said = 0, [f"weights: {words}", *said]
        else:
            said.append(words)
    if weights is None and (sentence := _of_readme(_read(folder / "docs" / "README.md"))):
        said.insert(0, f"weights: {sentence}")
    data = _read(folder / "docs" / "data_license.txt")
    if line := next((line.strip() for line in data.splitlines() if line.strip()), ""):
        said.append(f"data: {line[:120]}{_commercial(data)} (the bundle's docs/data_license.txt)")
    return "; ".join(said) or otherwise


def _title(lines: list[str]) -> str:
    """The first line that names a licence, without headings that only say what it is for."""
    named = (
        line
        for line in lines
        if not (_WEIGHTS.match(line) or _CODE.match(line) or _SCOPE.match(line)) and re.search(r"\w", line)
    )
    return next(named, lines[0] if lines else "unknown")[:120]


def _commercial(text: str) -> str:
    return ", non-commercial" if _NOT_COMMERCIAL.search(text) else ""


def _others(folder: Path) -> list[Path]:
    found = []
    for place in (folder, folder / "docs", folder / "models"):
        if place.is_dir():
            found += [
                p for p in sorted(place.iterdir()) if re.search(r"licen[cs]e", p.name, re.IGNORECASE) and p.is_file()
            ]
    known = {folder / "LICENSE", folder / "docs" / "data_license.txt"}
    return [path for path in found if path not in known and path.suffix.lower() in ("", ".txt", ".md", ".weights")]


def _of_readme(text: str) -> str:
    """The sentence of a README that says under which licence the weights are."""
    for line in text.splitlines():
        for sentence in re.split(r"(?<=[.!])\s", line.strip(" #*->")):
            if re.search(r"weights?\b", sentence, re.IGNORECASE) and re.search(
                r"licen[cs]ed?\b", sentence, re.IGNORECASE
            ):
                return sentence.strip()[:200]
    return ""


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:_LONGEST] if path.is_file() else ""
        return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    except OSError:
        return ""
