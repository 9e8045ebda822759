"""What is there already is replaced only if the same command wrote it and nobody changed it since, or if that was asked for.

One rule for all commands. What a command writes is noted, for this user, with its size and time of change; a file of which that
is not noted, or which is another one by now (a segmentation that was corrected, a table with remarks), is somebody's work.
It takes ``--force`` to replace it, or a yes on a terminal. The notes name no file: they hold hashes of paths.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError, MedQuantError
from ..imaging.volume_files import scan_name
from ..models.package import MODEL_JSON, peek
from ..system import user_folder
from .terminal import ask, warn

PathLike = str | os.PathLike[str]
#: Above this the older half of the notes is forgotten; what it told of then takes --force.
_MOST_BYTES = 1 << 20


@contextmanager
def overwriting(args: argparse.Namespace, targets: Iterable[PathLike], ours: Iterable[PathLike] = ()) -> Iterator[None]:
    """Refuse to go on if what a command writes would replace somebody's work; note what it has written.

    Args:
        args: of the command: its name, ``force`` and ``json``.
        targets: files, and folders that are replaced with all that lies in them.
        ours: files that may be replaced without a note, because the command has seen for itself that nothing is lost.

    Raises:
        InputError: something is there that the same command did not write, or that was changed since.
    """
    paths = [Path(target) for target in targets]
    before = {file: _state(file) for path in paths for file in _files(path)}
    noted = _noted() if before else {}
    known = set(map(Path, ours))
    others = [file for file, state in before.items() if noted.get(_key(file)) != (args.command, state)]
    foreign = [file for file in others if file not in known]
    if (
        foreign
        and not args.force
        and not (not args.json and ask(f"{_named(foreign)} Replace {'it' if len(foreign) == 1 else 'them'}?"))
    ):
        raise InputError(_named(foreign), "Choose another output, or give --force to replace it.")
    try:
        yield
    finally:
        after = {file: _state(file) for path in paths for file in _files(path)}
        written = {file: state for file, state in after.items() if before.get(file) != state}
        _note(args.command, written)
    if replaced := sorted(file for file in before if after.get(file) != before[file]):
        who = (
            f"which medquant {args.command} had written before"
            if not others
            else "which was there already"
            if foreign
            else "a package of the same name"
        )
        warn(f"note: replaced {_listed(replaced)}, {who}")


def of_package(target: PathLike, name: str) -> list[Path]:
    """The files of the package at ``target``, if it is one of that name; what else lies in its folder is not among them."""
    path = Path(target)
    try:
        spec, files = peek(path)
    except MedQuantError:
        return []
    if spec.name != name:
        return []
    return [path / file for file in (MODEL_JSON, *files)] if path.is_dir() else [path]


def _files(path: Path) -> list[Path]:
    """A file, or all files in a folder; links are not followed into other folders."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_symlink() or not file.is_dir())
    return [path] if path.exists() or path.is_symlink() else []


def _named(files: Sequence[Path]) -> str:
    are = "are" if len(files) > 1 else "is"
    return f"{_listed(files)} {are} there already, and this command did not write {'them' if len(files) > 1 else 'it'}, or somebody changed {'them' if len(files) > 1 else 'it'} since."


def _listed(files: Sequence[Path]) -> str:
    return f"{files[0]}" + (f" and {len(files) - 1} more file(s)" if len(files) > 1 else "")


def _state(file: Path) -> tuple[int, int] | None:
    """Return the size of a file and the time of its last change, or None where there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _key(file: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:32]


def _notes() -> Path:
    return user_folder("data") / "written"


def _noted() -> dict[str, tuple[str, tuple[int, int]]]:
    """The last note of each file: the command, and the file's state when it had been written."""
    notes = {}
    with suppress(OSError):
        for line in _notes().read_text(encoding="ascii", errors="replace").splitlines():
            parts = line.split()
            if len(parts) == 4 and parts[2].isdecimal() and parts[3].isdecimal():
                notes[parts[0]] = (parts[1], (int(parts[2]), int(parts[3])))
    return notes


def _note(command: str, written: dict[Path, tuple[int, int] | None]) -> None:
    """Add notes. Where that cannot be done, the next run takes --force."""
    text = "".join(
        f"{_key(file)} {command} {state[0]} {state[1]}\n" for file, state in written.items() if state is not None
    )
    if not text:
        return
    with suppress(OSError):
        path = _notes()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _MOST_BYTES:
            from ..files import write_text

            lines = path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)
            write_text(path, "".join(lines[len(lines) // 2 :]))
        # One write at the end of the file: commands that run at once do not mix their lines.
        with open(path, "ab", buffering=0) as stream:
            stream.write(text.encode("ascii"))


def free_path(wanted: Path) -> Path:
    """``wanted``, or where something of that name is there, the first with a number behind its name that is free."""
    stem = scan_name(wanted)
    ending = wanted.name[len(stem) :]
    path, number = wanted, 2
    while path.exists() or path.is_symlink():
        path, number = wanted.with_name(f"{stem}-{number}{ending}"), number + 1
    return path


def segmentation_beside(scan: PathLike, model: str) -> Path:
    """Where the segmentation of a scan goes if nobody says: beside it, named by the scan and the model, under a name that is free."""
    path = Path(scan).absolute()
    path = path.resolve() if path.name in ("", "..") else path
    name = path.name if os.path.isdir(path) else scan_name(path)  # noqa: PTH112 (False where the name is too long to be looked for)
    plain = re.sub(r"[^\w.-]+", "_", model).strip("._") or "model"
    return free_path(path.with_name(f"{_cut(name, 120) or 'scan'}-{_cut(plain, 80)}.seg.nrrd"))


def _cut(text: str, most: int) -> str:
    """``text`` without what goes beyond so many bytes: disks take names of 255 or fewer."""
    return text.encode("utf-8", "ignore")[:most].decode("utf-8", "ignore")
